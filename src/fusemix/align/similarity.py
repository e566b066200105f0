"""How alike items are: what diversity and coverage are measured by, on one modality or on several at once."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from fusemix.errors import DataError

_BLOCK = 512  # items that are multiplied at a time: in float64 they stay in the processor's cache


class Similarity:
    """The product over modalities of (cosine + 1) / 2, in [0, 1], of n items among themselves.

    The product and not the mean: a pair repeats another only if each of its sides does. Both are positive semidefinite
    (of products by Schur's theorem), but the mean calls five captions of one picture alike whatever they say.

    Args:
        sides: (n, D) latents of each modality, of any dtype; row i of all of them is item i. A row of zeros has a
            cosine of 0 with everything, itself included.
        dtype: of the arithmetic, float64 or float32. Latents are converted block by block: to keep those of float16
            in float64 would take four times their memory.

    Raises:
        DataError: latents that are not finite.
    """

    def __init__(self, sides: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.sides, self.dtype = list(sides), dtype
        self.count = len(self.sides[0])
        self.norms = [
            torch.cat([part.double().norm(dim=1) for part in torch.split(side, _BLOCK)]) for side in self.sides
        ]
        # (n,) of each item to itself: exact, for rounding noise would decide which of n equal items is first.
        self.itself = torch.ones(self.count, dtype=dtype)
        for norms in self.norms:
            if not bool(norms.isfinite().all()):
                row = int((~norms.isfinite()).nonzero()[0])
                raise DataError(f"latents of row {row:,} hold NaN or infinity: drop it, or extract again")
            self.itself[norms == 0] /= 2
            norms[norms == 0] = 1
        self.norms = [norms.to(dtype) for norms in self.norms]

    def among(self, pool: Tensor) -> "Similarity":
        """Return the same of some items, whose unit rows are kept: they will be looked at often."""
        inner = copy(self)
        inner.sides = [
            side[pool].to(self.dtype).div_(norms[pool, None])
            for side, norms in zip(self.sides, self.norms, strict=True)
        ]
        inner.norms = [torch.ones(len(pool), dtype=self.dtype)] * len(self.sides)
        inner.count, inner.itself = len(pool), self.itself[pool]
        return inner

    def of(self, some: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the similarity of some items, by number, to all, (S, n); into `out` where it is given."""
        out = torch.empty(len(some), self.count, dtype=self.dtype) if out is None else out
        for i, (side, norms) in enumerate(zip(self.sides, self.norms, strict=True)):
            first = side[some].to(self.dtype).div_(norms[some, None])
            blocks = (torch.split(each, _BLOCK, dim=dim) for each, dim in ((side, 0), (norms, 0), (out, 1)))
            for rows, lengths, part in zip(*blocks, strict=True):
                alike = (first @ rows.to(self.dtype).T).div_(lengths).add_(1).div_(2)
                part.copy_(alike) if i == 0 else part.mul_(alike)
        return out

    def whole(self) -> Tensor:
        """Return all of them, (n, n)."""
        return self.of(torch.arange(self.count))
