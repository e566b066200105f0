"""Mutual neighbours against brute force, and a null that does not depend on the width of a space."""

import numpy as np
import pytest
import torch

from fusemix.align.mutual import _error, _nearest, _shared, mutual_neighbours


def slow_shared(x, y, k, partner, centred=False):
    """Share of common neighbours of every pair, by loops over sorted cosines; row partner[i] of y belongs to i."""
    sides = []
    for z in (x.double().numpy(), y.double().numpy()[partner]):
        z = z if centred else z - z.mean(axis=0)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        cosines = z @ z.T
        np.fill_diagonal(cosines, -np.inf)
        sides.append([set(np.argsort(-row)[:k].tolist()) for row in cosines])
    return np.array([len(a & b) / k for a, b in zip(*sides, strict=True)])


def spaces(n=80, widths=(6, 9), noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, 4))
    return [torch.from_numpy(cause @ rng.normal(size=(4, d)) + noise * rng.normal(size=(n, d)) + 3) for d in widths]


@pytest.mark.parametrize("k", [1, 7])
def test_the_overlap_is_that_of_brute_force(k):
    x, y = spaces()
    found = mutual_neighbours(x, y, k=k)
    wanted = slow_shared(x, y, k, np.arange(80)).mean()
    assert found.overlap == pytest.approx(wanted) and found.expected == k / 79
    assert found.score == pytest.approx((wanted - k / 79) / (1 - k / 79))
    assert found.interval[0] < found.score < found.interval[1]


def test_a_permuted_pairing_renames_the_neighbours():
    """Neighbours are looked for once; by brute force they are looked for again among the permuted rows."""
    x, y = spaces()
    near = [_nearest(z, 5) for z in (x, y)]
    order = np.random.default_rng(1).permutation(80)
    assert _shared(*near, order) == pytest.approx(slow_shared(x, y, 5, np.argsort(order)).mean())


def test_the_jackknife_leaves_items_out_as_neighbours_too():
    x, y = spaces()
    part = np.random.default_rng(1).permutation(80) % 10
    scores = []
    for left_out in range(10):
        stays = part != left_out
        overlap = slow_shared(x[stays] - x.mean(dim=0), y[stays] - y.mean(dim=0), 5, np.arange(72), centred=True).mean()
        scores.append((overlap - 5 / 71) / (1 - 5 / 71))
    wanted = np.sqrt(9 / 10 * np.square(scores - np.mean(scores)).sum())
    assert _error([_nearest(z, 15) for z in (x, y)], 5, part) == pytest.approx(wanted)


def test_intervals_of_unrelated_spaces_hold_0_nearly_always():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        found = mutual_neighbours(*(torch.from_numpy(rng.normal(size=(150, 8))) for _ in range(2)), permutations=2)
        held += found.interval[0] <= 0 <= found.interval[1]
    assert held >= 52


def test_a_random_pairing_shares_k_of_n_minus_1_on_average():
    x, y = spaces(n=40)
    rng = np.random.default_rng(0)
    null = [slow_shared(x, y, 5, rng.permutation(40)).mean() for _ in range(300)]
    assert np.mean(null) == pytest.approx(5 / 39, abs=4 * np.std(null) / 300**0.5)


def test_spaces_that_have_nothing_in_common_score_0_whatever_their_width_and_the_uncalibrated_share_does_not():
    overlaps = []
    for seed, (n, width) in enumerate([(100, 3), (100, 400), (600, 3), (600, 400)]):
        rng = np.random.default_rng(seed)
        found = mutual_neighbours(*(torch.from_numpy(rng.normal(size=(n, width))) for _ in range(2)))
        assert abs(found.score) < 0.03 and abs(found.z) < 4, (n, width)
        overlaps.append(found.overlap)
    assert min(overlaps[:2]) > 3 * max(overlaps[2:])  # k / (n - 1): fewer items, more of them are neighbours


def test_the_same_space_turned_scores_1_and_far_above_its_null():
    x, _ = spaces()
    turned = x @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    found = mutual_neighbours(x, turned)
    assert found.score == 1 and found.interval == (1, 1) and found.z > 20


def test_the_same_seed_gives_the_same_figures():
    assert mutual_neighbours(*spaces()) == mutual_neighbours(*spaces())
