"""An epoch in random blocks from a cold disk, beside reading the same files from end to end.

    python benchmarks/bench_cold.py [--small]

The pages of the files are dropped before every reading (POSIX_FADV_DONTNEED after fsync), and `mincore` says whether
that worked. Both readings alternate, three rounds of each. What is under the disk (the host of a virtual machine, a
controller) may keep pages of its own, for both alike. Needs 1.5 GB in the temporary folder; Linux.
"""

import argparse
import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fusemix.data.mapped import read_header
from fusemix.data.rows import LatentRows
from goals import leave, result

WIDTH = 1536
SHARD = 2048
BATCH = 4096  # rows that one call asks for, as a sampler does
BLOCKS = (64, 128, 256)
ROUNDS = 3
PIECE = 4 * 1024**2


def main() -> None:
    """Write the files, read them both ways, and print a table and the RESULT lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="50 MB, to see that it runs")
    shards = 8 if parser.parse_args().small else 240
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name), shards)
        rows = LatentRows([read_header(path)[1]["latents"] for path in paths])
        ways: dict[str, Callable[[], int]] = {"from end to end": lambda: end_to_end(paths)}
        ways |= {f"blocks of {size} rows": lambda size=size: epoch(rows, size) for size in BLOCKS}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        warm_share = 0.0
        for _ in range(ROUNDS):
            for way, read in ways.items():
                drop(paths)
                warm_share = max(warm_share, in_memory(paths))
                rates[way].append(timed(read))
        warm = {way: timed(read) for way, read in ways.items() if end_to_end(paths)}
    size = rows.nbytes / 1e6
    print(
        f"# {size:,.0f} MB of latents in {shards} files; {100 * warm_share:.2f} % of the pages at most were in memory"
    )
    print("| reading | cold, MB/s (median and all) | from the page cache, MB/s |")
    print("|---|---|---|")
    for way, found in rates.items():
        every = ", ".join(f"{rate:,.0f}" for rate in found)
        print(f"| {way} | {statistics.median(found):,.0f} ({every}) | {warm[way]:,.0f} |")
    result("pages in memory before a cold reading, %", round(100 * warm_share, 2), "< 1", lambda v: v < 1)
    whole = statistics.median(rates["from end to end"])
    share = min(statistics.median(rates[way]) for way in rates if way.startswith("blocks")) / whole
    name = "cold epoch in blocks, share of the sequential read rate"
    result(name, round(share, 2), ">= 0.5", lambda v: v >= 0.5)


def write(folder: Path, shards: int) -> list[Path]:
    """Write shards of random numbers through to the disk."""
    paths = [folder / f"shard-{shard:05d}.safetensors" for shard in range(shards)]
    for path in paths:
        bits = torch.randint(-30000, 30000, (SHARD, WIDTH), dtype=torch.int16)
        save_file({"latents": bits.view(torch.float16)}, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return paths


def timed(read: Callable[[], int]) -> float:
    """Return MB/s of a reading."""
    started = time.perf_counter()
    return read() / 1e6 / (time.perf_counter() - started)


def end_to_end(paths: list[Path]) -> int:
    """Read all files in order, 4 MiB at a time; return the bytes."""
    memory, done = bytearray(PIECE), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(memory):
                done += count
    return done


def epoch(rows: LatentRows, size: int) -> int:
    """Read all rows in blocks of `size`, the blocks in random order; return the bytes."""
    out = torch.empty(BATCH, WIDTH, dtype=rows.dtype)
    starts = size * np.random.default_rng().permutation(len(rows) // size)
    for some in np.split(starts, range(BATCH // size, len(starts), BATCH // size)):
        numbers = (some[:, None] + np.arange(size)).ravel()
        rows.read(numbers, out[: len(numbers)])
    return rows.nbytes


def drop(paths: list[Path]) -> None:
    """Make the kernel forget the pages of the files."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_memory(paths: list[Path]) -> float:
    """Return the share of the files' pages that lie in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = total = 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
            place = ctypes.c_char.from_buffer(view)
            failed = libc.mincore(ctypes.byref(place), ctypes.c_size_t(len(view)), pages)
            del place  # or the map could not be closed
            if failed:
                raise OSError(ctypes.get_errno(), "mincore")
            found, total = found + sum(page & 1 for page in pages), total + len(pages)
    return found / total


if __name__ == "__main__":
    main()
    leave()
