"""InfoNCE against a float64 double loop, values and gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.losses import info_nce


def double_loop(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        for anchor, others in ((x, y), (y, x)):
            logits = [anchor[i] @ others[j] / temperature for j in range(len(x))]
            total = total - logits[i] + torch.stack(logits).exp().sum().log()
    return total / (2 * len(x))


def batch(size: int, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, size, dim, generator=generator, dtype=torch.float64).unbind()
    return F.normalize(x, dim=-1), F.normalize(y, dim=-1)


@pytest.mark.parametrize("size", [2, 3, 17, 40])
@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.5])
def test_value_and_gradients_equal_the_double_loop(size, temperature):
    x, y = batch(size)
    inputs = [t.clone().requires_grad_() for t in (x, y, torch.tensor(temperature, dtype=torch.float64))]
    single = [t.detach().float().requires_grad_() for t in inputs]
    expected = double_loop(*inputs)
    expected.backward()
    got = info_nce(*single)
    got.backward()
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    for fast, slow in zip(single, inputs, strict=True):
        torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=1e-4, atol=1e-6)


def test_it_is_symmetric_under_exchange_of_the_modalities():
    x, y = batch(16)
    assert info_nce(x, y, 0.07).item() == pytest.approx(info_nce(y, x, 0.07).item(), rel=1e-12)


def test_equal_logits_cost_log_of_the_batch():
    same = F.normalize(torch.ones(32, 4), dim=-1)
    assert info_nce(same, same, 0.07).item() == pytest.approx(math.log(32), rel=1e-6)


def test_a_pair_alone_costs_nothing():
    x, y = batch(1)
    assert info_nce(x, y, 0.07).item() == 0


def test_the_right_pairing_costs_less_than_any_other():
    x, _ = batch(12)
    right = info_nce(x, x, 0.07)
    assert right < info_nce(x, x.roll(1, dims=0), 0.07)
