"""The fusion adapter: the small trained network that maps one latent space into the shared one.

Residual inverted-bottleneck MLP as in the released code (arXiv 2312.10144, section 5; `docs/method.md`): L blocks
x <- x + W2 dropout(gelu(W1 LN(x))) of width D and inner width 4D, then LN and a linear map to S, then unit norm.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.align.augment import GaussianNoise, RandomQuantization
from fusemix.align.dropout import Dropout
from fusemix.config import FitConfig


class Block(nn.Module):
    """One pre-LN residual block of width D."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.dropout = Dropout(dropout)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        residual: Tensor = self.down(self.dropout(F.gelu(self.up(self.norm(x)))))
        return x + residual


class Adapter(nn.Module):
    """Latents (B, D) to unit-norm embeddings (B, S).

    The buffers `shift` and `scale` standardise the latents when the config asks for it (0 and 1 otherwise). They are
    affine, and the weights of a mix sum to one, so it makes no difference whether latents are standardised before or
    after they are mixed: FuseMix still mixes raw latents.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, config: FitConfig) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))
        self.augment = nn.Sequential(
            RandomQuantization(config.quantize), GaussianNoise(config.noise), Dropout(config.input_dropout)
        )
        self.blocks = nn.Sequential(*(Block(latent_dim, config.expansion, config.dropout) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(latent_dim)
        self.project = nn.Linear(latent_dim, config.dim)

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Take shift and scale from mean and deviation (D,) of the training latents, one row per distinct item.

        The deviation of each dimension is floored at a tenth of the mean deviation, so that a nearly constant
        dimension is not blown up into noise.
        """
        floor = deviation.mean().clamp(min=1e-6) / 10
        self.shift.copy_(mean)
        self.scale.copy_(1 / torch.maximum(deviation, floor))

    def forward(self, latents: Tensor) -> Tensor:
        """Embed latents: (B, D) -> (B, S), unit norm."""
        x = self.blocks(self.augment((latents - self.shift) * self.scale))
        # Lengths are float32 also under autocast: half precision loses small ones.
        return F.normalize(self.project(self.norm(x)).float(), dim=-1)
