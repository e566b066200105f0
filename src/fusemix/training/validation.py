"""How good the adapters are on held-out pairs: the number that chooses the epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusemix.align.adapters import AnyAdapter
from fusemix.align.metrics import mean_recall
from fusemix.data.latents import Latents
from fusemix.data.rows import LatentRows
from fusemix.training.step import Adapters

BLOCK = 4096  # rows that are embedded at a time
MAX_VALIDATIONS = 50  # a long fit on few pairs would otherwise spend its time validating


@dataclass(frozen=True)
class Sides:
    """Two modalities on the device: latents of the distinct items and the rows that pair them."""

    x: Tensor
    y: Tensor
    rows: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, latents: Latents, modalities: tuple[str, ...], device: torch.device) -> "Sides":
        """Bring the items of these pairs to the device, numbered without gaps."""
        sides, rows = [], []
        for modality in modalities:
            keep, index = np.unique(latents.rows[modality], return_inverse=True)
            sides.append(latents.items[modality].rows.take(keep).to(device))
            rows.append(torch.from_numpy(index).to(device))
        return cls(sides[0], sides[1], (rows[0], rows[1]))


def validated(epoch: int, epochs: int) -> bool:
    """Tell whether a fit of so many epochs validates after this one, counted from 1."""
    return epoch % -(-epochs // MAX_VALIDATIONS) == 0 or epoch == epochs


def validations(epochs: int) -> int:
    """Return how many validations a fit of so many epochs has."""
    return sum(validated(epoch, epochs) for epoch in range(1, epochs + 1))


@torch.inference_mode()
def validate(adapters: Adapters, held: Sides) -> float:
    """Mean recall both ways on the held-out pairs, unmixed, in [0, 100]; NaN when an embedding is no number."""
    adapters.eval()
    x, y = (embed(side, latents) for side, latents in zip(adapters.sides, (held.x, held.y), strict=True))
    adapters.train()
    if not bool(x.isfinite().all() and y.isfinite().all()):
        return math.nan
    return mean_recall(x, y, (held.rows[0].cpu().numpy(), held.rows[1].cpu().numpy()))


@torch.inference_mode()
def embed(adapter: AnyAdapter, latents: Tensor | LatentRows) -> Tensor:
    """Embed latents (N, D) of any precision in blocks: (N, S), unit norm, float32, on the adapter's device."""
    return in_blocks(adapter, latents, adapter.shift.device)


@torch.inference_mode()
def in_blocks(network: Callable[[Tensor], Tensor], latents: Tensor | LatentRows, device: torch.device) -> Tensor:
    """Take latents (N, D) of any precision through a network in blocks: (N, S), on the device."""
    blocks = latents.blocks(BLOCK) if isinstance(latents, LatentRows) else torch.split(latents, BLOCK)
    return torch.cat([network(block.to(device).float()) for block in blocks])
