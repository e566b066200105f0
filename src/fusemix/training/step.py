"""One step of a fit: embed the batch piece by piece, one exact loss over all of it, then AdamW."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fusemix.align.adapters import Adapter
from fusemix.align.capability import runs_triton
from fusemix.align.losses import info_nce
from fusemix.config import FitConfig
from fusemix.errors import FusemixError
from fusemix.training.device import choose_precision
from fusemix.training.forecast import step_flops
from fusemix.training.order import dropout_seed

TEMPERATURES = (0.001, 0.5)
# Of a piece of a batch on a CPU: a signal is heard between pieces, so that even the largest step is left in seconds.
PIECE_FLOPS = 5e11
SMALLEST_PIECE = 16
# Of a whole fit on a GPU: below it, compiling (half a minute or more) would cost more than it saves. A guess so far.
COMPILE_FLOPS = 1e16


class Adapters(nn.Module):
    """The two adapters, separate and unshared, and the temperature."""

    def __init__(self, dims: Sequence[int], config: FitConfig) -> None:
        super().__init__()
        self.x, self.y = (Adapter(dim, config) for dim in dims)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))

    @property
    def sides(self) -> tuple[Adapter, Adapter]:
        """Both adapters."""
        return self.x, self.y


class Trainer:
    """Adapters on a device, and how they take a step.

    Attributes:
        adapters: what is trained.
        dims: latent dim of x and of y.
        optimizer: AdamW.
        precision: of the matrix products.
        loss_precision: of those in the loss. On CUDA they are a tenth of a step, and in float32 would be most of it;
            elsewhere the loss multiplies in float32.
        forwards: the adapters as they are called, compiled or not.
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
        self.loss_precision = self.precision if device.type == "cuda" else torch.float32
        self.optimizer = _optimizer(adapters, config)
        self.dims = [len(side.shift) for side in adapters.sides]
        self.piece = max(SMALLEST_PIECE, int(PIECE_FLOPS / step_flops(config, self.dims, 1)))
        if device.type == "cuda":
            self.piece = config.batch_size * 2
        self.forwards: list[Any] = [torch.compile(side) if compiled else side for side in adapters.sides]
        self.recompute = False

    def gradients(self, step: int, batch: Sequence[Tensor]) -> Tensor:
        """Leave the gradients of one step; return its loss, a scalar on the device.

        A full memory shrinks the pieces, never the batch: the negatives of a contrastive loss are its substance.

        Args:
            step: its number; the dropout follows from it.
            batch: x (b, Dx) and y (b, Dy), float32: this process's share of the batch.

        Raises:
            FusemixError: not even the smallest piece fits.
        """
        while True:
            try:
                loss = self._gradients(step, batch)
                break
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or self.group is not None:
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
            # Outside of the handler, whose traceback still holds the tensors.
            self._shrink(len(batch[0]), reason)
        if self.group is not None:
            for parameter in self.adapters.parameters():
                distributed.all_reduce(parameter.grad, group=self.group)
        return loss

    def update(self, lr: float) -> None:
        """Follow the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            self.adapters.temperature.clamp_(*TEMPERATURES)

    def _gradients(self, step: int, batch: Sequence[Tensor]) -> Tensor:
        self.optimizer.zero_grad()
        pieces = [torch.split(latents, self.piece) for latents in batch]
        with torch.set_grad_enabled(not self.recompute), self._autocast():
            parts = [
                [self._embed(step, side, place, piece) for place, piece in enumerate(cut)]
                for side, cut in enumerate(pieces)
            ]
        embedded = [torch.cat(part).detach().to(self.loss_precision).requires_grad_() for part in parts]
        loss = info_nce(embedded[0], embedded[1], self.adapters.temperature, group=self.group)
        loss.backward()  # type: ignore[no-untyped-call]
        for side, whole in enumerate(embedded):
            assert whole.grad is not None
            for place, gradient in enumerate(torch.split(whole.grad, self.piece)):
                if self.recompute:
                    with self._autocast():
                        parts[side][place] = self._embed(step, side, place, pieces[side][place])
                parts[side][place].backward(gradient.float())  # type: ignore[no-untyped-call]
                parts[side][place] = gradient  # lets go of the activations
        return loss.detach()

    def _embed(self, step: int, side: int, place: int, piece: Tensor) -> Tensor:
        torch.manual_seed(dropout_seed(self.config.seed, step, self.rank, side, place))
        # Pieces of many sizes, with gradients and without, are more forms than torch compiles of one function; and a
        # form that is left plain would draw another dropout than the compiled one of the same piece.
        embedded: Tensor = (self.adapters.sides if self.recompute else self.forwards)[side](piece)
        return embedded

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _shrink(self, rows: int, reason: str) -> None:
        """Hold fewer activations at a time."""
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.piece = -(-min(self.piece, rows) // 2)
        self.recompute = True
        if self.piece < SMALLEST_PIECE:
            raise FusemixError(
                f"a step on {rows:,} pairs does not fit the memory, not even in pieces of {2 * self.piece} ({reason}); "
                f"lower batch_size (now {self.config.batch_size:,}), dim or depth"
            )


def compiling_pays(flops: float, device: torch.device) -> bool:
    """Tell whether a fit of so many FLOPs should compile its adapters.

    It fuses normalisation, GELU and dropout, which a GPU would otherwise carry through its memory one by one. On a CPU
    it is slower than eager (docs/performance.md).
    """
    return device.type == "cuda" and flops >= COMPILE_FLOPS and runs_triton(device)


def _out_of_memory(error: Exception) -> bool:
    """Tell a full memory, of a GPU or of this machine, from any other failure."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _optimizer(adapters: Adapters, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW in one fused pass, with weight decay on matrices only."""
    parameters = list(adapters.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
