"""Read WebDataset tars: members of one key are a row, media are parts of the file; nothing is unpacked or unpickled."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from fusemix.data.items import SUFFIXES, Problem, Reading
from fusemix.data.media import Reason
from fusemix.data.tar_members import Member, TarError, members, read_at
from fusemix.errors import DataError

MAX_MEMBERS = 10_000_000  # of one tar
MAX_TEXT_BYTES = 10_000_000  # of a text or JSON member
MAX_COLUMNS = 256
TEXTS = {"txt": "text", "text": "text", "caption": "caption", "cls": "cls"}
PICKLES = frozenset(
    ("ckpt", "dill", "joblib", "mar", "model", "npy", "npz", "pickle", "pkl", "pt", "pth", "pyc", "pyd", "pyth")
)
_PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)

Cell = str | int | float | bool | Member | None


def read_tars(paths: list[Path], root: Path) -> Reading:
    """Read the samples of tars: members that share a name up to the first dot are one row.

    Args:
        paths: the tars, in order.
        root: folder that their names are given relative to.

    Returns:
        A table with the columns "key", "image", "audio" and "video" by the suffix of the member, "text" (.txt; or else
        .caption, the field "caption" of .json, or .cls), each further suffix, as "dcm" or "left.png", and the scalar
        fields of .json members. Cells of media are ids such as "000.tar/key.jpg"; their places are in `spans`.

    Raises:
        DataError: a compressed tar, tars outside of the root, or nothing in any of them.
    """
    problems: list[Problem] = []
    parts: list[_Part] = []
    for path in paths:
        name = _below(path, root)
        samples = _Tar(name, problems).read(path)
        if samples:
            parts.append(_part(name, samples, problems))
    if not parts:
        why = f"; {problems[0].id}: {problems[0].message}" if problems else ""
        raise DataError(f"{paths[0]}: no samples in {len(paths):,} tars (members such as 000.jpg and 000.txt){why}")
    table, spans = _join(parts, problems)
    return Reading(table, root, problems, spans)


class _Tar:
    """Collects the samples of one tar."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.name, self.problems = name, problems
        self.cells: dict[str, dict[str, Cell]] = {}
        self.fields: dict[str, dict[str, Cell]] = {}

    def read(self, path: Path) -> dict[str, dict[str, Cell]]:
        """Return the cells of each sample by its key."""
        try:
            if not path.is_file():  # to open a pipe would wait for ever
                raise TarError("missing", f"{path} is no file")
            with path.open("rb", buffering=0) as file:
                self._read(path, file)
        except OSError as error:
            self._report("", "no access", f"{path}: {error.strerror}")
        except TarError as damage:
            self._report("", damage.reason, str(damage))
        if not self.fields:
            return self.cells
        return {key: {**self.fields.get(key, {}), **self.cells.get(key, {})} for key in self.cells | self.fields}

    def _read(self, path: Path, file: BinaryIO) -> None:
        head = file.read(8)
        for magic, command in _PACKED.items():
            if head.startswith(magic):
                raise DataError(f"{path} is compressed, so its members cannot be read in place: {command} {path.name}")
        if path.suffix.lower() != ".tar":
            raise DataError(f"{path} is not named .tar; rename it")
        if not head:
            raise TarError("no content", "zero bytes")
        for count, member in enumerate(members(file)):
            if count >= MAX_MEMBERS:
                raise TarError("too large", f"more than {MAX_MEMBERS:,} members")
            if isinstance(member, Problem):
                self._report(member.id, member.reason, member.message)
            else:
                self._add(file, member)

    def _add(self, file: BinaryIO, member: Member) -> None:
        named = _SAMPLE.fullmatch(member.name)
        if named is None:  # a read-me, or the notes that a Mac leaves beside each file: no part of a sample
            return
        key, suffix = named[1], named[2].lower()
        last = suffix.rpartition(".")[2]
        if last in PICKLES:
            self._report(member.name, "wrong format", f".{last} may hold a pickle, which can run code: never read")
        elif last == "json" or suffix in TEXTS:
            self._add_text(file, member, key, suffix)
        else:
            self._put(member.name, key, SUFFIXES.get("." + suffix, suffix), member)

    def _add_text(self, file: BinaryIO, member: Member, key: str, suffix: str) -> None:
        if member.size > MAX_TEXT_BYTES:
            self._report(member.name, "too large", f"{member.size:,} bytes, the limit is {MAX_TEXT_BYTES:,}")
            return
        content = read_at(file, member.offset, member.size)
        try:
            text = content.decode("utf-8-sig")
            if suffix in TEXTS:
                self._put(member.name, key, TEXTS[suffix], text.strip())
                return
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError("wanted a JSON object")
        except (ValueError, RecursionError) as error:
            self._report(member.name, "wrong format", f"not {'UTF-8' if suffix in TEXTS else 'JSON in UTF-8'}: {error}")
            return
        if key in self.fields:
            self._report(member.name, "duplicate", "the key has such a member already; the first is kept")
            return
        self.fields[key] = {
            str(_storable(name)): _storable(v) for name, v in fields.items() if not isinstance(v, (dict, list))
        }

    def _put(self, name: str, key: str, column: str, cell: Cell) -> None:
        cells = self.cells.setdefault(key, {})
        if column in cells:
            self._report(name, "duplicate", f"the key has a member for {column!r} already; the first is kept")
        else:
            cells[column] = cell

    def _report(self, name: str, reason: Reason, message: str) -> None:
        place = f"{self.name}/{name}" if name else self.name
        self.problems.append(Problem(place.encode("utf-8", "replace").decode(), reason, message))


