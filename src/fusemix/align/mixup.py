"""FuseMix: mixup of latents with one lam shared by both modalities (arXiv 2312.10144, section 5 and Algorithm 1).

Mixing two pairs (x1, y1) and (x2, y2) with the *same* lam in both latent spaces gives a new pair that is as
semantically matched as its parents. The spaces themselves are never mixed with each other, so the two encoders need
not share anything. Raw latents are mixed: no normalisation before or after.
"""

import numpy as np
import torch
from torch import Tensor

from fusemix.align.capability import runs_triton

_TINY = 1e-12
_FLAT = 1e-4  # the sine of an angle below which arc and line are the same to float32, or the arc is not defined
PIECE = 256  # rows gathered at a time on a CPU: they stay in its cache while they are converted and mixed


def draw_lam(alpha: float, rng: np.random.Generator) -> float:
    """Draw lam ~ Beta(alpha, alpha), in [0, 1]; alpha 1 is uniform."""
    return float(rng.beta(alpha, alpha))


def mix(latents: Tensor, lam: float) -> Tensor:
    """Mix the first half of a batch with its second half.

    Args:
        latents: (2B, D), floating point; row i is mixed with row B + i.
        lam: weight of the first half, in [0, 1]; 1 returns the first half unchanged.

    Returns:
        (B, D): lam * first + (1 - lam) * second. Called with the same lam on the rows of both modalities.
    """
    first, second = latents.chunk(2)
    return torch.lerp(second, first, lam)


def slerp(first: Tensor, second: Tensor, lam: float) -> Tensor:
    """Mix along the arc between two latents instead of the straight line.

    Geodesic Multi-Modal Mixup (arXiv 2203.03897) does so in a space that is shared already.

    Args:
        first: (B, D), weighed with lam.
        second: (B, D).
        lam: in [0, 1].

    Returns:
        (B, D): directions between the two at lam of the angle, lengths mixed linearly. Of opposite or empty latents,
        between which there is no one arc, the straight mix.
    """
    lengths = [side.norm(dim=1, keepdim=True) for side in (first, second)]
    units = [side / length.clamp(min=_TINY) for side, length in zip((first, second), lengths, strict=True)]
    angle = torch.acos((units[0] * units[1]).sum(dim=1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    arc = (torch.sin(lam * angle) * units[0] + torch.sin((1 - lam) * angle) * units[1]) / sine.clamp(min=_TINY)
    mixed = arc * torch.lerp(lengths[1], lengths[0], lam)
    curved = (sine > _FLAT) & (lengths[0] > 0) & (lengths[1] > 0)
    return torch.where(curved, mixed, torch.lerp(second, first, lam))


def gather_mix(latents: Tensor, first: Tensor, second: Tensor, lam: float, out: Tensor | None = None) -> Tensor:
    """Gather the rows of two halves of a batch and mix them, in one step: `mix` without the batch of 2B rows.

    Args:
        latents: (N, D), floating point, usually float16; all on one device.
        first: (B,) int64, the rows weighed with lam.
        second: (B,) int64, the rows weighed with 1 - lam.
        lam: in [0, 1].
        out: (B, D), contiguous, any float dtype; None makes one in float32 (float64 for float64 latents).

    Returns:
        `out`: what `mix(latents[cat([first, second])].float(), lam)` gives.

    Raises:
        IndexError: a row that is not there (not checked on a GPU).
    """
    dtype = torch.promote_types(latents.dtype, torch.float32)
    if out is None:
        out = latents.new_empty(len(first), latents.shape[1], dtype=dtype)
    if dtype == torch.float32 and latents.is_contiguous() and runs_triton(latents.device):
        from fusemix.align import kernels

        return kernels.gather_mix(latents, first, second, lam, out)
    piece = max(1, len(first) if latents.is_cuda else PIECE)
    # Three small buffers, used again and again: fresh ones of this size would cost more than the work, in page faults.
    gathered = latents.new_empty(piece, latents.shape[1])
    start, end = (torch.empty_like(gathered, dtype=dtype) for _ in range(2))
    for a, b, mixed in zip(*(torch.split(rows, piece) for rows in (first, second, out)), strict=True):
        for rows, side in ((a, end), (b, start)):
            side[: len(a)].copy_(torch.index_select(latents, 0, rows, out=gathered[: len(a)]))
        if mixed.dtype == dtype:
            torch.lerp(start[: len(a)], end[: len(a)], lam, out=mixed)
        else:
            mixed.copy_(torch.lerp(start[: len(a)], end[: len(a)], lam, out=end[: len(a)]))
    return out
