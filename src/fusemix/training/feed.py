"""The way of the latents to the device: all of them at once where they fit, else block by block from the disk.

Either way a step asks for its pairs by number and gets them mixed; no latent is ever touched one by one in Python.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix.align.mixup import gather_mix, slerp
from fusemix.data.latents import Latents
from fusemix.data.rows import LatentRows
from fusemix.training.order import Order

BLOCK = 128  # rows of a disk block: 64 or more are read at nearly the sequential rate (docs/performance.md)
SHARE_OF_DEVICE = 0.6  # of its free memory for latents; the rest is for the step
SHARE_OF_RAM = 0.5


class Feed(Protocol):
    """Gives the batches of a fit."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's share of a step, mixed: (b, Dx) and (b, Dy), float32, on the device.

        They hold until the next call, which writes into the same memory.
        """

    def close(self) -> None:
        """Let go of threads and files."""


def fits(train: Latents, device: torch.device) -> bool:
    """Tell whether the latents of both sides can lie where the device reads them without asking a disk.

    Latents that are one mapped file stay in the page cache of the operating system; those of several shards are
    gathered.
    """
    sides = [train.items[name].rows for name in train.modalities]
    need = sum(rows.nbytes for rows in sides if device.type == "cpu" or rows.device.type != device.type)
    there = all(rows.resident for rows in sides)
    if device.type == "cuda":
        return need <= SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun on this machine, each with its own copy
    return there or need * processes <= SHARE_OF_RAM * free_memory()


def free_memory() -> int:
    """Return the bytes of RAM that this process may still take, as the kernel and the container say."""
    free = 2**62
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (group / "memory.stat").read_text().splitlines()
        cache = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, limit - used + cache)  # of files that were read; it goes when memory is wanted
    return free


def open_feed(
    train: Latents, order: Order, device: torch.device, rank: int = 0, world: int = 1, resident: bool = True
) -> Feed:
    """Open the way.

    Args:
        train: two modalities.
        order: of the pairs.
        device: where the adapters are.
        rank: of this process among `world`; each mixes its share of the batch.
        world: number of processes.
        resident: the latents fit, see `fits`.
    """
    kind = Resident if resident else Streamed
    return kind(train, order, device, rank, world)


class _Shares:
    """What both ways have in common: who meets whom in a step."""

    def __init__(self, train: Latents, order: Order, device: torch.device, rank: int, world: int) -> None:
        self.order, self.device = order, device
        size = order.batch_size
        self.mine = slice(size * rank // world, size * (rank + 1) // world)
        self.rows = [train.rows[name] for name in train.modalities]
        self.latents = [train.items[name].rows for name in train.modalities]
        share = self.mine.stop - self.mine.start
        # Fresh memory of this size would cost more than the mixing, in page faults.
        self.mixed = [torch.empty(share, latents.shape[1], device=device) for latents in self.latents]

    def parents(self, step: int) -> list[NDArray[np.int64]]:
        """Return the pairs of this share of a step: first and second parent, (b,) each; one of them without mixing."""
        halves = self.order.batch(step).reshape(-1, self.order.batch_size)
        return [half[self.mine] for half in halves]

    def lams(self, step: int) -> list[float | Tensor]:
        """Return what weighs the first parents of x and of y: a number, or (b, 1) on the device."""
        return [
            lam if isinstance(lam, float) else torch.from_numpy(lam[self.mine, None]).to(self.device)
            for lam in self.order.lams(step)
        ]

    def _mix(self, latents: Tensor, parents: list[Tensor], lam: float | Tensor, out: Tensor) -> Tensor:
        """Mix the rows of two parents, or take those of one."""
        if len(parents) == 1:
            return out.copy_(latents[parents[0]])
        if self.order.mixing == "spherical":
            assert isinstance(lam, float)
            return out.copy_(slerp(latents[parents[0]].float(), latents[parents[1]].float(), lam))
        if isinstance(lam, Tensor):
            return torch.lerp(latents[parents[1]].float(), latents[parents[0]].float(), lam, out=out)
        return gather_mix(latents, parents[0], parents[1], lam, out)


class Resident(_Shares):
    """All latents lie on the device; a step gathers and mixes. A thread draws the order of the next epoch."""

    def __init__(self, train: Latents, order: Order, device: torch.device, rank: int, world: int) -> None:
        super().__init__(train, order, device, rank, world)
        self.tensors = [_bring(latents, device) for latents in self.latents]
        self.places = [torch.tensor(rows, device=device) for rows in self.rows]
        # The order of millions of pairs takes longer to draw than a GPU takes for a step: a thread does it ahead.
        self.early = ThreadPoolExecutor(1, "fusemix-order") if device.type == "cuda" else None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Gather and mix."""
        epoch, place = divmod(step, self.order.steps)
        if self.early is not None and place == 0:
            self.early.submit(self.order.deal, epoch + 1)
        numbers = torch.from_numpy(np.stack(self.parents(step)))
        if self.device.type == "cuda":
            numbers = numbers.pin_memory()  # else the copy would wait until the GPU has done all it was told
        parents = list(numbers.to(self.device, non_blocking=True))
        x, y = (
            self._mix(latents, [places[rows] for rows in parents], lam, out)
            for latents, places, lam, out in zip(self.tensors, self.places, self.lams(step), self.mixed, strict=True)
        )
        return x, y

    def close(self) -> None:
        """End the thread, if there is one."""
        if self.early is not None:
            self.early.shutdown(cancel_futures=True)


