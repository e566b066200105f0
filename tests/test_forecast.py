"""The forecast of a fit: FLOPs and bytes against what torch counts, and against the published run."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fusemix.align.adapters import Adapter
from fusemix.align.losses import info_nce
from fusemix.config import paper, scaled
from fusemix.data.latents import Latents
from fusemix.fit import fit_adapters, foresee
from fusemix.progress import silent
from fusemix.terminal import show_forecast
from fusemix.training.forecast import activation_bytes, forecast, matmul_rate, memory, step_flops

CPU = torch.device("cpu")
SMALL = replace(scaled(1000, 0), dim=16, depth=2)
ALL = 2**62
SECONDS = step_flops(replace(SMALL, batch_size=8), (40, 24), 9) * 2e-10


@pytest.fixture
def pairs():
    """100 pairs of 40 numbers and 24; the y of two neighbours is the same item."""
    rng = np.random.default_rng(0)
    whole = Latents.from_arrays(x=rng.normal(size=(100, 40)), y=rng.normal(size=(100, 24)))
    return replace(whole, rows={"x": whole.rows["x"], "y": whole.rows["y"] // 2})


def test_the_published_run_takes_662_mflop_a_pair_and_a_loss_of_11_percent():
    """Counted by hand: 662.2 for the adapters; at B = 20,480 the loss takes 83.9 streamed and 62.9 stored."""
    step = {kept: step_flops(paper(0), (1536, 1024), 20_480, kept) / 20_480 / 1e6 for kept in (0, ALL)}
    adapters = step_flops(paper(0), (1536, 1024), 1, kept=ALL) / 1e6 - 6 * 512 / 1e6
    assert adapters == pytest.approx(662.2, abs=0.05)
    assert step[0] - adapters == pytest.approx(83.9, abs=0.05)
    assert step[ALL] - adapters == pytest.approx(62.9, abs=0.05)


@pytest.mark.parametrize(("depth", "width"), [(0, 0), (2, 0), (2, 16), (0, 16)])
def test_flops_are_those_that_torch_counts(depth, width):
    config = replace(SMALL, depth=depth, width=width)
    x, y = Adapter(40, config), Adapter(24, config)
    with FlopCounterMode(display=False) as counter:
        logits = x(torch.randn(10, 40)) @ y(torch.randn(10, 24)).T  # all of them: what `stored` means
        (F.cross_entropy(logits, torch.arange(10)) + F.cross_entropy(logits.T, torch.arange(10))).backward()
    assert step_flops(config, (40, 24), 10, kept=ALL) == counter.get_total_flops()


def kept_bytes(config, dim, batch, dtype):
    """Bytes that autograd keeps of an adapter and of a product with its embeddings, without weights."""
    adapter, kept = Adapter(dim, config), {}

    def count(tensor):
        if tensor.ndim and len(tensor) == batch:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        embedded = adapter(torch.randn(batch, dim))
        product = embedded * torch.tensor(2.0, requires_grad=True)  # a use that needs the embedding, as the loss does
    assert product.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change", [{}, {"depth": 0}, {"depth": 4, "dropout": 0.0}, {"input_dropout": 0.0}, {"width": 16}]
)
def test_activations_are_what_autograd_keeps(change, dtype):
    config = replace(SMALL, dim=8, **change)
    size = dtype.itemsize
    kept = kept_bytes(config, 32, 65, dtype)
    assert 65 * activation_bytes(config, 32, size, size) == pytest.approx(kept, rel=0.02 if size == 4 else 0.1)


def test_memory_of_weights_is_that_of_the_adapters_and_of_adamw():
    both = torch.nn.ModuleList([Adapter(40, SMALL), Adapter(24, SMALL)])
    optimizer = torch.optim.AdamW(both.parameters(), fused=True)
    info_nce(both[0](torch.randn(4, 40)), both[1](torch.randn(4, 24)), 0.07).backward()
    optimizer.step()
    parts = memory(SMALL, (40, 24), 4)
    assert parts["weights"] == parts["best weights"] == sum(p.nbytes for p in both.parameters())
    assert parts["gradients"] == sum(p.grad.nbytes for p in both.parameters())
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert parts["AdamW moments"] == sum(value.nbytes for value in states)


def test_the_streamed_loss_grows_with_the_batch_and_the_stored_one_with_its_square():
    streamed = [memory(paper(0), (1536, 1024), batch)["loss"] for batch in (16_384, 32_768)]
    stored = [memory(paper(0), (1536, 1024), batch, kept=ALL)["loss"] for batch in (16_384, 32_768)]
    assert streamed[1] <= 2 * streamed[0] < stored[0] and stored[1] > 3.8 * stored[0]


def test_half_precision_halves_most_activations_and_leaves_the_weights():
    wide = replace(paper(0), dim=64)
    full, half = memory(wide, (64, 64), 100), memory(wide, (64, 64), 100, number=2, mask=2)
    assert 0.5 < half["activations"] / full["activations"] < 0.6
    assert half["weights"] == full["weights"]


def test_the_rate_is_measured_in_a_moment_and_near_that_of_a_plain_product():
    started = time.perf_counter()
    rate = matmul_rate(CPU, torch.float32)
    assert time.perf_counter() - started < 10 and 1e8 < rate < 1e14


def test_a_forecast_counts_the_items_that_are_trained_on(pairs):
    config = replace(SMALL, batch_size=8, epochs=3)
    cost = forecast(pairs, config, CPU, "float32", 1e10, SECONDS, True)
    assert (cost.pairs, cost.batch, cost.loaded, cost.steps_per_epoch, cost.steps) == (100, 9, 18, 6, 18)
    assert cost.latent_bytes == 4 * (100 * 40 + 100 * 24) and cost.resident
    assert cost.parameters == sum(p.numel() for dim in (40, 24) for p in Adapter(dim, config).parameters())
    assert cost.flops == 18 * cost.flops_per_step and cost.seconds == pytest.approx(18 * SECONDS)
    assert cost.to_dict()["memory"] == memory(config, (40, 24), 9) and cost.to_dict()["modalities"] == {
        "x": 40,
        "y": 24,
    }


def test_a_forecast_is_shown_in_plain_words(pairs, capsys):
    config = replace(SMALL, batch_size=8, epochs=3)
    cost = forecast(pairs, config, CPU, "float32", 1e10, SECONDS, True)
    show_forecast([cost])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "100 pairs of x (40 numbers) and y (24 numbers); nothing was trained"
    assert lines[1] == "latents: 25.6 kB, in memory"
    assert lines[2] == "a network that begins at random:"
    assert lines[3] == "  3 epochs x 6 steps = 18 steps of 9 pairs (18 are loaded and mixed)"
    assert "parameters" in lines[4] and "FLOP" in lines[4]
    assert lines[5].startswith("  memory beside the latents: ") and " weights" in lines[5]
    assert lines[5].count(" + ") == 7
    assert lines[6].startswith("  about 0.0 s at 50 % of the 10 GFLOP/s that a float32 product reaches here")
    assert len(lines) == 7
    show_forecast([])
    assert capsys.readouterr().out == "closed forms alone, which take seconds to minutes; nothing was fitted\n"
    show_forecast([cost, replace(cost, seconds=3.0, validating=1.0)], 5)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "together about 4.0 s at most",
        "--minutes 5: fewer epochs where closed forms and these would take longer",
    ]


def test_a_fit_is_foreseen_without_being_done(pairs):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    cost = foresee(pairs, replace(SMALL, batch_size=8, epochs=3), CPU)
    assert cost.steps == 18 and 0 < cost.seconds < 60 and cost.rate > 1e8
    assert cost.precision in ("float32", "bfloat16")
    assert torch.equal(torch.rand(2), expected)


def test_what_is_foreseen_is_about_what_it_takes():
    """Within a factor of three either way, on machines that do other things too."""
    rng = np.random.default_rng(0)
    whole = Latents.from_arrays(x=rng.normal(size=(4_000, 96)), y=rng.normal(size=(4_000, 64)))
    config = replace(scaled(4_000, 0), dim=64, batch_size=1_000, epochs=6)
    cost = foresee(whole, config, CPU)
    started = time.perf_counter()
    fit_adapters(whole, None, config, CPU, silent)
    assert cost.seconds / 3 < time.perf_counter() - started < 3 * cost.seconds + 1
