"""Diversity: the k items whose similarities span the largest volume, by greedy MAP inference of a k-DPP.

The kernel is L_ij = q_i (cos_ij + 1)^2 q_j, of several modalities q_i 4 s_ij^2 q_j with the product s of
`Similarity`; for one modality both are the same. Without qualities q it is the kernel of the paper's study of
diversity (arXiv 2312.10144). With them it is the decomposition into quality and diversity of Kulesza & Taskar (arXiv
1207.6083, section 3.1). Fast greedy is due to Chen, Zhang & Zhou (arXiv 1709.05135); here it goes in blocks
(`greedy`), in k n numbers of memory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusemix.align.greedy import ROUNDING, SMALLEST, greedy
from fusemix.align.similarity import Similarity

_BLOCK = 4096  # columns that are solved for at a time
LARGEST = 4.0  # value of the kernel for an item and itself


def diverse(
    sides: Sequence[Tensor],
    k: int,
    *,
    quality: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Pick k items, each the one that multiplies the determinant of L of those picked by most.

    Args:
        sides: (n, D) latents of each modality; row i of all of them is item i.
        k: at most n.
        quality: (n,) of (0, 1]; None for ones.
        dtype: float64 is the exact answer: the same picks as greedy on the whole kernel. float32 is twice as fast, in
            half the memory, and picks others of equal worth where rounding decides.
        told: called now and then with the number of picks so far.

    Returns:
        Numbers of items in order of picking, and by what each multiplied the determinant, (k,) each; fewer than k
        where the kernel is exhausted: every item left would make the determinant zero, as far as rounding lets one
        see.
    """
    kernel = _Kernel(Similarity(sides, dtype), quality)
    rows = torch.empty(k, kernel.similarity.count, dtype=dtype)  # of untouched memory nothing is taken
    return greedy(_Volume(kernel, rows, kernel.diagonal(), 0), k, told)


def log_det(sides: Sequence[Tensor], quality: Tensor | None = None) -> float:
    """Return log det (L + 1e-10 I) of all items, in float64; an item that repeats another adds -23.

    Args:
        sides: (n, D) latents of each modality. Takes n^2 numbers of memory.
        quality: (n,) of (0, 1]; None for ones.
    """
    kernel = _Kernel(Similarity(sides), quality)
    whole = kernel.whole()
    whole.diagonal().copy_(kernel.diagonal() + ROUNDING[torch.float64])
    factor = torch.linalg.cholesky(whole)
    return 2 * float(factor.diagonal().log().sum())


class _Kernel:
    """Values of L, made when they are asked for."""

    def __init__(self, similarity: Similarity, quality: Tensor | None) -> None:
        self.similarity = similarity
        self.quality = None if quality is None else quality.to(similarity.dtype)

    def among(self, pool: Tensor) -> "_Kernel":
        """Return the same of some items."""
        return _Kernel(self.similarity.among(pool), None if self.quality is None else self.quality[pool])

    def of(self, some: Tensor, out: Tensor | None = None) -> Tensor:
        """Return L of some items, by number, and all, (S, n)."""
        out = self.similarity.of(some, out).square_().mul_(LARGEST)
        if self.quality is not None:
            out.mul_(self.quality[some, None]).mul_(self.quality)
        return out

    def whole(self) -> Tensor:
        """Return L, (n, n)."""
        return self.of(torch.arange(self.similarity.count))

    def diagonal(self) -> Tensor:
        """Return L of each item and itself, (n,)."""
        own = self.similarity.itself.square().mul_(LARGEST)
        return own if self.quality is None else own.mul_(self.quality.square())


class _Volume:
    """The rows of a Cholesky factor of L, a row a pick, and what of the diagonal they leave.

    Args:
        kernel: of the n items.
        rows: (k, n) of which `done` are filled; their sums of squares and `scores` are the diagonal.
        scores: (n,).
        done: picks so far.
    """

    def __init__(self, kernel: _Kernel, rows: Tensor, scores: Tensor, done: int) -> None:
        self.kernel, self.rows, self.scores = kernel, rows, scores
        self.done = self.began = done
        self.residual: Tensor | None = None  # of a small pool, (n, n): what of L the rows of before leave
        if len(scores) <= SMALLEST:
            self.residual = kernel.whole().addmm_(rows[:done].T, rows[:done], alpha=-1)

    def among(self, pool: Tensor, room: int) -> "_Volume":
        """Return the same for some of the items."""
        rows = torch.empty(self.done + room, len(pool), dtype=self.rows.dtype)
        torch.index_select(self.rows[: self.done], 1, pool, out=rows[: self.done])
        return _Volume(self.kernel.among(pool), rows, self.scores[pool], self.done)

    def pick(self, item: int) -> None:
        """Fill one row."""
        assert self.residual is not None, "one at a time is for small pools"
        since = self.rows[self.began : self.done]
        self.rows[self.done] = (self.residual[item] - since[:, item] @ since) / self.scores[item].sqrt()
        self._filled(torch.tensor([item]))

    def follow(self, picks: Tensor, pool: "_Volume", places: Tensor) -> None:
        """Fill the rows of several picks; the triangle that couples them is known from the pool."""
        new = self.kernel.of(picks, out=self.rows[self.done : self.done + len(picks)])
        before = self.rows[: self.done]
        new.addmm_(before[:, picks].T, before, alpha=-1)
        triangle = pool.rows[self.done : pool.done, places].triu()
        for part in torch.split(new, _BLOCK, dim=1):  # of the transpose no copy is made
            part.T.copy_(torch.linalg.solve_triangular(triangle, part.T, upper=True, left=False))
        self._filled(picks)

    def _filled(self, picks: Tensor) -> None:
        new = self.rows[self.done : self.done + len(picks)]
        for scores, part in zip(torch.split(self.scores, _BLOCK), torch.split(new, _BLOCK, dim=1), strict=True):
            scores -= part.square().sum(dim=0)
        self.scores[picks] = -torch.inf
        self.done += len(picks)
