"""A selection of k pairs; and how pairs that share items, and very many pairs, are gone about.

Pairs that share all that is looked at (five captions of one picture, by the picture) are one item to a method of
diversity or coverage. Of each item the best pair stands for it, the lowest index where there are no qualities: on the
whole kernel greedy would do the same. Where every item left is a repetition, as far as rounding shows, a new pass
begins among the pairs that are left, as if nothing had been picked: who asked for 10,000 gets 10,000, each pass as
diverse as can be.

Very many pairs are dealt into parts. What is picked in each part stands against one another once more (GreeDi,
Mirzasoleiman et al., arXiv 1411.0541).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
CELLS = 1_000_000_000  # numbers that a pick in one piece may hold: 4 GB in float32
_PART_CELLS = CELLS // 4
_PART_FLOPS = 1e13  # of all parts together
# At most for each pair wanted, in the final of the parts: half as many lose one and a half times as much.
_FINALISTS = 16
_RUN = 256  # neighbours that are dealt to one part together: of a disk they are one read


class Pick(Protocol):
    """A method: picks up to k of some pairs, given by number and ascending."""

    def __call__(self, pairs: Rows, k: int, dtype: torch.dtype) -> tuple[Rows, Scores]:
        """Return places among `pairs` in order of picking, and gains; fewer than k where what is left repeats those."""


@dataclass(frozen=True)
class Selection:
    """Pairs in order of picking: the first m are the selection of m, at the same plan.

    Attributes:
        rows: (k,) int64 numbers of pairs.
        gains: (k,) float64, what each added when it was picked; falling within a pass.
        passes: how many passes over the pairs it took.
    """

    rows: Rows
    gains: Scores
    passes: int = 1


@dataclass(frozen=True)
class Plan:
    """How a selection of k of n items is gone about. A function of k and n, not of the machine.

    Attributes:
        parts: that the items are dealt into; 1 for the exact answer.
        quota: picks in each part.
        final: whether what the parts picked stands against one another; else they are merged by gain: of so many pairs
            none but repetitions within a part are kept out, and diversity is hardly above chance.
        dtype: of the arithmetic.
    """

    parts: int
    quota: int
    final: bool
    dtype: torch.dtype

    @classmethod
    def of(
        cls, n: int, k: int, *, square: bool = False, parts: int | None = None, precision: str | None = None
    ) -> "Plan":
        """Plan so that at most `CELLS` numbers are held.

        Args:
            n: items.
            k: picks.
            square: whether the method's work is n^2 and not n k, as that of facility location is.
            parts: instead of the fewest that are few enough.
            precision: "float64" or "float32" instead of float64 where n k numbers of it are at most CELLS / 2.
        """
        cells = n * n if square else n * k
        fits = cells <= CELLS // (1 if square else 2)
        dtype = getattr(torch, precision) if precision else torch.float64 if fits else torch.float32
        if parts is None and cells <= CELLS:
            return cls(1, k, False, dtype)
        wanted = min(_FINALISTS * k, n, int(CELLS**0.5) if square else CELLS // k)
        final = wanted >= min(2 * k, n)
        number = parts or 2
        while True:
            size = -(-n // number)
            quota = min(size, -(-(wanted if final else k) // number))
            cells = size * (size if square else quota)
            if parts or number >= n or (cells <= _PART_CELLS and cells * quota * number <= _PART_FLOPS):
                return cls(number, quota, final, dtype)
            number *= 2


def uniform(n: int, k: int, seed: int) -> Selection:
    """Pick k of n without replacement; the gains are 0."""
    return Selection(np.random.default_rng(seed).permutation(n)[:k], np.zeros(k))


def best(quality: Scores, k: int) -> Selection:
    """Pick the k of highest quality (N,), the lowest index of equals; the gains are the qualities."""
    rows = np.argsort(-quality, kind="stable")[:k]
    return Selection(rows, quality[rows])


def weights(quality: Scores, weight: float) -> Tensor:
    """Turn a quality (N,) into the q of a kernel q_i K_ij q_j, (N,) in (0, 1]: q = exp(weight z / 2), the largest 1.

    Of z, the quality in standard deviations, one more multiplies the gain of a pick, which goes with q^2, by e^weight.
    """
    z = (quality - quality.mean()) / (quality.std() or 1.0)
    return torch.from_numpy(np.exp(weight * (z - z.max()) / 2))


def pick_pairs(pick: Pick, codes: Rows, k: int, plan: Plan, quality: Tensor | None = None, seed: int = 0) -> Selection:
    """Pick k pairs by a method that looks at items.

    Args:
        pick: the method.
        codes: (N,) item of each pair; pairs of one code are alike to the method.
        k: at most N.
        plan: see `Plan`.
        quality: (N,) of each pair; None for ones.
        seed: deals the items into parts.
    """
    # The best pairs first, of equals the lowest index.
    order = np.arange(len(codes)) if quality is None else np.argsort(-quality.numpy(), kind="stable")
    left = np.ones(len(codes), dtype=bool)
    rows, gains, passes, done = [], [], 0, 0
    while done < k:
        open_ = order[left[order]]
        pairs = np.sort(open_[np.unique(codes[open_], return_index=True)[1]])
        wanted = min(k - done, len(pairs))
        places, found = _in_parts(pick, pairs, wanted, plan, seed)
        if not len(places):  # no pair left has anything to add: by index
            places, found = np.arange(wanted), np.zeros(wanted)
        left[pairs[places]] = False
        rows.append(pairs[places])
        gains.append(found)
        done += len(places)
        passes += 1
    return Selection(np.concatenate(rows), np.concatenate(gains), passes)


def _in_parts(pick: Pick, pairs: Rows, k: int, plan: Plan, seed: int) -> tuple[Rows, Scores]:
    """Pick k of some pairs, part by part if the plan says so; return their places."""
    if plan.parts == 1 or len(pairs) <= plan.parts:
        return pick(pairs, k, plan.dtype)
    places, gains = [], []
    for part in deal(len(pairs), plan.parts, seed):
        chosen, found = pick(pairs[part], min(plan.quota, len(part)), plan.dtype)
        places.append(part[chosen])
        gains.append(found)
    union, added = np.concatenate(places), np.concatenate(gains)
    if not plan.final:
        order = np.argsort(-added, kind="stable")[:k]
        return union[order], added[order]
    finalists = np.sort(union)
    chosen, found = pick(pairs[finalists], min(k, len(finalists)), plan.dtype)
    return finalists[chosen], found


def deal(n: int, parts: int, seed: int) -> list[Rows]:
    """Deal 0..n-1 into parts at random, ascending in each, in runs of neighbours where they are many."""
    run = max(1, min(_RUN, n // (16 * parts)))
    part = (np.random.default_rng(seed).permutation(-(-n // run)) % parts).repeat(run)[:n]
    return [np.flatnonzero(part == i) for i in range(parts)]
