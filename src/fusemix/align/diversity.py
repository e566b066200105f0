"""How many different items a set of latents is worth: Vendi score, effective rank, coverage."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.moments import Latents
from fusemix.align.neighbours import nearest

_BLOCK = 2048  # rows that are in memory in float64 at once
NEIGHBOURS = 5  # of a coverage, as in arXiv 2002.09797


def mean(x: Latents) -> Tensor:
    """Return the mean (D,) float64 of all rows, block by block."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for start in range(0, x.shape[0], _BLOCK):
        total += _block(x, start).sum(dim=0)
    return total / x.shape[0]


def vendi(x: Latents, centre: Tensor | None = None) -> float:
    """Return the Vendi score, the number of wholly different items that n latents are worth: 1 if all point one way.

    exp of the Shannon entropy of the eigenvalues of K / n, K being the cosines (Friedman & Dieng, arXiv 2210.02410).
    They are those of the D x D second moment of the unit rows, so that no n x n matrix is needed where D < n.

    Args:
        x: (N, D) latents of any dtype; rows that are zero are left out.
        centre: (D,) to subtract first. Encoders give latents with a large common part; it is most of every cosine and
            makes the score small and alike for all sets. Without it the cosines are of what tells items apart.

    Returns:
        In [1, min(N, D)]; 0 where every row is zero.
    """
    values = _eigenvalues(x, centre, unit=True)
    return _exp_entropy(values)


def effective_rank(x: Latents, centre: Tensor | None = None) -> float:
    """Return the effective rank: exp of the entropy of the singular values over their sum (Roy & Vetterli, 2007).

    How many directions the latents really use.

    Args:
        x: (N, D) latents of any dtype.
        centre: (D,) to subtract first, see `vendi`.

    Returns:
        In [1, min(N, D)]; 0 where every row is zero.
    """
    values = _eigenvalues(x, centre, unit=False)
    values[values < values.max(initial=0) * 1e-13] = 0  # rounding, whose root would be a millionth of the largest
    return _exp_entropy(np.sqrt(values))


def coverage(held: Latents, train: Latents, k: int = NEIGHBOURS) -> float:
    """Return the share of held-out rows with a training row as near as their k-th nearest held-out row.

    Naeem et al., arXiv 2002.09797, with cosine distance: 1 where training data lie everywhere that held-out data do.

    Args:
        held: (Q, D), more than k rows.
        train: (G, D), not empty.
        k: neighbours that make the neighbourhood of a row.
    """
    radius = nearest(held, held, k, same=True)[0][:, -1]
    reached = nearest(held, train, 1)[0][:, 0]
    return float((reached >= radius).double().mean())


def expected_coverage(held: int, train: int, k: int = NEIGHBOURS) -> float:
    """Return the coverage to expect of Q held-out and G training rows of one distribution.

    1 - prod_{i=1..k} (Q - i) / (Q + G - i): all of the k rows nearest to a held-out row are held-out rows by chance
    (arXiv 2002.09797, lemma 2).
    """
    i = np.arange(1, k + 1)
    return 1 - float(np.prod((held - i) / (held + train - i)))


def _eigenvalues(x: Latents, centre: Tensor | None, *, unit: bool) -> NDArray[np.float64]:
    """Return the eigenvalues of X X', or those of X' X, whichever is smaller; both have the same but for zeros."""
    count, dim = x.shape
    if count <= dim:
        rows = _block(x, 0, count, centre, unit)
        product = rows @ rows.T
    else:
        product = torch.zeros(dim, dim, dtype=torch.float64)
        for start in range(0, count, _BLOCK):
            rows = _block(x, start, _BLOCK, centre, unit)
            product.addmm_(rows.T, rows)
    values: NDArray[np.float64] = torch.linalg.eigvalsh(product).clamp(min=0).numpy()
    return values


def _block(x: Latents, start: int, size: int = _BLOCK, centre: Tensor | None = None, unit: bool = False) -> Tensor:
    rows = x[torch.arange(start, min(start + size, x.shape[0]))].double()
    rows = rows if centre is None else rows - centre
    return F.normalize(rows, dim=1) if unit else rows


def _exp_entropy(values: NDArray[np.float64]) -> float:
    if not values.sum() > 0:
        return 0.0
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
