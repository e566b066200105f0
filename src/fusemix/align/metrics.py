"""Retrieval metrics by counting, for many-to-many relevance.

A query may have several relevant items and an item several queries. An item that scores exactly as high as a relevant
one and is not relevant counts as ranked *before* it: a model that gives every item the same score gets the worst rank,
not the best. Ranks are counted, not sorted for: one matrix product and one comparison per score.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix.errors import FusemixError

CUTOFFS = (1, 5, 10)
_SCORES_PER_BLOCK = 1 << 24  # 64 MB of float32 scores at a time


@dataclass(frozen=True)
class Relevance:
    """Which gallery items answer which query, grouped by query.

    Attributes:
        gallery: (P,) int64, relevant gallery rows, ordered by query.
        starts: (Q + 1,) int64; query q owns gallery[starts[q] : starts[q + 1]], never empty.
        items: G, number of gallery items.
    """

    gallery: NDArray[np.int64]
    starts: NDArray[np.int64]
    items: int

    @classmethod
    def from_pairs(cls, query: NDArray[np.int64], gallery: NDArray[np.int64]) -> "Relevance":
        """Build from P positive pairs of row numbers; repeats are dropped, rows must be numbered without gaps."""
        pairs = np.unique(np.stack([query, gallery], axis=1), axis=0)
        counts = np.bincount(pairs[:, 0])
        assert counts.min() > 0, "every query needs a relevant item"
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(pairs[:, 1].copy(), starts.astype(np.int64), int(gallery.max()) + 1)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(Q,) relevant items of each query, R."""
        return np.diff(self.starts)

    def padded(self, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return rows (q, R) of the queries first..stop and a mask (q, R) of those that are real."""
        starts, counts = self.starts[first:stop], self.counts[first:stop]
        place = np.arange(counts.max())
        mask = place < counts[:, None]
        rows = self.gallery[np.where(mask, starts[:, None] + place, 0)]
        return torch.from_numpy(rows), torch.from_numpy(mask)


def best_ranks(queries: Tensor, gallery: Tensor, relevance: Relevance) -> NDArray[np.int64]:
    """Return the rank of the best relevant item of every query, (Q,), from 1.

    Args:
        queries: (Q, S) embeddings.
        gallery: (G, S) embeddings; the score is the dot product.
        relevance: what counts as found.

    Raises:
        FusemixError: embeddings that are not finite, which would compare with nothing.
    """
    parts = []
    for scores, relevant, _ in _blocks(queries, gallery, relevance):
        best = relevant[:, :1]
        others = (scores >= best).sum(dim=1) - (relevant >= best).sum(dim=1)
        parts.append(others + 1)
    return _join(parts)


def average_precisions(queries: Tensor, gallery: Tensor, relevance: Relevance) -> NDArray[np.float64]:
    """Return the average precision of every query, (Q,), in (0, 1]; arguments as `best_ranks`."""
    parts = []
    for scores, relevant, counts in _blocks(queries, gallery, relevance):
        above = _at_least(scores, relevant)  # items that score as high as each relevant one, itself among them
        others = above - _at_least(relevant, relevant)
        place = torch.arange(1, relevant.shape[1] + 1, device=scores.device)
        real = place <= counts[:, None]
        precision = place.double() / (place + others)
        parts.append(precision.masked_fill(~real, 0).sum(dim=1) / counts)
    return _join(parts)


def _blocks(queries: Tensor, gallery: Tensor, relevance: Relevance) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield scores (q, G), scores of the relevant items (q, R), falling and filled with -inf, and their number (q,)."""
    if not bool(queries.isfinite().all() and gallery.isfinite().all()):
        raise FusemixError("some embeddings are NaN or infinite, so nothing can be ranked; look for NaN latents")
    block = max(1, _SCORES_PER_BLOCK // len(gallery))
    for first, stop in pairwise([*range(0, len(queries), block), len(queries)]):
        scores = queries[first:stop] @ gallery.T
        rows, mask = (t.to(scores.device) for t in relevance.padded(first, stop))
        relevant = scores.gather(1, rows).masked_fill(~mask, -torch.inf).sort(dim=1, descending=True).values
        yield scores, relevant, mask.sum(dim=1)


def _at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Count for each threshold (q, R) the scores (q, G) of its row that reach it, (q, R)."""
    if thresholds.shape[1] <= 16:  # counting is cheaper than sorting while there are few thresholds
        return torch.stack([(scores >= column[:, None]).sum(dim=1) for column in thresholds.unbind(dim=1)], dim=1)
    rising = scores.sort(dim=1).values
    return scores.shape[1] - torch.searchsorted(rising, thresholds.contiguous(), side="left")


def _join(parts: list[Tensor]) -> NDArray[Any]:
    joined: NDArray[Any] = torch.cat(parts).cpu().numpy()
    return joined


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """Percentage of queries whose best relevant item is among the first k, in [0, 100]."""
    return 100 * float(np.mean(ranks <= k))


def recall_of(forth: NDArray[np.int64], back: NDArray[np.int64]) -> float:
    """Mean of R@1, R@5 and R@10 over the best ranks of both directions, in [0, 100]."""
    return float(np.mean([recall_at(ranks, k) for ranks in (forth, back) for k in CUTOFFS]))


def mean_recall(x: Tensor, y: Tensor, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> float:
    """Mean of R@1, R@5 and R@10 over both directions, in [0, 100]: the one number that selection goes by.

    Args:
        x: (N, S) embeddings.
        y: (M, S) embeddings.
        pairs: row numbers in x and in y of the positive pairs, without gaps.
    """
    forth = best_ranks(x, y, Relevance.from_pairs(pairs[0], pairs[1]))
    return recall_of(forth, best_ranks(y, x, Relevance.from_pairs(pairs[1], pairs[0])))


def bootstrap(
    ranks: NDArray[np.int64], groups: NDArray[np.int64], rng: np.random.Generator
) -> dict[int, tuple[float, float]]:
    """95 % intervals of the recalls by the cluster bootstrap: 1,000 resamples of whole groups, percentiles.

    Queries of one group (the captions of one picture) stand or fall together; resampling them one by one would make
    the interval too narrow.

    Args:
        ranks: (Q,) best ranks.
        groups: (Q,) group of each query.
        rng: decides the resamples.

    Returns:
        For each cut-off the ends of the interval, in percent.
    """
    hits = np.stack([ranks <= k for k in CUTOFFS], axis=1)
    shares = 100 * resample(hits, groups, rng)
    low, high = np.percentile(shares, [2.5, 97.5], axis=0)
    return {k: (float(a), float(b)) for k, a, b in zip(CUTOFFS, low, high, strict=True)}


def resample(
    values: NDArray[Any], groups: NDArray[np.int64], rng: np.random.Generator, draws: int = 1000
) -> NDArray[np.float64]:
    """Return means (draws, K) of values (Q, K) over resamples of whole groups (Q,): the cluster bootstrap."""
    group = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group)
    sums = np.stack([np.bincount(group, weights=column) for column in values.T], axis=1)  # (groups, K)
    means = np.empty((draws, values.shape[1]))
    for i in range(draws):
        drawn = rng.integers(len(sizes), size=len(sizes))
        means[i] = sums[drawn].sum(axis=0) / sizes[drawn].sum()
    return means


def chance_rank_distribution(relevance: Relevance) -> NDArray[np.float64]:
    """Return P(best rank <= m) for m = 1..G of a random order, averaged over the queries (hypergeometric)."""
    total = relevance.items
    found = np.zeros(total)
    sizes, weights = np.unique(relevance.counts, return_counts=True)
    for size, weight in zip(sizes.tolist(), weights.tolist(), strict=True):
        m = np.arange(1, total + 1)
        # P(best > m) = C(G - m, R) / C(G, R), as a running product of (G - R - j) / (G - j).
        missed = np.cumprod(np.clip((total - size - (m - 1)) / (total - (m - 1)), 0, 1))
        found += weight * (1 - missed)
    found /= weights.sum()
    return found


def chance_average_precision(relevance: Relevance) -> float:
    """Return the expected mAP of a random order: (H_G + (R - 1)(G - H_G) / (G - 1)) / G, averaged over the queries."""
    total = relevance.items
    harmonic = math.fsum(1 / i for i in range(1, total + 1))
    if total == 1:
        return 1.0
    expected = (harmonic + (relevance.counts - 1) * (total - harmonic) / (total - 1)) / total
    return float(expected.mean())
