"""Greedy selection in blocks: the picks of one-at-a-time greedy, by matrix products instead of matrix-vector products.

Every rule here has a score per item that can only fall while others are picked. So a pool of the highest scores may go
on by itself for as long as its best beats the highest score outside it, which cannot have risen; then all items are
told of several picks at once. The pool is served the same way by a pool of its own. (The look-ahead is that of lazy
greedy: Minoux, 1978.)

Scores within `ROUNDING` of the best are equal, and of equals the lowest index is picked: so the answer does not
depend on the order in which a product was summed.
"""

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

# Differences of scores that rounding makes. A score of so little is none.
ROUNDING = {torch.float64: 1e-10, torch.float32: 3e-5}
SMALLEST = 192  # a pool of so many is picked from one at a time
_SHARE = 8  # of its items that a pool holds: one in eight
_LARGEST = 8192  # a pool of so many, with its k rows, is a twelfth of 100,000
_ROOM = 128  # picks at most that all items are told of at once


class Rule(Protocol):
    """What greedy needs to know: the score of each of n items, and what picks do to them.

    Attributes:
        scores: (n,), which can only fall; -inf for what was picked.
    """

    scores: Tensor

    def among(self, pool: Tensor, room: int) -> Self:
        """Return the same rule for some of the items, which will be told of `room` picks at most."""

    def pick(self, item: int) -> None:
        """Pick an item of a small pool."""

    def follow(self, picks: Tensor, pool: Self, places: Tensor) -> None:
        """Pick what a pool picked: items by number, and by their places in the pool; in order."""


R = TypeVar("R", bound=Rule)


def greedy(rule: R, k: int, told: Callable[[int], None] = lambda done: None) -> tuple[Tensor, Tensor]:
    """Pick k items, each the one of the highest score given those before it.

    Args:
        rule: consumed.
        k: at most as many as there are items.
        told: called now and then with the number of picks so far.

    Returns:
        Numbers of the items in order of picking, and their scores when they were picked, (k,) each; fewer where no item
        has a score above `ROUNDING`.
    """
    return _grow(rule, k, -torch.inf, told)


def _grow(rule: R, k: int, outside: float, told: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """Pick while the best beats what is `outside`; the first pick is known to."""
    rounding, count = ROUNDING[rule.scores.dtype], len(rule.scores)
    picks: list[Tensor] = []
    gains: list[Tensor] = []
    done = 0
    while done < k:
        best = float(rule.scores.max())
        if best <= rounding or (done and best <= outside + rounding):
            break
        first = int((rule.scores >= best - rounding).nonzero()[0])
        if count <= SMALLEST:
            gains.append(rule.scores[first : first + 1].clone())
            picks.append(torch.tensor([first]))
            rule.pick(first)
            done += 1
            continue
        pool, highest = _pool(rule.scores, first, min(max(SMALLEST, count // _SHARE), _LARGEST))
        room = min(k - done, _ROOM)
        inner = rule.among(pool, room)
        places, found = _grow(inner, room, max(highest, outside), lambda _: None)
        picks.append(pool[places])
        gains.append(found)
        rule.follow(pool[places], inner, places)
        done += len(places)
        told(done)
        del inner  # or it would be in memory beside the next one
    none = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=rule.scores.dtype)
    return torch.cat([none[0], *picks]), torch.cat([none[1], *gains])


def _pool(scores: Tensor, first: int, size: int) -> tuple[Tensor, float]:
    """Return the numbers of the highest scores, ascending, `first` among them; and the highest score that is left out.

    `first` is the lowest of all that are equal to the best: without it a pool of equals could begin with another.
    """
    top = torch.topk(scores, size + 1)
    pool, highest = top.indices[:size], float(top.values[size])
    if not bool((pool == first).any()):
        pool[-1], highest = first, float(top.values[size - 1])
    return pool.sort().values, highest
