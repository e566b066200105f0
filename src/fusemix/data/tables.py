"""Read a table of the user's: CSV, TSV, JSON lines, Parquet, or a folder of pictures. Parsing is pyarrow's job."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from fusemix.data.media import IMAGE_SUFFIXES
from fusemix.errors import DataError

SEPARATORS = "\t,;|"
BARE_QUOTE = re.compile(r'(^|\t)"(?!([^"\t]|"")*"(\t|$))')


def read_table(path: Path) -> pa.Table:
    """Read the table at `path`; the suffix names the format, a folder is read as pictures with captions.

    Raises:
        DataError: nothing there, a format that is not read, or content that does not parse; it says where.
    """
    if path.is_dir():
        try:
            return _read_folder(path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: a caption file is not UTF-8 text: {error}") from error
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder (looked in {path.resolve().parent})")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": pa.parquet.read_table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; give {', '.join(readers)} or a folder"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: wanted a header line and at least two rows")
    try:
        table = reader(path)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:].upper()} in UTF-8: {error}") from error
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has several columns named {', '.join(map(repr, twice))}; rename or delete them")
    if table.num_rows == 0:
        raise DataError(f"{path} has a header but no rows (columns: {', '.join(table.column_names)})")
    return table


def _read_csv(path: Path) -> pa.Table:
    """Read separated values as text: no guessing of types, so the id 007 and the caption "nan" stay what they are."""
    with path.open(encoding="utf-8-sig") as file:
        header = next((line for line in file if line.strip()), "")
        separator = max(SEPARATORS, key=header.count)
        if not header.endswith("\n"):  # pyarrow wants a second line
            return pa.table({name: [] for name in header.split(separator)})
        # A tab-separated file may use no quoting at all; then a cell opens with a quote that does not close at its end.
        bare = separator == "\t" and any(BARE_QUOTE.search(line.rstrip("\n")) for line in file)
    parse = pa.csv.ParseOptions(
        delimiter=separator, quote_char=False if bare else '"', newlines_in_values=not bare, ignore_empty_lines=True
    )
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pa.csv.read_csv(path, parse_options=parse, convert_options=convert)


def _read_jsonl(path: Path) -> pa.Table:
    """Read one JSON object a line."""
    return pa.json.read_json(path)


def _read_folder(folder: Path) -> pa.Table:
    """Pair pictures with the lines of a text file of the same name beside them, or else with their folder's name."""
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise DataError(f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}), nor is it a table")
    sidecars = any(path.with_suffix(".txt").is_file() for path in pictures)
    if not sidecars and all(path.parent == folder for path in pictures):
        raise DataError(
            f"{folder}: {len(pictures)} pictures and nothing to pair them with; wanted a caption file beside each "
            f"({pictures[0].with_suffix('.txt').name}), or one folder per class, or a table"
        )
    rows: list[tuple[str, str]] = []
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        rows.extend((name, caption) for caption in (_sidecar(path) if sidecars else [path.parent.name]))
    return pa.table({"image": [image for image, _ in rows], "text": [text for _, text in rows]})


def _sidecar(picture: Path) -> list[str]:
    """Captions beside a picture, one a line; a picture without any keeps an empty one, which is reported later."""
    path = picture.with_suffix(".txt")
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    return [line for line in lines if line.strip()] or [""]
