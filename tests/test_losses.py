"""InfoNCE against float64: a double loop, and a plain vectorised form for larger batches; values and gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.align import tiles
from fusemix.align.losses import info_nce


def double_loop(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        for anchor, others in ((x, y), (y, x)):
            logits = [anchor[i] @ others[j] / temperature for j in range(len(x))]
            total = total - logits[i] + torch.stack(logits).exp().sum().log()
    return total / (2 * len(x))


def plain(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    """The whole matrix in float64; the matching logit is kept apart, for what cancels in float32 does so in float64."""
    logits = x @ y.T / temperature
    matching = logits.diagonal()
    others = logits.masked_fill(torch.eye(len(x), dtype=torch.bool), -math.inf)
    costs = [-F.logsigmoid(matching - others.logsumexp(dim)) for dim in (0, 1)]
    return (costs[0].mean() + costs[1].mean()) / 2


UNIT = 6e-8  # in the last place of a cosine, float32


def batch(size: int, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, size, dim, generator=generator, dtype=torch.float64).unbind()
    return F.normalize(x, dim=-1), F.normalize(y, dim=-1)


def kinds(kind: str, size: int) -> tuple[Tensor, Tensor]:
    """Random pairs; pairs that are nearly solved; rows that are all equal; every pair twice; and a few zero rows."""
    x, y = batch(size, 48, size)
    if kind == "aligned":
        y = F.normalize(x + y / 6, dim=-1)
    elif kind == "equal":
        x = y = x[:1].expand(size, -1)
    elif kind == "twice":
        y = F.normalize(x + y / 6, dim=-1)
        x, y = x[torch.arange(size) // 2], y[torch.arange(size) // 2]
    elif kind == "zeros":
        x, y = x.clone(), y.clone()
        x[::3], y[::2] = 0, 0
    return x, y


def run(loss, x: Tensor, y: Tensor, temperature: float, dtype=torch.float64) -> list[Tensor]:
    """Value and the gradients of x, y and the temperature, in float64."""
    inputs = [t.detach().to(dtype, copy=True).requires_grad_() for t in (x, y, torch.tensor(temperature))]
    value = loss(*inputs)
    value.backward()
    return [part.detach().double() for part in (value, *(t.grad for t in inputs))]


def assert_exact(got: list[Tensor], expected: list[Tensor], temperature: float, tolerance: float = 1e-5) -> None:
    """Relative error of the value and of each gradient's norm.

    A gradient that is zero because equal rows cancel is measured by what cancels. A batch that is solved to 1e-6 at a
    temperature below 0.03 is worth the exponential of logits whose own rounding counts.
    """
    size = len(got[1])
    if expected[0] < 1e-6:
        tolerance *= max(1.0, 0.03 / temperature)
    floors = [1e-30] * 4
    if expected[0] > 0.1:
        cancelling = 1 / temperature / math.sqrt(size)
        floors[1:] = [cancelling, cancelling, cancelling * math.sqrt(size) / temperature]
    for part, right, least in zip(got, expected, floors, strict=True):
        assert part.isfinite().all()
        # Where equal rows cancel, their cosines may round a unit apart: which processors do so is not ours to say.
        allowed = max(tolerance, UNIT / temperature) if right.norm() < least else tolerance
        assert (part - right).norm() <= allowed * right.norm().clamp(min=least)


@pytest.mark.parametrize("size", [2, 3, 17, 40])
@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.5])
def test_value_and_gradients_equal_the_double_loop(size, temperature):
    x, y = batch(size)
    expected = run(double_loop, x, y, temperature)
    got = run(info_nce, x, y, temperature, torch.float32)
    assert got[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    for fast, slow in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)
    for fast, slow in zip(run(info_nce, x, y, temperature), run(plain, x, y, temperature), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["random", "aligned", "equal", "twice", "zeros"])
@pytest.mark.parametrize("size", [2, 3, 17, 256, 1000])
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.013, 0.0132, 0.022, 0.023, 0.024, 0.07, 0.5])
def test_single_precision_is_exact_to_a_hundred_thousandth(kind, size, temperature):
    x, y = (side.float() for side in kinds(kind, size))
    expected = run(plain, x.double(), y.double(), torch.tensor(temperature).item())
    assert_exact(run(info_nce, x, y, temperature, torch.float32), expected, temperature)


@pytest.mark.parametrize(("kind", "temperature"), [("aligned", 0.07), ("random", 0.005)])
def test_so_are_four_thousand_pairs(kind, temperature):
    x, y = (side.float() for side in kinds(kind, 4096))
    expected = run(plain, x.double(), y.double(), torch.tensor(temperature).item())
    got = run(info_nce, x, y, temperature, torch.float32)
    assert_exact(got, expected, temperature)
    for fast, slow in zip(got[1:3], expected[1:3], strict=True):  # element by element too
        assert (fast - slow).abs().max() <= 1e-5 * slow.abs().max()


def test_a_nearly_solved_batch_keeps_its_gradient():
    """A plain float32 form is wrong by more than a hundredth here: 1 - p has lost its digits."""
    x, y = (side.float() for side in kinds("aligned", 17))
    expected = run(plain, x.double(), y.double(), 0.05)
    assert expected[0] < 1e-5
    assert_exact(run(info_nce, x, y, 0.05, torch.float32), expected, 0.05)


@pytest.mark.parametrize("temperature", [0.07, 0.009])
def test_gradients_pass_gradcheck(temperature):
    x, y = batch(5, 3)
    at = torch.tensor(temperature, dtype=torch.float64)
    if temperature < 0.01:  # far apart logits have no gradient left to check
        x, y = F.normalize(1 + x / 30, dim=1), F.normalize(1 + y / 30, dim=1)
    inputs = [t.requires_grad_() for t in (x, y, at)]
    assert torch.autograd.gradcheck(info_nce, inputs, eps=1e-7, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("safe", [False, True])
def test_both_regimes_agree_where_both_hold(monkeypatch, safe):
    x, y = batch(300, 24)
    expected = run(plain, x, y, 0.05)
    monkeypatch.setattr(tiles, "needs_safe", lambda *_: safe)
    assert_exact(run(info_nce, x, y, 0.05), expected, 0.05, 1e-12)


def test_one_exponential_serves_until_it_might_overflow():
    assert not tiles.needs_safe(1 / 0.0132, 65_536, torch.float32)
    assert tiles.needs_safe(1 / 0.013, 65_536, torch.float32)
    assert tiles.needs_safe(math.nan, 2, torch.float32)
    # Rows twice as long as they should be raise the bound, not an infinity.
    x, y = batch(64)
    assert_exact(run(info_nce, 2 * x, 2 * y, 0.03, torch.float32), run(plain, 2 * x, 2 * y, 0.03), 0.03, 1e-4)


def test_the_rounding_that_all_logits_share_is_taken_back():
    alpha, unit = tiles.in_base_2(1 / 0.07, torch.float32)
    assert torch.tensor(alpha).item() == alpha != pytest.approx(tiles.LOG2E / 0.07, rel=1e-9)
    assert alpha * unit == pytest.approx(1 / 0.07, rel=1e-15)


@pytest.mark.parametrize("temperature", [0.07, 0.01])
@pytest.mark.parametrize(("side", "threads"), [(16, 1), (7, 3)])
def test_the_tiling_makes_no_difference(monkeypatch, temperature, side, threads):
    """Many ragged tiles, kept and made again: the same as one tile."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, y = batch(50, 8)
    expected = run(plain, x, y, temperature)
    monkeypatch.setattr(tiles, "SIDE", side)
    results = []
    for keep in (0, 10**9):
        monkeypatch.setattr(tiles, "KEEP", keep)
        results.append(run(info_nce, x, y, temperature))
        assert_exact(results[-1], expected, temperature, 1e-12)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_second_backward_pass_gives_the_same():
    x, y = (side.requires_grad_() for side in batch(30))
    loss = info_nce(x, y, 0.07)
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    second = torch.autograd.grad(2 * loss, (x, y))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, other, rtol=1e-12, atol=0)


