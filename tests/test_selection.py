"""Uniform, by quality, in passes and in parts."""

import numpy as np
import pytest
import torch

from fusemix.align.dpp import diverse, log_det
from fusemix.align.selection import CELLS, Plan, best, deal, pick_pairs, uniform, weights

EXACT = Plan(1, 0, False, torch.float64)


def diversity(x, quality=None):
    def pick(pairs, k, dtype):
        own = None if quality is None else quality[torch.from_numpy(pairs)]
        places, gains = diverse([x[pairs]], k, quality=own, dtype=dtype)
        return places.numpy(), gains.double().numpy()

    return pick


def test_uniform_is_a_prefix_of_itself_and_follows_the_seed():
    whole = uniform(100, 100, 3).rows
    assert sorted(whole) == list(range(100)) and uniform(100, 30, 3).rows.tolist() == whole[:30].tolist()
    assert uniform(100, 30, 4).rows.tolist() != whole[:30].tolist()


def test_the_best_come_first_and_the_lowest_index_of_equals():
    assert best(np.array([0.1, 0.9, 0.5, 0.9]), 3).rows.tolist() == [1, 3, 2]


def test_a_standard_deviation_more_multiplies_the_square_of_q_by_e():
    quality = np.random.default_rng(0).normal(size=50)
    q = weights(quality, 1.0)
    assert float(q.max()) == 1 and float(q.min()) > 0
    z = (quality - quality.mean()) / quality.std()
    np.testing.assert_allclose(2 * float((q[3] / q[7]).log()), z[3] - z[7])
    assert weights(quality, 0.0).tolist() == [1.0] * 50 == weights(np.ones(50), 1.0).tolist()


def test_pairs_that_share_an_item_are_picked_as_on_the_whole_kernel():
    rng = np.random.default_rng(0)
    codes, quality = rng.integers(40, size=150), torch.from_numpy(rng.uniform(0.3, 1, size=150))
    x = torch.from_numpy(rng.normal(size=(40, 12)))[codes]
    for q in (None, quality):
        whole = diverse([x], 150, quality=q)[0].tolist()
        assert pick_pairs(diversity(x, q), codes, len(whole), EXACT, q).rows.tolist() == whole


def test_when_only_repetitions_are_left_a_new_pass_begins():
    codes = np.array([0, 0, 1, 2, 1, 0])
    x = torch.eye(3)[codes]
    chosen = pick_pairs(diversity(x), codes, 6, EXACT)
    assert chosen.rows.tolist() == [0, 2, 3, 1, 4, 5] and chosen.passes == 3
    for k in range(1, 6):
        assert pick_pairs(diversity(x), codes, k, EXACT).rows.tolist() == chosen.rows[:k].tolist()


def test_items_that_only_look_different_take_passes_too():
    """Ten items in one direction: the first is picked, the others repeat it."""
    chosen = pick_pairs(diversity(torch.ones(10, 4)), np.arange(10), 10, EXACT)
    assert chosen.rows.tolist() == list(range(10)) and chosen.passes == 10


def test_a_method_that_finds_nothing_is_helped_out_by_index():
    nothing = lambda pairs, k, dtype: (np.empty(0, dtype=np.int64), np.empty(0))  # noqa: E731
    chosen = pick_pairs(nothing, np.arange(5), 4, EXACT)
    assert chosen.rows.tolist() == [0, 1, 2, 3] and chosen.gains.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("n", [1, 10, 1000, 100_000])
@pytest.mark.parametrize("parts", [2, 7])
def test_every_item_is_dealt_to_one_part(n, parts):
    dealt = deal(n, parts, 0)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(n))
    assert n < 1000 or max(map(len, dealt)) < 1.3 * n / parts
    assert all((np.diff(part) > 0).all() for part in dealt)


@pytest.mark.parametrize("final", [True, False])
def test_parts_come_near_the_exact_answer_if_there_is_a_final(final):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 24))
    x = torch.from_numpy(centres[rng.integers(30, size=1200)] + 0.5 * rng.normal(size=(1200, 24)))
    exact = log_det([x[pick_pairs(diversity(x), np.arange(1200), 80, EXACT).rows]])
    chosen = pick_pairs(diversity(x), np.arange(1200), 80, Plan(4, 80 if final else 20, final, torch.float64))
    assert len(set(chosen.rows.tolist())) == 80 and (np.diff(chosen.gains) <= 1e-9).all()
    near, by_chance = log_det([x[chosen.rows]]), log_det([x[uniform(1200, 80, 0).rows]])
    assert exact - near < (0.05 if final else 1) * (exact - by_chance)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize(("n", "k"), [(100, 100), (100_000, 10_000), (5_000_000, 10_000), (5_000_000, 500_000)])
def test_a_plan_holds_no_more_than_it_may(n, k, square):
    plan = Plan.of(n, k, square=square)
    size = -(-n // plan.parts)
    assert size * (size if square else plan.quota) <= CELLS and plan.quota * plan.parts >= k
    if plan.final:
        union = plan.quota * plan.parts
        assert union * (union if square else k) <= 1.1 * CELLS
    assert (plan.parts == 1) == ((n * n if square else n * k) <= CELLS)
    assert Plan.of(n, k, parts=3).parts == 3 and Plan.of(n, k, precision="float32").dtype == torch.float32
