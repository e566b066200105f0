"""The adapter against the formula, and its size against the released run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusemix.align.adapters import Adapter, adapter_of
from fusemix.config import paper, scaled


def test_the_released_run_has_110_million_parameters():
    """DINOv2-g (1536) and BGE-large (1024), four blocks a side: 76.33M + 34.11M (method.md 1.3)."""
    image, text = (sum(p.numel() for p in Adapter(d, paper(0)).parameters()) for d in (1536, 1024))
    assert image + text + 1 == 110_440_449  # the one is the temperature


def test_forward_follows_the_formula():
    config = scaled(1000, 0)
    adapter = Adapter(7, config).eval()
    x = torch.randn(5, 7)
    h = x
    for block in adapter.blocks:
        normed = F.layer_norm(h, (7,), block.norm.weight, block.norm.bias)
        inner = F.gelu(normed @ block.up.weight.T + block.up.bias)
        assert inner.shape == (5, 7 * config.expansion)
        h = h + inner @ block.down.weight.T + block.down.bias
    h = F.layer_norm(h, (7,), adapter.norm.weight, adapter.norm.bias) @ adapter.project.weight.T + adapter.project.bias
    torch.testing.assert_close(adapter(x), h / h.norm(dim=1, keepdim=True))


def test_blocks_are_narrower_than_wide_latents_behind_a_map_that_begins_as_a_rotation():
    config = replace(scaled(1000, 0), width=16)
    wide, narrow = Adapter(40, config).eval(), Adapter(12, config)
    assert wide.blocks[0].up.weight.shape == (16 * config.expansion, 16) and not list(narrow.narrow.parameters())
    weight = wide.narrow.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), rtol=0, atol=1e-5)
    x = torch.randn(2000, 40)
    assert abs(wide.narrow(x).std().item() - 1) < 0.05
    rest = replace(config, width=0)
    same = Adapter(16, rest).eval()
    same.load_state_dict(
        {k: v for k, v in wide.state_dict().items() if "narrow" not in k and k not in ("shift", "scale")}, strict=False
    )
    torch.testing.assert_close(wide(x[:5]), same(x[:5] @ weight.T + wide.narrow.bias))
    assert Adapter(40, replace(config, depth=0)).project.weight.shape[1] == 40


def test_what_flows_past_narrow_blocks_is_float32_in_half_precision():
    adapter, seen = Adapter(40, replace(scaled(1000, 0), width=16)), []
    adapter.blocks[0].register_forward_pre_hook(lambda block, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        adapter(torch.randn(3, 40))
    assert seen == [torch.float32]


@pytest.mark.parametrize("dim", [12, 40])
def test_an_adapter_of_narrow_blocks_is_known_by_its_tensors(dim):
    """Also where another fit made it, whose settings are not at hand."""
    config = replace(scaled(1000, 0), width=16)
    adapter, x = Adapter(dim, config).eval(), torch.randn(5, dim)
    for settings, foreign in ((config, False), (replace(config, width=7, depth=3, dim=9), True)):
        assert torch.equal(adapter_of(adapter.state_dict(), dim, settings, foreign).eval()(x), adapter(x))
    if dim > 16:
        with pytest.raises(RuntimeError, match="a network of .*'width': 16.*, which are not its settings"):
            adapter_of(adapter.state_dict(), dim, replace(config, width=20))


def test_standardising_gives_zero_mean_and_unit_deviation_and_spares_constant_dimensions():
    latents = torch.randn(500, 4) * torch.tensor([0.01, 1.0, 100.0, 0.0]) + 5
    adapter = Adapter(4, scaled(1000, 0))
    adapter.standardize(latents.mean(dim=0), latents.std(dim=0, correction=0))
    z = (latents - adapter.shift) * adapter.scale
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    assert z[:, 2].std().item() < 1.01 and z.isfinite().all() and z[:, 3].abs().max() < 1e-4
