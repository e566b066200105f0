"""Dropout whose masks cost next to nothing on a CPU.

torch draws a Bernoulli number for each unit there, twelve nanoseconds apiece: a tenth of a step with small adapters.
Here 64 random bits make four units.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16  # of the probability: it is rounded to 1 / 65,536, and never to none or all


class Dropout(nn.Module):
    """Set each number to 0 with probability p while training, and scale the others so that the mean stays.

    Draws from torch's own generator of the device: `torch.manual_seed` decides the mask.

    Args:
        p: in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape and dtype."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * cpu_mask(x.shape, self.p, x.dtype)


def cpu_mask(shape: tuple[int, ...], p: float, dtype: torch.dtype) -> Tensor:
    """Return zeros with probability p, and 1 / (share that is kept) else."""
    kept = min(max(round((1 - p) * LEVELS), 1), LEVELS - 1)
    seed = int(torch.randint(2**63 - 1, ()))
    count = int(np.prod(shape))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    bits = torch.from_numpy(words.view(np.int16)[:count]).view(shape)
    return (bits < kept - LEVELS // 2).to(dtype).mul_(LEVELS / kept)
