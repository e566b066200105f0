"""Ridge regression and regularised CCA: alignment without training, and the bar that a trained adapter has to clear.

Shrinkage is always on: a covariance C becomes C + s * mean(diag C) * I. Plain CCA collapses as soon as there are
fewer pairs than dimensions. How much is decided on a held-out fifth of the training groups, then all pairs are used.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.metrics import mean_recall

SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_TINY = 1e-12  # keeps a covariance that is all zero invertible
_BLOCK = 2048  # pairs that are summed at once, in float64
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]


class Latents(Protocol):
    """Rows of latents (N, D), in memory or not: a Tensor, or what gives one where it is indexed with row numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


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


def moments(x: Latents, y: Latents, pairs: Rows) -> Moments:
    """Sum over pairs in blocks: never more than 2,048 pairs are in memory in float64, and the results.

    Args:
        x: (N, Dx) latents of distinct items, of any dtype.
        y: (M, Dy) latents of distinct items, of any dtype.
        pairs: rows of x and of y that belong together, (P,) each.
    """
    return _Sums.of(x, y, pairs, _some_mean(x), _some_mean(y)).moments()


@dataclass(frozen=True)
class _Sums:
    """Sums over pairs of latents and their products, about a point near their mean, so that nothing cancels.

    Those of two sets of pairs about the same point add up to those of both.
    """

    about_x: Tensor  # (Dx,)
    about_y: Tensor  # (Dy,)
    pairs: int
    x: Tensor  # (Dx,)
    y: Tensor  # (Dy,)
    xx: Tensor  # (Dx, Dx)
    yy: Tensor  # (Dy, Dy)
    xy: Tensor  # (Dx, Dy)

    @classmethod
    def of(cls, x: Latents, y: Latents, pairs: Rows, about_x: Tensor, about_y: Tensor) -> "_Sums":
        """Sum, an item that several pairs of a block share once: an image with five captions is multiplied once."""
        zeros = partial(torch.zeros, dtype=torch.float64, device=about_x.device)
        dx, dy = len(about_x), len(about_y)
        sums = cls(about_x, about_y, len(pairs[0]), zeros(dx), zeros(dy), zeros(dx, dx), zeros(dy, dy), zeros(dx, dy))
        order = np.argsort(pairs[0], kind="stable")
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            a, count_a, of_a = _distinct(x, pairs[0][block], about_x)
            b, count_b, of_b = _distinct(y, pairs[1][block], about_y)
            partners = zeros(len(a), dy).index_add_(0, of_a, b[of_b])
            sums.x.add_(count_a @ a)
            sums.y.add_(count_b @ b)
            sums.xx.addmm_(a.T, count_a[:, None] * a)
            sums.yy.addmm_(b.T, count_b[:, None] * b)
            sums.xy.addmm_(a.T, partners)
        return sums

    def __add__(self, other: "_Sums") -> "_Sums":
        names = ("pairs", "x", "y", "xx", "yy", "xy")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def moments(self) -> Moments:
        """Return means and covariances."""
        x, y = self.x / self.pairs, self.y / self.pairs  # what the means lie beside the point
        xx, yy, xy = (products / self.pairs for products in (self.xx, self.yy, self.xy))
        covariances = xx - torch.outer(x, x), yy - torch.outer(y, y), xy - torch.outer(x, y)
        return Moments(self.about_x + x, self.about_y + y, *covariances)


def _distinct(latents: Latents, rows: NDArray[np.int64], about: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct latents of `rows` beside a point, how often each occurs, and which of them each row is."""
    distinct, index, counts = np.unique(rows, return_inverse=True, return_counts=True)
    found = latents[torch.from_numpy(distinct)].to(about) - about
    return found, torch.from_numpy(counts).to(about), torch.from_numpy(index).to(about.device)


def _some_mean(latents: Latents) -> Tensor:
    """Return the mean (D,) of some latents spread over all of them."""
    count = latents.shape[0]
    some = torch.from_numpy(np.unique(np.linspace(0, count - 1, min(count, _BLOCK)).astype(np.int64)))
    return latents[some].double().mean(dim=0)


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


def fit_closed_forms(
    x: Latents, y: Latents, pairs: Rows, groups: NDArray[np.int64], seed: int
) -> dict[str, ClosedForm]:
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
    about = _some_mean(x), _some_mean(y)
    part, rest = (_Sums.of(x, y, (pairs[0][mask], pairs[1][mask]), *about) for mask in (~held, held))
    chosen = _shrinkages(CLOSED_FORMS, part, x, y, pairs, held)
    whole = (part + rest).moments()
    return {name: form(whole, chosen[name]) for name, form in CLOSED_FORMS.items()}


def _shrinkages(
    forms: dict[str, Callable[[Moments, float], ClosedForm]], part: _Sums, x: Latents, y: Latents, pairs: Rows,
    held: NDArray[np.bool_],
) -> dict[str, float]:  # fmt: skip
    """Choose for each form what does best on the held-out pairs, by fits on the sums of the others."""
    chosen = dict.fromkeys(forms, SHRINKAGES[-1])
    if 2 <= held.sum() <= len(held) - 2:
        m = part.moments()
        (keep_x, ix), (keep_y, iy) = (np.unique(rows[held], return_inverse=True) for rows in pairs)
        x_held, y_held = x[torch.from_numpy(keep_x)], y[torch.from_numpy(keep_y)]
        for name, form in forms.items():
            trials = [form(m, s) for s in SHRINKAGES]
            scores = [mean_recall(trial.embed_x(x_held), trial.embed_y(y_held), (ix, iy)) for trial in trials]
            chosen[name] = SHRINKAGES[int(np.argmax(scores))]
    return chosen


def cross_fit(
    x: Latents, y: Latents, pairs: Rows, groups: NDArray[np.int64], seed: int, *, form: str = "cca", folds: int = 5
) -> list[tuple[NDArray[np.int64], ClosedForm]]:
    """Fit a closed form on all folds but one, for each of them.

    Args:
        x: (N, Dx) latents of distinct items.
        y: (M, Dy) latents of distinct items.
        pairs: rows of x and of y that belong together, (P,) each.
        groups: (P,) group of each pair; a group is dealt to one fold whole.
        seed: deals the groups, and chooses the shrinkage as `fit_closed_forms` does.
        form: of CLOSED_FORMS.
        folds: at most as many as there are groups.

    Returns:
        For each fold its pairs (as numbers of 0..P-1, ascending) and the form that was fitted without them.
    """
    distinct, member = np.unique(groups, return_inverse=True)
    folds = min(folds, len(distinct))
    fold = (np.random.default_rng(seed).permutation(len(distinct)) % folds)[member]
    about = _some_mean(x), _some_mean(y)
    mask = _held_out(groups, seed)
    part = _Sums.of(x, y, (pairs[0][~mask], pairs[1][~mask]), *about)
    shrinkage = _shrinkages({form: CLOSED_FORMS[form]}, part, x, y, pairs, mask)[form]
    held = [np.flatnonzero(fold == i) for i in range(folds)]
    sums = [_Sums.of(x, y, (pairs[0][rows], pairs[1][rows]), *about) for rows in held]
    fitted = []
    for i, rows in enumerate(held):
        rest = [part for j, part in enumerate(sums) if j != i]
        fitted.append((rows, CLOSED_FORMS[form](reduce(_Sums.__add__, rest).moments(), shrinkage)))
    return fitted


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
