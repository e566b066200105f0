"""Greedy k-DPP beside the plain one on the whole kernel; 100,000 pairs; and what parts lose.

    OMP_NUM_THREADS=1 python benchmarks/bench_select.py            # all goals, a quarter of an hour
    OMP_NUM_THREADS=1 python benchmarks/bench_select.py --quick    # without the 100,000

The plain one is written after the released form: unit rows, the whole kernel (cosine + 1)^2 in float64, then a row of
its Cholesky factor a pick. Of equal residuals (within 1e-10) it takes the lowest index, as ours does: the released
form takes whichever rounding made largest, and at first all are 4. Latents are clustered: 20 items about each of N /
20 centres.

The product of unit rows is the full one. numpy's `a @ a.T` knows that it is symmetric and does half of it: that form is
timed too, as "halved".

One thread, CPU seconds of this process, the forms in turn, medians of three. Memory is the peak of a process of its own
less what it held before the selection.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench_step import medians
from fusemix.align.dpp import diverse, log_det
from fusemix.align.selection import CELLS, Plan, pick_pairs, uniform
from goals import leave, result

ROUNDING = 1e-10
DIM = 1024


def clustered(count: int, dim: int = DIM) -> Tensor:
    """Latents (n, dim) float32."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(count // 20, dim, generator=draw)
    latents = centres[torch.randint(len(centres), (count,), generator=draw)]
    for part in torch.split(latents, 10_000):
        part += 0.7 * torch.randn(len(part), dim, generator=draw)
    return latents


def plain(latents: Tensor, k: int, halved: bool = False) -> list[int]:
    """Greedy on the whole kernel, (n, n) float64; `halved` with numpy's product."""
    unit = F.normalize(latents.double(), dim=1)
    cosines = unit.numpy() @ unit.numpy().T if halved else (unit @ unit.T).numpy()
    kernel = (cosines + 1) ** 2
    rows = np.zeros((k, len(kernel)))
    left = np.full(len(kernel), 4.0)
    picks: list[int] = []
    while len(picks) < k:
        pick = int(np.flatnonzero(left >= left.max() - ROUNDING)[0])
        done = len(picks)
        row = (kernel[pick] - rows[:done, pick] @ rows[:done]) / np.sqrt(left[pick])
        rows[done] = row
        left -= row**2
        left[pick] = -np.inf
        picks.append(pick)
    return picks


