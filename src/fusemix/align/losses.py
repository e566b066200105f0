"""The contrastive loss (arXiv 2312.10144, section 4; the symmetric InfoNCE of CLIP, arXiv 2103.00020).

Exact, in memory that grows as B x S and not as B x B: the logits are made tile by tile in the forward pass and again
in the backward pass, four products of B x B x S in all. The loss of row i is softplus(log-sum of the other logits -
its own logit), and the weight of its own pair in the gradient is the sigmoid of the same difference: what a plain form
gets as 1 - p, and loses when p is nearly 1.

Across processes (Inf-CL, arXiv 2410.17243, does the same in a ring) only y is gathered: each rank has its rows of x
and all columns.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fusemix.align import tiles
from fusemix.align.capability import runs_triton

# Its name from torch 2.13 on, and before.
_all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


def info_nce(x: Tensor, y: Tensor, temperature: Tensor | float, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """Symmetric InfoNCE: row i of x belongs to row i of y, all other rows of the batch are negatives.

    Args:
        x: (b, S) embeddings, unit norm; floating point.
        y: (b, S) embeddings, unit norm; same dtype and device.
        temperature: positive scalar; logits = cosine / temperature. A tensor of one element may have a gradient.
        group: the batch is the shares of all ranks of this group, in their order; shares may differ in length. Every
            rank must call this function, and `backward` if one does. The gradients that come out on the ranks are
            summed, not averaged, to those of the whole batch.

    Returns:
        Scalar: mean over the whole batch and over both directions of -log softmax of the matching logit, the same on
        every rank. At least 0; log(B) when every logit is equal. float64 for float64 input, otherwise float32: sums
        never run in half precision.

    Raises:
        ValueError: shapes or dtypes that do not go together, or a temperature of 0 or less.
    """
    if x.shape != y.shape or x.ndim != 2 or x.dtype != y.dtype or not x.is_floating_point():
        raise ValueError(f"wanted two (B, S) of one float dtype, got {_describe(x)} and {_describe(y)}")
    scalar = torch.as_tensor(temperature, dtype=None if isinstance(temperature, Tensor) else torch.float64)
    loss: Tensor = _InfoNCE.apply(x, y, scalar, group)  # type: ignore[no-untyped-call]
    return loss


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, temperature: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        scale, bound, lengths = _facts(x, y, temperature, group)
        rank = 0 if group is None else dist.get_rank(group)
        start = sum(lengths[:rank])
        columns_of = y if group is None else _gather(y, lengths, group)
        passes = _passes(x)
        with torch.autocast(x.device.type, enabled=False):
            a, b = passes.operand(x), passes.operand(columns_of)
            safe = tiles.needs_safe(bound, len(b), torch.float64 if x.dtype == torch.float64 else torch.float32)
            rows, columns, matching, ctx.kept = passes.log_sums(a, b, scale, start, safe)
        if group is not None:
            rows, columns, matching = _merge(rows, columns, matching, start, group)
        ctx.save_for_backward(x, columns_of, temperature, rows, columns, matching)
        ctx.scale, ctx.start, ctx.safe, ctx.group = scale, start, safe, group
        costs = F.logsigmoid(matching - rows) + F.logsigmoid(matching - columns)  # -softplus, exact for all values
        loss = costs.sum() / (-2 * len(matching))
        return loss if x.dtype == torch.float64 else loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, y, temperature, rows, columns, matching = ctx.saved_tensors
        own = slice(ctx.start, ctx.start + len(x))
        passes = _passes(x)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        dx, dy = torch.zeros_like(x, dtype=dtype), torch.zeros_like(y, dtype=dtype)
        totals = torch.logaddexp(rows, matching)[own], torch.logaddexp(columns, matching)
        kept, ctx.kept = ctx.kept, []  # a second backward pass makes the tiles anew
        with torch.autocast(x.device.type, enabled=False):
            a, b = passes.operand(x), passes.operand(y)
            passes.add_gradients(a, b, ctx.scale, ctx.start, ctx.safe, totals, (dx, dy), kept)
        if ctx.group is not None:
            dist.all_reduce(dy, group=ctx.group)
            dy = dy[own]
        # 1 - p of the matching pair, without the subtraction
        weights = (torch.sigmoid(rows - matching) + torch.sigmoid(columns - matching))[own, None].to(dtype)
        factor = grad.double() * (ctx.scale / (2 * len(matching)))
        dx.addcmul_(weights, y[own].to(dtype), value=-1).mul_(factor)
        dy.addcmul_(weights, x.to(dtype), value=-1).mul_(factor)
        slope = _dot(x, dx) * -ctx.scale  # the loss depends on x and temperature through x / temperature alone
        return dx.to(x.dtype), dy.to(x.dtype), slope.to(temperature).reshape(temperature.shape), None


def _passes(x: Tensor) -> Any:
    """The module that does the two passes over the logits: Triton kernels where they run, the eager one elsewhere."""
    if x.dtype != torch.float64 and runs_triton(x.device):
        from fusemix.align import kernels

        return kernels
    return tiles


def _facts(
    x: Tensor, y: Tensor, temperature: Tensor, group: dist.ProcessGroup | None
) -> tuple[float, float, list[int]]:
    """Return 1 / temperature, a bound of every |logit| (Cauchy and Schwarz) and the number of rows of each rank."""
    norms = [torch.linalg.vector_norm(side, dim=1) for side in (x, y)]
    longest = [(norm.max() if len(norm) else norm.new_zeros(())).double() for norm in norms]
    facts = torch.stack([*longest, temperature.detach().to(longest[0]).reshape(())])  # one wait for the device
    *longest_here, value = facts.tolist()
    if value <= 0:
        raise ValueError(f"the temperature must be positive, got {value:g}")
    here = [float(len(x)), *longest_here]
    shares = [here]
    if group is not None:
        gathered = facts.new_empty(dist.get_world_size(group), 3)
        _all_gather(gathered, facts.new_tensor([here]), group=group)
        shares = gathered.tolist()
    lengths, of_x, of_y = zip(*shares, strict=True)
    return 1 / value, max(of_x) * max(of_y) / value, [int(length) for length in lengths]


def _gather(rows: Tensor, lengths: list[int], group: dist.ProcessGroup) -> Tensor:
    """Bring the rows of all ranks together, in their order; shares are padded to one length on the way."""
    padded = rows.new_zeros(max(lengths), rows.shape[1])
    padded[: len(rows)] = rows
    gathered = rows.new_empty(len(lengths) * len(padded), rows.shape[1])
    _all_gather(gathered, padded, group=group)
    if min(lengths) == max(lengths):
        return gathered
    return torch.cat([part[:length] for part, length in zip(torch.split(gathered, len(padded)), lengths, strict=True)])


def _merge(
    rows: Tensor, columns: Tensor, matching: Tensor, start: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Give every rank the log-sums and matching logits of the whole batch: (B,) each, the same bits everywhere."""
    own = slice(start, start + len(rows))
    here = columns.new_full((3, len(columns)), -math.inf)
    here[0, own], here[1], here[2, own] = rows, columns, matching
    gathered = here.new_empty(dist.get_world_size(group), *here.shape)
    _all_gather(gathered, here[None], group=group)
    return torch.logsumexp(gathered, dim=0).unbind()  # type: ignore[return-value]


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the products of all elements, in float64."""
    piece = 65_536 if x.is_cuda else 1024  # a GPU would rather hold the float64 copy than start a hundred kernels
    pairs = zip(torch.split(x, piece), torch.split(y, piece), strict=True)
    return torch.stack([(a.double() * b.double()).sum() for a, b in pairs]).sum()
