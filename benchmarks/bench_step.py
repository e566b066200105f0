"""Batch assembly and whole steps, beside the released recipe and beside the bare matrix products.

    python benchmarks/bench_step.py

One thread, CPU seconds of this process, the forms in turn in one process, medians. The released recipe is that of
`released.py`. The limit of a step is the time of its matrix products alone, each of its own shape, measured in the same
rounds: nothing that computes these gradients can be faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

import released
from fusemix.align.tiles import KEEP
from fusemix.config import FitConfig, paper
from fusemix.data.latents import Latents
from fusemix.training.feed import BLOCK, Resident
from fusemix.training.order import Order
from fusemix.training.step import Adapters, Trainer
from goals import leave, result

CPU = torch.device("cpu")


def pairs(count: int, dims: tuple[int, int]) -> Latents:
    """Random latents, float16 as in a store."""
    rng = np.random.default_rng(0)
    whole = Latents.from_arrays("train", x=rng.random((count, dims[0])), y=rng.random((count, dims[1])))
    halved = {
        name: replace(items, rows=type(items.rows).of(items.latents.half())) for name, items in whole.items.items()
    }
    return replace(whole, items=halved)


def taken(work: Callable[[], object]) -> float:
    """CPU seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def medians(rounds: int, **forms: Callable[[], object]) -> dict[str, float]:
    """Run all forms in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, work in forms.items():
            spent = taken(work)
            if number:
                times[name].append(spent)
    return {name: statistics.median(each) for name, each in times.items()}


def assembly() -> None:
    """40,960 pairs of 1,536 and 1,024 numbers become a mixed batch of 20,480."""
    latents = pairs(100_000, (1536, 1024))
    config = paper(0)
    x, y = (latents.items[name].latents for name in ("x", "y"))
    rows = torch.arange(len(latents))
    plain = iter(released.loader(released.dataset(x, y, (rows, rows)), config))
    feeds = {}
    for name, block in (("random", 1), ("blocks", BLOCK)):
        order = Order(len(latents), 40_960, 2, 1.0, 0, block)
        feeds[name] = Resident(latents, order, CPU, 0, 1)
    steps = iter(range(1000))

    def reference() -> None:
        nonlocal plain
        batch = next(plain, None)
        if batch is None:  # a new epoch; its order costs little
            plain = iter(released.loader(plain._dataset, config))  # type: ignore[attr-defined]
            batch = next(plain)
        for side in batch:
            first, second = side.chunk(2)
            0.3 * first + 0.7 * second

    got = medians(
        4,
        released=reference,
        random=lambda: feeds["random"].batch(next(steps)),
        blocks=lambda: feeds["blocks"].batch(next(steps)),
    )
    for name, seconds in got.items():
        print(f"{name:<10} {seconds:7.3f} s a batch  {40_960 / seconds:10,.0f} pairs/s")
    ratio = {name: round(got["released"] / got[name], 1) for name in ("random", "blocks")}
    result("batch of 40,960 pairs at random, times faster than released", ratio["random"], ">= 25", lambda v: v >= 25)
    result("batch of 40,960 pairs in blocks, times faster than released", ratio["blocks"], ">= 30", lambda v: v >= 30)


def products(config: FitConfig, dims: tuple[int, int], batch: int, kept: bool) -> Callable[[], None]:
    """Return the bare matrix products of a step: three for each weight, three or four for the loss."""
    shapes = []
    for dim in dims:
        inner = config.expansion * dim
        for wide, narrow in [(inner, dim), (dim, inner)] * config.depth + [(config.dim, dim)]:
            # x W', then the gradients of x and of W
            shapes += [(batch, narrow, wide), (batch, wide, narrow), (wide, batch, narrow)]
    work = {
        shape: (torch.randn(shape[:2]), torch.randn(shape[1:]), torch.empty(shape[0], shape[2]))
        for shape in set(shapes)
    }
    x, y = torch.randn(2, batch, config.dim)
    rows = min(batch, 1024)  # logits by tile, as no product of them needs them all
    tile, out = torch.empty(rows, batch), torch.empty(batch, config.dim)

    def run() -> None:
        for shape in shapes:
            a, b, c = work[shape]
            torch.mm(a, b, out=c)
        for start in range(0, batch, rows):
            for _ in range(1 if kept else 2):
                torch.mm(x[start : start + rows], y.T, out=tile)
            torch.mm(tile, y, out=out[start : start + rows])
            torch.addmm(out, tile.T, x[start : start + rows], out=out)

    return run


def step(name: str, dims: tuple[int, int], config: FitConfig, rounds: int, faster: float, share: float) -> None:
    """A whole step, from the latents to the new weights."""
    batch = config.batch_size
    latents = pairs(max(4 * batch, 8192), dims)
    order = Order.of(len(latents), config)
    assert order.batch_size == batch
    feed = Resident(latents, order, CPU, 0, 1)
    trainers = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        each = replace(config, precision=precision)
        trainers[precision] = Trainer(Adapters(list(dims), each), each, CPU)
    steps = iter(range(1000))

    def ours(trainer: Trainer) -> None:
        number = next(steps)
        trainer.gradients(number, feed.batch(number))
        trainer.update(1e-4)

    rows = torch.arange(len(latents))
    x, y = (latents.items[side].latents for side in ("x", "y"))
    loader = released.loader(released.dataset(x, y, (rows, rows)), config)
    plain = iter(loader)
    model = released.Model(*dims, config)
    optimizer = released.adamw(model, config)

    def reference() -> None:
        nonlocal plain
        batch = next(plain, None)
        if batch is None:
            plain = iter(loader)
            batch = next(plain)
        released.train_step(model, optimizer, *batch)

    forms: dict[str, Callable[[], object]] = {
        "released": reference,
        "fusemix": lambda: ours(trainers["float32"]),
        "products": products(config, dims, batch, 4 * batch**2 <= KEEP),
    }
    if torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"):
        forms["bfloat16"] = lambda: ours(trainers["bfloat16"])
    got = medians(rounds, **forms)
    print(f"\n{name}: {dims[0]}/{dims[1]} -> {config.dim}, {config.depth} blocks, B = {batch:,}")
    for form, seconds in got.items():
        print(
            f"{form:<10} {seconds:7.3f} s  {batch / seconds:10,.0f} mixed pairs/s  {got['released'] / seconds:5.2f} x"
        )
    speed = round(got["released"] / got["fusemix"], 2)
    of_limit = round(got["products"] / got["fusemix"], 3)
    result(f"step, {name}: times faster than released", speed, f">= {faster}", lambda v: v >= faster)
    result(f"step, {name}: share of the limit of its products", of_limit, f">= {share}", lambda v: v >= share)


def main() -> None:
    """Run all, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["assembly", "small", "paper"])
    only = parser.parse_args().only
    torch.set_num_threads(1)
    if only in (None, "assembly"):
        assembly()
    if only in (None, "small"):
        small = replace(paper(0), dim=256, depth=1, batch_size=4096)
        step("small adapters", (384, 384), small, 5, 2.1, 0.78)
    if only in (None, "paper"):
        step("paper size", (1536, 1024), replace(paper(0), batch_size=1024), 3, 1.07, 0.90)


if __name__ == "__main__":
    main()
    leave()
