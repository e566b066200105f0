"""Nearest neighbours by cosine, exact, in blocks: never a matrix of all against all."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.moments import Latents

_BLOCK = 4096  # rows of either side at a time


def nearest(queries: Latents, gallery: Latents, k: int, *, same: bool = False) -> tuple[Tensor, Tensor]:
    """Return the k gallery rows of highest cosine for every query.

    Args:
        queries: (Q, D) latents of any dtype; a row of zeros has a cosine of 0 with everything.
        gallery: (G, D) latents, not empty.
        k: at most G (G - 1 where `same`).
        same: queries and gallery are the same rows, and none is its own neighbour.

    Returns:
        Cosines (Q, k) float32, falling, in [-1, 1] up to rounding; and rows of the gallery (Q, k) int64. Equal cosines
        come in any order.
    """
    k = min(k, gallery.shape[0] - same)
    scores, rows = [], []
    for q in _starts(queries):
        asked = _unit(queries, q)
        best, where = torch.full((len(asked), k), -torch.inf), torch.zeros(len(asked), k, dtype=torch.int64)
        for g in _starts(gallery):
            found = asked @ _unit(gallery, g).T
            if same and q == g:
                found.fill_diagonal_(-torch.inf)
            top, place = found.topk(min(k, found.shape[1]), dim=1)
            best, where = torch.cat([best, top], dim=1), torch.cat([where, place + g], dim=1)
            best, order = best.sort(dim=1, descending=True, stable=True)
            best, where = best[:, :k], where.gather(1, order)[:, :k]
        scores.append(best)
        rows.append(where)
    return torch.cat(scores), torch.cat(rows)


def _starts(latents: Latents) -> range:
    return range(0, latents.shape[0], _BLOCK)


def _unit(latents: Latents, start: int) -> Tensor:
    """Return one block of rows with unit norm, (b, D) float32."""
    rows = torch.arange(start, min(start + _BLOCK, latents.shape[0]))
    return F.normalize(latents[rows].float(), dim=1)
