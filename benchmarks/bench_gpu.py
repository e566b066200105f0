"""The paper's image-text run at its true size on a GPU, beside the released recipe and the card's own matrix rate.

    python benchmarks/bench_gpu.py [--only checks loss step released profile]

5,000,000 pairs of 1,536 and 1,024 random numbers in float16 lie on the device; a step mixes 40,960 of them into 20,480,
sends these through four blocks a side and takes the loss over all. Times are of CUDA events, medians of at least 30
steps after a warm-up. The rate is that of a bare bfloat16 product, taken before and after the steps, of which the
greater counts. Without CUDA there is nothing to measure, and the script says so. `--rehearse` walks through all of it
on a CPU at a tiny size, so that it can be tried before a card is at hand; its figures mean nothing.
"""

import argparse
import gc
import itertools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

import released
from fusemix.align import losses, tiles
from fusemix.align.capability import runs_triton
from fusemix.config import FitConfig, paper
from fusemix.data.latents import ItemLatents, Latents, LateTable
from fusemix.data.rows import LatentRows
from fusemix.training.feed import Resident
from fusemix.training.forecast import matmul_rate, step_flops
from fusemix.training.order import Order
from fusemix.training.step import Adapters, Trainer
from goals import leave, result

PARTS = ("checks", "loss", "step", "released", "profile")
GIB = 2**30
TABLE_ROWS = 25
PROFILED_STEPS = 3
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """What is run, and where.

    Attributes:
        device: of everything.
        pairs: N of the run; fewer are made where the memory is short.
        dims: of the latents.
        config: of the fit.
        steps: that are timed.
        warmup: steps before them, of which the first compiles.
        slow_steps: timed of the released recipe.
        loaded: pairs in the dict that the released loader reads.
        loss_sizes: batches on which the loss is tested and timed.
        real: whether the figures mean anything.
    """

    device: torch.device
    pairs: int
    dims: tuple[int, int]
    config: FitConfig
    steps: int
    warmup: int
    slow_steps: int
    loaded: int
    loss_sizes: tuple[int, ...]
    real: bool

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"


def full(device: torch.device) -> Case:
    """The paper's run."""
    return Case(device, 5_000_000, (1536, 1024), paper(0), 40, 10, 6, 100_000, (4096, 20_480), True)


def rehearsal(device: torch.device) -> Case:
    """The same way through the code, in seconds."""
    config = replace(paper(0), dim=16, depth=1, batch_size=64, epochs=2)
    return Case(device, 700, (24, 16), config, 3, 1, 2, 300, (64, 100), False)


def figure(case: Case, name: str, value: float, target: str, holds: Callable[[float], bool]) -> None:
    """A RESULT line; of a rehearsal only a remark."""
    if case.real:
        result(name, value, target, holds)
    else:
        print(f"rehearsed: {name}")


# -- data and time


def synthetic(case: Case) -> Latents:
    """Random pairs on the device, float16, made in pieces; fewer than asked for where they would fill 0.6 of it."""
    pairs = case.pairs
    if case.cuda:
        room = int(0.6 * torch.cuda.mem_get_info(case.device)[0] / (2 * sum(case.dims)))
        if room < pairs:
            print(f"! the memory holds {room:,} pairs beside a step, not {pairs:,}; a step is the same, its order too")
            pairs = room
    rng = torch.Generator(case.device).manual_seed(0)
    items = {}
    for name, dim in zip(("x", "y"), case.dims, strict=True):
        latents = torch.empty(pairs, dim, dtype=torch.float16, device=case.device)
        for piece in torch.split(latents, 65_536):
            piece.copy_(torch.randn(piece.shape, device=case.device, generator=rng))
        nothing = LateTable(lambda: pa.table({}))
        items[name] = ItemLatents(name, "vector", nothing, LatentRows.of(latents))
    numbers = np.arange(pairs)
    return Latents(
        items, dict.fromkeys(items, numbers), numbers, np.full(pairs, "train"), LateTable(lambda: pa.table({}))
    )


def timed(work: Work, steps: int, warmup: int, device: torch.device) -> list[float]:
    """Seconds of each call, as the device saw them; the host is not held up between two."""
    for _ in range(warmup):
        work()
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(steps):
            work()
            marks.append(time.perf_counter())
        return list(np.diff(marks))
    torch.cuda.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(second) / 1000 for first, second in itertools.pairwise(events)]


def median(work: Work, steps: int, warmup: int, device: torch.device) -> float:
    """The median of `timed`."""
    return float(statistics.median(timed(work, steps, warmup, device)))


