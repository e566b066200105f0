"""FuseMix: mixup of latents with one lam shared by both modalities (arXiv 2312.10144, section 5 and Algorithm 1).

Mixing two pairs (x1, y1) and (x2, y2) with the *same* lam in both latent spaces gives a new pair that is as
semantically matched as its parents. The spaces themselves are never mixed with each other, so the two encoders need
not share anything. Raw latents are mixed: no normalisation before or after.
"""

import numpy as np
import torch
from torch import Tensor


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