def test_it_is_symmetric_under_exchange_of_the_modalities():
    x, y = batch(16)
    assert info_nce(x, y, 0.07).item() == pytest.approx(info_nce(y, x, 0.07).item(), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.001, 0.07])
def test_equal_logits_cost_log_of_the_batch(temperature):
    same = F.normalize(torch.ones(32, 4), dim=-1)
    assert info_nce(same, same, temperature).item() == pytest.approx(math.log(32), rel=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 65_536), (torch.bfloat16, 4096)])
def test_half_precision_sums_in_single(dtype, size):
    """The sum over that many equal logits is infinite in float16, and stands still at 256 in bfloat16."""
    same = torch.zeros(size, 2, dtype=dtype)
    same[:, 0] = 1
    loss = info_nce(same, same, 0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(size), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.001, 0.0132, 0.07])
def test_half_precision_rows_give_what_float64_gives_on_the_same_rows(dtype, temperature):
    x, y = (side.to(dtype) for side in kinds("random", 256))
    expected = run(plain, x.double(), y.double(), torch.tensor(temperature).item())
    sides = [side.clone().requires_grad_() for side in (x, y)]
    loss = info_nce(*sides, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    for side, right in zip(sides, expected[1:3], strict=True):
        assert side.grad.dtype == dtype
        assert (side.grad.double() - right).norm() <= 4e-3 * right.norm()


def test_autocast_does_not_reach_the_sums():
    x, y = (side.float().requires_grad_() for side in batch(64))
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(x, y, 0.07)
        loss.backward()
    expected = run(plain, x, y, 0.07)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert (x.grad - expected[1]).norm() < 1e-5 * expected[1].norm()


def test_a_pair_alone_costs_nothing():
    x, y = (side.requires_grad_() for side in batch(1))
    for temperature in (0.07, 0.001):
        loss = info_nce(x, y, temperature)
        loss.backward()
        assert loss.item() == 0 and not x.grad.any() and not y.grad.any()


def test_the_right_pairing_costs_less_than_any_other():
    x, _ = batch(12)
    right = info_nce(x, x, 0.07)
    assert right < info_nce(x, x.roll(1, dims=0), 0.07)


def test_only_what_asks_for_a_gradient_gets_one():
    x, y = batch(6)
    x.requires_grad_()
    info_nce(x, y, 0.07).backward()
    assert x.grad is not None and y.grad is None
    assert not info_nce(x.detach(), y, 0.07).requires_grad


def test_what_is_not_finite_stays_visible():
    x, y = batch(6)
    x[2, 1] = math.nan
    assert info_nce(x, y, 0.07).isnan()
    assert info_nce(*batch(6), math.nan).isnan()


@pytest.mark.parametrize(
    ("x", "y", "temperature", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), 0.1, r"\(3, 2\) float32 and \(4, 2\) float32"),
        (torch.ones(3, 2), torch.ones(3, 2).double(), 0.1, "float64"),
        (torch.ones(3), torch.ones(3), 0.1, "wanted two"),
        (torch.ones(3, 2).long(), torch.ones(3, 2).long(), 0.1, "int64"),
        (torch.ones(3, 2), torch.ones(3, 2), 0.0, "positive"),
        (torch.ones(3, 2), torch.ones(3, 2), -1.0, "positive"),
    ],
)
def test_what_cannot_be_meant_is_refused(x, y, temperature, message):
    with pytest.raises(ValueError, match=message):
        info_nce(x, y, temperature)
