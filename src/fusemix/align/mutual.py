"""Mutual nearest neighbours: how much two latent spaces agree on who is near whom, without any training."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusemix.align.metrics import resample
from fusemix.align.neighbours import nearest

NEIGHBOURS = 10
PERMUTATIONS = 100


@dataclass(frozen=True)
class Mutual:
    """What two spaces share of their neighbourhoods.

    Attributes:
        overlap: mean share of the k nearest of an item in one space that are among its k nearest in the other, [0, 1].
        expected: the same of two spaces that have nothing in common: k / (n - 1), exactly, whatever their widths.
        score: (overlap - expected) / (1 - expected): 0 is chance, 1 the same neighbourhoods.
        interval: of the score, 95 % by the bootstrap over items, whose neighbours are taken as given.
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
        seed: of the permutations and the bootstrap.
    """
    n = len(x)
    assert len(y) == n > k + 1 and permutations > 1
    near_x, near_y = (_nearest(z.double(), k) for z in (x, y))
    rng = np.random.default_rng(seed)
    codes = np.sort((np.arange(n)[:, None] * n + near_x).ravel())  # every (item, neighbour) as one number
    shared = _shared(codes, near_y, np.arange(n))
    null = [float(_shared(codes, near_y, rng.permutation(n)).mean()) for _ in range(permutations)]
    overlap, expected = float(shared.mean()), k / (n - 1)
    low, high = np.percentile(resample(shared[:, None], np.arange(n), rng)[:, 0], [2.5, 97.5])
    score, low, high = ((value - expected) / (1 - expected) for value in (overlap, float(low), float(high)))
    deviation = max(float(np.std(null, ddof=1)), 1e-12)
    return Mutual(overlap, expected, score, (low, high), (overlap - float(np.mean(null))) / deviation)


def _nearest(latents: Tensor, k: int) -> NDArray[np.int64]:
    """Return the k nearest other rows of every row, (n, k), by cosine about the mean."""
    centred = latents - latents.mean(dim=0)
    rows: NDArray[np.int64] = nearest(centred, centred, k, same=True)[1].numpy()
    return rows


def _shared(codes: NDArray[np.int64], near_y: NDArray[np.int64], partner: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of common neighbours of every item, (n,), when row i of y belongs to item `partner[i]`."""
    n, k = near_y.shape
    wanted = partner[:, None] * n + partner[near_y]
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    found = np.empty(n)
    found[partner] = (codes[place] == wanted).sum(axis=1) / k
    return found
