"""How fast `examine` looks at latents, beside the plain thing: mean and deviation of pieces in float64.

    OMP_NUM_THREADS=1 python benchmarks/bench_health.py

One thread, CPU seconds of this process, the forms in turn in one process, medians of five. Latents in memory.
"""

from collections.abc import Callable

import pyarrow as pa
import torch
from torch import Tensor

from bench_step import medians
from fusemix.data.health import examine
from fusemix.data.latents import ItemLatents, LateTable
from fusemix.data.rows import LatentRows

BYTES = 200_000_000


def items(latents: Tensor) -> ItemLatents:
    """Latents (n, D) of items without values."""
    table = pa.table({"id": [str(i) for i in range(len(latents))]})
    return ItemLatents("image", "image", LateTable(lambda: table), LatentRows.of(latents))


def plain(latents: Tensor) -> Callable[[], None]:
    """Mean and deviation of each piece, with no check of anything."""

    def work() -> None:
        for piece in torch.split(latents, 256):
            x = piece.double()
            (x - x.mean(dim=0)).square().sum(dim=0)

    return work


def main() -> None:
    """Print MB per CPU second."""
    torch.set_num_threads(1)
    for dtype, dim in ((torch.float16, 1536), (torch.float16, 384), (torch.float16, 64), (torch.float32, 1536)):
        latents = (torch.randn(BYTES // (dim * dtype.itemsize), dim) * 3 + 5).to(dtype)
        found = items(latents)
        times = medians(5, examine=lambda found=found: examine(found), plain=plain(latents))
        speeds = ", ".join(f"{name} {found.rows.nbytes / spent / 1e6:,.0f} MB/s" for name, spent in times.items())
        print(f"{dtype} rows of {dim}: {speeds}")


if __name__ == "__main__":
    main()
