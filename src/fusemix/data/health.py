"""Health: what is wrong with the latents of a modality, found in one pass over them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix.data.latents import ItemLatents
from fusemix.data.rows import LatentRows, Numbers

SHOWN = 3  # items named in a note
PIECE = 256  # rows that are looked at at once: in float64 they still fit the cache


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
    """Look at every latent of a modality once, in blocks.

    Equal rows are told by a 64-bit hash: a sum of 16-bit words, each times a fixed random odd number, modulo 2^64.
    Two rows that differ in a single word never have the same. Two others have it with a chance of 2^-63 in general
    and of 2^-48 at worst: a false alarm is to be expected in one of 700,000 data sets of five million rows.

    Raises:
        StoreError: a shard is gone or was cut.
    """
    rows = items.rows
    sums = _Sums(rows)
    for block in rows.blocks():
        for piece in torch.split(block, PIECE):
            sums.add(piece)
    not_finite, zero = np.flatnonzero(sums.kind == _NOT_FINITE), np.flatnonzero(sums.kind == _ZERO)
    usual = np.flatnonzero(sums.kind == _USUAL)
    _, group, sizes = np.unique(sums.hashes[usual], return_inverse=True, return_counts=True)
    shared = usual[sizes[group] > 1]
    constant = torch.nonzero(sums.constant).flatten().numpy() if sums.finite else np.empty(0, np.int64)
    deviation = (sums.squares / max(1, sums.finite)).sqrt()
    kinds = {"not_finite": not_finite, "zero": zero, "shared": shared}
    names = {kind: items.items["id"].take(pa.array(found[:SHOWN])).to_pylist() for kind, found in kinds.items()}
    return Health(items.modality, len(items), not_finite, zero, shared, constant, sums.mean, deviation, names)


_USUAL, _ZERO, _NOT_FINITE = 0, 1, 2


class _Sums:
    """What is known of the rows so far."""

    def __init__(self, rows: LatentRows) -> None:
        count, dim = rows.shape
        self.done = 0
        self.finite = 0
        self.kind = np.zeros(count, dtype=np.uint8)
        self.hashes = np.zeros(count, dtype=np.uint64)
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.squares = torch.zeros(dim, dtype=torch.float64)  # of what lies beside the mean
        self.constant = torch.ones(dim, dtype=torch.bool)
        self.first: Tensor | None = None
        words = dim * rows.dtype.itemsize // 2
        self.factors = np.random.default_rng(2312).integers(0, 2**64, words, dtype=np.uint64) | np.uint64(1)

    def add(self, piece: Tensor) -> None:
        """Add rows (b, D)."""
        place = slice(self.done, self.done + len(piece))
        self.done = place.stop
        self.hashes[place] = row_hashes(piece, self.factors)
        x = piece.double()
        peak = x.abs().amax(dim=1)
        self.kind[place] = torch.where(peak.isfinite(), (peak == 0) * _ZERO, _NOT_FINITE).numpy()
        if not bool(peak.isfinite().all()):
            piece, x = piece[peak.isfinite()], x[peak.isfinite()]
        if not len(x):
            return
        self.first = piece[0].clone() if self.first is None else self.first
        self.constant &= (piece == self.first).all(dim=0)
        # Two means and two sums of squares become one (Chan, Golub and LeVeque, 1979).
        mean, total = x.mean(dim=0), self.finite + len(x)
        apart = mean - self.mean
        self.squares += (x - mean).square().sum(dim=0) + apart.square() * (self.finite * len(x) / total)
        self.mean += apart * (len(x) / total)
        self.finite = total


def row_hashes(rows: Tensor, factors: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash the bytes of each row (b, D), see `examine`.

    Args:
        rows: of a dtype of 2, 4 or 8 bytes.
        factors: one odd number for each 16-bit word of a row.

    Returns:
        (b,) hashes.
    """
    words = rows.contiguous().view(torch.uint16).numpy()
    hashes: NDArray[np.uint64] = words.astype(np.uint64) @ factors
    return hashes
