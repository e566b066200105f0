"""Samples of pairs: spread over the groups, only of one split, and no item twice in a group."""

import numpy as np
import pyarrow as pa
import pytest

from fusemix.data.pairs import Items, Pairs
from fusemix.data.sampling import draw, unrelated


def pairs(groups, x, y, splits=None):
    items = {
        name: Items(name, "text", [str(i) for i in range(max(rows) + 1)], [str(i) for i in range(max(rows) + 1)], None)
        for name, rows in (("x", x), ("y", y))
    }
    rows = {"x": np.array(x), "y": np.array(y)}
    splits = np.array(splits or ["train"] * len(groups))
    return Pairs(items, rows, np.array(groups), splits, pa.table({"row": np.arange(len(groups))}))


def test_one_caption_of_each_picture_is_drawn():
    image = np.repeat(np.arange(30), 5)
    found = draw(pairs(image, image, np.arange(150)), "train", 1000, seed=0)
    assert sorted(image[found]) == list(range(30))
    assert len(set(found % 5)) == 5, "not always the first caption"


def test_a_second_pair_of_a_group_comes_when_every_group_had_its_first():
    groups = np.array([0] * 50 + [1] * 3 + [2])
    found = draw(pairs(groups, np.arange(54), np.arange(54)), "train", 6, seed=0)
    assert sorted(groups[found[:3]]) == [0, 1, 2] and sorted(groups[found[3:5]]) == [0, 1]
    assert np.bincount(groups[found]).tolist() == [3, 2, 1]


def test_other_splits_and_empty_cells_are_never_drawn():
    splits = ["train", "test", "val"] * 20
    table = pairs(np.arange(60), np.arange(60), np.arange(60), splits)
    table.rows["y"][:30:3] = -1
    found = draw(table, "train", 1000, seed=0)
    assert sorted(found) == list(range(30, 60, 3))


@pytest.mark.parametrize("count", [5, 60])
def test_the_seed_decides(count):
    table = pairs(np.arange(60), np.arange(60), np.arange(60))
    one, again, other = (draw(table, "train", count, seed=seed) for seed in (0, 0, 1))
    assert one.tolist() == again.tolist() != other.tolist() and len(one) == count


def test_unrelated_pairs_share_nothing():
    x, y, groups = np.array([0, 1, 1, 2, 3]), np.array([5, 6, 7, 5, 8]), np.array([0, 1, 2, 3, 1])
    assert unrelated(x, y, groups).tolist() == [0, 1]  # then: x of 1, y of 0, group of 1
    assert unrelated(x, np.arange(5), np.arange(5)).tolist() == [0, 1, 3, 4]
