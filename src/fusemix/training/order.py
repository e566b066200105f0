"""Which pairs enter which step: a closed formula of seed, epoch and step, so that there is no state to lose."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusemix.align.mixup import draw_lam
from fusemix.config import FitConfig

# What the seed decides; each draws from a stream of its own.
_EPOCH, _BATCH, _LAM, _DROPOUT = range(4)
RUN = 16  # neighbours of a disk block that stay together within a batch


@dataclass(frozen=True)
class Order:
    """The steps of a fit.

    An epoch is a random order of all pairs, dealt into equal batches, so that none is left out and every step is of one
    size; the last batch is filled up with the first pairs of the same epoch.

    Attributes:
        pairs: N.
        size: pairs loaded in a step; with mixing an even number, of which half enters the loss.
        steps: per epoch.
        alpha: of the mixing; 0 is none.
        mixing: who shares a lam, see `FitConfig`.
        seed: of everything.
        block: neighbours that stay together on their way from the disk; 1 is a fully random order.
    """

    pairs: int
    size: int
    steps: int
    alpha: float
    seed: int
    block: int = 1
    mixing: str = "shared"

    @classmethod
    def of(cls, pairs: int, config: FitConfig, block: int = 1) -> "Order":
        """Deal `pairs` into the batches nearest to the size that is asked for.

        A batch never loads more pairs than there are, but at least two are contrasted.
        """
        halves = 2 if config.alpha > 0 else 1
        steps = max(1, int(pairs / (max(2, config.batch_size) * halves) + 0.5))
        size = max(2, -(-pairs // (steps * halves))) * halves
        return cls(pairs, size, steps, config.alpha, config.seed, block, config.mixing)

    @property
    def batch_size(self) -> int:
        """Pairs that enter the loss in a step, B."""
        return self.size // 2 if self.alpha > 0 else self.size

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the pairs that are loaded in a step, counted from 0 over all epochs: (size,) row numbers.

        With mixing, pair i of the first half meets pair i of the second.
        """
        epoch, place = divmod(step, self.steps)
        places = np.arange(place * self.size, (place + 1) * self.size) % self.pairs
        rows = self.deal(epoch)[places]
        if self.block == 1:
            return rows
        # Neighbours are often captions of one picture: mixed with neighbours they would be as good as one pair, twice.
        # So each of a run (memory, too, is read faster in runs) meets a partner of its own.
        rng = _stream(self.seed, _BATCH, step)
        rows = rows[_in_runs(rng, len(rows), RUN)]
        rows[self.batch_size :] = rng.permutation(rows[self.batch_size :])
        return rows

    def deal(self, epoch: int) -> NDArray[np.int64]:
        """Return all pairs in the order of an epoch, counted from 0: (N,). The last two that were drawn are kept."""
        if self.block == 1:
            return _shuffled(self.seed, epoch, self.pairs)
        return _shuffled_blocks(self.seed, epoch, self.pairs, self.block)

    def lams(self, step: int) -> tuple[float, float] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Draw the lam of x and that of y of a step, in [0, 1]: one number for both, unless `mixing` says otherwise.

        Returns:
            1 without mixing; with "sample" (B,) each.
        """
        if self.alpha == 0:
            return 1.0, 1.0
        rng = _stream(self.seed, _LAM, step)
        if self.mixing == "sample":
            each = rng.beta(self.alpha, self.alpha, self.batch_size).astype(np.float32)
            return each, each
        lam = draw_lam(self.alpha, rng)
        return lam, draw_lam(self.alpha, rng) if self.mixing == "separate" else lam


def dropout_seed(seed: int, step: int, *place: int) -> int:
    """Return the seed of the dropout of one part of a step: it can be drawn again at any time, by anyone."""
    return int(np.random.SeedSequence([seed, _DROPOUT, step, *place]).generate_state(1, np.uint64)[0] >> 1)


def _stream(seed: int, use: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, use, number])


@lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, pairs: int) -> NDArray[np.int64]:
    """(N,) all pairs in the order of an epoch."""
    return _stream(seed, _EPOCH, epoch).permutation(pairs)


@lru_cache(maxsize=2)
def _shuffled_blocks(seed: int, epoch: int, pairs: int, block: int) -> NDArray[np.int64]:
    """(N,) all pairs, blocks of neighbours in random order; where blocks begin changes with the epoch."""
    rng = _stream(seed, _EPOCH, epoch)
    first = int(rng.integers(block))
    return (_in_runs(rng, pairs, block) + first) % pairs


def _in_runs(rng: np.random.Generator, count: int, run: int) -> NDArray[np.int64]:
    """(count,) the numbers from 0 on, runs of neighbours in random order."""
    starts = rng.permutation(-(-count // run)) * run
    numbers: NDArray[np.int64] = (starts[:, None] + np.arange(run)).ravel()
    return numbers[numbers < count]
