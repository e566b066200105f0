"""Noise on latents: augmentations that FuseMix is compared with, and that can be put on top of it.

Both work on latents that were standardised inside the adapter, so that one strength suits every dimension; without
`standardize` they see raw latents. Like dropout they act only in training and draw from torch's own generator.
"""

import torch
from torch import Tensor, nn


class GaussianNoise(nn.Module):
    """Add independent normal noise.

    Args:
        deviation: of the noise, in the units of the latents; 0 adds none.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x + self.deviation * torch.randn_like(x) if self.training and self.deviation else x


class RandomQuantization(nn.Module):
    """Randomised quantisation (Wu et al., arXiv 2212.08663), with each latent dimension as a channel.

    For every dimension and batch, the range of its values is cut at random into bins; a value becomes a random point of
    the bin it lies in, the same for all values of that bin. What is within a bin is lost, the order of bins stays.

    Args:
        bins: of each dimension; 0 leaves the latents as they are.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if not self.training or not self.bins:
            return x
        low, high = x.amin(dim=0), x.amax(dim=0)  # (D,)
        inner = low + (high - low) * torch.rand(self.bins - 1, x.shape[1], device=x.device, dtype=x.dtype)
        inner = inner.sort(dim=0).values
        edges = torch.cat([low[None], inner, high[None]])  # (bins + 1, D)
        points = torch.lerp(edges[:-1], edges[1:], torch.rand_like(edges[1:]))  # (bins, D)
        place = torch.searchsorted(inner.T.contiguous(), x.T.contiguous(), right=True)  # (D, B)
        return points.gather(0, place.T)
