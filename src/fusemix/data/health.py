"""Health: what is wrong with the latents of a modality, found in one pass over them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix.data.latents import ItemLatents
from fusemix.data.rows import LatentRows, Numbers

SHOWN = 3  # items named in a note
PIECE = 2**18  # numbers that are looked at at once: fewer cost more calls, more fall out of the cache


@dataclass(frozen=True)
class Health:
    """What one pass over n latents (n, D) found.

    Attributes:
        modality: the user's word.
        count: n.
        not_finite: rows that hold NaN or infinity.
        zero: rows that are all zero.
        shared: rows that are bit for bit the same as another row; rows of zeros or NaN are not counted again.
        constant: dimensions (of 0..D-1) that have one value in all finite rows.
        mean: (D,) float64 of the finite rows.
        deviation: (D,) float64, their standard deviation (divided by n).
        names: ids of the first few rows of each kind.
    """

    modality: str
    count: int
    not_finite: Numbers
    zero: Numbers
    shared: Numbers
    constant: Numbers
    mean: Tensor
    deviation: Tensor
    names: dict[str, list[str]]

    def notes(self) -> list[str]:
        """Say in plain words what was found; nothing where all is well."""
        found = []
        if len(self.not_finite):
            found.append(f"{_latents(len(self.not_finite))} NaN or infinite: {self._named('not_finite')}")
        if len(self.zero):
            found.append(f"{_latents(len(self.zero))} all zero: {self._named('zero')}")
        if len(self.shared):
            found.append(
                f"{len(self.shared):,} of {self.count:,} items have a latent that another item has too: "
                f"{self._named('shared')}"
            )
        if len(self.constant):
            verb = "is" if len(self.constant) == 1 else "are"
            found.append(f"{len(self.constant):,} of {len(self.mean):,} dimensions {verb} constant")
        return [f"{self.modality}: {note}" for note in found]

    def _named(self, kind: str) -> str:
        more = ", ..." if len(getattr(self, kind)) > SHOWN else ""
        return ", ".join(map(repr, self.names[kind])) + more


def _latents(count: int) -> str:
    return f"{count:,} latent{' is' if count == 1 else 's are'}"


def examine(items: ItemLatents) -> Health:
    """Look at every latent of a modality once, in pieces of a fixed size, however the rows come in blocks.

    Equal rows are told by a 64-bit hash: a sum of 16-bit words, each times a fixed random odd number, modulo 2^64.
    Two rows that differ in a single word never have the same. Two others have it with a chance of 2^-63 in general
    and of 2^-48 at worst: a false alarm is to be expected in one of 700,000 data sets of five million rows.

    The mean and the deviation come from sums in float64 of what lies beside the first finite row, and of its square.
    That row is one of the n, so it lies at most sqrt(n) deviations from the mean: where the sums are rounded by 1e-14
    (as measured), so is the variance if the first row is like the others, and by n times as much at the worst. How
    large the mean is does not matter.

    Raises:
        StoreError: a shard is gone or was cut.
    """
    sums = _Sums(items.rows)
    for piece in _pieces(items.rows, sums.size):
        sums.add(piece)
    zero, not_finite = np.flatnonzero(sums.peaks == 0), np.flatnonzero(sums.peaks >= sums.infinity)
    usual = np.flatnonzero((sums.peaks > 0) & (sums.peaks < sums.infinity))
    _, group, sizes = np.unique(sums.hashes[usual], return_inverse=True, return_counts=True)
    shared = usual[sizes[group] > 1]
    # The square of no difference of float16 or float32 vanishes in float64: a sum of zero says that all are equal.
    constant = np.flatnonzero(sums.squares == 0) if sums.finite else np.empty(0, np.int64)
    beside = sums.beside / max(1, sums.finite)
    variance = np.maximum(sums.squares / max(1, sums.finite) - beside**2, 0)
    mean, deviation = torch.from_numpy(sums.first.numpy() + beside), torch.from_numpy(np.sqrt(variance))
    kinds = {"not_finite": not_finite, "zero": zero, "shared": shared}
    names = {kind: items.items["id"].take(pa.array(found[:SHOWN])).to_pylist() for kind, found in kinds.items()}
    return Health(items.modality, len(items), not_finite, zero, shared, constant, mean, deviation, names)


def _pieces(rows: LatentRows, size: int) -> Iterator[Tensor]:
    """Go through all rows, `size` (contiguous) at a time: of a block a view, or memory that a next piece overwrites."""
    memory, filled = torch.empty(size, rows.shape[1], dtype=rows.dtype), 0
    for block in rows.blocks():
        start = 0
        while start < len(block):
            some = block[start : start + size - filled]
            start += len(some)
            if len(some) == size and some.is_contiguous():
                yield some
                continue
            memory[filled : filled + len(some)] = some
            filled = (filled + len(some)) % size
            if not filled:
                yield memory
    if filled:
        yield memory[:filled]


class _Sums:
    """What is known of the rows so far.

    Fresh memory costs more than what is written into it, so all pieces share some. What adds up is NumPy's: its order
    depends on no number of threads, and a fit that goes on must find the same mean to the last bit.
    """

    def __init__(self, rows: LatentRows) -> None:
        count, dim = rows.shape
        self.size = max(1, PIECE // dim)  # rows of a piece
        self.done = 0
        self.finite = 0
        self.first = torch.zeros(dim, dtype=torch.float64)  # finite row
        self.beside = np.zeros(dim)  # the sum of all finite rows less the first
        self.squares = np.zeros(dim)  # the sum of the squares of that
        # Without the sign, the bits of a number read as an integer grow as it does: up to infinity, then come the NaN.
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.dtype.itemsize]
        self.infinity = int(torch.tensor(torch.inf, dtype=rows.dtype).view(integer))
        self.peaks = torch.zeros(count, dtype=integer).numpy()  # of each row the largest
        self.hashes = np.zeros(count, dtype=np.uint64)
        words = dim * rows.dtype.itemsize // 2
        self.factors = np.random.default_rng(2312).integers(0, 2**64, words, dtype=np.uint64) | np.uint64(1)
        self.words = np.empty((self.size, words), dtype=np.uint64)
        self.bits = torch.empty(self.size, dim, dtype=integer)
        self.single = torch.empty(self.size, dim)
        self.double = torch.from_numpy(self.words.view(np.float64)[:, :dim])  # written when the words are done with

    def add(self, piece: Tensor) -> None:
        """Add rows (b, D), contiguous."""
        count = len(piece)
        place = slice(self.done, self.done + count)
        self.done = place.stop
        self.hashes[place] = row_hashes(piece, self.factors, self.words)
        bits = self.bits[:count]
        torch.bitwise_and(piece.view(bits.dtype), torch.iinfo(bits.dtype).max, out=bits)
        peaks = self.peaks[place] = bits.amax(dim=1).numpy()
        # PyTorch is slow from float16 to float64, and fast by way of float32.
        piece = self.single[:count].copy_(piece) if piece.dtype == torch.float16 else piece
        x = self.double[:count].copy_(piece)
        if peaks.max() >= self.infinity:
            x = x[torch.from_numpy(peaks < self.infinity)]
        if not self.finite and len(x):
            self.first = x[0].clone()
        beside = x.sub_(self.first).numpy()
        self.beside += beside.sum(axis=0)
        self.squares += np.einsum("bd,bd->d", beside, beside)
        self.finite += len(x)


def row_hashes(rows: Tensor, factors: NDArray[np.uint64], memory: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash the bytes of each row (b, D), see `examine`.

    Args:
        rows: contiguous, of a dtype of 2, 4 or 8 bytes.
        factors: (w,) one odd number for each 16-bit word of a row.
        memory: (b or more, w) to overwrite.

    Returns:
        (b,) hashes.
    """
    words = memory[: len(rows)]
    words[:] = rows.view(torch.uint16).numpy()
    hashes: NDArray[np.uint64] = np.einsum("bw,w->b", words, factors)
    return hashes
