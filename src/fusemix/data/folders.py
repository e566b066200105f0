"""Read a folder of media: captions beside the files, or the names of the folders as classes."""

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pyarrow as pa

from fusemix.data.items import SUFFIXES, Problem, Reading
from fusemix.errors import DataError

MAX_CAPTION_BYTES = 10_000_000
KINDS = ("image", "audio", "video")
_PLURALS = {"image": "pictures", "audio": "sounds", "video": "videos"}


def read_folder(folder: Path) -> Reading:
    """Pair files with the captions of the same name beside them, or else with their folder's name.

    Files of one name and several kinds, as `a.jpg` and `a.wav`, are one row. A caption file is `a.txt` with one caption
    a line, or `a.json` with the field "caption" or "text".

    Returns:
        The columns "image", "audio" and "video", as far as there are any, and "text". A caption file that cannot be
        read is a problem and leaves its cell empty.

    Raises:
        DataError: no media, or nothing to pair them with.
    """
    media, captions = _scan(folder)
    if not media:
        raise DataError(f"{folder} holds no media ({', '.join(SUFFIXES)}), nor is it a table{_near(folder)}")
    found = [kind for kind in KINDS if any(kind in files for files in media.values())]
    sidecars = any(stem in captions for stem in media)
    if not sidecars and len(found) == 1 and not any("/" in stem for stem in media):
        count = sum(len(files[found[0]]) for files in media.values())
        raise DataError(
            f"{folder}: {count} {_PLURALS[found[0]]} and nothing to pair them with; wanted a caption file beside each "
            f"({next(iter(media))}.txt), or one folder per class, or a table{_near(folder)}"
        )
    problems: list[Problem] = []
    rows: dict[str, list[str | None]] = {name: [] for name in [*found, "text"]}
    for stem, files in media.items():
        texts = [stem.rpartition("/")[0].rpartition("/")[2]]
        if sidecars:
            texts = _captions(folder, captions.get(stem, ()), problems)
        for text, *names in product(texts, *(files.get(kind, [None]) for kind in found)):
            for column, value in zip(rows, [*names, text], strict=True):
                rows[column].append(value)
    table = pa.table({name: pa.array(values, pa.large_string()) for name, values in rows.items()})
    return Reading(table, folder, problems, {})


def parse_captions(content: bytes, suffix: str) -> list[str]:
    """Return the captions in a file: the lines of a text, or the field "caption" or "text" of a JSON object.

    Raises:
        ValueError: not UTF-8, not JSON, or nested too deeply.
    """
    text = content.decode("utf-8-sig")
    if suffix != ".json":
        return [line for line in text.splitlines() if line.strip()]
    try:
        fields = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("wanted a JSON object")
    value = fields.get("caption") or fields.get("text") or []
    return [str(caption) for caption in (value if isinstance(value, list) else [value]) if str(caption).strip()]


def files_below(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder in order, without what is hidden.

    Raises:
        DataError: a folder that may not be looked into.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}; files in it would be missing without a word")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        below = Path(parent).relative_to(folder).as_posix()
        for name in sorted(name for name in names if not name.startswith(".")):
            yield name if below == "." else f"{below}/{name}"


def _scan(folder: Path) -> tuple[dict[str, dict[str, list[str | None]]], dict[str, list[str]]]:
    """Return media by stem and kind, in order of the names, and caption files by stem, text before JSON."""
    media: dict[str, dict[str, list[str | None]]] = {}
    captions: dict[str, list[str]] = {}
    for name in sorted(files_below(folder)):
        stem, dot, suffix = name.rpartition(".")
        suffix = (dot + suffix).lower()
        if suffix in SUFFIXES:
            media.setdefault(stem, {}).setdefault(SUFFIXES[suffix], []).append(name)
        elif suffix in (".txt", ".json"):
            captions.setdefault(stem, []).append(name)
    return media, {
        stem: sorted(names, key=lambda name: not name.lower().endswith(".txt")) for stem, names in captions.items()
    }


def _captions(folder: Path, names: list[str] | tuple[()], problems: list[Problem]) -> list[str]:
    """Return the captions of one item from the first of its files that has any; without any an empty one."""
    for name in names:
        path = folder / name
        try:
            if not path.is_file():
                problems.append(Problem(name, "missing", "no file"))
            elif path.stat().st_size > MAX_CAPTION_BYTES:
                problems.append(Problem(name, "too large", f"captions of more than {MAX_CAPTION_BYTES:,} bytes"))
            elif found := parse_captions(path.read_bytes(), path.suffix.lower()):
                return found
        except OSError as error:
            problems.append(Problem(name, "no access", str(error.strerror)))
        except ValueError as error:
            problems.append(Problem(name, "wrong format", f"no captions in UTF-8: {error}"))
    return [""]


def _near(folder: Path) -> str:
    """Name a table that lies in the folder."""
    tables = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"))
    return f"; for the table in it give {tables[0]}" if tables else ""