def peak(case: Case, work: Work) -> float:
    """GiB by which the memory rises in a call; 0 on a CPU."""
    if not case.cuda:
        work()
        return 0.0
    torch.cuda.synchronize(case.device)
    before = torch.cuda.memory_allocated(case.device)
    torch.cuda.reset_peak_memory_stats(case.device)
    work()
    torch.cuda.synchronize(case.device)
    return (torch.cuda.max_memory_allocated(case.device) - before) / GIB


def let_go(case: Case) -> None:
    """Give memory back before the next form."""
    gc.collect()
    if case.cuda:
        torch.cuda.empty_cache()


@contextmanager
def eager_loss() -> Iterator[None]:
    """The loss without its kernels."""
    chosen = losses._passes
    losses._passes = lambda x: tiles
    try:
        yield
    finally:
        losses._passes = chosen


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Set how float32 is multiplied: "highest", or "high" for TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- the loss


def unit_rows(size: int, dim: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Unit rows x and y = x with noise."""
    rng = torch.Generator(device).manual_seed(size)
    x, noise = torch.randn(2, size, dim, device=device, generator=rng)
    return [F.normalize(rows, dim=1).to(dtype) for rows in (x, x + noise)]


def value_and_gradients(loss: Callable[..., Tensor], sides: list[Tensor], temperature: float) -> list[Tensor]:
    """Value, gradients of x and y, and of the temperature."""
    fresh = [side.detach().requires_grad_() for side in sides]
    at = torch.tensor(temperature, dtype=torch.float64, device=sides[0].device).requires_grad_()
    value = loss(*fresh, at if sides[0].dtype == torch.float64 else at.to(torch.float32))
    value.backward()
    return [value.detach(), *(t.grad for t in (*fresh, at))]


def checks(case: Case) -> None:
    """The loss on the device's kernels against the eager one in float64; a compiled step against a plain one."""
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        worst = 0.0
        for size in case.loss_sizes:
            for temperature in (0.07, 0.01):
                sides = unit_rows(size, case.config.dim, dtype, case.device)
                got = value_and_gradients(losses.info_nce, sides, temperature)
                expected = value_and_gradients(losses.info_nce, [side.double() for side in sides], temperature)
                errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]
                words = ", ".join(
                    f"{name} {e:.1e}" for name, e in zip(("value", "x", "y", "temp"), errors, strict=True)
                )
                print(
                    f"# loss in {dtype}, B = {size:,}, temperature {temperature}: relative errors {words}", flush=True
                )
                worst = max(worst, *errors)
        name = f"GPU loss and gradients in {str(dtype).removeprefix('torch.')}: relative error against float64"
        figure(case, name, float(f"{worst:.2g}"), f"<= {bound:g}", lambda v, bound=bound: v <= bound)
        let_go(case)
    plain, compiled = compiled_errors(case)
    print(
        f"# gradients of a step in half precision, relative error against float32: {plain:.1e}, compiled {compiled:.1e}"
    )
    name = "GPU compiled step: error of its gradients, times that of the plain one"
    figure(case, name, round(compiled / max(plain, 1e-9), 2), "<= 1.5", lambda v: v <= 1.5)


def compiled_errors(case: Case) -> tuple[float, float]:
    """Relative errors of the gradients of a plain and of a compiled step, without dropout, against float32."""
    config = replace(case.config, dropout=0.0)
    batch = [torch.randn(min(4096, config.batch_size), dim, device=case.device) for dim in case.dims]
    torch.manual_seed(0)
    adapters = Adapters(case.dims, config).to(case.device)
    found = []
    for precision, compiled in (("float32", False), ("bfloat16", False), ("bfloat16", case.cuda)):
        trainer = Trainer(adapters, replace(config, precision=precision), case.device, compiled=compiled)
        trainer.gradients(0, batch)
        found.append(torch.cat([p.grad.flatten() for p in adapters.parameters()]))
    torch.compiler.reset()  # else the next batch, of another size, would be compiled for any size
    plain, fused = (float((each - found[0]).norm() / found[0].norm()) for each in found[1:])
    return plain, fused


