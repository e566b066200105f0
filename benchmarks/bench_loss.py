"""InfoNCE against the released form, side by side: CPU time, peak memory, and the error against float64.

    python benchmarks/bench_loss.py

The tiles that are kept for the backward pass spare their products, so that the share of the limit may exceed 1. The
reference is the released loss in plain torch: two products, x @ y.T and y @ x.T, divided by the temperature, two
cross entropies, and autograd. Its limit is the time of the four products that an exact form without the B x B matrix
cannot do without, in the same round and in tiles of the shape that is fastest here. One thread; CPU seconds; medians
of rounds that alternate. Memory is the rise of a fresh process's peak (VmHWM) during one call and its backward pass.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.align import tiles
from fusemix.align.losses import info_nce
from goals import leave, result

ROUNDS = 3
MIB = 2**20
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def reference(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    """The loss as released."""
    labels = torch.arange(len(x))
    return (F.cross_entropy(x @ y.T / temperature, labels) + F.cross_entropy(y @ x.T / temperature, labels)) / 2


def batch(size: int, dim: int, noise: float | None = None) -> list[Tensor]:
    """Unit rows and a temperature of 0.07, with gradients; y is independent of x, or x with noise."""
    generator = torch.Generator().manual_seed(size)
    x, y = torch.randn(size, dim, generator=generator), torch.randn(size, dim, generator=generator)
    if noise is not None:
        y.mul_(noise).add_(x)
    return [F.normalize(x, dim=1), F.normalize(y, dim=1), torch.tensor(0.07)]


def step(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    """Value and gradients."""
    fresh = [t.detach().requires_grad_() for t in inputs]
    value = loss(*fresh)
    value.backward()
    return [value.detach(), *(t.grad for t in fresh)]


def four_products(x: Tensor, y: Tensor, rows: int, columns: int) -> None:
    """The products of an exact streamed form, and nothing else."""
    dx, dy, tile = torch.zeros_like(x), torch.zeros_like(y), x.new_empty(rows, columns)
    for i in range(0, len(x), rows):
        for j in range(0, len(y), columns):
            a, b = x[i : i + rows], y[j : j + columns]
            for _ in range(2):
                torch.addmm(tile, a, b.T, beta=0, alpha=0.1, out=tile)
            dx[i : i + rows].addmm_(tile, b)
            dy[j : j + columns].addmm_(tile.T, a)


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def speed() -> None:
    """Times against the reference and against the four products."""
    for size, dim in ((1024, 256), (4096, 256), (4096, 512), (8192, 512)):
        ratio, share = compare(size, dim)
    name = "InfoNCE B=8192 d=512"
    result(f"{name}: times faster than the reference", round(ratio, 2), ">= 2.2", lambda r: r >= 2.2)
    result(f"{name}: share of its four-product limit", round(share, 3), ">= 0.88", lambda r: r >= 0.88)


def compare(size: int, dim: int) -> tuple[float, float]:
    """Medians of: time of the reference over ours; time of the four products over ours."""
    inputs = batch(size, dim)
    few = [side[:2048] for side in inputs[:2]]
    shapes = [(512, 512), (512, 1024), (1024, 1024)]
    best = min(shapes, key=lambda shape: timed(lambda: four_products(*few, *shape)))
    rounds = []
    for _ in range(ROUNDS):
        limit = timed(lambda: four_products(*inputs[:2], *best))
        ours = timed(lambda: step(info_nce, inputs))
        theirs = timed(lambda: step(reference, inputs))
        rounds.append((theirs / ours, limit / ours, theirs, ours, limit))
    ratio, share, theirs, ours, limit = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"# B={size} d={dim}: reference {theirs:.2f} s, ours {ours:.2f} s, four products {limit:.2f} s in {best}"
        f"  ->  {ratio:.2f} times faster, {share:.2f} of the limit",
        flush=True,
    )
    return ratio, share


def memory() -> None:
    """Peaks of fresh processes."""
    rise = {}
    for form, size, dim in (
        ("reference", 16_384, 64),
        ("ours", 16_384, 64),
        ("ours", 16_384, 512),
        ("ours", 65_536, 64),
    ):
        command = [sys.executable, __file__, "peak", form, str(size), str(dim)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rise[form, size, dim] = float(run.stdout)
        print(f"# {form}, B={size}, d={dim}: peak rises by {rise[form, size, dim]:.0f} MiB", flush=True)
    worst = max(rise["ours", 16_384, dim] for dim in (64, 512))  # of both the reference holds eight B x B matrices
    share = 100 * worst / rise["reference", 16_384, 64]
    result("InfoNCE peak memory at B=16384, % of the reference", round(share, 2), "<= 1", lambda s: s <= 1)
    result("InfoNCE extra peak at B=65536, MiB", round(rise["ours", 65_536, 64]), "< 300", lambda peak: peak < 300)


def peak(form: str, size: int, dim: int) -> None:
    """Print by how many MiB the peak of this process rises in one step."""
    step(info_nce, batch(64, dim))  # what libraries set up on their first call
    inputs = batch(size, dim)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step(reference if form == "reference" else info_nce, inputs)
    print((status("VmHWM") - before) / 1024)


def status(key: str) -> int:
    """A line of /proc/self/status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def exact(x: Tensor, y: Tensor, temperature: Tensor) -> list[Tensor]:
    """Value and gradients in float64, by rows of the whole matrix, with nothing clever but keeping 1 - p apart."""
    x, y, at = (t.double() for t in (x, y, temperature))
    size, block = len(x), max(1, 2**22 // len(x))
    starts = range(0, size, block)
    matching = (x * y).sum(1) / at
    rows, columns = torch.empty_like(matching), torch.zeros_like(matching)

    def others(start: int) -> Tensor:
        logits = (x[start : start + block] @ y.T).div_(at)
        logits.diagonal(start).fill_(-torch.inf)
        return logits

    for start in starts:
        powers = others(start).exp_()
        rows[start : start + block] = powers.sum(1).log_()
        columns += powers.sum(0)
    columns = columns.log_()
    value = -(F.logsigmoid(matching - rows) + F.logsigmoid(matching - columns)).mean() / 2
    own = torch.sigmoid(rows - matching) + torch.sigmoid(columns - matching)
    a, b = torch.logaddexp(rows, matching).neg_().exp_(), torch.logaddexp(columns, matching).neg_().exp_()
    dx, dy = -own[:, None] * y, -own[:, None] * x
    for start in starts:
        here = slice(start, start + block)
        weights = others(start).exp_()
        weights.mul_(a[here, None] + b)
        dx[here] += weights @ y
        dy += weights.T @ x[here]
    factor = 1 / (2 * size * at)
    return [value, dx * factor, dy * factor, -(x * dx).sum() * factor / at]


def accuracy() -> None:
    """Relative errors of the value and of the norms of the three gradients, against float64."""
    worst = 0.0
    sizes = [(2, 64), (17, 64), (256, 64), (1000, 64), (4096, 512), (16_384, 64), (65_536, 32)]
    for size, dim in sizes:
        for noise in (None, 0.3) if size < 16_384 else (0.3,):
            inputs = batch(size, dim, noise)
            got, expected = step(info_nce, inputs), exact(*inputs)
            errors = [((g - e).norm() / e.norm()).item() for g, e in zip(got, expected, strict=True)]
            kind = "independent" if noise is None else "matched"
            print(
                f"# B={size} d={dim} {kind}: loss {expected[0]:.3g}; relative error of it {errors[0]:.1e}, of the"
                f" gradients of x {errors[1]:.1e}, y {errors[2]:.1e}, temperature {errors[3]:.1e}",
                flush=True,
            )
            worst = max(worst, *errors)
    result(
        "InfoNCE error against float64, B = 2 ... 65536", float(f"{worst:.2g}"), "<= 1e-5", lambda error: error <= 1e-5
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        peak(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        sys.exit()
    print(f"# tiles of {tiles.SIDE} x {tiles.SIDE}, all kept for the backward pass up to {tiles.KEEP / MIB:.0f} MiB")
    speed()
    memory()
    accuracy()
    leave()
