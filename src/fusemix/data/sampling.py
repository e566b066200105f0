"""Which pairs to look at, where looking at all would cost too much: spread over the groups, and none twice."""

import numpy as np
from numpy.typing import NDArray

from fusemix.data.pairs import Pairs, Rows


def draw(pairs: Pairs, split: str, count: int, seed: int) -> Rows:
    """Draw pairs of one split at random: one of each group before a second of any.

    Of the pairs of a group that share an item, such as the captions of one picture, only one can be drawn. Pairs with
    an empty cell are not drawn.

    Returns:
        (n,) row numbers, n <= `count`.
    """
    usable = (pairs.splits == split) & np.all([rows >= 0 for rows in pairs.rows.values()], axis=0)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
    for rows in pairs.rows.values():
        of_group = np.stack([pairs.groups[order], rows[order]], axis=1)
        order = order[np.sort(np.unique(of_group, axis=0, return_index=True)[1])]
    return order[np.argsort(_turns(pairs.groups[order]), kind="stable")][:count]


def unrelated(*labels: NDArray[np.int64]) -> Rows:
    """Return the pairs (n,), the first that come, of which no two have a label in common.

    Args:
        *labels: (N,) each: the group of every pair, its items.
    """
    seen: set[tuple[int, int]] = set()
    chosen = []
    for place, mine in enumerate(zip(*(each.tolist() for each in labels), strict=True)):
        named = set(enumerate(mine))
        if not named & seen:
            seen |= named
            chosen.append(place)
    return np.array(chosen, dtype=np.int64)


def _turns(groups: Rows) -> Rows:
    """Return for every pair how many of its group stand before it, (N,)."""
    order = np.argsort(groups, kind="stable")
    sizes = np.unique(groups, return_counts=True)[1]
    turns = np.empty_like(order)
    turns[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return turns
