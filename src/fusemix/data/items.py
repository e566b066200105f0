"""Items: the distinct values of one column, what kind of thing they are and where their bytes lie."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from fusemix.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Reason, Source, Span, is_file
from fusemix.errors import DataError

Kind = Literal["image", "text", "audio", "video", "file", "vector"]
"""What a raw item is: a picture, a string, a sound, a video, any other file, or a vector of numbers."""

Rows = NDArray[np.int64]
SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
}
_NAMES: dict[str, Kind] = {"image": "image", "audio": "audio", "sound": "audio", "video": "video"}
_LOOK = 100  # values that are looked at to tell what a column holds
_FILE_NAME = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_SPAN = re.compile(r"(.+\.tar)#(\d{1,18})\+(\d{1,18})", re.DOTALL | re.IGNORECASE)
_MAGIC: tuple[tuple[re.Pattern[bytes], Kind], ...] = (
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP|P[1-6]\s", re.DOTALL), "image"),
    (re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|....ftypM4[AB]", re.DOTALL), "audio"),
    (re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |\x00\x00\x01[\xb3\xba]", re.DOTALL), "video"),
)


class Problem(NamedTuple):
    """Something that a reader had to leave out; it has no row, or leaves a cell of its row empty.

    Attributes:
        id: what it is, as "000.tar/key.jpg".
        reason: one of the closed set, see `data.media.Reason`.
        message: what is wrong with it.
    """

    id: str
    reason: Reason
    message: str


class Reading(NamedTuple):
    """What a reader makes of a source.

    Attributes:
        table: N rows.
        root: folder that the file names are relative to.
        problems: what could not be read.
        spans: columns whose cells name members of tars: for each, N places such as "000.tar#512+1034".
    """

    table: pa.Table
    root: Path
    problems: list[Problem]
    spans: dict[str, pa.Array]


class Embedded(Sequence[bytes | None]):
    """Content of the distinct items of a column that embeds its files; it stays in Arrow's memory, or on disk.

    Args:
        column: N values.
        rows: (n,) int64, the row that each distinct item is taken from.
    """

    def __init__(self, column: pa.ChunkedArray, rows: Rows) -> None:
        self._column, self._rows = column, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> bytes | None: ...
    @overload
    def __getitem__(self, i: slice) -> "Embedded": ...
    def __getitem__(self, i: int | slice) -> "bytes | Embedded | None":
        if isinstance(i, slice):
            return Embedded(self._column, self._rows[i])
        content: bytes | None = self._column[int(self._rows[i])].as_py()
        return content


@dataclass(frozen=True)
class Items:
    """The distinct items of one modality, in order of first appearance.

    Attributes:
        name: the modality, in the user's own word.
        kind: what the values are.
        ids: stable keys: the file name as the table writes it, or a hash of the text, vector or embedded content.
        values: n strings: texts, file names, or parts of tars as "000.tar#512+1034"; None where there is no such name.
        root: folder that file names are relative to.
        vectors: n precomputed latents (D,), or None: then an encoder makes them from the values.
        content: n entries of bytes where the table embeds the files; None for all, or for one, that is a file.
    """

    name: str
    kind: Kind
    ids: list[str]
    values: list[Any]
    root: Path
    vectors: list[Any] | None = None
    content: Sequence[bytes | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def source(self, i: int) -> Source:
        """Return where the bytes of item `i` are, for an item that is neither a text nor a vector."""
        content = self.content[i] if self.content is not None else None
        if content is not None:
            return content
        return located(self.root / self.values[i])


def located(path: Path) -> Path | Span:
    """Return the part of a tar that a path such as "000.tar#512+1034" means, or the path itself."""
    part = _SPAN.fullmatch(str(path))
    return Span(Path(part[1]), int(part[2]), int(part[3])) if part else path


def path_of(root: Path, value: str | None) -> str | None:
    """Return where an item lies; the name of a file that a table embeds is no file here."""
    if value is None:
        return None
    place = located(root / value)
    return str(root / value) if is_file(place.path if isinstance(place, Span) else place) else None


def distinct(modality: str, name: str, column: pa.ChunkedArray, reading: Reading) -> tuple[Items, Rows]:
    """Number the distinct values of a column in order of first appearance.

    Args:
        modality: the user's word.
        name: of the column.
        column: N values: texts, file names, numbers, vectors, bytes, or the struct of bytes and path of Hugging Face.
        reading: where the column comes from.

    Returns:
        The items, and (N,) the item of each row; -1 for an empty cell.

    Raises:
        DataError: a column that is empty everywhere or holds something else.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
        kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return _distinct_vectors(modality, name, column, reading.root)
    if is_binary(kind):
        return _distinct_content(modality, name, column, None, reading.root)
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        content, path = (pa.compute.struct_field(column, part) for part in ("bytes", "path"))
        if content.null_count < len(content) and is_binary(content.type):
            return _distinct_content(modality, name, content, path.cast(pa.string()), reading.root)
        column, kind = path, path.type
    if pa.types.is_nested(kind):
        raise DataError(f"column {name!r} holds {kind}; wanted text, file names, embedded files or lists of numbers")
    return _distinct_strings(modality, name, column, reading)


