"""Means and covariances over pairs: all that a closed form needs to know of the data, summed in blocks."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 2048  # pairs that are summed at once, in float64
_FEW = 0.5  # of the width: up to so many directions it is quicker to look for them than to find all
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]


class Latents(Protocol):
    """Rows of latents (N, D), in memory or not: a Tensor, or what gives one where it is indexed with row numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Moments:
    """Means and covariances over pairs, in float64: all that a closed form needs to know of the data.

    Of fewer items than dimensions the covariance has as many directions as there are items, and the others hold nothing
    of the cross-covariance either: they are left out, which makes few pairs of wide latents quick and changes nothing.
    """

    mean_x: Tensor  # (Dx,)
    mean_y: Tensor  # (Dy,)
    xx: Tensor  # (Dx, Dx)
    yy: Tensor  # (Dy, Dy)
    xy: Tensor  # (Dx, Dy)
    most_x: int | None = None  # directions that xx has at most; None is Dx
    most_y: int | None = None

    @cached_property
    def eigen_x(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (R,) and vectors (Dx, R) of xx: found once, whatever the shrinkage."""
        return _eigen(self.xx, self.most_x)

    @cached_property
    def eigen_y(self) -> tuple[Tensor, Tensor]:
        """The same of yy."""
        return _eigen(self.yy, self.most_y)

    @cached_property
    def rotated(self) -> Tensor:
        """Xy (Rx, Ry) in the directions of the eigenvectors, where whitening is a scaling of rows and columns."""
        rotated: Tensor = self.eigen_x[1].T @ self.xy @ self.eigen_y[1]
        return rotated

    def paired_as(self, xy: Tensor) -> "Moments":
        """Return the same means and covariances, and their eigenvectors, with another cross-covariance (Dx, Dy)."""
        other = replace(self, xy=xy)
        other.__dict__.update(eigen_x=self.eigen_x, eigen_y=self.eigen_y)
        return other


def _eigen(covariance: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (R,) and vectors (D, R) of a covariance (D, D) that has at most so many that are not 0."""
    width = len(covariance)
    if most is None or most > width * _FEW:
        values, vectors = torch.linalg.eigh(covariance)
        return values.clamp(min=0), vectors
    # What a covariance of rank R makes of R random vectors spans all of it (Halko et al., arXiv 0909.4061).
    draw = torch.randn(width, most, dtype=covariance.dtype, generator=torch.Generator().manual_seed(0))
    basis, _ = torch.linalg.qr(covariance @ draw.to(covariance.device))
    basis, _ = torch.linalg.qr(covariance @ basis)  # once more, for the small ones among large ones
    values, vectors = torch.linalg.eigh(basis.T @ covariance @ basis)
    return values.clamp(min=0), basis @ vectors


def moments(x: Latents, y: Latents, pairs: Rows) -> Moments:
    """Sum over pairs in blocks: never more than 2,048 pairs are in memory in float64, and the results.

    Args:
        x: (N, Dx) latents of distinct items, of any dtype.
        y: (M, Dy) latents of distinct items, of any dtype.
        pairs: rows of x and of y that belong together, (P,) each.
    """
    return Sums.of(x, y, pairs, some_mean(x), some_mean(y)).moments()


@dataclass(frozen=True)
class Sums:
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
    items_x: int  # distinct ones of each block
    items_y: int

    @classmethod
    def of(cls, x: Latents, y: Latents, pairs: Rows, about_x: Tensor, about_y: Tensor) -> "Sums":
        """Sum, an item that several pairs of a block share once: an image with five captions is multiplied once."""
        zeros = partial(torch.zeros, dtype=torch.float64, device=about_x.device)
        dx, dy = len(about_x), len(about_y)
        products = zeros(dx), zeros(dy), zeros(dx, dx), zeros(dy, dy), zeros(dx, dy)
        sums, items_x, items_y = cls(about_x, about_y, len(pairs[0]), *products, 0, 0), 0, 0
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
            items_x, items_y = items_x + len(a), items_y + len(b)
        return replace(sums, items_x=items_x, items_y=items_y)

    def __add__(self, other: "Sums") -> "Sums":
        names = ("pairs", "x", "y", "xx", "yy", "xy", "items_x", "items_y")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def moments(self) -> Moments:
        """Return means and covariances."""
        x, y = self.x / self.pairs, self.y / self.pairs  # what the means lie beside the point
        xx, yy, xy = (products / self.pairs for products in (self.xx, self.yy, self.xy))
        covariances = xx - torch.outer(x, x), yy - torch.outer(y, y), xy - torch.outer(x, y)
        return Moments(self.about_x + x, self.about_y + y, *covariances, self.items_x, self.items_y)


def _distinct(latents: Latents, rows: NDArray[np.int64], about: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct latents of `rows` beside a point, how often each occurs, and which of them each row is."""
    distinct, index, counts = np.unique(rows, return_inverse=True, return_counts=True)
    found = latents[torch.from_numpy(distinct)].to(about) - about
    return found, torch.from_numpy(counts).to(about), torch.from_numpy(index).to(about.device)


def some_mean(latents: Latents) -> Tensor:
    """Return the mean (D,) of some latents spread over all of them."""
    count = latents.shape[0]
    some = torch.from_numpy(np.unique(np.linspace(0, count - 1, min(count, _BLOCK)).astype(np.int64)))
    return latents[some].double().mean(dim=0)
