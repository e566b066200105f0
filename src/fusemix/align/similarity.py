"""How alike items are: what diversity and coverage are measured by, on one modality or on several at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
            self.itself[norms == 0] /= 2
            norms[norms == 0] = 1
        self.norms = [norms.to(dtype) for norms in self.norms]

    def between(self, some: Tensor, others: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the similarity of items, (S, O), both by number, `others` ascending; into `out` where it is given."""
        out = torch.empty(len(some), len(others), dtype=self.dtype) if out is None else out
        for i, (side, norms) in enumerate(zip(self.sides, self.norms, strict=True)):
            first = side[some].to(self.dtype).div_(norms[some, None])
            for rows, part in zip(torch.split(others, _BLOCK), torch.split(out, _BLOCK, dim=1), strict=True):
                alike = (first @ _taken(side, rows).to(self.dtype).T).div_(norms[rows]).add_(1).div_(2)
                part.copy_(alike) if i == 0 else part.mul_(alike)
        return out


def _taken(side: Tensor, rows: Tensor) -> Tensor:
    """Return ascending rows, (r, D); neighbours without a copy."""
    first, last = int(rows[0]), int(rows[-1])
    return side[first : last + 1] if last - first + 1 == len(rows) else side[rows]
