"""Kill and starve an extraction wherever it touches the disk, and compare what is left with an undisturbed run.

    python benchmarks/torture_extraction.py [--small]

A two-modality, three-shard extraction of pictures and texts runs in forked children. Every write, fsync, rename and
removal is counted, and the child is killed (SIGKILL) before or after one of them, or at a random time; or one of them
fails with an errno of the disk, or writes only half; or the whole runs in a tmpfs that is too small. Afterwards the
same call goes on, and every byte must be that of the undisturbed run. At last 7 % of the items of many pairs fail at
random, in every way, and no latent may stand beside a pair that is not its own.
"""

import argparse
import ctypes
import errno
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from faults import Touches, in_child, tree
from fusemix.data.pairs import read_pairs
from fusemix.extraction import extract
from goals import leave, result

with suppress(ImportError):
    import pandas  # noqa: F401  (pyarrow would, where it is there, in every child)

ITEMS, SHARD, BATCH = 12, 5, 3  # three shards a modality, five batches


class Noting:
    """An encoder that notes how many items it was asked for in the file that CALLS names, past every crash."""

    takes, batch_size = "any", BATCH

    def __init__(self, name: str, encode: Callable[[Any], Any]) -> None:
        self.source, self.fingerprint, self.one = name, {"loader": "torture", "name": name}, encode

    def encode(self, items: Any) -> Any:
        """Encode; the last bits of a latent depend on the batch."""
        with open(os.environ["CALLS"], "a") as file:  # noqa: PTH123
            file.write(f"{self.source} {len(items)}\n")
        return np.stack([self.one(item) for item in items]) * (1 + len(items) / 1e4)


def extraction(table: Path, out: Path) -> None:
    """Run what is tortured, or go on with it."""
    image = Noting("colour", lambda image: np.asarray(image).mean(axis=(0, 1)) / 255)
    text = Noting("bytes", lambda text: np.frombuffer(text.encode().ljust(16)[:16], np.uint8) / 255)
    extract(read_pairs(table), out=out, shard_items=SHARD, max_failed=1, image=image, text=text)


class World:
    """A table, an undisturbed run, and what it cost."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.table = folder, folder / "t.csv"
        rng = np.random.default_rng(0)
        lines = ["image,text"]
        for i in range(ITEMS):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            lines.append(f"{i}.png,{'word ' * int(rng.integers(1, 9))}{i}")
        (folder / "4.png").write_bytes(b"broken")
        (folder / "7.png").unlink()
        self.table.write_text("\n".join(lines) + "\n")
        os.environ["CALLS"] = str(folder / "calls.log")
        assert in_child(lambda: extraction(self.table, folder / "whole")) == 0
        self.whole = tree(folder / "whole")
        self.calls = self.count()
        counter = Touches(-1, lambda what: None)

        def counted() -> None:
            counter.install()
            extraction(self.table, folder / "counted")
            (folder / "count").write_text(str(counter.count))

        assert in_child(counted) == 0
        self.touches = int((folder / "count").read_text())
        self.count()

    def count(self) -> int:
        """Items encoded since the last count."""
        log = self.folder / "calls.log"
        total = sum(int(line.split()[1]) for line in log.read_text().splitlines()) if log.exists() else 0
        log.unlink(missing_ok=True)
        return total

    def check(self, out: Path, kills: int) -> list[str]:
        """Go on after `kills` interruptions and say what is wrong."""
        code = in_child(lambda: extraction(self.table, out))
        wrong = [] if code == 0 else [f"going on ended with {code}"]
        found = tree(out)
        if found != self.whole:
            names = sorted(name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name))
            wrong.append(f"differs: {names}")
        extra = self.count() - self.calls
        if extra > kills * SHARD:  # each kill costs at most the shard in work
            wrong.append(f"{extra} items too many were encoded")
        shutil.rmtree(out)
        return wrong


def kills(world: World, points: list[tuple[int, bool]], times: list[float]) -> tuple[int, list[str]]:
    """Kill at each of these touches (before or after it) and at each of these times."""
    wrong: list[str] = []
    done = 0
    for at, after in points:
        touches = Touches(at, lambda what: os.kill(os.getpid(), signal.SIGKILL), after)

        def killed(touches: Touches = touches) -> None:
            touches.install()
            extraction(world.table, world.folder / "out")

        code = in_child(killed)
        wrong += [f"touch {at}: ended with {code} instead of being killed"] if code != -signal.SIGKILL else []
        wrong += [f"touch {at}: {problem}" for problem in world.check(world.folder / "out", 1)]
        done += 1
    for seconds in times:
        in_child(lambda: extraction(world.table, world.folder / "out"), seconds)
        (world.folder / "out").mkdir(exist_ok=True)
        wrong += [f"{seconds:.3f} s: {problem}" for problem in world.check(world.folder / "out", 1)]
        done += 1
    return done, wrong


def chains(world: World, count: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kill again and again, also while it goes on after a kill, until it comes through."""
    wrong: list[str] = []
    for number in range(count):
        killed = 0
        for _ in range(8):
            touches = Touches(rng.randint(1, 12), lambda what: os.kill(os.getpid(), signal.SIGKILL), rng.random() < 0.5)

            def work(touches: Touches = touches) -> None:
                touches.install()
                extraction(world.table, world.folder / "out")

            killed += in_child(work) == -signal.SIGKILL
        wrong += [f"chain {number}: {problem}" for problem in world.check(world.folder / "out", killed)]
    return count, wrong