def loss_times(case: Case) -> None:
    """Forward and backward of the loss in bfloat16: kernels, eager, the plain form, and the four products alone."""
    dim, device = case.config.dim, case.device
    print(f"\n{'loss, bfloat16, forward + backward':<36} {'B':>7} {'ms':>9} {'TFLOP/s of 4 products':>22} {'GiB':>7}")
    for size in case.loss_sizes:
        sides = unit_rows(size, dim, torch.bfloat16, device)
        tile = torch.empty(min(size, 4096), size // 8 * 8, dtype=torch.bfloat16, device=device)

        @torch.no_grad()
        def products(sides: list[Tensor] = sides, tile: Tensor = tile) -> None:
            x, y = sides[0], sides[1][: tile.shape[1]]
            for chunk in torch.split(x, len(tile)):
                for _ in range(2):
                    torch.mm(chunk, y.T, out=tile[: len(chunk)])
                tile[: len(chunk)] @ y
                tile[: len(chunk)].T @ chunk

        leaves = [*sides, torch.tensor(0.07, device=device)]

        def run(form: Callable[..., Tensor], leaves: list[Tensor] = leaves) -> None:
            for leaf in leaves:
                leaf.requires_grad_().grad = None
            form(*leaves).backward()

        def eager(run: Callable[[Callable[..., Tensor]], None] = run) -> None:
            with eager_loss():
                run(losses.info_nce)

        forms: dict[str, Work] = {
            "fusemix" if runs_triton(device) else "fusemix (no Triton here)": lambda: run(losses.info_nce),
            "fusemix, eager passes in float32": eager,
            "released": lambda: run(released.loss),
            "four products": products,
        }
        for name, work in forms.items():
            try:
                seconds = median(work, 10 if case.real else 2, 3 if case.real else 1, device)
            except torch.OutOfMemoryError:
                print(f"{name:<36} {size:>7,} does not fit the memory")
                continue
            rate = 8 * size**2 * dim / seconds / 1e12
            print(f"{name:<36} {size:>7,} {1000 * seconds:>9.3f} {rate:>22.1f} {peak(case, work):>7.2f}", flush=True)
        let_go(case)


# -- the step


@dataclass
class Fit:
    """A trainer with its feed, one step at a time."""

    trainer: Trainer
    feed: Resident
    number: int = 0

    def step(self) -> None:
        """From the latents to the new weights."""
        self.trainer.gradients(self.number, self.feed.batch(self.number))
        self.trainer.update(1e-4)
        self.number += 1


def make_fit(case: Case, latents: Latents, compiled: bool) -> Fit:
    """Fresh adapters."""
    torch.manual_seed(0)
    adapters = Adapters(case.dims, case.config).to(case.device)
    adapters.train()
    trainer = Trainer(adapters, case.config, case.device, compiled=compiled and case.cuda)
    order = Order.of(len(latents), case.config)
    return Fit(trainer, Resident(latents, order, case.device, 0, 1))


def steps(case: Case, latents: Latents) -> float:
    """Time whole steps in all forms; return pairs loaded per second in the default one."""
    device, order = case.device, Order.of(len(latents), case.config)
    flops = step_flops(case.config, case.dims, order.batch_size)
    print(f"\nstep on {order.batch_size:,} mixed pairs: {flops / 1e12:.2f} TFLOP of products")
    fit = make_fit(case, latents, compiled=True)
    precision = fit.trainer.precision
    before = matmul_rate(device, precision)
    began = time.perf_counter()
    median(fit.step, 1, 1, device)
    first = time.perf_counter() - began
    memory = peak(case, fit.step)
    began = time.perf_counter()
    each = timed(fit.step, case.steps, case.warmup, device)
    host = (time.perf_counter() - began) / (case.steps + case.warmup)
    seconds = {"fusemix": float(statistics.median(each))}
    rate = max(before, matmul_rate(device, precision))
    with eager_loss():
        seconds["eager loss"] = median(fit.step, case.slow_steps, 2, device)
    alone = median(products(case, order.batch_size, precision), case.slow_steps, 1, device)
    fit.feed.close()
    del fit
    let_go(case)
    plain = make_fit(case, latents, compiled=False)
    seconds["not compiled"] = median(plain.step, case.slow_steps, 2, device)
    seconds["not compiled, eager loss"] = 0.0
    with eager_loss():
        seconds["not compiled, eager loss"] = median(plain.step, case.slow_steps, 2, device)
    plain.feed.close()
    del plain
    let_go(case)
    print(f"first two steps with compiling {first:.1f} s; peak beside latents and weights {memory:.2f} GiB")
    print(f"matrix rate in {precision}: {before / 1e12:.0f} TFLOP/s before, {rate / 1e12:.0f} with the one after")
    print(f"spread: {1000 * min(each):.2f} to {1000 * max(each):.2f} ms; {1000 * host:.2f} ms a step by the clock")
    print(f"{'form':<28} {'ms':>9} {'TFLOP/s':>8} {'share':>6} {'pairs/s loaded':>15}")
    for name, took in {**seconds, "its products alone": alone}.items():
        share = flops / took / rate
        print(f"{name:<28} {1000 * took:>9.2f} {flops / took / 1e12:>8.1f} {share:>6.2f} {order.size / took:>15,.0f}")
    step = seconds["fusemix"]
    whole = Order.of(case.pairs, case.config)
    minutes = step * whole.steps * case.config.epochs / 60
    name = torch.cuda.get_device_name(device) if case.cuda else "a CPU"
    share = round(flops / step / rate, 3)
    figure(case, f"{name}: step at the paper's size, ms", round(1000 * step, 2), "reported", lambda v: v > 0)
    figure(case, f"{name}: share of its matrix rate in a step", share, ">= 0.65", lambda v: v >= 0.65)
    title = f"{name}: projected minutes of {case.config.epochs} epochs of {case.pairs:,} pairs"
    figure(case, title, round(minutes, 1), "<= 30", lambda v: v <= 30)
    figure(case, f"{name}: peak of a step beside latents, GiB", round(memory, 2), "reported", lambda v: v >= 0)
    return order.size / step


def products(case: Case, batch: int, dtype: torch.dtype) -> Work:
    """The bare matrix products of the adapters and of the loss, each of its own shape, one after the other."""
    config, device = case.config, case.device
    shapes = []
    for dim in case.dims:
        inner = config.expansion * dim
        for wide, narrow in [(inner, dim), (dim, inner)] * config.depth + [(config.dim, dim)]:
            shapes += [(batch, narrow, wide), (batch, wide, narrow), (wide, batch, narrow)]
    work = {}
    for m, k, n in sorted(set(shapes)):
        # The gradient of a weight multiplies by a transposed batch, as it lies.
        a = (
            torch.randn(k, m, device=device, dtype=dtype).T
            if k == batch
            else torch.randn(m, k, device=device, dtype=dtype)
        )
        work[m, k, n] = a, torch.randn(k, n, device=device, dtype=dtype), torch.empty(m, n, device=device, dtype=dtype)
    x, y = torch.randn(2, batch // 8 * 8, config.dim, device=device, dtype=dtype)
    tile = torch.empty(min(len(x), 4096), len(y), device=device, dtype=dtype)

    def run() -> None:
        for shape in shapes:
            a, b, c = work[shape]
            torch.mm(a, b, out=c)
        for chunk in torch.split(x, len(tile)):
            for _ in range(2):
                torch.mm(chunk, y.T, out=tile[: len(chunk)])
            tile[: len(chunk)] @ y
            tile[: len(chunk)].T @ chunk

    return run


# -- the released recipe


def compare_released(case: Case, ours: float) -> None:
    """Its step on batches that lie on the device already, and its loader on the host, apart and together."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.arange(case.loaded)
    latents = [torch.randn(case.loaded, dim, generator=rng).half() for dim in case.dims]
    loader = iter(released.loader(released.dataset(*latents, (rows, rows)), case.config))
    taken = []
    batch: list[Tensor] = []
    for _ in range(2):
        began = time.perf_counter()
        batch = next(loader)
        taken.append(time.perf_counter() - began)
    load, size = min(taken), len(batch[0])
    del latents, loader
    batch = [side.to(case.device) for side in batch]
    cores = os.cpu_count() or 1
    workers = min(8, cores)
    print(f"\nreleased recipe, {size:,} pairs loaded a step; its loader {load:.2f} s a batch in one process")
    print(f"{'products':<10} {'step, ms':>9} {'peak, GiB':>10} {'pairs/s, step alone':>20} {'with its loader':>16}")
    for name, precision in (("float32", "highest"), ("TF32", "high")):
        try:
            step, memory = released_step(case, batch, precision)
        except torch.OutOfMemoryError:
            print(f"{name:<10} does not fit the memory")
            continue
        finally:
            let_go(case)
        both = size / (load + step)
        print(f"{name:<10} {1000 * step:>9.1f} {memory:>10.2f} {size / step:>20,.0f} {both:>16,.0f}", flush=True)
        print(f"  with {workers} workers that cost nothing to feed: {size / max(load / workers, step):,.0f} pairs/s")
        if ours:
            title = f"GPU pairs/s, times the released recipe in {name}"
            figure(case, f"{title}, its step alone", round(ours * step / size, 1), "reported", lambda v: v > 0)
            figure(case, f"{title}, with its loader", round(ours / both, 1), "reported", lambda v: v > 0)


def released_step(case: Case, batch: list[Tensor], precision: str) -> tuple[float, float]:
    """Seconds of a step on a batch of the device, and its peak in GiB."""
    with float32_products(precision):
        model = released.Model(*case.dims, case.config).to(case.device)
        optimizer = released.adamw(model, case.config)

        def work() -> None:
            released.train_step(model, optimizer, *batch)

        return median(work, case.slow_steps, 2, case.device), peak(case, work)


# -- what is no matrix product

KINDS = (  # the first whose word occurs in the name of a kernel
    ("loss kernels", ("_sums_kernel", "_weights_kernel")),
    ("mixing gather", ("_gather_mix_kernel",)),
    ("matrix products", ("gemm", "cutlass", "cublas", "nvjet", "xmma", "wgmma", "aten::mm", "aten::addmm")),
    ("fused by compiling", ("triton_",)),
    ("optimiser", ("adam", "multi_tensor")),
    ("copies and fills", ("memcpy", "memset", "copy", "fill", "cat")),
    ("reductions", ("reduce", "norm", "sum")),
)


def kind_of(name: str) -> str:
    """Say what a kernel does, from its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS if any(word in lower for word in words)), "other")


