"""Ridge regression and regularised CCA: alignment without training, and the bar that a trained adapter has to clear.

Shrinkage is always on: a covariance C becomes C + s * mean(diag C) * I. Plain CCA collapses as soon as there are
fewer pairs than dimensions. How much is decided on a held-out fifth of the training groups, then all pairs are used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.metrics import mean_recall

SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_TINY = 1e-12  # keeps a covariance that is all zero invertible
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class ClosedForm:
    """Two linear maps into one space.

    Attributes:
        shift_x, shift_y: (Dx,), (Dy,) training means.
        map_x, map_y: (Dx, S), (Dy, S).
        shrinkage: the s that was chosen.
    """

    shift_x: Tensor
    shift_y: Tensor
    map_x: Tensor
    map_y: Tensor
    shrinkage: float

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the fields as tensors, for a safetensors file."""
        return {name: torch.as_tensor(value) for name, value in self.__dict__.items()}

    @classmethod
    def from_tensors(cls, t: dict[str, Tensor]) -> "ClosedForm":
        """Undo `to_tensors`."""
        return cls(t["shift_x"], t["shift_y"], t["map_x"], t["map_y"], float(t["shrinkage"]))

    def embed_x(self, latents: Tensor) -> Tensor:
        """(N, Dx) -> (N, S), unit norm."""
        return F.normalize((latents.float() - self.shift_x) @ self.map_x, dim=-1)

    def embed_y(self, latents: Tensor) -> Tensor:
        """(N, Dy) -> (N, S), unit norm."""
        return F.normalize((latents.float() - self.shift_y) @ self.map_y, dim=-1)


@dataclass(frozen=True)
class Moments:
    """Means and covariances over pairs, in float64: all that a closed form needs to know of the data."""

    mean_x: Tensor  # (Dx,)
    mean_y: Tensor  # (Dy,)
    xx: Tensor  # (Dx, Dx)
    yy: Tensor  # (Dy, Dy)
    xy: Tensor  # (Dx, Dy)

    @cached_property
    def eigen_x(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (Dx,) and vectors (Dx, Dx) of xx: found once, whatever the shrinkage."""
        values, vectors = torch.linalg.eigh(self.xx)
        return values.clamp(min=0), vectors

    @cached_property
    def eigen_y(self) -> tuple[Tensor, Tensor]:
        """The same of yy."""
        values, vectors = torch.linalg.eigh(self.yy)
        return values.clamp(min=0), vectors


def moments(x: Tensor, y: Tensor, pairs: Rows) -> Moments:
    """Sum over pairs by way of distinct items, so that an image with five captions is multiplied once.

    Args:
        x: (N, Dx) latents of distinct items.
        y: (M, Dy) latents of distinct items.
        pairs: rows of x and of y that belong together, (P,) each.
    """
    ix, iy = (torch.from_numpy(rows).to(x.device) for rows in pairs)
    x, y = x.double(), y.double()
    count_x = torch.bincount(ix, minlength=len(x)).double()
    count_y = torch.bincount(iy, minlength=len(y)).double()
    mean_x, mean_y = count_x @ x / len(ix), count_y @ y / len(iy)
    x, y = x - mean_x, y - mean_y
    partners = torch.zeros(len(x), y.shape[1], dtype=y.dtype, device=y.device).index_add_(0, ix, y[iy])
    xx = x.T @ (count_x[:, None] * x) / len(ix)
    yy = y.T @ (count_y[:, None] * y) / len(iy)
    return Moments(mean_x, mean_y, xx, yy, x.T @ partners / len(ix))


def ridge(m: Moments, shrinkage: float) -> ClosedForm:
    """Predict y from x by ridge regression and compare in the space of y.

    map_x = (Cxx + s mean(diag Cxx) I)^-1 Cxy, map_y = I.
    """
    penalty = (shrinkage * m.xx.diagonal().mean() + _TINY) * torch.eye(len(m.xx), dtype=m.xx.dtype, device=m.xx.device)
    map_x = torch.linalg.solve(m.xx + penalty, m.xy)
    return _single(m, map_x, torch.eye(len(m.yy), dtype=m.yy.dtype, device=m.yy.device), shrinkage)


def cca(m: Moments, shrinkage: float) -> ClosedForm:
    """Regularised CCA (Vinod, 1976), each direction weighted by its canonical correlation (CSA, arXiv 2410.07610).

    U diag(r) V' = Cxx^-1/2 Cxy Cyy^-1/2 with shrunk covariances; map_x = Cxx^-1/2 U diag(r) and
    map_y = Cyy^-1/2 V diag(r).
    """
    white_x, white_y = _inverse_root(*m.eigen_x, shrinkage), _inverse_root(*m.eigen_y, shrinkage)
    u, r, vt = torch.linalg.svd(white_x @ m.xy @ white_y, full_matrices=False)
    return _single(m, white_x @ u * r, white_y @ vt.T * r, shrinkage)


CLOSED_FORMS: dict[str, Callable[[Moments, float], ClosedForm]] = {"ridge": ridge, "cca": cca}


def fit_closed_forms(x: Tensor, y: Tensor, pairs: Rows, groups: NDArray[np.int64], seed: int) -> dict[str, ClosedForm]:
    """Fit ridge and CCA on all pairs, each with the shrinkage that does best on a held-out fifth of the groups.

    Args:
        x: (N, Dx) latents of distinct items.
        y: (M, Dy) latents of distinct items.
        pairs: rows of x and of y that belong together, (P,) each.
        groups: (P,) group of each pair; a group is held out whole.
        seed: decides which groups are held out.

    Returns:
        A map for each name of CLOSED_FORMS.
    """
    held = _held_out(groups, seed)
    chosen = dict.fromkeys(CLOSED_FORMS, SHRINKAGES[-1])
    if 2 <= held.sum() <= len(held) - 2:
        part = moments(x, y, (pairs[0][~held], pairs[1][~held]))
        (keep_x, ix), (keep_y, iy) = (np.unique(rows[held], return_inverse=True) for rows in pairs)
        x_held, y_held = x[torch.from_numpy(keep_x)], y[torch.from_numpy(keep_y)]
        for name, form in CLOSED_FORMS.items():
            trials = [form(part, s) for s in SHRINKAGES]
            scores = [mean_recall(trial.embed_x(x_held), trial.embed_y(y_held), (ix, iy)) for trial in trials]
            chosen[name] = SHRINKAGES[int(np.argmax(scores))]
    whole = moments(x, y, pairs)
    return {name: form(whole, chosen[name]) for name, form in CLOSED_FORMS.items()}


def _held_out(groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Mark the pairs of a fifth of the groups, of at most 1,000 (enough to tell shrinkages apart)."""
    distinct = np.random.default_rng(seed).permutation(np.unique(groups))
    return np.isin(groups, distinct[: min(1000, len(distinct) // 5)])


def _inverse_root(values: Tensor, vectors: Tensor, shrinkage: float) -> Tensor:
    """(C + s mean(diag C) I)^-1/2 of a symmetric C (D, D), from its eigenvalues and vectors."""
    root: Tensor = vectors @ (vectors * (values + shrinkage * values.mean() + _TINY).rsqrt()).T
    return root


def _single(m: Moments, map_x: Tensor, map_y: Tensor, shrinkage: float) -> ClosedForm:
    """Round to float32, the precision that embeddings have."""
    return ClosedForm(m.mean_x.float(), m.mean_y.float(), map_x.float(), map_y.float(), shrinkage)