def faults(world: World, places: list[int]) -> tuple[int, list[str]]:
    """Let each of these touches fail as a disk does: the run must say so, and lose nothing that was there."""
    wrong: list[str] = []
    kinds = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES)
    done = 0
    for number, at in enumerate(places):
        code = kinds[(number + number // world.touches) % len(kinds)]

        def fail(what: str, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        touches = Touches(at, fail)

        def work(touches: Touches = touches) -> None:
            touches.install()
            extraction(world.table, world.folder / "out")

        ended = in_child(work)
        # A removal comes after the commit of its file: all else must be told.
        silent = ended == 0 and tree(world.folder / "out") != world.whole
        wrong += [f"fault {at} ({errno.errorcode[code]}): ended with {ended}"] if silent or ended == 70 else []
        (world.folder / "out").mkdir(exist_ok=True)
        wrong += [f"fault {at}: {problem}" for problem in world.check(world.folder / "out", 1)]
        done += 1
    return done, wrong


def short_writes(world: World, places: list[int]) -> tuple[int, list[str]]:
    """Let one file receive only half of its bytes without a word: the read back must notice."""
    wrong: list[str] = []
    for at in places:

        def work(at: int = at) -> None:
            count = 0
            open_ = Path.open

            def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
                nonlocal count
                file = open_(path, mode, *rest, **options)
                if mode == "wb":
                    count += 1
                    if count == at:
                        whole = file.write
                        return _Short(file, whole)
                return file

            Path.open = opened  # type: ignore[assignment,method-assign]
            extraction(world.table, world.folder / "out")

        ended = in_child(work)
        wrong += [f"short write {at}: ended with {ended}"] if ended != 1 else []
        (world.folder / "out").mkdir(exist_ok=True)
        wrong += [f"short write {at}: {problem}" for problem in world.check(world.folder / "out", 1)]
    return len(places), wrong


class _Short:
    """A file that says it wrote everything."""

    def __init__(self, file: Any, whole: Callable[[bytes], int]) -> None:
        self.file, self.whole = file, whole

    def __enter__(self) -> "_Short":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> int:
        self.whole(content[: len(content) // 2])
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def small_disks(world: World, sizes: list[int]) -> tuple[int, list[str]]:
    """Run in a tmpfs of so many kibibytes; then enlarge it and go on. Needs the right to mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = world.folder / "disk"
    disk.mkdir(exist_ok=True)
    wrong: list[str] = []
    done = 0
    for size in sizes:
        if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, f"size={size}k".encode()):
            print(f"# no right to mount a tmpfs ({os.strerror(ctypes.get_errno())}): skipped")
            return done, wrong
        try:
            ended = in_child(lambda: extraction(world.table, disk / "out"))
            if ended != 1 and not (ended == 0 and tree(disk / "out") == world.whole):
                wrong.append(f"disk of {size} kB: ended with {ended}")
            libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 32, b"size=64m")  # MS_REMOUNT
            (disk / "out").mkdir(exist_ok=True)
            wrong += [f"disk of {size} kB: {problem}" for problem in world.check(disk / "out", 1)]
            done += 1
        finally:
            libc.umount2(str(disk).encode(), 2)
    return done, wrong


def shifts(folder: Path, count: int) -> list[str]:
    """Let 7 % of both sides fail at random, in every way that an encoder can, and look at every latent."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = [(f"a{i}" + "x" * int(rng.integers(0, 9)), f"b{int(rng.integers(0, count))}") for i in range(count)]
    fate = {text: rng.choice(["ok", "nan", "none"], p=[0.93, 0.035, 0.035]) for row in rows for text in row}
    (folder / "t.csv").write_text("\n".join(["a,b", *map(",".join, rows)]) + "\n")

    def truth(text: str) -> Any:
        return np.frombuffer(blake2b(text.encode(), digest_size=8).digest(), np.uint8) / 255

    def frail(texts: list[str]) -> list[Any]:
        values = {"ok": truth, "nan": lambda _: np.full(8, np.nan), "none": lambda _: None}
        return [values[fate[text]](text) for text in texts]

    pairs = read_pairs(folder / "t.csv", a="a", b="b")
    latents = extract(pairs, out=folder / "out", shard_items=300, max_failed=1, a=frail, b=frail)
    kept = [row for row in rows if fate[row[0]] == fate[row[1]] == "ok"]
    wrong = (
        []
        if latents.table.select(["a", "b"]).to_pylist() == [dict(zip("ab", row, strict=True)) for row in kept]
        else ["rows"]
    )
    failed = pa.parquet.read_table(folder / "out" / "failed.parquet")["modality"].to_pylist()
    for place, name in enumerate("ab"):
        found = latents.items[name].numpy()[latents.rows[name]]
        expected = np.stack([truth(row[place]) for row in kept]).astype(np.float16)
        wrong += [f"{name}: row {i}" for i in np.flatnonzero((found != expected).any(axis=1))]
        if len(latents.items[name]) + failed.count(name) != len(pairs.items[name]):
            wrong.append(f"{name}: in is not ok + failed")
    return wrong


def judge(name: str, done: int, wanted: int, wrong: list[str]) -> None:
    """Print what went wrong and one RESULT line."""
    for line in wrong[:20]:
        print("#", line)
    result(
        name, f"{len(wrong)} wrong of {done}", f"0 wrong of at least {wanted}", lambda _: not wrong and done >= wanted
    )


def spread(count: int, wanted: int) -> Iterator[int]:
    """Return touches 1..count, or as many of them spread evenly."""
    return iter(sorted({1 + round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)}))


def main() -> None:
    """Torture and print a RESULT line per goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        print(f"# {world.touches} touches of the disk in {len(world.whole)} files")
        started = time.perf_counter()
        before = [(at, False) for at in (spread(world.touches, 9) if small else range(1, world.touches + 1))]
        after = [(at, True) for at in (spread(world.touches, 4) if small else range(1, world.touches + 1))]
        times = [rng.uniform(0, 0.6) for _ in range(1 if small else 50)]
        wanted = 14 if small else 200
        judge(
            "extraction killed: same bytes, at most one shard redone",
            *_at_least(kills(world, before + after, times), wanted),
        )
        judge(
            "extraction killed again and again", *_at_least(chains(world, 1 if small else 20, rng), 1 if small else 20)
        )
        places = list(spread(world.touches, 6)) if small else [*range(1, world.touches + 1)] * 2
        judge(
            "disk faults: never a silent success, nothing lost", *_at_least(faults(world, places), 6 if small else 100)
        )
        files = [4] if small else list(range(1, len(world.whole) + 1))
        judge("short writes: all noticed", *_at_least(short_writes(world, files), len(files)))
        sizes = [8] if small else [4 * i for i in range(1, 31)]
        judge(
            "full disks: clean stop, same bytes once enlarged",
            *_at_least(small_disks(world, sizes), 0 if small else 30),
        )
        pairs = 1_000 if small else 10_000
        shifted = shifts(world.folder / "shifts", pairs)
        judge(f"{pairs:,} pairs, 7 % of the items fail: none shifted", pairs, pairs, shifted)
        print(f"# {time.perf_counter() - started:.0f} s")


def _at_least(found: tuple[int, list[str]], wanted: int) -> tuple[int, int, list[str]]:
    return found[0], wanted, found[1]


if __name__ == "__main__":
    main()
    leave()
