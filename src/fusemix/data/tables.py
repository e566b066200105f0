"""Read a table of the user's: CSV, TSV, JSON lines, Parquet. Parsing is pyarrow's job; finding the mistake is ours."""

import csv
import io
import json
import mmap
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from fusemix.errors import DataError

SEPARATORS = "\t,;|"
ONE_COLUMN = "\x1f"  # a separator that no text holds
BLOCKS = (1 << 20, 1 << 25, 1 << 30)  # bytes that pyarrow parses at once: no row may be longer
_LOOK = 1 << 16
_DEEP = 500  # brackets in one line: pyarrow parses nested JSON by recursion, without a limit
_BARE_QUOTE = re.compile(r'(^|\t)"(?!([^"\t]|"")*"(\t|$))')
_ELSEWHERE = {
    ".json": "one JSON document is not read; write an object a line: jq -c '.[]' {name} > {stem}.jsonl",
    ".gz": "compressed files are not read; unpack it first: gunzip {name}",
    ".bz2": "compressed files are not read; unpack it first: bunzip2 {name}",
    ".xz": "compressed files are not read; unpack it first: unxz {name}",
    ".zst": "compressed files are not read; unpack it first: unzstd {name}",
    ".zip": "compressed files are not read; unpack it first: unzip {name}",
    ".xlsx": "cannot read .xlsx; save the sheet as CSV UTF-8",
    ".xls": "cannot read .xls; save the sheet as CSV UTF-8",
}


def read_table(path: Path) -> pa.Table:
    """Read the table at `path`; the suffix names the format.

    Raises:
        DataError: nothing there, a format that is not read, or content that does not parse; it says where.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder (looked in {path.resolve().parent})")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    if suffix in _ELSEWHERE:
        raise DataError(f"{path}: {_ELSEWHERE[suffix].format(name=path.name, stem=path.stem)}")
    reader = readers.get(suffix)
    if reader is None:
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; give {', '.join(readers)}, .tar or a folder"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: wanted a header line and at least two rows")
    try:
        table = reader(path)
        table.validate(full=True)  # pyarrow leaves bytes in JSON that are no text, and offsets in Parquet that lead out
        names = table.column_names
    except DataError:
        raise
    except Exception as error:  # pyarrow raises KeyError, OSError, MemoryError and more on damaged bytes
        text = "" if reader is _read_parquet else " in UTF-8"
        where = _bad_bytes(path) if text and isinstance(error, ValueError) else ""
        raise DataError(f"{path} cannot be read as {suffix[1:].upper()}{text}: {where or error}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has several columns named {', '.join(map(repr, twice))}; rename or delete them")
    if table.num_rows == 0:
        columns = ", ".join(filter(None, table.column_names))
        raise DataError(f"{path} has a header but no rows (columns: {columns})" if columns else f"{path} is blank")
    return table


def _read_csv(path: Path) -> pa.Table:
    """Read separated values as text: no guessing of types, so the id 007 and the caption "nan" stay what they are."""
    with path.open(encoding="utf-8-sig") as file:
        head = file.read(_LOOK)
    names, separator = _sniff(head)
    if len(head) < _LOOK and "\n" not in head.strip("\n"):  # pyarrow wants a second line
        return pa.table({name: [] for name in names})
    quoted = _is_quoted(path, separator)
    options = pa.csv.ParseOptions(
        delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted, ignore_empty_lines=True
    )

    def read(block: int, *, threads: bool = True) -> pa.Table:
        blocks = pa.csv.ReadOptions(block_size=block, use_threads=threads)
        with pa.csv.open_csv(path, blocks, options) as reader:
            columns = reader.schema.names
        types = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False)
        return pa.csv.read_csv(path, blocks, options, types)

    try:
        return _in_blocks(read)
    except pa.ArrowInvalid:
        return _in_blocks(lambda block: read(block, threads=False))  # the error then knows its row


def _in_blocks(read: Callable[[int], pa.Table]) -> pa.Table:
    """Parse in small blocks, or in large ones if a row is longer."""
    for block in BLOCKS[:-1]:
        try:
            return read(block)
        except pa.ArrowInvalid as error:
            if "block" not in str(error):
                raise
    return read(BLOCKS[-1])


def _sniff(head: str) -> tuple[list[str], str]:
    """Find the separator: the one that most often cuts the first rows into as many cells as the header, and several."""
    lines = [line for line in io.StringIO(head) if line.strip()]
    if len(head) == _LOOK and len(lines) > 1:
        lines.pop()
    best: tuple[float, int, list[str], str] = (-1, 0, [head.strip("\r\n")], ONE_COLUMN)
    for separator in SEPARATORS:
        try:
            header, *rows = csv.reader(lines, delimiter=separator)
        except (csv.Error, ValueError):
            continue
        same = sum(len(row) == len(header) for row in rows) / max(len(rows), 1)
        if len(header) > 1 and (same, len(header)) > best[:2]:
            best = (same, len(header), header, separator)
    if best[3] == ONE_COLUMN and lines:
        best = (0, 1, next(csv.reader(lines[:1], delimiter=ONE_COLUMN), best[2]), ONE_COLUMN)
    return best[2], best[3]


def _is_quoted(path: Path, separator: str) -> bool:
    """Tell whether quotes enclose cells; files with tabs or one column often use none, and a quote is then a letter.

    Raises:
        DataError: a quote that opens a cell and never closes it, which would swallow the rows after it.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'"') < 0:
            return True
        bare = separator in ("\t", ONE_COLUMN)
        start = 3 if content[:3] == b"\xef\xbb\xbf" else 0
        match = _grammar(separator, lenient=not bare).match(content, start)
        end = match.end() if match else start
        if bare:
            return end == len(content) and not _is_bare(path, separator)
        if end < len(content):
            line = content[:end].count(b"\n") + 1
            raise DataError(
                f"{path}, line {line}: a cell opens with a quote that does not close at its end; "
                'write it as "..." with the quotes inside doubled'
            )
        return True