def is_binary(kind: pa.DataType) -> bool:
    """Tell whether the values are bytes."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def content_hash(content: bytes) -> str:
    """Return a stable key of some content, 16 hexadecimal digits."""
    return blake2b(content, digest_size=8).hexdigest()


def _distinct_strings(modality: str, name: str, column: pa.ChunkedArray, reading: Reading) -> tuple[Items, Rows]:
    # Offsets of 32 bits do not reach beyond 2 GB of text.
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    rows = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = encoded.dictionary.to_pylist()
    blank = np.array([not value.strip() for value in values] + [True])  # the last is what -1 looks up
    number = np.cumsum(~blank) - 1
    rows = np.where(blank[rows], -1, number[rows])
    values = [value for value in values if value.strip()]
    if not values:
        raise DataError(f"column {name!r} is empty in all {len(rows)} rows")
    spans = reading.spans.get(name)
    kind = _kind(modality, values, reading.root, files=spans is not None)
    if kind == "text":
        return Items(modality, kind, [content_hash(value.encode()) for value in values], values, reading.root), rows
    ids = values
    if spans is not None:
        filled = np.flatnonzero(rows >= 0)
        values = spans.take(pa.array(filled[np.unique(rows[filled], return_index=True)[1]])).to_pylist()
    return Items(modality, kind, ids, values, reading.root), rows


def _distinct_content(
    modality: str, name: str, column: pa.ChunkedArray, paths: pa.ChunkedArray | None, root: Path
) -> tuple[Items, Rows]:
    """The same for embedded files: one item for the same bytes, or for the same path where there are no bytes."""
    if modality == "text":
        raise DataError(
            f"column {name!r} holds {column.type}; wanted text: a modality of bytes cannot be called 'text'"
        )
    names: list[Any] = paths.to_pylist() if paths is not None else [None] * len(column)
    numbers: dict[tuple[str, bool], int] = {}
    first: list[int] = []
    rows = np.full(len(column), -1, dtype=np.int64)
    for i, value in enumerate(column):
        content = value.as_py()
        if content is None and not (names[i] or "").strip():
            continue
        key = (names[i], False) if content is None else (content_hash(content), True)
        rows[i] = numbers.setdefault(key, len(first))
        if rows[i] == len(first):
            first.append(i)
    if not first:
        raise DataError(f"column {name!r} is empty in all {len(rows)} rows")
    values = [names[i] for i in first]
    # A path that two contents share, or that is missing, names nothing.
    ids = values if all(values) and len(set(values)) == len(values) else [key for key, _ in numbers]
    content = Embedded(column, np.array(first))
    kind = _content_kind(modality, [content[i] for i in range(min(len(content), _LOOK))], values)
    return Items(modality, kind, ids, values, root, content=content), rows


def _distinct_vectors(modality: str, name: str, column: pa.ChunkedArray, root: Path) -> tuple[Items, Rows]:
    """The same for a column of precomputed vectors."""
    numbers: dict[bytes, int] = {}
    vectors: list[NDArray[np.float32]] = []
    rows = np.full(len(column), -1, dtype=np.int64)
    for i, value in enumerate(column):
        if not value.is_valid:
            continue
        try:
            vector = np.asarray(value.values.to_numpy(zero_copy_only=False), dtype=np.float32)
        except (TypeError, ValueError) as error:
            hint = f"; for texts write a row each, in pandas: frame.explode({name!r})"
            raise DataError(f"column {name!r}, row {i + 1}: not a list of numbers ({error}){hint}") from error
        rows[i] = numbers.setdefault(vector.tobytes(), len(vectors))
        if rows[i] == len(vectors):
            vectors.append(vector)
    sizes = {len(vector) for vector in vectors}
    if len(sizes) != 1:
        raise DataError(f"column {name!r}: the vectors must have one length, found {sorted(sizes) or 'none'}")
    ids = [content_hash(key) for key in numbers]
    return Items(modality, "vector", ids, [None] * len(ids), root, list(vectors)), rows


def _kind(modality: str, values: list[str], root: Path, files: bool) -> Kind:
    """Say what the values are: the names image and text decide, otherwise the values themselves do.

    Names that look like files are files also where none is found: to encode the *names* would look like success.
    """
    if modality == "image" or (modality == "text" and not files):
        return "image" if modality == "image" else "text"
    look = values[:_LOOK]
    suffixes = [Path(value).suffix.lower() for value in look]
    named = _NAMES.get(modality)
    known = Counter(SUFFIXES[suffix] for suffix in suffixes if suffix in SUFFIXES).most_common(1)
    if known and known[0][1] >= 0.9 * len(look):
        return named or known[0][0]
    like_files = sum(bool(_FILE_NAME.search(value)) for value in look) >= 0.9 * len(look)
    if files or like_files or any(is_file(root / value) for value in look):
        return named or "file"
    return "text"


def _content_kind(modality: str, contents: Sequence[bytes | None], names: Sequence[str | None]) -> Kind:
    """Say what embedded files are: by their first bytes, else by their names, else by the modality."""
    found: Counter[Kind] = Counter()
    for content, name in zip(contents, names, strict=False):
        kind = next((kind for magic, kind in _MAGIC if content and magic.match(content[:16])), None)
        kind = kind or SUFFIXES.get(Path(name or "").suffix.lower())
        if kind is not None:
            found[kind] += 1
    named = _NAMES.get(modality)
    if not found:
        return named or "file"
    kind = found.most_common(1)[0][0]
    return "audio" if named == "audio" and kind == "video" else kind  # the sound track of a video
