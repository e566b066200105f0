"""LatentRows: (n, D) latents that stay where they are, in memory or in the shards of a store.

`blocks` goes through them in order. `take` gathers any of them by way of the memory map, from the page cache if they
were read before. `read` does so past the map, for a disk that has not been read yet, where a page at a time is slow.
`whole` is everything as one tensor.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix.data.mapped import Mapped, damaged

Numbers = NDArray[np.int64]
GAP = 32 * 1024  # bytes that are sooner read and dropped than skipped
RUN = 8 * 1024**2  # bytes at most of one read: what is not wanted of it lies in memory for a moment


class LatentRows:
    """Rows of one or several parts, or some of them.

    Args:
        parts: tensors (m, D) in memory or in files, of one width and dtype; together they are the rows.
        chosen: numbers of the rows that this object has, in its order; None for all.

    Attributes:
        shape: (n, D).
        dtype: of the latents.
    """

    def __init__(self, parts: Sequence[Tensor | Mapped], chosen: Numbers | None = None) -> None:
        assert parts and len({(part.shape[1], part.dtype) for part in parts}) == 1, "parts of one width and dtype"
        self._parts, self._chosen = list(parts), chosen
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self._maps: dict[int, Tensor] = {}
        self._whole: Tensor | None = None
        self.shape = (int(self._starts[-1]) if chosen is None else len(chosen), int(parts[0].shape[1]))
        self.dtype = parts[0].dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "LatentRows":
        """Return the rows of one tensor (n, D)."""
        return cls([tensor])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of n * D numbers, wherever they lie."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def device(self) -> torch.device:
        """Where the latents lie; files count as memory of the CPU. Off the CPU only `whole` and `blocks` serve them."""
        part = self._parts[0]
        return part.device if isinstance(part, Tensor) else torch.device("cpu")

    @property
    def resident(self) -> bool:
        """Whether all rows lie in memory of this process, not in a file."""
        mapped_whole = len(self._parts) == 1 and self._chosen is None
        return all(isinstance(part, Tensor) for part in self._parts) or (self._whole is not None and not mapped_whole)

    def whole(self) -> Tensor:
        """Return all rows, (n, D): the one part itself, else gathered into memory and kept."""
        if self._whole is None:
            if self._chosen is not None:
                self._whole = self.take(np.arange(len(self)))
            else:
                maps = [self._map(i) for i in range(len(self._parts))]
                self._whole = maps[0] if len(maps) == 1 else torch.cat(maps)
            self._maps.clear()
        return self._whole

    def select(self, rows: Tensor | Numbers) -> "LatentRows":
        """Return some of the rows, in this order; reads nothing.

        Raises:
            IndexError: a number that is not in 0..n-1.
        """
        return LatentRows(self._parts, self._numbers(rows))

    def blocks(self, rows: int = 8192) -> Iterator[Tensor]:
        """Go through all rows in order, (b, D) at a time, b <= `rows`; of a file a view, which holds no memory."""
        if self._whole is not None:
            yield from torch.split(self._whole, rows)
        elif self._chosen is not None:
            for start in range(0, len(self), rows):
                yield self.take(np.arange(start, min(start + rows, len(self))))
        else:
            for part in self._parts:
                yield from torch.split(part if isinstance(part, Tensor) else part.map(), rows)

    def take(self, rows: Tensor | Numbers) -> Tensor:
        """Return rows by number, (k, D), in the order given; a number may occur more than once.

        Raises:
            IndexError: a number that is not in 0..n-1.
            StoreError: a file that is gone or was cut.
        """
        out = torch.empty(len(rows), self.shape[1], dtype=self.dtype)
        if self._whole is not None:
            return torch.index_select(self._whole, 0, _tensor(_checked(rows, len(self))), out=out)
        numbers = self._numbers(rows)
        if len(self._parts) == 1:
            return torch.index_select(self._map(0), 0, _tensor(numbers), out=out)
        for part, slots, local in self._by_part(numbers):
            out[_tensor(slots)] = self._map(part).index_select(0, _tensor(local))
        return out

    def __getitem__(self, rows: Tensor | Numbers) -> Tensor:
        """The same as `take`, so that a tensor and rows on a disk can be asked alike."""
        return self.take(rows)

    def read(self, rows: Numbers, out: Tensor) -> None:
        """Read rows by number into `out`, past the memory map: neighbours in one read, without the GIL.

        Args:
            rows: (k,) in any order; cheapest in ascending order and in runs.
            out: (k, D) of the same dtype, contiguous, in memory.

        Raises:
            IndexError: a number that is not in 0..n-1.
            StoreError: a file that is gone or was cut.
        """
        assert out.shape == (len(rows), self.shape[1]) and out.dtype == self.dtype and out.is_contiguous()
        if self.resident or not hasattr(os, "preadv"):
            out.copy_(self.take(rows))
            return
        memory = out.view(torch.uint8).numpy()
        cold = []
        for part, slots, local in self._by_part(self._numbers(rows)):
            found = self._parts[part]
            if isinstance(found, Tensor):
                out[_tensor(slots)] = found.index_select(0, _tensor(local))
            else:
                cold.append((found, _runs(local, slots, memory.shape[1])))
        if hasattr(os, "posix_fadvise"):  # told of everything at once, the disk is never idle between two reads
            for file_part, runs in cold:
                _announce(file_part, runs, memory.shape[1])
        for file_part, runs in cold:
            _read(file_part, runs, memory)

    def _numbers(self, rows: Tensor | Numbers) -> Numbers:
        """Return numbers of rows of the parts."""
        checked = _checked(rows, len(self))
        return checked if self._chosen is None else self._chosen[checked]

    def _map(self, part: int) -> Tensor:
        found = self._parts[part]
        if isinstance(found, Tensor):
            return found
        if part not in self._maps:
            self._maps[part] = found.map()
        return self._maps[part]

    def _by_part(self, rows: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
        """Yield for each part that is asked for: its place, which of `rows` lie there, and their numbers in it.

        Within a part the numbers ascend.
        """
        order = np.argsort(rows, kind="stable")
        edges = np.searchsorted(rows[order], self._starts)
        for part in np.flatnonzero(np.diff(edges)).tolist():
            slots = order[edges[part] : edges[part + 1]]
            yield part, slots, rows[slots] - self._starts[part]


def _runs(rows: Numbers, slots: Numbers, width: int) -> list[tuple[Numbers, Numbers]]:
    """Cut ascending rows of one file, of `width` bytes, into runs that are read at once; `slots` alike."""
    far = (np.diff(rows) - 1) * width > GAP
    breaks = np.flatnonzero(far | (np.diff(rows * width // RUN) > 0)) + 1
    return list(zip(np.split(rows, breaks), np.split(slots, breaks), strict=True))


@contextmanager
def _opened(part: Mapped) -> Iterator[int]:
    """Open the file of a part for as long as it is read: a large store has more shards than a process may open."""
    try:
        file = os.open(part.path, os.O_RDONLY)
    except OSError as error:
        raise damaged(part.path, error) from error
    try:
        yield file
    finally:
        os.close(file)


def _announce(part: Mapped, runs: list[tuple[Numbers, Numbers]], width: int) -> None:
    """Tell the kernel what will be read; it begins and does not wait."""
    with _opened(part) as file:
        for run, _ in runs:
            length = int(run[-1] - run[0] + 1) * width
            os.posix_fadvise(file, part.start + int(run[0]) * width, length, os.POSIX_FADV_WILLNEED)


def _read(part: Mapped, runs: list[tuple[Numbers, Numbers]], memory: NDArray[np.uint8]) -> None:
    """Read runs of rows of one file into the rows of `memory` (k, bytes of a row) that they are for."""
    width = memory.shape[1]
    with _opened(part) as file:
        for run, into in runs:
            first, target, count = int(run[0]), int(into[0]), int(run[-1] - run[0]) + 1
            straight = count == len(run) and bool((np.diff(run) == 1).all() and (np.diff(into) == 1).all())
            block = memory[target : target + count] if straight else np.empty((count, width), np.uint8)
            _fill(file, part, block, part.start + first * width)
            if not straight:
                memory[into] = block[run - first]


def _fill(file: int, part: Mapped, block: NDArray[np.uint8], offset: int) -> None:
    """Read until `block` is full."""
    view = block.data.cast("B")
    done = 0
    while done < len(view):
        try:
            count = os.preadv(file, [view[done:]], offset + done)
        except OSError as error:
            raise damaged(part.path, error) from error
        if not count:
            raise damaged(part.path, f"it ends at byte {offset + done:,}, it had {part.size:,} when it was opened")
        done += count


def _checked(rows: Tensor | Numbers, count: int) -> Numbers:
    numbers: Numbers = np.ascontiguousarray(rows.numpy() if isinstance(rows, Tensor) else rows, dtype=np.int64)
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
        raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {count:,} latents; wanted 0 to {count - 1:,}")
    return numbers


def _tensor(rows: Numbers) -> Tensor:
    return torch.from_numpy(rows)
