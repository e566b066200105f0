"""Greedy k-DPP in blocks against the plain one on the whole kernel, one pick at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemix.align import dpp, greedy
from fusemix.align.dpp import diverse, log_det
from fusemix.errors import DataError


def kernel(sides, quality=None):
    """The whole kernel in float64, from its definition."""
    out = 4.0
    for side in sides:
        x = np.asarray(side, dtype=np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        unit = x / np.where(norms == 0, 1, norms)
        out = out * ((unit @ unit.T + 1) / 2) ** 2
    return out if quality is None else out * np.outer(quality, quality)


def plain(L, k):
    """Greedy by the determinant's Cholesky factor: one row a pick; the lowest index within rounding of the best."""
    L, left, rows = L.copy(), L.diagonal().copy(), []
    picks, gains = [], []
    while len(picks) < k and left.max() > 1e-10:
        j = int(np.flatnonzero(left >= left.max() - 1e-10)[0])
        row = (L[j] - sum((r[j] * r for r in rows), np.zeros(len(L)))) / np.sqrt(left[j])
        picks, gains, rows = [*picks, j], [*gains, left[j]], [*rows, row]
        left = left - row**2
        left[picks] = -np.inf
    return picks, gains


@pytest.fixture
def small_blocks(monkeypatch):
    """Three pools within one another for a few hundred items."""
    for module in (greedy, dpp):
        monkeypatch.setattr(module, "SMALLEST", 6)
    monkeypatch.setattr(greedy, "_SHARE", 4)
    monkeypatch.setattr(greedy, "_ROOM", 5)


def same(sides, k, quality=None):
    picks, gains = diverse(sides, k, quality=None if quality is None else torch.from_numpy(quality))
    wanted, worth = plain(kernel(sides, quality), k)
    assert picks.tolist() == wanted
    np.testing.assert_allclose(gains.numpy(), worth, rtol=1e-6, atol=1e-9)
    return picks


@pytest.mark.parametrize(("n", "d", "k"), [(300, 40, 60), (300, 40, 300), (700, 20, 150), (1, 3, 1), (193, 64, 193)])
def test_blocks_pick_as_the_plain_greedy_does(n, d, k):
    rng = np.random.default_rng(n + d)
    same([torch.from_numpy(rng.normal(size=(n, d)))], k)
    same([torch.from_numpy(rng.normal(size=(n, d)).astype(np.float16)), torch.from_numpy(rng.normal(size=(n, 5)))], k)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 6), st.booleans(), st.booleans())
def test_ties_duplicates_and_rows_of_zeros(seed, n, d, both, weighed):
    """Latents of small whole numbers: most similarities occur many times."""
    rng = np.random.default_rng(seed)
    sides = [torch.from_numpy(rng.integers(-1, 2, size=(n, d)).astype(np.float32)) for _ in range(1 + both)]
    with pytest.MonkeyPatch.context() as patch:
        for module in (greedy, dpp):
            patch.setattr(module, "SMALLEST", 6)
        patch.setattr(greedy, "_SHARE", 4)
        patch.setattr(greedy, "_ROOM", 5)
        same(sides, n, rng.choice([0.25, 0.5, 1.0], n) if weighed else None)


def test_clusters_in_small_blocks(small_blocks):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(20, 16))
    x = torch.from_numpy(centres[rng.integers(20, size=400)] + 0.2 * rng.normal(size=(400, 16)))
    same([x], 120)


def test_orthogonal_rows_are_all_equal_and_picked_by_index(small_blocks):
    assert same([torch.eye(50)], 50).tolist() == list(range(50))


def test_an_exhausted_kernel_ends_the_picking():
    """Two dimensions have six products of degree two or less, of which unit rows leave five."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 2)))
    assert len(diverse([x], 80)[0]) == 5
    assert len(diverse([torch.ones(7, 3)], 7)[0]) == 1


def test_a_prefix_is_the_answer_for_a_smaller_k(small_blocks):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 12)))
    whole = diverse([x], 60)
    for k in (1, 2, 17, 59):
        picks, gains = diverse([x], k)
        assert picks.tolist() == whole[0][:k].tolist()
        torch.testing.assert_close(gains, whole[1][:k])


def test_float32_picks_others_of_equal_worth():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(600, 64)))
    L = kernel([x])
    found = [diverse([x], 100, dtype=dtype)[0].numpy() for dtype in (torch.float64, torch.float32)]
    exact, rough = (np.linalg.slogdet(L[np.ix_(rows, rows)])[1] for rows in found)
    uniform = np.linalg.slogdet(L[:100, :100])[1]
    assert exact - uniform > 5 and abs(exact - rough) < 0.02 * (exact - uniform)


def test_the_gains_multiply_to_the_determinant_and_a_repetition_is_seen():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 30)))
    picks, gains = diverse([x], 40)
    assert float(gains.log().sum()) == pytest.approx(log_det([x[picks]]), abs=1e-6)
    assert log_det([x[[0, 1, 1]]]) == pytest.approx(log_det([x[[0, 1]]]) + np.log(2e-10), abs=0.01)


def test_latents_that_are_not_finite_are_named():
    x = torch.ones(5, 3)
    x[3, 1] = torch.nan
    with pytest.raises(DataError, match="row 3 hold NaN or infinity"):
        diverse([x], 2)


def test_quality_decides_where_diversity_does_not():
    x = torch.eye(6)
    quality = torch.tensor([0.5, 1.0, 0.9, 1.0, 0.1, 0.7], dtype=torch.float64)
    assert diverse([x], 6, quality=quality)[0].tolist() == [1, 3, 2, 5, 0, 4]
