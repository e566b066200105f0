"""The two passes of the contrastive loss, and the mixing gather, as Triton kernels for CUDA.

Same functions as in `tiles`, which is their oracle and takes over where Triton is missing. Nothing imports this module
before rows lie on a GPU. The forward kernel multiplies, and its epilogue writes only sums over the rows and columns of
its tile: no logit reaches memory, and no atomic makes two runs differ. The backward kernel multiplies again and writes
the weights of a chunk of rows, (CHUNK, B); the two products with them are cuBLAS's job. Rows of weights begin at
multiples of ALIGN numbers, whatever B is: cuBLAS has its fast products for rows that begin at multiples of 16 bytes.

Checked: every result under Triton's interpreter, and that all variants compile for sm_80 and sm_90 (bfloat16 to the
tensor cores' own instructions). Not yet timed on a GPU: TILE, STEP, GROUP, CHUNK and SUMS_CHUNK are first guesses.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from fusemix.align.tiles import in_base_2

CHUNK = 4096  # rows of weights in memory at once: their bytes are CHUNK / S times those of y
SUMS_CHUNK = 65_536  # rows whose sums over tiles are in memory at once, half as much
ALIGN = 64
TILE = 128
GROUP = 8  # tiles of rows that run through the columns together, so that both stay in the cache


@triton.jit  # type: ignore[untyped-decorator]
def _place(rows, columns, TILE: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Which tile this program has: columns run fastest inside a group of rows."""
    program = tl.program_id(0)
    down, across = tl.cdiv(rows, TILE), tl.cdiv(columns, TILE)
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    within = program % (GROUP * across)
    return first + within % height, within // height


