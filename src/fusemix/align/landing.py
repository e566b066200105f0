"""Landing in a locked space: a loss for one side that has to be found there, and to look like what is there.

The contrastive loss sees directions only. What conditions a frozen generator must also have the length, the mean and
the spread of what the generator was trained on, so the squared error to the paired latent is added. It is divided by
the variance of the locked space, which makes it the share of it that is left unexplained: 1 for an adapter that always
says the mean, 0 for a perfect one, whatever the units of the space.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.losses import info_nce


def landing_loss(
    x: Tensor, y: Tensor, temperature: Tensor, variance: Tensor, regression: float, *, group: Any = None
) -> Tensor:
    """Symmetric InfoNCE of the directions, and the unexplained variance.

    Mixed latents need no other treatment: a squared error to a mix of two targets is that of the mixed pair, as it
    is for the contrastive loss.

    Args:
        x: (b, S), floating point: one side in the units of the locked space.
        y: (b, S): the other.
        temperature: of `info_nce`.
        variance: of the locked space, summed over its dimensions; a positive scalar.
        regression: weight of the squared error; 0 leaves the contrastive loss alone.
        group: see `info_nce`: the batch is the shares of all ranks, and gradients are summed over them.

    Returns:
        Scalar, the same on every rank.
    """
    loss = info_nce(F.normalize(x, dim=-1), F.normalize(y, dim=-1), temperature, group=group)
    if not regression:
        return loss
    rows = x.new_tensor(len(x))
    error = (x - y).square().sum() / variance
    if group is not None:
        dist.all_reduce(rows, group=group)
        whole = error.detach().clone()
        dist.all_reduce(whole, group=group)
        error = error + (whole - error.detach())  # the value of all ranks, the gradient of this one
    return loss + regression * error / rows


@dataclass(frozen=True)
class Closeness:
    """How close conditions are to the latents of the locked space.

    Attributes:
        unexplained: squared error to the paired latents as a share of their variance: 0 is perfect, 1 always says the
            mean. What cannot be predicted counts, too: a generator may still draw well from a landing that is far from
            its own pair, if it is like a real one.
        length: mean length of what lands, over that of real latents; 1 is the same.
        spread: the same of the root of the summed variance.
        frechet: squared Fréchet distance (arXiv 1706.08500) of what lands for one half of the pairs to the real latents
            of the other half, as a share of their variance.
        floor: the same of the real latents of both halves: what as few of them leave by chance.
    """

    unexplained: float
    length: float
    spread: float
    frechet: float
    floor: float

    def __str__(self) -> str:
        return (
            f"conditions leave {100 * self.unexplained:.0f} % of the variance unexplained; their length is "
            f"{self.length:.2f} and their spread {self.spread:.2f} of real ones; Fréchet distance "
            f"{self.frechet:.2f} of the variance (real ones among themselves {self.floor:.2f})"
        )


def closeness(landed: Tensor, real: Tensor) -> Closeness:
    """Compare what landed (N, S) with the real latents (N, S) that are paired with it, four of them at least."""
    landed, real = landed.double(), real.double()
    variance = real.var(dim=0, unbiased=False).sum().clamp(min=1e-30)
    # Any order of the pairs is possible, such as one kind at even places: halves are drawn.
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    one, other = order[::2], order[1::2]
    first, second = real[one], real[other]
    return Closeness(
        unexplained=float((landed - real).square().sum(dim=1).mean() / variance),
        length=float(landed.norm(dim=1).mean() / real.norm(dim=1).mean().clamp(min=1e-30)),
        spread=float((landed.var(dim=0, unbiased=False).sum() / variance).sqrt()),
        frechet=float(frechet(landed[one], second) / variance),
        floor=float(frechet(first, second) / variance),
    )


def frechet(x: Tensor, y: Tensor) -> Tensor:
    """Squared Fréchet distance of the Gaussians with the means and covariances of x (N, S) and y (M, S).

    The trace of the root of C_x C_y is the sum of the singular values of X Y^T / sqrt(N M), X and Y about their means:
    no S x S matrix is made, so that a space of sixty thousand dimensions is no trouble.
    """
    centred = [side - side.mean(dim=0) for side in (x, y)]
    traces = [side.square().sum() / len(side) for side in centred]
    roots = torch.linalg.svdvals(centred[0] @ centred[1].T).sum() / (len(x) * len(y)) ** 0.5
    distance: Tensor = (x.mean(dim=0) - y.mean(dim=0)).square().sum() + traces[0] + traces[1] - 2 * roots
    return distance
