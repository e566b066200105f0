"""Coverage: k items such that every item has one of them near, by two measures of how near.

k-centre bounds the largest distance: greedy takes the item farthest from those picked, and is at most twice as far as
the best k are (Gonzalez, 1985). Facility location sums the similarities: greedy reaches 1 - 1/e of the best sum
(Nemhauser, Wolsey & Fisher, 1978), and is lazy (Minoux, 1978). Neither holds an n x n matrix. Similarities are those
of `Similarity`; the distance is 1 - similarity, in [0, 1], for one modality (1 - cosine) / 2.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusemix.align.greedy import ROUNDING, SMALLEST, greedy
from fusemix.align.similarity import Similarity

_CANDIDATES = 64  # items of facility location whose similarities to all are in memory


def farthest(
    sides: Sequence[Tensor],
    k: int,
    *,
    dtype: torch.dtype = torch.float64,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Pick k items, the first item first, each the one farthest from those before it (k-centre).

    Args:
        sides: (n, D) latents of each modality; row i of all of them is item i.
        k: at most n.
        dtype: of the arithmetic.
        told: called now and then with the number of picks so far.

    Returns:
        Numbers of items in order of picking, and the distance of each to the nearest of those before it (1 for the
        first), (k,) each; fewer than k where every item left is one of those picked over again.
    """
    alike = Similarity(sides, dtype)
    return greedy(_Distance(alike, torch.ones(alike.count, dtype=dtype)), k, told)


class _Distance:
    """How far each item is from the nearest pick."""

    def __init__(self, alike: Similarity, scores: Tensor) -> None:
        self.alike, self.scores = alike, scores
        self.between = alike.whole() if len(scores) <= SMALLEST else None

    def among(self, pool: Tensor, room: int) -> "_Distance":
        """Return the same for some of the items."""
        return _Distance(self.alike.among(pool), self.scores[pool])

    def pick(self, item: int) -> None:
        """Measure from one more item."""
        assert self.between is not None, "one at a time is for small pools"
        self._measured(torch.tensor([item]), self.between[item, None])

    def follow(self, picks: Tensor, pool: "_Distance", places: Tensor) -> None:
        """Measure from several more."""
        self._measured(picks, self.alike.of(picks))

    def _measured(self, picks: Tensor, between: Tensor) -> None:
        torch.minimum(self.scores, 1 - between.amax(dim=0), out=self.scores)
        self.scores[picks] = -torch.inf


def facility(
    sides: Sequence[Tensor],
    k: int,
    *,
    dtype: torch.dtype = torch.float64,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Pick k items, each the one that raises the sum over all items of the similarity to their nearest pick by most.

    Args:
        sides: (n, D) latents of each modality; row i of all of them is item i.
        k: at most n.
        dtype: of the similarities; they are summed in float64.
        told: called now and then with the number of picks so far.

    Returns:
        Numbers of items in order of picking, and by how much each raised the sum, (k,) each; fewer than k where no item
        left would raise it.
    """
    alike = Similarity(sides, dtype)
    count = alike.count
    rounding = ROUNDING[dtype] * count**0.5  # of a sum of so many
    near = torch.zeros(count, dtype=dtype)  # similarity of each item to its nearest pick
    gains = torch.full((count,), torch.inf, dtype=torch.float64)  # can only fall: what is not fresh is a bound
    fresh = torch.zeros(count, dtype=torch.bool)
    pool, between = torch.empty(0, dtype=torch.int64), near.new_empty(0, count)
    picks: list[int] = []
    found: list[float] = []
    while len(picks) < k:
        best, stale = _highest(gains[fresh]), _highest(gains[~fresh])
        if stale >= best - rounding and stale > rounding:
            pool = (
                torch.where(fresh, -torch.inf, gains).topk(min(_CANDIDATES, int((~fresh).sum()))).indices.sort().values
            )
            between = alike.of(pool)
            _raises(between, near, pool, gains, fresh)
            continue
        if best <= rounding:
            break
        pick = int((fresh & (gains >= best - rounding)).nonzero()[0])
        picks.append(pick)
        found.append(float(gains[pick]))
        at = (pool == pick).nonzero()
        row = between[int(at[0])] if len(at) else alike.of(torch.tensor([pick]))[0]
        torch.maximum(near, row, out=near)
        gains[pick] = -torch.inf
        fresh[:] = False
        _raises(between, near, pool, gains, fresh)
        told(len(picks))
    return torch.tensor(picks, dtype=torch.int64), torch.tensor(found, dtype=torch.float64)


def _highest(values: Tensor) -> float:
    return float(values.max()) if len(values) else -float("inf")


def _raises(between: Tensor, near: Tensor, pool: Tensor, gains: Tensor, fresh: Tensor) -> None:
    """Put down by how much each candidate of a pool would raise the sum now; what was picked stays -inf."""
    now = (between - near).clamp_(min=0).sum(dim=1, dtype=torch.float64)
    gains[pool] = torch.where(gains[pool] == -torch.inf, -torch.inf, now)
    fresh[pool] = True
