"""The two passes of the contrastive loss over its B x B logits, tile by tile: the logits are never all in memory.

Both passes leave the diagonal out: a matching pair's logit is kept apart, so that nothing cancels when the other
logits are small beside it. Logits are held in base 2, since exp2 takes a third of the time of exp here and the factor
log2(e) / temperature is the matrix product's own `alpha`, for nothing.

While no logit can reach 2^(126 - log2 B) or 2^-126 one exponential serves rows and columns: E = 2^s, and the weights
of the gradient are E_ij * (a_i + b_j). Unit rows stay in that range down to a temperature of 0.013. Below it
(`safe`) every row and column has its own maximum, at two exponentials.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

SIDE = 512  # rows of a tile, and columns for each thread: a megabyte of float32, what the cache of one core holds
# Bytes up to which the forward pass leaves all its tiles to the backward pass, which spares their product: a fifth of
# the time of batches up to 4,096. A part of more tiles would spare little and cost as much memory.
KEEP = 64 * 2**20
LOG2E = 1 / math.log(2)
CUDA_TILE = 4096, 16_384  # 256 MiB, where Triton is missing: a GPU is not filled by less, nor by a thousand small calls
Slices = tuple[slice, slice]


def needs_safe(bound: float, columns: int, dtype: torch.dtype) -> bool:
    """Whether logits of magnitude `bound` need a maximum for each row and column; NaN does."""
    room = math.log2(torch.finfo(dtype).max) - 2 - math.log2(max(columns, 1))
    return not bound * LOG2E <= room


def operand(x: Tensor) -> Tensor:
    """Return the rows as these passes want them: float64 as it is, else float32 (most CPUs emulate half precision)."""
    return x if x.dtype == torch.float64 else x.float()


def in_base_2(scale: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return what cosines are multiplied by, rounded to `dtype`, and what makes natural logarithms of such logits.

    The second takes back the rounding of the first, which all logits share.
    """
    alpha = torch.tensor(scale * LOG2E, dtype=dtype).item()
    return alpha, scale / alpha


def log_sums(
    x: Tensor, y: Tensor, scale: float, offset: int, safe: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Sum the exponentials of the logits over rows and over columns, without the matching pairs.

    Args:
        x: (b, S) float32 or float64; row i belongs to row i + offset of y.
        y: (B, S), the dtype of x.
        scale: 1 / temperature.
        offset: place of the first row of x among the rows of y.
        safe: take a maximum for each row and column.

    Returns:
        Natural logarithms of the sums over each row (b,) and each column (B,), -inf for an empty sum; the matching
        logits (b,); all float64. And the tiles, for `add_gradients`, if they are few.
    """
    rows = x.new_full((len(x),), -math.inf if safe else 0.0, dtype=torch.float64)
    columns = x.new_full((len(y),), -math.inf if safe else 0.0, dtype=torch.float64)
    matching = torch.empty_like(rows)
    workspace, kept = _workspace(x, y), []
    keep = len(x) * len(y) * x.element_size() <= KEEP
    alpha, unit = in_base_2(scale, x.dtype)
    for i, j in _tiles(x, y):
        tile = x.new_empty(i.stop - i.start, j.stop - j.start) if keep else _cut(workspace, i, j)
        diagonal = _logits(x, y, alpha, offset, i, j, tile)
        if len(diagonal):
            first = max(i.start, j.start - offset)
            matching[first : first + len(diagonal)] = diagonal
            diagonal.fill_(-math.inf)
        if safe:
            rows[i] = torch.logaddexp2(rows[i], _log2_sum(tile, 1))
            columns[j] = torch.logaddexp2(columns[j], _log2_sum(tile, 0))
        else:
            tile.exp2_()
            rows[i] += tile.sum(1)
            columns[j] += tile.sum(0)
        if keep:
            kept.append(tile)
    if not safe:
        rows, columns = rows.log2_(), columns.log2_()
    return rows * unit, columns * unit, matching * unit, kept


def add_gradients(
    x: Tensor,
    y: Tensor,
    scale: float,
    offset: int,
    safe: bool,
    totals: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor],
    kept: list[Tensor],
) -> None:
    """Add W @ y and W.T @ x to the two gradients: W_ij = exp(s_ij - total of row i) + exp(s_ij - total of column j).

    Args:
        x: as given to `log_sums`, like the next four.
        y: (B, S).
        scale: 1 / temperature.
        offset: place of the first row of x among the rows of y.
        safe: as there.
        totals: log-sums of each row (b,) and each column (B,) with their matching logits, float64. W is zero there.
        gradients: (b, S) and (B, S), added to.
        kept: the tiles that `log_sums` left, all or none; they are not changed.
    """
    alpha, unit = in_base_2(scale, x.dtype)
    row_totals, column_totals = totals[0] / unit, totals[1] / unit
    workspace, weights = _workspace(x, y), _workspace(x, y)
    a, b = row_totals.neg().exp2_().to(x.dtype), column_totals.neg().exp2_().to(x.dtype)
    for number, (i, j) in enumerate(_tiles(x, y)):
        if kept:
            tile = kept[number]
        else:
            tile = _cut(workspace, i, j)
            _logits(x, y, alpha, offset, i, j, tile).fill_(-math.inf)
            if not safe:
                tile.exp2_()
        weight = _cut(weights, i, j)
        if safe:
            _exp2_less(tile, row_totals[i, None], weight)
            weight += _exp2_less(tile, column_totals[j], torch.empty_like(tile))
        else:
            torch.add(a[i, None], b[j], out=weight).mul_(tile)
        gradients[0][i].addmm_(weight, y[j])
        gradients[1][j].addmm_(weight.T, x[i])


def _tiles(x: Tensor, y: Tensor) -> Iterator[Slices]:
    height, width = _shape(x)
    rows, columns = len(x), len(y)
    for start in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(start, min(start + height, rows)), slice(left, min(left + width, columns))


def _shape(x: Tensor) -> tuple[int, int]:
    return CUDA_TILE if x.is_cuda else (SIDE, SIDE * torch.get_num_threads())


def _workspace(x: Tensor, y: Tensor) -> Tensor:
    height, width = _shape(x)
    return x.new_empty(min(len(x), height) * min(len(y), width))


def _cut(workspace: Tensor, i: slice, j: slice) -> Tensor:
    shape = i.stop - i.start, j.stop - j.start
    return workspace[: shape[0] * shape[1]].view(shape)


def _logits(x: Tensor, y: Tensor, alpha: float, offset: int, i: slice, j: slice, out: Tensor) -> Tensor:
    """Write the logits of a tile, in base 2, into `out`; return its view of the matching pairs, which may be empty."""
    torch.addmm(out, x[i], y[j].T, beta=0, alpha=alpha, out=out)
    return out.diagonal(i.start + offset - j.start)


def _exp2_less(tile: Tensor, total: Tensor, out: Tensor) -> Tensor:
    """2^(tile - total) with a total in float64: at 1,000 its rounding to float32 would cost 2e-5."""
    rounded = total.to(tile.dtype)
    return torch.sub(tile, rounded, out=out).sub_((total - rounded).to(tile.dtype)).exp2_()


def _log2_sum(tile: Tensor, dim: int) -> Tensor:
    """Logarithm of the sum of 2^tile along a dimension; -inf where all are -inf. float64, exact for large logits."""
    top = tile.amax(dim, keepdim=True).clamp_(min=torch.finfo(tile.dtype).min)
    return torch.sub(tile, top).exp2_().sum(dim).double().log2_() + top.squeeze(dim).double()
