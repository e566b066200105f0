"""Mutated tables and tars: each is refused with a DataError, or read with every row accounted for; no process dies.

python benchmarks/torture_tables.py [COUNT] [--small]

Files are read in child processes, so that a crash inside of pyarrow is seen and counted.
"""

import argparse
import csv
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from goals import leave, result

FORMS = ("csv", "tsv", "jsonl", "parquet", "tar")
BATCH = 50  # files per child: a death costs a restart, and the file is known by what was printed before
LIMIT = 10.0  # seconds per file
ROWS = 40


def main() -> None:
    """Mutate, read, count, and print a RESULT line per goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=3000)
    parser.add_argument("--small", action="store_true", help="less than 15 seconds")
    parser.add_argument("--form", choices=FORMS, help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_all(options.read)
        return
    count = 400 if options.small else options.count
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for first in range(0, count, BATCH * 4):
            files = [mutant(folder, i, options.seed, options.form) for i in range(first, min(first + BATCH * 4, count))]
            for path, outcome, seconds in judged(files):
                outcomes[outcome.partition(":")[0]] += 1
                slowest = max(slowest, seconds)
                if outcome.partition(":")[0] not in ("refused", "read"):
                    kept = path.rename(Path.cwd() / f"torture-{path.name}")
                    print(f"{kept}: {outcome}")
            for path in folder.iterdir():
                path.unlink()
    print(dict(outcomes))
    result("mutated tables and tars: accounted for", sum(outcomes.values()), f"== {count}", lambda n: n == count)
    result("mutated tables and tars: process deaths", outcomes["died"], "== 0", lambda n: n == 0)
    result("mutated tables and tars: other errors", outcomes["raised"], "== 0", lambda n: n == 0)
    result("mutated tables and tars: rows not accounted for", outcomes["lost"], "== 0", lambda n: n == 0)
    result("mutated tables and tars: slowest, seconds", round(slowest, 2), "< 10", lambda s: s < LIMIT)


def judged(files):  # noqa: ANN001, ANN201
    """Yield each file with its outcome and seconds; a child that dies is started again behind the file it died of."""
    waiting = list(files)
    while waiting:
        batch = waiting[:BATCH]
        command = [sys.executable, __file__, "--read", *map(str, batch)]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT * BATCH)
            lines, rc = child.stdout.splitlines(), child.returncode
        except subprocess.TimeoutExpired as error:
            lines, rc = (error.stdout or b"").decode().splitlines(), -signal.SIGKILL
        for path, line in zip(batch, lines, strict=False):
            outcome = json.loads(line)
            yield path, outcome["outcome"], outcome["seconds"]
        done = min(len(lines), len(batch))
        if done < len(batch):
            yield batch[done], f"died: exit code {rc}", 0.0
            done += 1
        waiting = waiting[done:]


def read_all(paths: list[Path]) -> None:
    """Read files and print one outcome a line."""
    for path in paths:
        started = time.perf_counter()
        outcome = read(path)
        print(json.dumps({"outcome": outcome, "seconds": time.perf_counter() - started}), flush=True)


def read(path: Path) -> str:
    """Read one file; say "refused", "read", "lost: ..." or "raised: ..."."""
    from fusemix.data.media import Span
    from fusemix.data.pairs import read_pairs
    from fusemix.errors import DataError

    try:
        pairs = read_pairs(path)
        for items in pairs.items.values():  # touch every value: damage may hide behind a length
            for i in range(len(items)):
                source = items.source(i) if items.kind != "text" else items.values[i]
                if isinstance(source, Span) and source.offset + source.size > path.stat().st_size:
                    return f"lost: {source} is not in the file"
        lost = unaccounted(path, pairs)
        return f"lost: {lost}" if lost else "read"
    except DataError:
        return "refused"
    except BaseException as error:
        return f"raised: {type(error).__name__}: {error}"


def unaccounted(path: Path, pairs) -> str:  # noqa: ANN001
    """Compare rows with what an independent count finds."""
    if any(len(rows) != len(pairs) for rows in pairs.rows.values()):
        return "the columns differ in length"
    for name, items in pairs.items.items():
        used = set(pairs.rows[name].tolist()) - {-1}
        if used != set(range(len(items))):
            return f"{len(items)} items of {name}, {len(used)} in rows"
    if path.suffix == ".jsonl":
        objects = len(objects_in(path.read_bytes().decode("utf-8-sig")))
        return "" if objects == len(pairs) else f"{objects} objects, {len(pairs)} rows"
    if path.suffix in (".csv", ".tsv"):
        counts = records_in(path)
        return "" if len(pairs) in counts else f"{counts} records, {len(pairs)} rows"
    if path.suffix == ".tar":
        return tar_unaccounted(path, pairs)
    return ""


def objects_in(text: str) -> list[object]:
    """Decode JSON objects, one a line or several."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while text[place:].strip():
        place += len(text[place:]) - len(text[place:].lstrip())
        value, place = decoder.raw_decode(text, place)
        found.append(value)
    return found


def records_in(path: Path) -> set[int]:
    """Count the records of separated values below the header as another parser does, with and without quoting."""
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    counts = set()
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        rows = csv.reader(
            io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", quoting=quoting
        )
        counts.add(sum(bool(row) for row in rows) - 1)
    return counts


