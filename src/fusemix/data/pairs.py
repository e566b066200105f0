"""Pairs: which items belong together, in which group and split. A table in, numbered distinct items out."""

import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from fusemix.data.media import IMAGE_SUFFIXES, is_file
from fusemix.data.tables import read_table
from fusemix.errors import DataError, choices

Kind = Literal["image", "text", "file", "vector"]
"""What a raw item is: a picture file, a string, any other file, or a vector of numbers."""

Rows = NDArray[np.int64]
RESERVED = frozenset({"dtype", "out", "pairs", "progress", "shard_items"})  # arguments of `extract`
SPLITS = ("train", "val", "test")
_FILE_NAME = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_ALIASES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True)
class Items:
    """The distinct items of one modality, in order of first appearance.

    Attributes:
        name: the modality, in the user's own word.
        kind: what the values are.
        ids: stable keys: the file name as the table writes it, or a hash of the text or vector.
        values: n file names or strings; None where the table gives vectors.
        root: folder that file names are relative to.
        vectors: n precomputed latents (D,), or None: then an encoder makes them from the values.
    """

    name: str
    kind: Kind
    ids: list[str]
    values: list[Any]
    root: Path
    vectors: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Pairs:
    """Rows of a table, each of which says that its items belong together.

    Attributes:
        items: distinct items of each modality.
        rows: for each modality (N,) int64, the item of each pair; -1 where the cell is empty.
        groups: (N,) int64; pairs of one group stay in one split.
        splits: (N,) of "train", "val", "test" or the table's own words.
        table: the table's plain columns, N rows.
    """

    items: dict[str, Items]
    rows: dict[str, Rows]
    groups: Rows
    splits: NDArray[np.str_]
    table: pa.Table

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
    """Read pairs from a CSV, TSV, JSON lines or Parquet file, or a folder of pictures.

    Args:
        source: the table. A folder gives the columns "image" and "text": captions from `photo.txt` beside `photo.jpg`,
            else the name of the class folder.
        group: column of things that must stay in one split; by default rows that share an item of the first modality
            that is not text (the captions of one picture).
        split: column that says train, val or test; by default the column "split" if there is one, else 80/10/10 of
            the groups at random.
        root: folder that file names are relative to; by default the folder of the table.
        seed: of the random split.
        **columns: modality="column", at least two, in your own words: image="photo", text="title". Without any,
            the columns "image" and "text".

    Raises:
        DataError: a missing file or column, no rows, or files that are not where the table says.
    """
    path = Path(source)
    table = read_table(path)
    for name in RESERVED & set(columns):
        raise DataError(f"a modality cannot be called {name!r}, which is an option; choose another word")
    columns = columns or {"image": "image", "text": "text"}
    if len(columns) < 2:
        raise DataError(f"a pair needs at least two modalities, got {', '.join(columns)}; name another column")
    for name in [*columns.values(), *(name for name in (group, split) if name is not None)]:
        if name not in table.column_names:
            raise DataError(f"{path} has no column {name!r}; {choices(name, table.column_names)}")
    folder = Path(root) if root is not None else path if path.is_dir() else path.parent
    items, rows = {}, {}
    for modality, column in columns.items():
        items[modality], rows[modality] = _distinct(modality, column, table[column], folder)
    whole = next((name for name in columns if items[name].kind != "text"), next(iter(columns)))
    groups = group_codes(table[group]) if group else _own_group_if_missing(rows[whole])
    split = split or ("split" if "split" in table.column_names else None)
    splits = _named_splits(table[split], split) if split else random_splits(groups, seed=seed)
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    plain = table.append_column("row", pa.array(np.arange(len(table)))) if len(nested) == table.num_columns else table
    return Pairs(items, rows, groups, splits, plain.drop_columns(nested))


def require_files(items: Items) -> None:
    """Fail early when the files of a modality are not where the table says, and find out where they may be.

    Raises:
        DataError: none of the first hundred names is a file.
    """
    if (
        items.kind not in ("image", "file")
        or items.vectors
        or any(is_file(items.root / value) for value in items.values[:100])
    ):
        return
    name = items.values[0]
    found = next((folder for folder in sorted(items.root.glob("*")) if is_file(folder / name)), None)
    hint = (
        f"{name} is in {found}: give it as root (--root {found})"
        if found
        else "give the folder that the names are relative to as root (--root)"
    )
    raise DataError(
        f"{items.name}: no file {items.root / name}, nor any of the next {len(items) - 1:,} in the table; {hint}"
    )


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


def _distinct(modality: str, column_name: str, column: pa.ChunkedArray, root: Path) -> tuple[Items, Rows]:
    """Number the distinct values of a column in order of first appearance; an empty cell gets -1."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        return _distinct_vectors(modality, column_name, array, root)
    if not pa.types.is_string(array.type) and not pa.types.is_large_string(array.type):
        if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
            raise DataError(f"column {column_name!r} holds {array.type}; wanted text, file names or lists of numbers")
        array = array.cast(pa.string())
    encoded = array.dictionary_encode()
    rows = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = encoded.dictionary.to_pylist()
    blank = np.array([not value.strip() for value in values] + [True])  # the last is what -1 looks up
    number = np.cumsum(~blank) - 1
    rows = np.where(blank[rows], -1, number[rows])
    values = [value for value in values if value.strip()]
    if not values:
        raise DataError(f"column {column_name!r} is empty in all {len(rows)} rows")
    kind = _kind(modality, values, root)
    ids = [content_hash(value.encode()) for value in values] if kind == "text" else values
    return Items(modality, kind, ids, values, root), rows


def _distinct_vectors(modality: str, column_name: str, array: pa.Array, root: Path) -> tuple[Items, Rows]:
    """The same for a column of precomputed vectors."""
    numbers: dict[bytes, int] = {}
    vectors: list[NDArray[np.float32]] = []
    rows = np.full(len(array), -1, dtype=np.int64)
    for i, value in enumerate(array):
        if not value.is_valid:
            continue
        try:
            vector = np.asarray(value.values.to_numpy(zero_copy_only=False), dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {column_name!r}, row {i + 1}: not a list of numbers ({error})") from error
        rows[i] = numbers.setdefault(vector.tobytes(), len(vectors))
        if rows[i] == len(vectors):
            vectors.append(vector)
    sizes = {len(vector) for vector in vectors}
    if len(sizes) != 1:
        raise DataError(f"column {column_name!r}: the vectors must have one length, found {sorted(sizes) or 'none'}")
    ids = [content_hash(key) for key in numbers]
    return Items(modality, "vector", ids, [None] * len(ids), root, list(vectors)), rows


def _kind(modality: str, values: list[str], root: Path) -> Kind:
    """Say what the values are: the names image and text decide, otherwise the values themselves do.

    Names that look like files are files also where none is found: to encode the *names* would look like success.
    """
    if modality in ("image", "text"):
        return "image" if modality == "image" else "text"
    if Path(values[0]).suffix.lower() in IMAGE_SUFFIXES:
        return "image"
    look = values[:100]
    like_files = sum(bool(_FILE_NAME.search(value)) for value in look) >= 0.9 * len(look)
    return "file" if like_files or any(is_file(root / value) for value in look) else "text"


def content_hash(content: bytes) -> str:
    """Return a stable key of some content, 16 hexadecimal digits."""
    return blake2b(content, digest_size=8).hexdigest()
