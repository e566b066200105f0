"""One step of a fit: embed the batch piece by piece, one exact loss over all of it, then AdamW."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from fusemix.align.adapters import AnyAdapter, Block, Landing, Locked, make_adapters, refining
from fusemix.align.capability import runs_triton
from fusemix.align.closed_form import ClosedForm
from fusemix.align.landing import landing_loss
from fusemix.align.losses import info_nce
from fusemix.config import FitConfig
from fusemix.errors import FusemixError
from fusemix.training.device import choose_precision
from fusemix.training.forecast import step_flops
from fusemix.training.order import dropout_seed

T = TypeVar("T")
TEMPERATURES = (0.001, 0.5)
# Of a piece of a batch on a CPU. A signal is heard between its blocks, so that even a large step is left in seconds;
# more and smaller pieces would cost a pass over all gradients each.
PIECE_FLOPS = 2e12
SMALLEST_PIECE = 16
# Of a whole fit on a GPU: below it, compiling (half a minute or more) would cost more than it saves. A guess so far.
COMPILE_FLOPS = 1e16


class Adapters(nn.Module):
    """The two adapters, separate and unshared, and the temperature.

    Attributes:
        dims: widths of what the blocks of x and y take in: latents, or the coordinates of a closed form.
    """

    def __init__(self, dims: Sequence[int], config: FitConfig, start: ClosedForm | None = None) -> None:
        super().__init__()
        self.dims = list(dims) if start is None else [config.dim, config.dim]
        self.x, self.y = make_adapters(dims, config) if start is None else refining(start, config)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))

    @property
    def sides(self) -> tuple[AnyAdapter, AnyAdapter]:
        """Both adapters."""
        return self.x, self.y

    @property
    def landing(self) -> Landing | None:
        """The one that learns to land in a locked space; None where none is locked."""
        return next((side for side in self.sides if isinstance(side, Landing)), None)


class Trainer:
    """Adapters on a device, and how they take a step.

    Attributes:
        adapters: what is trained.
        optimizer: AdamW.
        precision: of the matrix products.
        loss_precision: of those in the loss. On CUDA they are a tenth of a step, and in float32 would be most of it;
            elsewhere, and in a locked space, the loss multiplies in float32.
        plain: the adapters as functions: to unit norm, or, of a locked fit, into the locked space.
        forwards: the same as they are called, compiled or not.
        piece: rows that go through an adapter at once. The loss always sees the whole batch.
        recompute: embed every piece twice, once for the loss and once for its gradient (GradCache, arXiv 2101.06983),
            so that only one piece's activations are held: a third more work, and the answer to a full memory.
    """

    def __init__(
        self, adapters: Adapters, config: FitConfig, device: torch.device, rank: int = 0, group: Any = None,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.adapters, self.config, self.device = adapters, config, device
        self.rank, self.group = rank, group
        self.precision = choose_precision(config.precision, device)
        fast = device.type == "cuda" and adapters.landing is None  # lengths count in a locked space
        self.loss_precision = self.precision if fast else torch.float32
        self.optimizer = _optimizer(adapters, config)
        self.piece = max(SMALLEST_PIECE, int(PIECE_FLOPS / step_flops(config, adapters.dims, 1)))
        if device.type == "cuda":
            self.piece = config.batch_size * 2
        self.plain: list[Any] = [side if config.lock == "none" else side.land for side in adapters.sides]
        self.forwards: list[Any] = [torch.compile(side) if compiled else side for side in self.plain]
        blocks = [module for module in adapters.modules() if isinstance(module, Block)] if device.type == "cpu" else []
        self._hooks = [block.register_forward_hook(_let_python_in) for block in blocks]
        self.recompute = False
        self.full = ""  # what the last allocation said that failed

    def gradients(self, step: int, batch: Sequence[Tensor]) -> Tensor:
        """Leave the gradients of one step; return its loss, a scalar on the device, NaN if any gradient is.

        A full memory shrinks the pieces, never the batch: the negatives of a contrastive loss are its substance. Among
        several processes all shrink if one must.

        Args:
            step: its number; the dropout follows from it.
            batch: x (b, Dx) and y (b, Dy), float32: this process's share of the batch.

        Raises:
            FusemixError: not even the smallest piece fits.
        """
        while True:
            self.optimizer.zero_grad()
            embed = partial(self._embed_all, step, batch)
            parts = self._unless_full(embed)
            if parts is not None:
                loss = self._unless_full(partial(self._backward, step, batch, parts))
                if loss is not None:
                    break
            parts = None  # lets go of the activations
            self._shrink(len(batch[0]))
        gradients = [p.grad for p in self.adapters.parameters() if p.grad is not None]
        if self.group is not None:  # not before all have theirs: a full memory on one would leave the others waiting
            for travelling in [distributed.all_reduce(g, group=self.group, async_op=True) for g in gradients]:
                travelling.wait()
        return loss + 0 * nn.utils.get_total_norm(gradients)

    def update(self, lr: float) -> None:
        """Follow the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            self.adapters.temperature.clamp_(*TEMPERATURES)

    def close(self) -> None:
        """Leave the adapters as plain modules."""
        for hook in self._hooks:
            hook.remove()

    def _embed_all(self, step: int, batch: Sequence[Tensor]) -> list[list[Tensor]]:
        """Embed both sides piece by piece."""
        with torch.set_grad_enabled(not self.recompute), self._autocast():
            return [
                [self._embed(step, side, place, piece) for place, piece in enumerate(torch.split(latents, self.piece))]
                for side, latents in enumerate(batch)
            ]

    def _backward(self, step: int, batch: Sequence[Tensor], parts: list[list[Tensor]]) -> Tensor:
        """Take the loss of the whole batch and bring its gradient back through every piece."""
        embedded = [torch.cat(part).detach().to(self.loss_precision).requires_grad_() for part in parts]
        loss = self._loss(embedded[0], embedded[1])
        loss.backward()  # type: ignore[no-untyped-call]
        for side, whole in enumerate(embedded):
            if isinstance(self.adapters.sides[side], Locked):
                continue
            assert whole.grad is not None
            pieces = torch.split(batch[side], self.piece)
            for place, gradient in enumerate(torch.split(whole.grad.float(), self.piece)):
                if self.recompute:
                    with self._autocast():
                        parts[side][place] = self._embed(step, side, place, pieces[place])
                parts[side][place].backward(gradient)  # type: ignore[no-untyped-call]
                parts[side][place] = gradient  # lets go of the activations
        return loss.detach()

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the loss of the whole batch."""
        temperature, landing = self.adapters.temperature, self.adapters.landing
        if landing is None:
            return info_nce(x, y, temperature, group=self.group)
        variance = landing.spread.square().sum()
        return landing_loss(x, y, temperature, variance, self.config.regression, group=self.group)

    def _embed(self, step: int, side: int, place: int, piece: Tensor) -> Tensor:
        torch.manual_seed(dropout_seed(self.config.seed, step, self.rank, side, place))
        # Pieces of many sizes, with gradients and without, are more forms than torch compiles of one function; and a
        # form that is left plain would draw another dropout than the compiled one of the same piece.
        embedded: Tensor = (self.plain if self.recompute else self.forwards)[side](piece)
        return embedded

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _unless_full(self, work: Callable[[], T]) -> T | None:
        """Do something; None if the memory of this process, or of another one, is too small for it."""
        result = None
        try:
            result = work()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            self.full = (str(error) or type(error).__name__).splitlines()[0]
        if self.group is None:
            return result
        answer = torch.tensor(int(result is not None))
        distributed.all_reduce(answer, distributed.ReduceOp.MIN, group=self.group)
        return result if bool(answer) else None

    def _shrink(self, rows: int) -> None:
        """Hold fewer activations at a time."""
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.piece = -(-min(self.piece, rows) // 2)
        self.recompute = True
        if self.piece < SMALLEST_PIECE:
            raise FusemixError(
                f"a step on {rows:,} pairs does not fit the memory, not even in pieces of {2 * self.piece} "
                f"({self.full}); lower batch_size (now {self.config.batch_size:,}), dim or depth"
            )


def _let_python_in(block: nn.Module, inputs: Any, output: Tensor) -> None:
    """Come back to Python where the backward pass comes to this block: only there it hears a signal."""
    if output.requires_grad:
        output.register_hook(lambda gradient: None)  # type: ignore[no-untyped-call]


def compiling_pays(flops: float, device: torch.device) -> bool:
    """Tell whether a fit of so many FLOPs should compile its adapters.

    It fuses normalisation, GELU and dropout, which a GPU would otherwise carry through its memory one by one. On a CPU
    it is slower than eager (docs/performance.md).
    """
    return device.type == "cuda" and flops >= COMPILE_FLOPS and runs_triton(device)


# What torch's allocator says on a CPU, and what oneDNN says that has no room to multiply.
FULL_MEMORY = ("can't allocate memory", "could not create a primitive")


def _out_of_memory(error: Exception) -> bool:
    """Tell a full memory, of a GPU or of this machine, from any other failure."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in FULL_MEMORY)


def _optimizer(adapters: Adapters, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW in one fused pass, with weight decay on matrices only."""
    parameters = list(adapters.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
