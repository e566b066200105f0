"""Agreement of the two sides of a pair, judged by folds it is not in."""

import numpy as np
import pytest
import torch

from fusemix.align.folds import Folds, cross_fit
from fusemix.align.metrics import mean_recall
from fusemix.align.quality import agreement, agreement_beside_strangers, held_out_recall


def test_swapped_pairs_agree_least():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 8))
    x, y = (torch.from_numpy(z @ rng.normal(size=(8, d)) + 0.3 * rng.normal(size=(400, d))) for d in (20, 16))
    partner = np.arange(400)
    partner[:20] = np.roll(partner[:20], 1)
    agreed = agreement(x, y, (np.arange(400), partner), np.arange(400))
    assert set(np.argsort(agreed)[:16]) <= set(range(20))
    assert np.median(agreed[20:]) > 0.8 > 0.3 > np.median(agreed[:20])


def test_pairs_without_anything_in_common_agree_no_better_than_chance():
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(300, 40))) for _ in range(2))
    agreed = agreement(x, y, (np.arange(300), np.arange(300)), np.arange(300))
    assert abs(agreed.mean()) < 0.06  # fitted on the pairs themselves it would be near 1


def test_strangers_are_drawn_from_other_groups_and_agree_less():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 6))
    x, y = (torch.from_numpy(z @ rng.normal(size=(6, d)) + 0.1 * rng.normal(size=(300, d))) for d in (12, 9))
    pairs, groups = (np.repeat(np.arange(300), 2), np.repeat(np.arange(300), 2)), np.repeat(np.arange(300), 2)
    agreed, strange = agreement_beside_strangers(x, y, pairs, groups)
    known = ~np.isnan(strange)
    assert 0 < (~known).sum() < 30
    assert abs(np.median(strange[known])) < 0.2 < 0.8 < np.median(agreed)
    assert np.array_equal(agreed, agreement(x, y, pairs, groups))


def test_held_out_recall_is_the_recall_of_every_fold_and_its_chance_that_of_a_random_order():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 6))
    x, y = (torch.from_numpy(z @ rng.normal(size=(6, d)) + rng.normal(size=(200, d))) for d in (20, 16))
    pairs, groups = (np.arange(200), np.arange(200)), np.arange(200) // 2
    values, chance, owners = held_out_recall(x, y, pairs, groups)
    folds = cross_fit(Folds.of(x, y, pairs, groups, 0))
    wanted = [
        mean_recall(form.embed_x(x[rows]), form.embed_y(y[rows]), (np.arange(len(rows)),) * 2) for rows, form in folds
    ]
    assert 100 * values.mean() == pytest.approx(np.mean(wanted))
    assert chance.mean() == pytest.approx(np.mean([1 / 40, 5 / 40, 10 / 40]))
    assert sorted(owners) == sorted(np.repeat(np.arange(100), 4)), "two pairs a group, both ways"
    shuffled = held_out_recall(x, y[rng.permutation(200)], pairs, groups)[0]
    assert abs(shuffled.mean() - chance.mean()) < 0.05 < values.mean() - chance.mean()


def test_items_that_several_pairs_share_are_asked_for_once():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(50, 5))), torch.from_numpy(rng.normal(size=(100, 5)))
    values, _, owners = held_out_recall(
        x, y, (np.repeat(np.arange(50), 2), np.arange(100)), np.repeat(np.arange(50), 2)
    )
    assert len(values) == len(owners) == 150 and np.bincount(owners).tolist() == [3] * 50
