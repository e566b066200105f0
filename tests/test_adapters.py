"""The adapter against the formula, and its size against the released run."""

import numpy as np
import torch
from torch.nn import functional as F

from fusemix.align.adapters import Adapter
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


def test_standardising_gives_zero_mean_and_unit_deviation_and_spares_constant_dimensions():
    latents = torch.randn(500, 4) * torch.tensor([0.01, 1.0, 100.0, 0.0]) + 5
    adapter = Adapter(4, scaled(1000, 0))
    adapter.standardize(latents.mean(dim=0), latents.std(dim=0, correction=0))
    z = (latents - adapter.shift) * adapter.scale
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    assert z[:, 2].std().item() < 1.01 and z.isfinite().all() and z[:, 3].abs().max() < 1e-4