class Streamed(_Shares):
    """The latents stay on the disk; while a step is computed, a thread reads the next."""

    def __init__(self, train: Latents, order: Order, device: torch.device, rank: int, world: int) -> None:
        super().__init__(train, order, device, rank, world)
        self.reader = ThreadPoolExecutor(1, "fusemix-read")
        # Copies wait for what their stream was told before: on one of their own they run beside the step. It also says
        # which GPU is meant, which a new thread does not know.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.ahead: tuple[int, Future[list[Tensor]]] | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Mix what was read while the last step ran."""
        if self.ahead is None or self.ahead[0] != step:
            self.ahead = step, self.reader.submit(self._read, step)
        loaded = self.ahead[1].result()
        self.ahead = step + 1, self.reader.submit(self._read, step + 1)
        if self.stream is not None:
            for latents in loaded:  # their memory is not given away before this step has used it
                latents.record_stream(torch.cuda.current_stream(self.device))
        x, y = (
            self._mix(latents, list(torch.split(torch.arange(len(latents), device=self.device), len(out))), lam, out)
            for latents, lam, out in zip(loaded, self.lams(step), self.mixed, strict=True)
        )
        return x, y

    def _read(self, step: int) -> list[Tensor]:
        """Read the latents of a step: for each side (b, D) or, with mixing, (2b, D), as stored."""
        pairs = np.concatenate(self.parents(step))
        aside: Any = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        with aside:
            found = [
                _read_rows(latents, rows[pairs], self.stream is not None).to(self.device, non_blocking=True)
                for latents, rows in zip(self.latents, self.rows, strict=True)
            ]
        if self.stream is not None:
            self.stream.synchronize()
        return found

    def close(self) -> None:
        """End the thread."""
        self.reader.shutdown(cancel_futures=True)


def _bring(latents: LatentRows, device: torch.device) -> Tensor:
    """Return all rows on the device; on their way to a GPU they are never gathered in the memory of the CPU."""
    if device.type == latents.device.type:
        return latents.whole().to(device)
    out = torch.empty(latents.shape, dtype=latents.dtype, device=device)
    start = 0
    for block in latents.blocks():
        out[start : start + len(block)] = block
        start += len(block)
    return out


def _read_rows(latents: LatentRows, rows: NDArray[np.int64], pinned: bool) -> Tensor:
    out = torch.empty(len(rows), latents.shape[1], dtype=latents.dtype, pin_memory=pinned)
    latents.read(rows, out)
    return out