def profile(case: Case, latents: Latents) -> None:
    """Print what the kernels of a step take, by kind and one by one."""
    fit = make_fit(case, latents, compiled=True)
    step = median(fit.step, PROFILED_STEPS, 3, case.device)
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if case.cuda else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profiled:
        for _ in range(PROFILED_STEPS):
            fit.step()
        if case.cuda:
            torch.cuda.synchronize(case.device)
    fit.feed.close()
    kernels = {name: (ms / PROFILED_STEPS, calls / PROFILED_STEPS) for name, ms, calls in kernels_of(case, profiled)}
    total = sum(ms for ms, _ in kernels.values())
    by_kind: dict[str, float] = defaultdict(float)
    for name, (ms, _) in kernels.items():
        by_kind[kind_of(name)] += ms
    print(f"\nprofile: {total:.2f} ms of kernels in a step of {1000 * step:.2f} ms (timed without the profiler)")
    for kind, ms in sorted(by_kind.items(), key=lambda item: -item[1]):
        print(f"{kind:<20} {ms:>9.3f} ms  {ms / total:>6.1%}")
    useful = by_kind["matrix products"] + by_kind["loss kernels"]
    print(
        f"not a matrix product (the kernels of the loss count as such): {1 - useful / total:.1%} of the kernels' time"
    )
    print(f"idle: {max(0.0, 1 - total / (1000 * step)):.1%} of the step")
    print(f"{'ms a step':>9} {'calls':>6}  {'kind':<19} kernel")
    for name, (ms, calls) in sorted(kernels.items(), key=lambda item: -item[1][0])[:TABLE_ROWS]:
        print(f"{ms:>9.3f} {calls:>6.1f}  {kind_of(name):<19} {name[:100]}")


