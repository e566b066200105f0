"""Pairs: which items belong together, in which group and split. A table in, numbered distinct items out."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from fusemix.data.items import Items, Kind, Problem, Rows, content_hash, distinct, is_binary
from fusemix.data.media import Span, is_file
from fusemix.data.sources import read_source
from fusemix.errors import DataError, choices

__all__ = [
    "Items", "Kind", "Pairs", "Problem", "Rows", "content_hash", "group_codes", "random_splits", "read_pairs",
    "require_files",
]  # fmt: skip

RESERVED = frozenset(  # arguments of `extract` and `probe`
    {"decode", "dtype", "engine", "max_failed", "out", "pairs", "pooling", "precision", "progress", "retry_failed",
     "sample", "seed", "shard_items"}
)  # fmt: skip
SPLITS = ("train", "val", "test")
_ALIASES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True)
class Pairs:
    """Rows of a table, each of which says that its items belong together.

    Attributes:
        items: distinct items of each modality.
        rows: for each modality (N,) int64, the item of each pair; -1 where the cell is empty.
        groups: (N,) int64; pairs of one group stay in one split.
        splits: (N,) of "train", "val", "test" or the table's own words.
        table: the table's plain columns, N rows.
        problems: what the reader had to leave out.
    """

    items: dict[str, Items]
    rows: dict[str, Rows]
    groups: Rows
    splits: NDArray[np.str_]
    table: pa.Table
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.groups)


def read_pairs(
    source: str | Path,
    *,
    group: str | None = None,
    split: str | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    **columns: str,
) -> Pairs:
    """Read pairs from a table, a folder, WebDataset tars or a data set of the Hugging Face hub.

    A folder of media has the columns "image", "audio" and "video", as far as there are any, and "text": captions from
    `photo.txt` or `photo.json` beside `photo.jpg`, else the name of the class folder. Tars have the same columns, "key"
    and the fields of their JSON members. A column of bytes is a column of embedded files.

    Args:
        source: a CSV, TSV, JSON lines or Parquet file; a folder; tars as a file, a folder of them, "shards/*.tar" or
            "shards/{0000..0012}.tar"; "hf://datasets/ORG/NAME", or a folder that `save_to_disk` of `datasets` wrote.
        group: column of things that must stay in one split; by default rows that share an item of the first modality
            that is not text (the captions of one picture).
        split: column that says train, val or test; by default the column "split" if there is one, else 80/10/10 of
            the groups at random.
        root: folder that file names are relative to; by default the folder of the table.
        seed: of the random split.
        **columns: modality="column", in your own words: image="photo", text="title"; two or more to fit, one of items
            without partners. Without any, the columns "image" and "text".

    Raises:
        DataError: a missing file or column, no rows, or files that are not where the table says.
        MissingExtraError: a data set of the hub without the extra `data`.
    """
    for name in RESERVED & set(columns):
        raise DataError(f"a modality cannot be called {name!r}, which is an option; choose another word")
    columns = columns or {"image": "image", "text": "text"}
    reading = read_source(source, Path(root) if root is not None else None)
    table = reading.table
    for name in [*columns.values(), *(name for name in (group, split) if name is not None)]:
        if name not in table.column_names:
            raise DataError(f"{source} has no column {name!r}; {choices(name, table.column_names)}")
    items, rows = {}, {}
    for modality, column in columns.items():
        items[modality], rows[modality] = distinct(modality, column, table[column], reading)
    whole = next((name for name in columns if items[name].kind != "text"), next(iter(columns)))
    groups = group_codes(table[group]) if group else _own_group_if_missing(rows[whole])
    split = split or ("split" if "split" in table.column_names else None)
    splits = _named_splits(table[split], split) if split else random_splits(groups, seed=seed)
    return Pairs(items, rows, groups, splits, _plain(table), reading.problems)


def require_files(items: Items) -> None:
    """Fail early when the files of a modality are not where the table says, and find out where they may be.

    Raises:
        DataError: none of the first hundred names is a file.
    """
    if (
        items.kind in ("text", "vector")
        or items.vectors is not None
        or items.content is not None
        or any(is_file(_path(items, i)) for i in range(min(100, len(items))))
    ):
        return
    first = _path(items, 0)
    name = first.relative_to(items.root) if first.is_relative_to(items.root) else first
    found = next((folder for folder in sorted(items.root.glob("*")) if is_file(folder / name)), None)
    hint = (
        f"{name} is in {found}: give it as root (--root {found})"
        if found
        else "give the folder that the names are relative to as root (--root)"
    )
    raise DataError(f"{items.name}: no file {first}, nor any of the next {len(items) - 1:,} in the table; {hint}")


def _path(items: Items, i: int) -> Path:
    """Return the file that holds an item, or the tar that does."""
    source = items.source(i)
    assert not isinstance(source, bytes)
    return source.path if isinstance(source, Span) else source


def random_splits(
    groups: Rows, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> NDArray[np.str_]:
    """Deal whole groups to train, val and test.

    Args:
        groups: (N,) group of each pair.
        fractions: shares of the groups; must sum to 1.
        seed: decides which group goes where.

    Returns:
        (N,) of "train", "val" and "test".
    """
    if abs(sum(fractions) - 1) > 1e-9 or min(fractions) < 0:
        raise DataError(f"the fractions of train, val and test must be positive and sum to 1, got {fractions}")
    distinct, member = np.unique(groups, return_inverse=True)
    places = np.random.default_rng(seed).permutation(len(distinct))
    edges = np.round(np.cumsum(fractions)[:2] * len(distinct))
    return np.array(SPLITS)[np.searchsorted(edges, places, side="right")][member]


def group_codes(column: pa.ChunkedArray) -> Rows:
    """Number the distinct values of a column, (N,); a missing value is a group of its own."""
    if pa.types.is_string(column.type):  # a CSV file has no other way to say that a value is missing
        column = pa.compute.if_else(pa.compute.equal(pa.compute.utf8_trim_whitespace(column), ""), None, column)
    codes = column.combine_chunks().dictionary_encode().indices
    return _own_group_if_missing(codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))


def _own_group_if_missing(codes: Rows) -> Rows:
    """Replace each -1 by a number that nothing else has."""
    groups = codes.copy()
    missing = codes < 0
    groups[missing] = codes.max(initial=-1) + 1 + np.arange(missing.sum())
    return groups


def _named_splits(column: pa.ChunkedArray, name: str) -> NDArray[np.str_]:
    """Read splits from a column; the usual synonyms become train, val and test."""
    words = [str(word or "").strip().lower() for word in column.to_pylist()]
    if "" in words:
        raise DataError(f"row {words.index('') + 1} has no value in the split column {name!r}")
    return np.array([_ALIASES.get(word, word) for word in words])


def _plain(table: pa.Table) -> pa.Table:
    """Leave out columns that pairs.parquet has no use for; a table of nothing else keeps the numbers of its rows."""
    bulky = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_bulky(kind)]
    if len(bulky) == table.num_columns:
        table = table.append_column("row", pa.array(np.arange(len(table))))
    return table.drop_columns(bulky)


def _is_bulky(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or is_binary(kind)
