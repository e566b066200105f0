"""Mutual nearest neighbours: how much two latent spaces agree on who is near whom, without any training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusemix.align.neighbours import nearest

NEIGHBOURS = 10
PERMUTATIONS = 100
PARTS = 20  # of the jackknife
SPARE = 2  # times as many neighbours more are known, for those that the jackknife leaves out


@dataclass(frozen=True)
class Mutual:
    """What two spaces share of their neighbourhoods.

    Attributes:
        overlap: mean share of the k nearest of an item in one space that are among its k nearest in the other, [0, 1].
        expected: the same of two spaces that have nothing in common: k / (n - 1), exactly, whatever their widths.
        score: (overlap - expected) / (1 - expected): 0 is chance, 1 the same neighbourhoods.
        interval: of the score, 95 % by the jackknife, which leaves out a twentieth of the items at a time, as
            neighbours too; rather a little too wide than too narrow.
        z: how many deviations of the permuted pairings the overlap lies above their mean.
    """

    overlap: float
    expected: float
    score: float
    interval: tuple[float, float]
    z: float


def mutual_neighbours(
    x: Tensor, y: Tensor, *, k: int = NEIGHBOURS, permutations: int = PERMUTATIONS, seed: int = 0
) -> Mutual:
    """Compare the neighbourhoods of n paired items, by cosine about the mean (mutual kNN, arXiv 2405.07987).

    The null is the same spaces with their pairs permuted. Its mean depends on k and n alone; its deviation is larger
    where a few items are neighbours of many. Neighbours are looked for once: a permutation only renames them.

    Args:
        x: (n, Dx) latents, n > k + 1. Items of which two belong to one group, or share a partner, are near in both
            spaces for no merit of theirs: give one pair of each.
        y: (n, Dy) latents of their partners, row by row.
        k: neighbours of each item.
        permutations: of the pairing, at least 2.
        seed: of the permutations and of the parts that the jackknife leaves out.
    """
    n = len(x)
    assert len(y) == n > k + 1 and permutations > 1
    near = [_nearest(z.double(), k + SPARE * k) for z in (x, y)]
    rng = np.random.default_rng(seed)
    near_x, near_y = (rows[:, :k] for rows in near)
    overlap, expected = _shared(near_x, near_y, np.arange(n)), k / (n - 1)
    null = [_shared(near_x, near_y, rng.permutation(n)) for _ in range(permutations)]
    score = (overlap - expected) / (1 - expected)
    error = 1.96 * _error(near, k, rng.permutation(n) % min(PARTS, n))
    deviation = max(float(np.std(null, ddof=1)), 1e-12)
    z = (overlap - float(np.mean(null))) / deviation
    return Mutual(overlap, expected, score, (score - error, score + error), z)


def _nearest(latents: Tensor, k: int) -> NDArray[np.int64]:
    """Return the k nearest other rows of every row, (n, k), by cosine about the mean."""
    centred = latents - latents.mean(dim=0)
    rows: NDArray[np.int64] = nearest(centred, centred, k, same=True)[1].numpy()
    return rows


def _shared(near_x: NDArray[np.int64], near_y: NDArray[np.int64], partner: NDArray[np.int64]) -> float:
    """Return the mean share of common neighbours, (n, k) either way, when row i of y belongs to item `partner[i]`."""
    n = int(max(near_x.max(), near_y.max())) + 1
    items = np.arange(len(near_x))
    # Every (item, neighbour) as one number; of x they come in order, but for the neighbours of one item.
    codes = (items[:, None] * n + np.sort(near_x, axis=1)).ravel()
    wanted = (partner[:, None] * n + partner[near_y]).ravel()
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return float(np.mean(codes[place] == wanted))


def _error(near: Sequence[NDArray[np.int64]], k: int, part: NDArray[np.int64]) -> float:
    """Return the standard error of the score: the jackknife over parts of the items (n,), 0..g-1.

    The neighbours of the items that stay are those of their longer lists that stay too. (Shares of common neighbours
    depend on one another, as neighbours do: resampling them alone would make the interval too narrow.)
    """
    scores = []
    for left_out in range(part.max() + 1):
        stays = part != left_out
        numbers = np.cumsum(stays) - 1
        lists = []
        for rows in near:
            kept = rows[stays]
            first = np.argsort(~stays[kept], axis=1, kind="stable")[:, :k]
            lists.append(numbers[np.take_along_axis(kept, first, axis=1)])
        expected = k / (stays.sum() - 1)
        scores.append((_shared(lists[0], lists[1], np.arange(stays.sum())) - expected) / (1 - expected))
    return float(np.sqrt((len(scores) - 1) * np.var(scores)))
