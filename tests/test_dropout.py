"""Dropout: the share that is dropped, the mean that stays, the seed that decides."""

import numpy as np
import pytest
import torch

from fusemix.align.dropout import LEVELS, Dropout, cpu_mask


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.6, 0.999])
def test_the_share_and_the_mean_are_right(p):
    torch.manual_seed(0)
    mask = cpu_mask((1_000, 1_001), p, torch.float32)
    kept = round((1 - p) * LEVELS) / LEVELS
    dropped = (mask == 0).double().mean().item()
    assert dropped == pytest.approx(1 - kept, abs=4 * (kept * (1 - kept) / 1e6) ** 0.5)
    assert set(mask.unique().tolist()) == {0.0, np.float32(1 / kept)}
    assert mask.double().mean().item() == pytest.approx(1, abs=5 * ((1 - kept) / kept / 1e6) ** 0.5)


def test_units_are_independent_of_their_neighbours():
    """Four units come from one word: none of them must know of the others, nor of the next word."""
    torch.manual_seed(0)
    mask = (cpu_mask((400_000,), 0.5, torch.float32) > 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs((mask[lag:] * mask[:-lag]).mean().item()) < 4 * 0.25 / 400_000**0.5
    for place in range(4):
        assert abs(mask[place::4].mean().item()) < 4 * 0.5 / 100_000**0.5


def test_the_seed_of_torch_decides():
    dropout, x = Dropout(0.5), torch.ones(9, 7)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)


def test_the_gradient_is_the_mask():
    x = torch.ones(50, 3, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nothing_happens_without_training_or_at_zero(dtype):
    x = torch.randn(5, 4, dtype=dtype)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x
    assert Dropout(0.5)(x).dtype == dtype


@pytest.mark.parametrize(("p", "share"), [(1e-9, 1 / LEVELS), (1 - 1e-9, 1 - 1 / LEVELS)])
def test_the_ends_are_neither_none_nor_all(p, share):
    mask = cpu_mask((1_000, 4_000), p, torch.float32)
    assert (mask == 0).double().mean().item() == pytest.approx(share, abs=5e-5)