def _below(path: Path, root: Path) -> str:
    try:
        # Not resolved: a tar that is a link to another disk keeps its name.
        return Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()  # noqa: PTH100
    except ValueError:
        raise DataError(f"{path} is not below the root {root}; give another root, or none") from None


def _storable(value: Any) -> Cell:
    """Return a JSON value as a table can hold it: a lone half of a character has no UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class _Part(NamedTuple):
    """The samples of one tar as columns, which take a tenth of the memory of Python objects.

    Attributes:
        name: of the tar.
        keys: n.
        columns: n cells each; of media they are ids.
        spans: of the columns of media, n places.
    """

    name: str
    keys: pa.Array
    columns: dict[str, pa.Array]
    spans: dict[str, pa.Array]


def _part(name: str, samples: dict[str, dict[str, Cell]], problems: list[Problem]) -> _Part:
    columns: dict[str, pa.Array] = {}
    spans: dict[str, pa.Array] = {}
    for column in _limited(name, dict.fromkeys(key for cells in samples.values() for key in cells), problems):
        cells = [cells.get(column) for cells in samples.values()]
        if any(isinstance(cell, Member) for cell in cells):
            media = [cell if isinstance(cell, Member) else None for cell in cells]
            columns[column] = pa.array([m and f"{name}/{m.name}" for m in media], pa.large_string())
            spans[column] = pa.array([m and f"{name}#{m.offset}+{m.size}" for m in media], pa.large_string())
        else:
            columns[column] = _array(cells)
    return _Part(name, pa.array(samples, pa.large_string()), columns, spans)


def _limited(name: str, found: Iterable[str], problems: list[Problem]) -> list[str]:
    """Order the names of columns, the usual ones first, and leave out what is too much."""
    names = dict.fromkeys(found)
    order: list[str] = [usual for usual in ("image", "audio", "video", "text") if usual in names]
    order += [other for other in names if other not in order and other != "key"]
    if len(order) > MAX_COLUMNS:
        left = len(order) - MAX_COLUMNS
        problems.append(Problem(name, "too large", f"{left:,} more columns than {MAX_COLUMNS} are left out"))
    return order[:MAX_COLUMNS]


def _join(parts: list[_Part], problems: list[Problem]) -> tuple[pa.Table, dict[str, pa.Array]]:
    """Put the tars together: the table, and the places of its media."""
    columns: dict[str, pa.ChunkedArray] = {"key": pa.chunked_array([part.keys for part in parts])}
    spans: dict[str, pa.Array] = {}
    for name in _limited(parts[0].name, (name for part in parts for name in part.columns), problems):
        nothing = [pa.nulls(len(part.keys)) for part in parts]
        media = any(name in part.spans for part in parts)
        found = [part.columns if name in part.spans or not media else {} for part in parts]  # of media no texts
        columns[name] = _chunked([cells.get(name, none) for cells, none in zip(found, nothing, strict=True)])
        if media:
            places = [part.spans.get(name, none) for part, none in zip(parts, nothing, strict=True)]
            spans[name] = _chunked(places).combine_chunks()
    text = next((name for name in ("text", "caption", "cls") if name in columns), None)
    if text is not None:
        columns["text"] = columns[text]
    return pa.table(columns), spans


def _chunked(cells: list[pa.Array]) -> pa.ChunkedArray:
    """Join the cells of a column; of several types they become numbers, or else text."""
    kinds = list(dict.fromkeys(part.type for part in cells if not pa.types.is_null(part.type)))
    kind = kinds[0] if kinds else pa.null()
    if len(kinds) > 1:
        numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
        kind = pa.float64() if numbers else pa.large_string()
    return pa.chunked_array([part.cast(kind) for part in cells], kind)


def _array(cells: list[Cell]) -> pa.Array:
    """Make a column of scalars; one of several types becomes text."""
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if cell is None else str(cell) for cell in cells], pa.large_string())
