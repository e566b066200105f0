"""Landing in a locked space: a loss for one side that has to be found there, and to look like what is there.

The contrastive loss sees directions only. What conditions a frozen generator must also have the length, the mean and
the spread of what the generator was trained on, so the squared error to the paired latent is added. It is divided by
the variance of the locked space, which makes it the share of it that is left unexplained: 1 for an adapter that always
says the mean, 0 for a perfect one, whatever the units of the space.
"""

from typing import Any

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
