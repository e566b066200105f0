"""How long 100,000 pairs take to open, and what stays in memory, beside the dict of tensors of the released recipe.

    python benchmarks/bench_open.py [--small]

Each opening has a process of its own, in which a store or dict of 4 pairs was opened before, so that the code of the
libraries is in memory, as after their import; the process's CPU time and resident memory are read before and after.
The same reading without that is printed beside it. Both files come from the page cache. Needs 2 GB in the temporary
folder and 3 GB of memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from fusemix import durable
from fusemix.data.latents import open_latents, pairs_file
from fusemix.data.pairs import Items, Pairs, random_splits
from fusemix.data.store import Encoded, Facts, LatentStore
from goals import leave, result

WIDTHS = {"image": 1536, "text": 1024}
ROUNDS = 5


def main() -> None:
    """Make both files, open them, and print a table and the RESULT lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="2,000 pairs, to see that it runs; misses its goals")
    parser.add_argument("--open", nargs=2, metavar=("FORM", "FILE"), help="open one file and print what it took")
    parser.add_argument("--first", help="a small file of the same form, opened before anything is read")
    given = parser.parse_args()
    if given.open:
        print(json.dumps(measure(*given.open, given.first)))
        return
    pairs = 2_000 if given.small else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form, make in (("store", make_store), ("dict", make_dict)):
            make(folder / form, pairs)
            make(folder / f"{form}-tiny", 4)
        size = {form: sum(p.stat().st_size for p in all_files(folder / form)) for form in ("store", "dict")}
        found = {
            (form, warm): [opened(folder, form, warm) for _ in range(rounds)]
            for form, warm, rounds in (("store", False, ROUNDS), ("store", True, ROUNDS), ("dict", True, 1))
        }
    print(f"# {pairs:,} pairs of {' + '.join(map(str, WIDTHS.values()))} numbers")
    print("| form | libraries in memory | files, MiB | CPU ms to open | resident after, MiB | % of the files |")
    print("|---|---|---|---|---|---|")
    cpu, resident = {}, {}
    for (form, warm), runs in found.items():
        cpu[form, warm] = statistics.median(run["cpu"] for run in runs)
        resident[form, warm] = 100 * statistics.median(run["resident"] for run in runs) / size[form]
        print(
            f"| {form} | {'yes' if warm else 'no'} | {size[form] / 2**20:,.0f} | {1000 * cpu[form, warm]:,.1f} | "
            f"{resident[form, warm] * size[form] / 100 / 2**20:,.1f} | {resident[form, warm]:.2f} |"
        )
    times = cpu["dict", True] / cpu["store", True]
    result("open 100k pairs: times faster than the dict", round(times), ">= 1000", lambda v: v >= 1000)
    share = round(resident["store", True], 2)
    result("resident memory after opening, % of the file", share, "< 2", lambda v: v < 2)


def make_store(folder: Path, pairs: int) -> None:
    """Write latents as `extract` does."""
    rng = np.random.default_rng(0)
    values = {
        "image": [f"photos/{i // 1000:03d}/{i:09d}.jpg" for i in range(pairs)],
        "text": [f"a caption of some ten words that says what is in picture {i}" for i in range(pairs)],
    }
    items = {name: Items(name, name, values[name], values[name], folder) for name in WIDTHS}
    for name, width in WIDTHS.items():
        facts = Facts(name, name, {"name": "random"}, "random", pairs, "0", 2048, 64, "float16")
        store = LatentStore.create(folder / name / "random", facts, items[name], lambda: np.zeros((16, 8), np.float32))
        for shard in range(store.shards):
            places = np.array(store.items_of(shard))
            latents = rng.random((len(places), width), dtype=np.float32)
            store.commit(shard, Encoded(places, latents, np.zeros(len(places), np.int32), []))
    numbers = np.arange(pairs)
    table = pa.table({"photo": values["image"], "title": values["text"]})
    whole = Pairs(items, dict.fromkeys(WIDTHS, numbers), numbers, random_splits(numbers), table)
    durable.write(folder / "pairs.parquet", pairs_file(whole))


def make_dict(file: Path, pairs: int) -> None:
    """Write what the released code reads: {"0": {"x": (Dx,), "y": (Dy,)}, ...}, float32, views of two tensors."""
    x, y = (torch.rand(pairs, width) for width in WIDTHS.values())
    torch.save({str(i): {"x": x[i], "y": y[i]} for i in range(pairs)}, file)


def opened(folder: Path, form: str, warm: bool) -> dict[str, float]:
    """Open a file in a process of its own."""
    first = ["--first", str(folder / f"{form}-tiny")] if warm else []
    command = [sys.executable, __file__, "--open", form, str(folder / form), *first]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(form: str, file: str, first: str | None) -> dict[str, float]:
    """Open a file in this process; return CPU seconds and bytes that became resident."""
    forms = {"store": open_latents, "dict": lambda path: torch.load(path, weights_only=True)}
    if first:
        forms[form](first)
    before, started = memory(), time.process_time()
    kept = forms[form](file)
    seconds, after = time.process_time() - started, memory()
    assert len(kept) > 0
    return {"cpu": seconds, "resident": after - before}


def memory() -> int:
    """Resident bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def all_files(path: Path) -> list[Path]:
    """The file, or the files below a folder."""
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


if __name__ == "__main__":
    main()
    leave()