@triton.jit  # type: ignore[untyped-decorator]
def _logits(  # type: ignore[no-untyped-def] # noqa: ANN202
    x, y, i, j, rows, columns, alpha,  # noqa: ANN001
    width: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The logits of tile (i, j) in base 2, float32; -inf outside of the matrix."""
    row, column, k = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE), tl.arange(0, STEP)
    x_at = x + row.to(tl.int64)[:, None] * width + k[None, :]
    y_at = y + column.to(tl.int64)[None, :] * width + k[:, None]
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for done in range(0, width, STEP):
        left = width - done
        a = tl.load(x_at + done, mask=(row[:, None] < rows) & (k[None, :] < left), other=0.0)
        b = tl.load(y_at + done, mask=(column[None, :] < columns) & (k[:, None] < left), other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    return row, column, tl.where(inside, total * alpha, -float("inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _log2_sum(logits, AXIS: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    top = tl.max(logits, AXIS)
    top = tl.where(top == -float("inf"), 0.0, top)
    return top + tl.log2(tl.sum(tl.exp2(logits - tl.expand_dims(top, AXIS)), AXIS))


@triton.jit  # type: ignore[untyped-decorator]
def _sums_kernel(  # type: ignore[no-untyped-def] # noqa: ANN202
    x, y, row_parts, column_parts, matching, rows, columns, offset, alpha,  # noqa: ANN001
    width: tl.constexpr, SAFE: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    i, j = _place(rows, columns, TILE, GROUP)
    row, column, logits = _logits(x, y, i, j, rows, columns, alpha, width, PRECISION, TILE, STEP)
    own = row[:, None] + offset == column[None, :]
    met = (row < rows) & (row + offset >= j * TILE) & (row + offset < (j + 1) * TILE)
    tl.store(matching + row, tl.sum(tl.where(own, logits, 0.0), 1), mask=met)
    logits = tl.where(own, -float("inf"), logits)
    if SAFE:
        over_row, over_column = _log2_sum(logits, 1), _log2_sum(logits, 0)
    else:
        powers = tl.exp2(logits)
        over_row, over_column = tl.sum(powers, 1), tl.sum(powers, 0)
    tl.store(row_parts + j.to(tl.int64) * rows + row, over_row, mask=row < rows)
    tl.store(column_parts + i.to(tl.int64) * columns + column, over_column, mask=column < columns)


@triton.jit  # type: ignore[untyped-decorator]
def _weights_kernel(  # type: ignore[no-untyped-def] # noqa: ANN202
    x, y, of_rows, of_columns, weights, rows, columns, offset, alpha, stride,  # noqa: ANN001
    width: tl.constexpr, SAFE: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    i, j = _place(rows, columns, TILE, GROUP)
    row, column, logits = _logits(x, y, i, j, rows, columns, alpha, width, PRECISION, TILE, STEP)
    logits = tl.where(row[:, None] + offset == column[None, :], -float("inf"), logits)
    a = tl.load(of_rows + row, mask=row < rows, other=0.0)[:, None]
    b = tl.load(of_columns + column, mask=column < columns, other=0.0)[None, :]
    weight = tl.exp2(logits - a) + tl.exp2(logits - b) if SAFE else tl.exp2(logits) * (a + b)
    at = weights + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(at, weight.to(weights.dtype.element_ty), mask=(row[:, None] < rows) & (column[None, :] < columns))


@triton.jit  # type: ignore[untyped-decorator]
def _gather_mix_kernel(  # type: ignore[no-untyped-def] # noqa: ANN202
    latents, first, second, out, width, lam,  # noqa: ANN001
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    a = tl.load(latents + tl.load(first + i) * width + column, mask=inside).to(tl.float32)
    b = tl.load(latents + tl.load(second + i) * width + column, mask=inside).to(tl.float32)
    # torch.lerp(b, a, lam), which starts from the nearer end
    mixed = tl.where(lam < 0.5, b + lam * (a - b), a - (a - b) * (1 - lam))
    tl.store(out + i * width + column, mixed.to(out.dtype.element_ty), mask=inside)


def operand(x: Tensor) -> Tensor:
    """Return the rows as these passes want them: bfloat16 as it is, else float32. float16 would lose small weights."""
    return (x if x.dtype == torch.bfloat16 else x.float()).contiguous()


def log_sums(
    x: Tensor, y: Tensor, scale: float, offset: int, safe: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """`tiles.log_sums` for operands in bfloat16 or float32; it keeps no tiles."""
    alpha, unit = in_base_2(scale, torch.float32)
    across = triton.cdiv(len(y), TILE)
    rows, matching = (x.new_empty(len(x), dtype=torch.float64) for _ in range(2))
    columns = x.new_full((len(y),), -math.inf, dtype=torch.float64)
    for here in _chunks(len(x), SUMS_CHUNK):
        chunk = x[here]
        # Parts rather than atomics: the same bits every time, and the last sum is in float64.
        row_parts = x.new_empty(across, len(chunk), dtype=torch.float32)
        column_parts = x.new_empty(triton.cdiv(len(chunk), TILE), len(y), dtype=torch.float32)
        own = x.new_empty(len(chunk), dtype=torch.float32)
        places = row_parts, column_parts, own
        _launch(_sums_kernel, chunk, y, places, offset + here.start, alpha, safe)
        rows[here], matching[here] = _log2_total(row_parts, safe), own
        columns = torch.logaddexp2(columns, _log2_total(column_parts, safe))
    return rows * unit, columns * unit, matching * unit, []


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
    """`tiles.add_gradients` for operands in bfloat16 or float32; the gradients are float32."""
    alpha, unit = in_base_2(scale, torch.float32)
    a, b = ((total / unit if safe else (-total / unit).exp2()).float() for total in totals)
    stride = triton.cdiv(len(y), ALIGN) * ALIGN
    memory = x.new_zeros(min(len(x), CHUNK), stride)  # what lies beyond B stays zero
    padded = F.pad(y, (0, 0, 0, stride - len(y)))
    for here in _chunks(len(x), CHUNK):
        chunk = x[here]
        weights = memory[: len(chunk)]
        _launch(_weights_kernel, chunk, y, (a[here], b, weights), offset + here.start, alpha, safe, stride=stride)
        gradients[0][here] += _product(weights, padded)
        gradients[1].add_(_product(weights.T, chunk)[: len(y)])


def gather_mix(latents: Tensor, first: Tensor, second: Tensor, lam: float, out: Tensor) -> Tensor:
    """Write lam * latents[first] + (1 - lam) * latents[second] into `out`: (N, D), two of (B,) int64, (B, D)."""
    block = min(1024, triton.next_power_of_2(latents.shape[1]))
    grid = (len(first), triton.cdiv(latents.shape[1], block))
    if len(first):
        _gather_mix_kernel[grid](latents, first, second, out, latents.shape[1], lam, BLOCK=block)
    return out


def _chunks(rows: int, most: int) -> Iterator[slice]:
    """Cut rows into equal chunks of whole tiles: a last one of a few rows would cost as much as a full one."""
    size = triton.cdiv(triton.cdiv(rows, triton.cdiv(rows, most)), TILE) * TILE if rows else 1
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _launch(
    kernel: Any, x: Tensor, y: Tensor, places: tuple[Tensor, Tensor, Tensor], offset: int, alpha: float, safe: bool,
    **more: int,
) -> None:  # fmt: skip
    """Run a kernel on every tile."""
    half = x.dtype == torch.bfloat16
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"  # as cuBLAS would
    grid = (triton.cdiv(len(x), TILE) * triton.cdiv(len(y), TILE),)
    kernel[grid](
        x, y, *places, len(x), len(y), offset, alpha, **more, width=x.shape[1], SAFE=safe,
        PRECISION=precision, TILE=TILE, STEP=64 if half else 32, GROUP=GROUP, num_warps=8, num_stages=3,
    )  # fmt: skip


def _log2_total(parts: Tensor, safe: bool) -> Tensor:
    """Join the sums of the tiles along the first dimension: base-2 logarithm, float64."""
    if not safe:
        return parts.sum(0, dtype=torch.float64).log2_()
    return torch.logsumexp(parts.double() * math.log(2), dim=0) / math.log(2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product in float32; bfloat16 is multiplied as it is on CUDA, and the sums are float32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())