def kernels_of(case: Case, profiled: Any) -> Iterator[tuple[str, float, int]]:
    """Yield name, milliseconds and calls of each kernel; on a CPU of each operator."""
    wanted = torch.autograd.DeviceType.CUDA if case.cuda else torch.autograd.DeviceType.CPU
    for event in profiled.key_averages():
        if event.device_type == wanted and not event.is_user_annotation:
            took = event.self_device_time_total if case.cuda else event.self_cpu_time_total
            yield event.key, took / 1000, event.count


def run(case: Case, parts: list[str]) -> None:
    """All parts that are asked for."""
    print(f"# torch {torch.__version__}, {torch.cuda.get_device_name(case.device) if case.cuda else 'CPU'};"
          f" Triton {'runs' if runs_triton(case.device) else 'does not run'} here")  # fmt: skip
    if "checks" in parts:
        checks(case)
    if "loss" in parts:
        loss_times(case)
    ours = 0.0
    if "step" in parts or "profile" in parts:
        latents = synthetic(case)
        if "step" in parts:
            ours = steps(case, latents)
        if "profile" in parts:
            profile(case, latents)
        del latents
        let_go(case)
    if "released" in parts:
        compare_released(case, ours)


def main() -> None:
    """Run on the GPU, or rehearse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rehearse:
        run(rehearsal(torch.device("cpu")), given.only)
    elif torch.cuda.is_available():
        run(full(torch.device("cuda")), given.only)
    else:
        print("# no CUDA device here: the figures of a GPU stay open")


if __name__ == "__main__":
    main()
    leave()
