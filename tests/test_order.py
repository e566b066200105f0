"""The order of the pairs: a closed formula, every pair in every epoch, batches of one size."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fusemix.training.order import Order, dropout_seed
from test_fit import small


def order(pairs, block=1, **changes):
    return Order.of(pairs, replace(small(), **changes), block)


@pytest.mark.parametrize(
    ("pairs", "alpha", "sizes"),
    [
        (100, 1.0, [34] * 3), (100, 0.0, [17] * 6), (20, 1.0, [20]), (41, 1.0, [42]), (9, 1.0, [10]),
        (3, 1.0, [4]), (2, 0.0, [2]),
        (1_000, 1.0, [34] * 31), (64, 1.0, [32] * 2),
    ],
)  # fmt: skip
def test_an_epoch_is_dealt_into_equal_batches(pairs, alpha, sizes):
    got = order(pairs, alpha=alpha)
    assert [len(got.batch(step)) for step in range(got.steps)] == sizes
    assert got.batch_size == sizes[0] // (2 if alpha else 1)


@pytest.mark.parametrize("block", [1, 8, 64])
@pytest.mark.parametrize("pairs", [2, 3, 31, 100, 257, 1_000])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_every_pair_is_in_every_epoch_and_hardly_any_twice(pairs, block, alpha):
    got = order(pairs, block, alpha=alpha)
    for epoch in (0, 1, 5):
        batches = [got.batch(epoch * got.steps + place) for place in range(got.steps)]
        counts = Counter(np.concatenate(batches).tolist())
        assert set(counts) == set(range(pairs))
        assert sum(counts.values()) == got.steps * got.size < pairs + 2 * got.steps + 2
        if pairs > got.size:
            assert all(len(set(batch.tolist())) == len(batch) for batch in batches)


def test_the_batch_is_as_near_to_the_one_asked_for_as_it_goes():
    for pairs in range(100, 5_000, 37):
        got = order(pairs, batch_size=64)
        assert abs(got.size / 128 - 1) <= 0.5 / got.steps + 0.02, (pairs, got)


def test_the_order_is_a_formula_of_seed_epoch_and_step():
    got = order(300)
    assert np.array_equal(got.batch(17), order(300).batch(17)) and got.lams(17)[0] == order(300).lams(17)[0]
    assert not np.array_equal(got.batch(17), got.batch(17 + got.steps))
    assert not np.array_equal(got.batch(17), order(300, seed=1).batch(17))
    assert got.lams(17)[0] != got.lams(18)[0] and order(300, alpha=0.0).lams(17)[0] == 1.0


def test_lam_follows_beta():
    for alpha in (0.2, 1.0, 4.0):
        got = order(300, alpha=alpha)
        draws = np.array([got.lams(step)[0] for step in range(4_000)])
        assert 0 <= draws.min() and draws.max() <= 1 and abs(draws.mean() - 0.5) < 0.02
        assert abs(draws.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_blocks_keep_neighbours_together_and_mix_them_within_the_batch():
    got = order(4_096, 64, batch_size=512)
    batch = got.batch(3)
    runs = np.split(np.sort(batch), np.flatnonzero(np.diff(np.sort(batch)) > 1) + 1)
    assert np.mean([len(run) for run in runs]) >= 50  # two blocks a batch are cut, neighbouring blocks join
    partners = np.abs(batch[:512] - batch[512:])
    assert np.median(partners) > 64
    assert set(np.sort(got.batch(0)) % 64) == set(range(64))
    begins = {int(np.sort(got.batch(epoch * got.steps))[0] % 64) for epoch in range(20)}
    assert len(begins) > 5  # where a block begins changes with the epoch


@pytest.mark.parametrize("block", [1, 128])
def test_captions_of_one_picture_do_not_become_one_mix(block):
    """Five captions in a row share a picture: few mixed pictures of a batch may be the same, whatever the order."""
    got = order(20_000, block, batch_size=2_048)
    for step in range(3):
        first, second = got.batch(step).reshape(2, -1) // 5
        mixes = set(zip(first.tolist(), second.tolist(), strict=True))
        assert len(mixes) > 0.99 * got.batch_size


def test_partners_change_from_epoch_to_epoch():
    got = order(256, batch_size=64)
    met = set()
    for step in range(40 * got.steps):
        first, second = got.batch(step).reshape(2, -1)
        met |= set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(met) > 0.95 * 40 * 128 * 0.92  # of 5,120 meetings among 65,280 possible ones few repeat


def test_dropout_seeds_differ_by_everything_that_they_depend_on():
    places = [(0, 1, 0, 0, 0), (1, 1, 0, 0, 0), (0, 2, 0, 0, 0), (0, 1, 1, 0, 0), (0, 1, 0, 1, 0), (0, 1, 0, 0, 1)]
    seeds = [dropout_seed(*place) for place in places]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [dropout_seed(*place) for place in places]


def test_a_batch_of_one_contrasts_two_and_deals_every_pair_once():
    got = order(100, batch_size=1)
    assert (got.batch_size, got.steps * got.size) == (2, 100)