def tar_unaccounted(path: Path, pairs) -> str:  # noqa: ANN001
    """Every member that `tarfile` finds is a cell or a problem, as far as it is part of a sample."""
    with tarfile.open(path) as archive:
        names = []
        try:
            for member in archive:
                if not 0 <= member.size <= path.stat().st_size:
                    break
                names.append(member.name)
        except (tarfile.TarError, ValueError, OverflowError, OSError):
            pass
    cells = {cell for name in pairs.table.column_names for cell in pairs.table[name].to_pylist() if cell is not None}
    keys = set(pairs.table["key"].to_pylist())
    known = {problem.id for problem in pairs.problems}
    for name in names:
        name = name.removeprefix("./")
        key, dot, _ = name.rpartition("/")[2].partition(".")
        if not (key and dot):
            continue
        place = f"{path.name}/{name}".encode("utf-8", "replace").decode()
        key = name[: len(name) - len(name.rpartition("/")[2])] + key
        if place not in cells and place not in known and key not in keys and path.name not in known:
            return f"{name} is neither a cell nor a problem"
    return ""


def mutant(folder: Path, number: int, seed: int, form: str | None) -> Path:
    """Write a good file with some bytes changed, cut, doubled or swapped."""
    rng = random.Random(seed * 1_000_003 + number)
    form = form or FORMS[number % len(FORMS)]
    content = bytearray(MAKERS[form](rng))
    in_place = (0, 0, 1, 6, 7, rng.randrange(8))  # whatever moves the footer of Parquet is found out at once
    for _ in range(rng.randint(1, 4)):
        mutate(content, rng, rng.choice(in_place if form == "parquet" else range(8)))
    path = folder / f"{number}.{form}"
    path.write_bytes(content)
    return path


def mutate(content: bytearray, rng: random.Random, way: int) -> None:
    """Change some bytes in one of eight ways."""
    if not content:
        return
    place, size = rng.randrange(len(content)), rng.choice((1, 1, 2, 4, 8, 64, 512))
    if way == 0:
        content[place] ^= 1 << rng.randrange(8)
    elif way == 1:
        content[place : place + size] = rng.randbytes(size)
    elif way == 2:
        del content[place:]
    elif way == 3:
        del content[place : place + size]
    elif way == 4:
        content[place:place] = content[place : place + size]
    elif way == 5:
        content[place:place] = rng.choice(
            (b'"', b"\n", b"\0", b"\xff", b",", b"[" * 2000, b'{"a":' * 2000, b"\r", b"\\ud800")
        )
    elif way == 6:
        content[place : place + size] = rng.choice((b"\0", b"\xff", b"\x7f")) * size
    else:
        tail = min(len(content), 600)  # where Parquet keeps its footer
        content[len(content) - 1 - rng.randrange(tail)] = rng.randrange(256)


def texts(rng: random.Random) -> list[tuple[str, str]]:
    """Return the rows of a good file."""
    words = ("red", "kite", 'a "b"', "c, d", "ü", "two\nlines", "", "2024-01-01", "7")
    return [(f"{i}.jpg", " ".join(rng.choices(words, k=3))) for i in range(ROWS)]


def make_csv(rng: random.Random, separator: str = ",") -> bytes:
    """Write separated values, with or without a byte order mark."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=rng.choice(("\n", "\r\n")))
    writer.writerows([("image", "text"), *texts(rng)])
    return rng.choice((b"", b"\xef\xbb\xbf")) + file.getvalue().encode()


def make_jsonl(rng: random.Random) -> bytes:
    """Write JSON lines."""
    return "".join(json.dumps({"image": a, "text": b, "n": i}) + "\n" for i, (a, b) in enumerate(texts(rng))).encode()


def make_parquet(rng: random.Random) -> bytes:
    """Write Parquet: some with embedded files, checksums, other codecs."""
    import pyarrow as pa
    import pyarrow.parquet

    names, words = zip(*texts(rng), strict=True)
    columns = {"image": names, "text": words, "v": [[float(i)] * 4 for i in range(ROWS)], "n": list(range(ROWS))}
    if rng.random() < 0.5:
        columns["image"] = [{"bytes": b"\xff\xd8\xff" + name.encode(), "path": name} for name in names]
    sink = io.BytesIO()
    codec = rng.choice(("none", "snappy", "gzip", "zstd", "lz4"))
    version, checksum = rng.choice(("1.0", "2.0")), rng.random() < 0.5
    pa.parquet.write_table(
        pa.table(columns), sink, compression=codec, data_page_version=version, use_dictionary=rng.random() < 0.5,
        write_page_checksum=checksum, row_group_size=rng.choice((7, 100)),
    )  # fmt: skip
    return sink.getvalue()


def make_tar(rng: random.Random) -> bytes:
    """Write a tar of pictures, captions and fields."""
    sink = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for i, (_, text) in enumerate(texts(rng)):
            stem = "n" * 120 + f"/{i}" if i % 10 == 0 and form != tarfile.USTAR_FORMAT else f"{i}"
            for suffix, content in (("jpg", rng.randbytes(300)), ("txt", text.encode()), ("json", b'{"n": %d}' % i)):
                member = tarfile.TarInfo(f"{stem}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


MAKERS = {
    "csv": make_csv,
    "tsv": lambda rng: make_csv(rng, "\t"),
    "jsonl": make_jsonl,
    "parquet": make_parquet,
    "tar": make_tar,
}


if __name__ == "__main__":
    main()
    leave()
