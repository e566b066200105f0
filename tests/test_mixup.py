"""FuseMix: one lam for both modalities, raw latents, the same pairing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusemix.align.adapters import Adapter
from fusemix.align.mixup import PIECE, draw_lam, gather_mix, mix, slerp
from fusemix.config import paper
from fusemix.data.latents import Latents
from fusemix.training.feed import open_feed
from fusemix.training.order import Order


def test_lam_one_leaves_the_first_half_unchanged_and_lam_zero_the_second():
    latents = torch.randn(10, 4)
    assert torch.equal(mix(latents, 1.0), latents[:5])
    assert torch.equal(mix(latents, 0.0), latents[5:])


def test_a_mix_is_the_weighted_sum_row_by_row():
    latents = torch.randn(8, 3, dtype=torch.float64)
    mixed = mix(latents, 0.3)
    for i in range(4):
        torch.testing.assert_close(mixed[i], 0.3 * latents[i] + 0.7 * latents[4 + i])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 7])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_gathering_and_mixing_in_one_step_is_bit_for_bit_the_mix_of_the_gathered(dtype, size, lam):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(300, 11, generator=generator).to(dtype)
    first, second = torch.randint(0, 300, (2, size), generator=generator).unbind()
    rows = latents[torch.cat([first, second])]
    expected = mix(rows if dtype == torch.float64 else rows.float(), lam)
    assert torch.equal(gather_mix(latents, first, second, lam), expected)
    out = torch.full((size, 11), torch.nan, dtype=torch.bfloat16)
    assert gather_mix(latents, first, second, lam, out) is out
    assert torch.equal(out, expected.bfloat16())


def test_gather_mix_refuses_a_row_that_is_not_there():
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            gather_mix(torch.ones(3, 2), torch.tensor([0]), torch.tensor([wrong]), 0.5)


def test_lam_follows_beta():
    rng = np.random.default_rng(0)
    for alpha in (0.2, 1.0, 4.0):
        draws = np.array([draw_lam(alpha, rng) for _ in range(4000)])
        assert 0 <= draws.min() and draws.max() <= 1
        assert abs(draws.mean() - 0.5) < 0.02
        assert abs(draws.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_a_step_mixes_both_modalities_with_one_lam_and_one_pairing():
    """Latents that equal their row number show, after mixing, which rows met with which weight."""
    number = np.arange(64, dtype=np.float32)[:, None]
    pairs = Latents.from_arrays(x=number + np.zeros((1, 3)), y=number + np.zeros((1, 5)))
    order = Order.of(64, small(alpha=1.0))
    feed = open_feed(pairs, order, torch.device("cpu"), 0, 1)
    lams = set()
    for step in range(8):
        x, y = feed.batch(step)
        first, second = order.batch(step).reshape(2, 8)
        lam = order.lams(step)[0]
        lams.add(lam)
        expected = torch.from_numpy(lam * first + (1 - lam) * second).float()
        assert x.shape == (8, 3) and y.shape == (8, 5)
        for side in (x, y):
            torch.testing.assert_close(side, expected[:, None].expand_as(side), rtol=1e-5, atol=1e-5)
    assert len(lams) == 8


def test_alpha_zero_never_mixes():
    number = np.arange(32, dtype=np.float32)[:, None]
    pairs = Latents.from_arrays(x=number + np.zeros((1, 4)), y=number + np.zeros((1, 4)))
    order = Order.of(32, small(alpha=0.0))
    feed = open_feed(pairs, order, torch.device("cpu"), 0, 1)
    for step in range(4):
        x, y = feed.batch(step)
        assert torch.equal(x, y) and x[:, 0].tolist() == order.batch(step).tolist()


def test_standardising_before_or_after_mixing_is_the_same():
    adapter = Adapter(6, small(alpha=1.0)).eval()
    adapter.standardize(torch.randn(6), torch.rand(6) + 0.5)
    latents = torch.randn(8, 6, dtype=torch.float32)
    before = mix((latents - adapter.shift) * adapter.scale, 0.4)
    after = (mix(latents, 0.4) - adapter.shift) * adapter.scale
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def small(alpha):
    from dataclasses import replace

    return replace(paper(seed=0), dim=4, depth=1, alpha=alpha, batch_size=8, epochs=2, warmup_steps=2)


@pytest.mark.parametrize(("mixing", "sides", "rows"), [
    ("shared", True, True), ("separate", False, True), ("sample", True, False), ("spherical", True, True),
])  # fmt: skip
def test_who_shares_a_lam(mixing, sides, rows):
    """Latents on a line show the lam of every row: 0 for one parent, 1 for the other."""
    train = Latents.from_arrays(x=np.tile([[0.0], [1.0]], (32, 1)), y=np.tile([[0.0], [1.0]], (32, 1)))
    order = Order.of(64, replace(paper(0), batch_size=32, mixing=mixing))
    lams = [np.broadcast_to(lam, order.batch_size) for lam in order.lams(3)]
    feed = open_feed(train, order, torch.device("cpu"))
    first, second = (half % 2 for half in order.batch(3).reshape(2, -1))
    for lam, mixed in zip(lams, feed.batch(3), strict=True):
        np.testing.assert_allclose(mixed[:, 0].numpy(), lam * first + (1 - lam) * second, atol=1e-6)
    assert np.array_equal(lams[0], lams[1]) == sides
    assert (len(set(lams[0].tolist())) == 1) == rows


def test_a_spherical_mix_follows_the_arc():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    mixed = slerp(first, second, 0.25)  # a quarter of the way from the second to the first: 22.5 degrees of 90
    torch.testing.assert_close(mixed.norm(), torch.tensor(3.5))
    torch.testing.assert_close(torch.atan2(mixed[0, 1], mixed[0, 0]), torch.tensor(np.pi * 67.5 / 180).float())
    for lam, parent in ((1.0, first), (0.0, second)):
        torch.testing.assert_close(slerp(first, second, lam), parent)


def test_where_there_is_no_one_arc_the_mix_is_straight():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 1.0]])
    second = torch.tensor([[-1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [3.0, 1.0]])
    torch.testing.assert_close(slerp(first, second, 0.3), 0.3 * first + 0.7 * second)