def _grammar(separator: str, *, lenient: bool) -> re.Pattern[bytes]:
    """Build an expression that matches as much of a file as is well formed; possessive, so that it never goes back."""
    cut = re.escape(separator).encode()
    cells = [rb'"(?:[^"]++|"")*+"(?=[%b\r\n]|\Z)' % cut, rb'[^"%b\r\n][^%b\r\n]*+' % (cut, cut)]
    if lenient:  # "so" she said: what comes after the quote is read as it is
        cells.insert(1, rb'"[^"\r\n]*+"[^%b\r\n]*+' % cut)
    cell = b"(?:" + b"|".join(cells) + b")?+"
    return re.compile(b"(?:" + cell + b"[" + cut + b"\r\n])*+" + cell)


def _is_bare(path: Path, separator: str) -> bool:
    """Decide on quotes that close in a later line: letters if the lines alone have the cells of the header."""
    if separator == ONE_COLUMN and path.suffix.lower() != ".tsv":
        return False
    with path.open(encoding="utf-8-sig") as file:
        header = next((line for line in file if line.strip()), "")
        cells = header.count(separator)
        opened, even = False, True
        for line in file:
            opened = opened or bool(_BARE_QUOTE.search(line.rstrip("\n")))
            even = even and (line.count(separator) == cells or not line.strip())
    return opened and even


def _read_jsonl(path: Path) -> pa.Table:
    """Read one JSON object a line; a text that looks like a date stays a text."""
    _check_lines(path)

    def read(block: int, schema: pa.Schema | None = None) -> pa.Table:
        parse = pa.json.ParseOptions(explicit_schema=schema)
        return pa.json.read_json(path, pa.json.ReadOptions(block_size=block), parse)

    try:
        table = _in_blocks(read)
        dates = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
        if dates:
            texts = pa.schema([(name, pa.string()) for name in dates])
            table = _in_blocks(lambda block: read(block, texts)).select(table.column_names)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as JSONL in UTF-8: {_bad_line(path) or error}") from error
    return table


def _check_lines(path: Path) -> None:
    """See that each line is an object of its own and not nested without end, for which pyarrow would crash.

    A line that ends with a brace can only be followed by one that begins with a brace where all brackets are closed.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            line = line.strip()
            if not line:
                continue
            if line[:1] != b"{" or line[-1:] != b"}":
                got = line[:20].decode("utf-8", "replace") + "..." * (len(line) > 20)
                hint = "of another form of JSON make one with jq -c . or jq -c '.[]'"
                raise DataError(f"{path}, line {number}: wanted a whole object in each line, got {got}; {hint}")
            if line.count(b"[") + line.count(b"{") > _DEEP:
                try:
                    json.loads(line)
                except RecursionError as error:
                    raise DataError(f"{path}, line {number}: nested too deeply") from error
                except ValueError as error:  # pyarrow would recurse before it sees the mistake
                    raise DataError(f"{path}, line {number}: {error}") from error


def _bad_line(path: Path) -> str:
    """Find the first line that is no object, or whose values are of another type than before."""
    types: dict[str, tuple[str, int]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                return f"line {number}: {error}"
            for key, value in row.items():
                old, line_of_old = types.setdefault(key, (_type(value), number))
                if value is not None and old == _type(None):
                    types[key] = (_type(value), number)
                elif value is not None and old != _type(value):
                    return f"line {number}: {key!r} is {_type(value)}; in line {line_of_old} it is {old}"
    return ""


def _type(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


def _read_parquet(path: Path) -> pa.Table:
    """Read with what protects: the checksums of pages, where there are any."""
    with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    return table


def _bad_bytes(path: Path) -> str:
    """Find the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                utf_16 = number == 1 and line[:2] in (BOM_UTF16_LE, BOM_UTF16_BE)
                what = "it is UTF-16" if utf_16 else f"line {number} has the byte 0x{line[error.start]:02x}"
                return f"{what}; save the file as UTF-8"
    return ""
