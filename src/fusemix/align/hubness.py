"""Hubness: items that are near to every query, and a number for each of them that makes up for it.

The bias of a gallery item is a share of its mean cosine with the few queries that are nearest to it, among queries that
are known from training (NNN, "nearest neighbor normalization"; `docs/recall.md` has what it gains). A search ranks by
cosine less bias. It is never computed from queries that are asked.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix.align.metrics import Relevance, best_ranks, recall_of

NEIGHBOURS = 8  # queries that a bias looks at: 2 and 32 found less
BANK = 4096  # known queries of a modality: from 30,000 of them it gained no more
STRENGTHS = (0.0, 0.25, 0.5)  # the larger it is, the more a bank must be like what will be asked; 0.75 lost
_BLOCK = 4096  # gallery rows at a time


def hub_bias(gallery: Tensor, bank: Tensor) -> Tensor:
    """Return the mean cosine of each gallery item with the 8 queries nearest to it, (N,) float32.

    Args:
        gallery: (N, S) embeddings, unit norm.
        bank: (M, S) embeddings of known queries, unit norm; of fewer than 8 queries all are looked at.
    """
    nearest = min(NEIGHBOURS, len(bank))
    parts = [(block @ bank.T).topk(nearest, dim=1).values.mean(dim=1) for block in torch.split(gallery, _BLOCK)]
    return torch.cat(parts) if parts else gallery.new_zeros(0)


@dataclass(frozen=True)
class Hubs:
    """What is known of queries of two modalities, to correct hubs among what they search.

    Attributes:
        strength: what the mean cosine counts in a bias, in (0, 1).
        banks: (M, S) embeddings, unit norm, of known items of each modality.
    """

    strength: float
    banks: dict[str, Tensor]

    def bias(self, modality: str, gallery: Tensor) -> Tensor:
        """Return the bias (N,) of items (N, S) of a modality, asked for by the other one.

        That of the known items of the modality is 0 in the mean, so that a corrected score stays near a cosine.
        """
        asking = next(bank for name, bank in self.banks.items() if name != modality)
        level = hub_bias(self.banks[modality], asking).mean()
        return self.strength * (hub_bias(gallery.float(), asking) - level)


def corrected_recall(
    x: Tensor, y: Tensor, pairs: tuple[NDArray[np.int64], NDArray[np.int64]], bias_x: Tensor, bias_y: Tensor
) -> float:
    """Return `metrics.mean_recall` of a search that takes a bias (N,) from what finds x, and (M,) from what finds y."""
    return recall_of(*corrected_ranks(x, y, pairs, bias_x, bias_y))


def corrected_ranks(
    x: Tensor, y: Tensor, pairs: tuple[NDArray[np.int64], NDArray[np.int64]], bias_x: Tensor, bias_y: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the best ranks of that search: of every x as a query (N,), and of every y (M,)."""
    forth = best_ranks(as_query(x), with_bias(y, bias_y), Relevance.from_pairs(pairs[0], pairs[1]))
    return forth, best_ranks(as_query(y), with_bias(x, bias_x), Relevance.from_pairs(pairs[1], pairs[0]))


def with_bias(gallery: Tensor, bias: Tensor) -> Tensor:
    """Append a bias (N,) to a gallery (N, S): its product with a query of `as_query` is their cosine less the bias."""
    return torch.cat([gallery, -bias[:, None].to(gallery)], dim=1)


def as_query(queries: Tensor) -> Tensor:
    """Append a 1 to queries (Q, S)."""
    return torch.cat([queries, queries.new_ones(len(queries), 1)], dim=1)


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return evenly spaced places among so many, at most so many of them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
