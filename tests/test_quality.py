"""Agreement of the two sides of a pair, judged by folds it is not in."""

import numpy as np
import torch

from fusemix.align.quality import agreement


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
