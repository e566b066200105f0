"""Ridge, regularised CCA and Procrustes: alignment without training, and the bar that a trained adapter has to clear.

Shrinkage is always on: a covariance C becomes C + s * mean(diag C) * I. Plain CCA collapses as soon as there are
fewer pairs than dimensions. How much is decided on held-out groups, see `align.folds`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.moments import Moments

_SEEN = 1e-6  # of the largest singular value of a cross-covariance: below it is rounding
_TINY = 1e-12  # keeps a covariance that is all zero invertible


@dataclass(frozen=True)
class ClosedForm:
    """Two linear maps into one space.

    Attributes:
        shift_x, shift_y: (Dx,), (Dy,) training means.
        map_x, map_y: (Dx, S), (Dy, S).
        shrinkage: the s that was chosen.
        power: the p of CCA that was chosen.
    """

    shift_x: Tensor
    shift_y: Tensor
    map_x: Tensor
    map_y: Tensor
    shrinkage: float
    power: float = 1.0

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the fields as tensors, for a safetensors file."""
        return {name: torch.as_tensor(value) for name, value in self.__dict__.items()}

    @classmethod
    def from_tensors(cls, t: dict[str, Tensor]) -> "ClosedForm":
        """Undo `to_tensors`."""
        return cls(t["shift_x"], t["shift_y"], t["map_x"], t["map_y"], float(t["shrinkage"]), float(t["power"]))

    def embed_x(self, latents: Tensor) -> Tensor:
        """(N, Dx) -> (N, S), unit norm."""
        return F.normalize((latents.float() - self.shift_x) @ self.map_x, dim=-1)

    def embed_y(self, latents: Tensor) -> Tensor:
        """(N, Dy) -> (N, S), unit norm."""
        return F.normalize((latents.float() - self.shift_y) @ self.map_y, dim=-1)


def ridge(m: Moments, shrinkage: float) -> ClosedForm:
    """Predict y from x by ridge regression and compare in the space of y.

    map_x = (Cxx + s mean(diag Cxx) I)^-1 Cxy, map_y = I.
    """
    values, axes = m.eigen_x
    map_x = axes @ (_inverse_root(values, m.xx, shrinkage).square()[:, None] * (axes.T @ m.xy))
    return _single(m, map_x, torch.eye(len(m.yy), dtype=m.yy.dtype, device=m.yy.device), shrinkage)


def ridge_onto(m: Moments, shrinkage: float) -> ClosedForm:
    """Predict y from x by ridge regression and leave y as it is, uncentred: it belongs to a space that is there."""
    form = ridge(m, shrinkage)
    return replace(form, shift_y=torch.zeros_like(form.shift_y))


def cca(m: Moments, shrinkage: float, power: float = 1.0, rank: int | None = None) -> ClosedForm:
    """Regularised CCA (Vinod, 1976), each direction weighted by its canonical correlation (CSA, arXiv 2410.07610).

    U diag(r) V' = Cxx^-1/2 Cxy Cyy^-1/2 with shrunk covariances; map_x = Cxx^-1/2 U diag(r)^p and
    map_y = Cyy^-1/2 V diag(r)^p.

    Args:
        m: of the pairs.
        shrinkage: s.
        power: p, how much a direction of little correlation is trusted less.
        rank: directions that are kept at most, those of the highest correlations; None keeps all.
    """
    (values_x, axes_x), (values_y, axes_y) = m.eigen_x, m.eigen_y
    scale_x, scale_y = _inverse_root(values_x, m.xx, shrinkage), _inverse_root(values_y, m.yy, shrinkage)
    u, r, vt = _svd(scale_x[:, None] * m.rotated * scale_y)
    u, r, vt = u[:, :rank], r[:rank], vt[:rank]
    weight = r**power
    return _single(
        m, axes_x @ (scale_x[:, None] * u * weight), axes_y @ (scale_y[:, None] * vt.T * weight), shrinkage, power
    )


def in_deviations(m: Moments, form: ClosedForm) -> ClosedForm:
    """Return the same form with both maps scaled so that coordinates of the pairs have a deviation of 1 in the mean."""
    maps = []
    for map_, covariance in ((form.map_x, m.xx), (form.map_y, m.yy)):
        variance = (map_.double() * (covariance @ map_.double())).sum() / map_.shape[1]
        maps.append((map_ / variance.clamp(min=_TINY).sqrt()).float())
    return replace(form, map_x=maps[0], map_y=maps[1])


def procrustes(m: Moments) -> ClosedForm:
    """Rotate both sides so that their cross-covariance is diagonal (Schoenemann, 1966): CCA that whitens nothing.

    U diag(c) V' = Cxy; map_x = U, map_y = V, without directions that fewer items than numbers say nothing of: where c
    is 0 they are any. It shrinks nothing, so its shrinkage is 0.
    """
    u, c, vt = torch.linalg.svd(m.xy, full_matrices=False)
    seen = max(1, int((c > _SEEN * c[0]).sum()))
    return _single(m, u[:, :seen], vt[:seen].T, 0.0)


CLOSED_FORMS: dict[str, Callable[[Moments, float], ClosedForm]] = {"ridge": ridge, "cca": cca}
"""What every fit is compared with."""


def principal(latents: Tensor, width: int) -> Tensor:
    """Return the first principal components of latents (N, D): (N, min(N, D, width)) float32.

    A closed form on few pairs of a wide space has more covariances to estimate than it has numbers: cut like this it
    finds more, and is done sooner (figures in docs/probing.md). No partner is looked at, so held-out pairs stay so.
    """
    centred = latents.double() - latents.double().mean(dim=0)
    if latents.shape[1] <= len(latents):
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        scores = centred @ vectors
    else:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        scores = vectors * values.clamp(min=0).sqrt()
    first: Tensor = scores[:, -width:].flip(1).float()
    return first


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (M, K), r (K,) and V' (K, N) of a matrix (M, N), K the smaller of both.

    By the eigenvectors of the smaller product, which takes half the time of LAPACK's divide and conquer, and is found
    always: that one gives up on some finite matrices of many values near 0. What it says of values below 1e-8 of the
    largest is wrong, and these count for nothing.
    """
    if matrix.shape[0] < matrix.shape[1]:
        v, r, ut = _svd(matrix.T)
        return ut.T, r, v.T
    values, v = torch.linalg.eigh(matrix.T @ matrix)
    r, v = values.clamp(min=0).sqrt().flip(0), v.flip(1)
    u = matrix @ v / r.clamp(min=1e-8 * float(r.max()) + _TINY)
    return u, r, v.T


def _inverse_root(values: Tensor, covariance: Tensor, shrinkage: float) -> Tensor:
    """Eigenvalues (R,) of (C + s mean(diag C) I)^-1/2, from those of C (D, D)."""
    return (values + shrinkage * covariance.diagonal().mean() + _TINY).rsqrt()


def _single(m: Moments, map_x: Tensor, map_y: Tensor, shrinkage: float, power: float = 1.0) -> ClosedForm:
    """Round to float32, the precision that embeddings have."""
    return ClosedForm(m.mean_x.float(), m.mean_y.float(), map_x.float(), map_y.float(), shrinkage, power)
