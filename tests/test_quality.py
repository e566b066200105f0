"""Agreement of the two sides of a pair, judged by folds it is not in."""

import numpy as np
import torch

from fusemix.align.quality import agreement, agreement_beside_strangers


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