def memory(what: str) -> int:
    """Bytes, VmHWM or VmRSS; `ru_maxrss` would begin at that of the process that started this one."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def child(form: str, count: int, k: int) -> None:
    """Run one form and print what it took."""
    latents = clustered(count)
    warm = {"plain": lambda: plain(latents[:300], 5)}
    warm.get(form, lambda: diverse([latents[:300]], 5, dtype=getattr(torch, form)))()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of making the latents is none of the selection
    before, began, wall = memory("VmRSS"), time.process_time(), time.perf_counter()
    picks = plain(latents, k) if form == "plain" else diverse([latents], k, dtype=getattr(torch, form))[0].tolist()
    spent = {"cpu": time.process_time() - began, "wall": time.perf_counter() - wall}
    print(json.dumps({"own": memory("VmHWM") - before, "peak": memory("VmHWM"), "picked": len(set(picks)), **spent}))


def apart(form: str, count: int, k: int) -> dict[str, float]:
    """Run one form in a process of its own."""
    command = [sys.executable, __file__, "--child", form, str(count), str(k)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def beside(count: int, k: int) -> None:
    """Speed, picks and memory beside the plain form."""
    latents = clustered(count)
    picked: dict[str, list[int]] = {}

    def ours(dtype: torch.dtype) -> None:
        picked[str(dtype)] = diverse([latents], k, dtype=dtype)[0].tolist()

    def theirs(halved: bool = False) -> None:
        picked["plain"] = plain(latents, k, halved)

    forms = {
        "plain": theirs,
        "halved": lambda: theirs(True),
        "float64": lambda: ours(torch.float64),
        "float32": lambda: ours(torch.float32),
    }
    times = medians(3, **forms)
    print(f"k-DPP, {k:,} of {count:,} x {DIM}: " + ", ".join(f"{name} {spent:.2f} s" for name, spent in times.items()))
    ratios = [times["halved"] / times[form] for form in ("float64", "float32")]
    print(f"beside the halved: {ratios[0]:.2f} and {ratios[1]:.2f} times")
    name = f"k-DPP {k:,} of {count:,}"
    result(f"{name}, float64, times faster than on the whole kernel", round(times["plain"] / times["float64"], 2),
           ">= 4", lambda x: x >= 4)  # fmt: skip
    result(f"{name}, float32, times faster than on the whole kernel", round(times["plain"] / times["float32"], 2),
           ">= 8", lambda x: x >= 8)  # fmt: skip
    same = sum(a == b for a, b in zip(picked["plain"], picked["torch.float64"], strict=True))
    result(f"{name}, float64, picks the same in the same place", same, f"{k} of {k}", lambda x: x == k)
    exact, rough = (log_det([latents[picked[form]]]) for form in ("torch.float64", "torch.float32"))
    by_chance = log_det([latents[uniform(count, k, 0).rows]])
    print(f"log-determinant: float64 {exact:.2f}, float32 {rough:.2f}, uniform {by_chance:.2f}")
    whole, ours_ = (apart(form, count, k)["own"] for form in ("plain", "float64"))
    print(f"memory: plain {whole / 1e6:,.0f} MB, float64 {ours_ / 1e6:,.0f} MB")
    result(f"{name}, float64, share of the memory", round(ours_ / whole, 3), "<= 0.10", lambda x: x <= 0.1)


def parts(count: int, k: int) -> None:
    """What is lost in log-determinant where the items are dealt into parts."""
    latents = clustered(count, 256)

    def pick(pairs: np.ndarray, wanted: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
        places, gains = diverse([latents[pairs]], wanted, dtype=dtype)
        return places.numpy(), gains.double().numpy()

    def worth(plan: Plan) -> float:
        return log_det([latents[pick_pairs(pick, np.arange(count), k, plan).rows]])

    exact, by_chance = worth(Plan.of(count, k)), log_det([latents[uniform(count, k, 0).rows]])
    print(f"{k:,} of {count:,} x 256, log-determinant: exact {exact:.2f}, uniform {by_chance:.2f}")
    for number in (4, 16, 64):
        near = worth(Plan.of(count, k, parts=number))
        merged = worth(Plan(number, -(-k // number), False, torch.float64))
        lost, without = ((exact - x) / (exact - by_chance) for x in (near, merged))
        print(f"{number} parts: {near:.2f}; without a final {merged:.2f}, {100 * without:.1f} % lost")
        result(f"k-DPP {k:,} of {count:,} in {number} parts, % of the gain over uniform that is lost",
               round(100 * lost, 2), "<= 10", lambda x: x <= 10)  # fmt: skip


def large(count: int, k: int) -> None:
    """What does not fit as a whole kernel: 80 GB."""
    assert count * k <= CELLS, "exact"
    found = apart("float32", count, k)
    print(f"{k:,} of {count:,} x {DIM}, float32: {found['cpu']:.0f} CPU s, {found['wall']:.0f} s, one thread")
    name = f"k-DPP {k:,} of {count:,}, exact"
    assert found["picked"] == k, "all of them, each once"
    result(f"{name}, CPU minutes", round(found["cpu"] / 60, 2), "< 10", lambda x: x < 10)
    result(f"{name}, GB of the whole process", round(found["peak"] / 1e9, 2), "< 6", lambda x: x < 6)


def main() -> None:
    """Print figures and goals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="without the 100,000")
    parser.add_argument("--only", choices=("beside", "parts", "large"), help="one of the three")
    parser.add_argument("--child", nargs=3, metavar=("FORM", "N", "K"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        child(given.child[0], int(given.child[1]), int(given.child[2]))
        return
    if given.only in (None, "beside"):
        beside(12_000, 1_200)
    if given.only in (None, "parts"):
        parts(40_000, 400)
    if given.only == "large" or (given.only is None and not given.quick):
        large(100_000, 10_000)
    leave()


if __name__ == "__main__":
    main()
