"""Latents: pairs joined to the latents of their items. What `extract` returns and `fit` takes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fusemix.data.pairs import Pairs, Rows, content_hash, group_codes, random_splits
from fusemix.data.rows import LatentRows
from fusemix.data.store import LatentStore
from fusemix.errors import DataError, StoreError, choices


class LateTable:
    """A table that is read when it is first looked at; taking rows of it reads nothing.

    Args:
        read: gives the table.
    """

    def __init__(self, read: Callable[[], pa.Table]) -> None:
        self._read = read

    @cached_property
    def table(self) -> pa.Table:
        """The table itself, kept from now on."""
        return self._read()

    def take(self, rows: NDArray[np.int64]) -> "LateTable":
        """Return some of the rows, in this order."""
        return LateTable(lambda: self.table.take(pa.array(rows)))


@dataclass(frozen=True)
class ItemLatents:
    """Latents of the distinct items of one modality; latents, ids and values are read when they are looked at.

    Attributes:
        modality: the user's word.
        kind: what the raw items are, see `data.pairs.Kind`.
        late: columns id (stable keys) and value (file names or texts; null where there is nothing to show), n rows.
        rows: (n, D) latents, where they lie.
        encoder: fingerprint of the encoder.
        source: how to load the encoder again.
        root: folder that file names are relative to.
        canaries: (16, D) latents of the encoder's canary items; None where it has none.
        decode: fingerprint of the user's own decoder; None for ours.
        columns: the user's plain columns and the split, n rows, of the first pair that each item occurs in; None where
            it is not known in which pairs.
    """

    modality: str
    kind: str
    late: LateTable
    rows: LatentRows
    encoder: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    root: Path = Path()
    canaries: Tensor | None = None
    decode: dict[str, Any] | None = None
    columns: LateTable | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def items(self) -> pa.Table:
        """Columns id and value, n rows.

        Raises:
            StoreError: the list of items is damaged.
        """
        return self.late.table

    @cached_property
    def ids(self) -> list[str]:
        """N stable keys."""
        return list(self.items["id"].to_pylist())

    @cached_property
    def values(self) -> list[str | None]:
        """N file names or texts; None where there is nothing to show."""
        return list(self.items["value"].to_pylist())

    @property
    def latents(self) -> Tensor:
        """(n, D) as one tensor; several shards are gathered into memory, see `LatentRows.whole`."""
        return self.rows.whole()

    def select(self, rows: NDArray[np.int64]) -> "ItemLatents":
        """Return some of the items, in this order; reads nothing."""
        columns = self.columns.take(rows) if self.columns is not None else None
        return replace(self, late=self.late.take(rows), rows=self.rows.select(rows), columns=columns)

    def numpy(self) -> NDArray[Any]:
        """(n, D) as a numpy array."""
        array: NDArray[Any] = self.latents.numpy()
        return array


@dataclass(frozen=True)
class Latents:
    """Pairs of items with latents.

    Attributes:
        items: of each modality.
        rows: for each modality (N,) int64, the item of each pair.
        groups: (N,) int64; pairs of one group stay in one split.
        splits: (N,) of "train", "val", "test" or the table's own words.
        late: the user's plain columns, N rows, read when they are looked at.
    """

    items: dict[str, ItemLatents]
    rows: dict[str, Rows]
    groups: Rows
    splits: NDArray[np.str_]
    late: LateTable

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, modality: str) -> ItemLatents:
        """Items of one modality that occur in these pairs, in order of their place in the store."""
        if modality not in self.items:
            raise DataError(f"no modality {modality!r} in these latents; {choices(modality, self.items)}")
        items, (keep, first) = self.items[modality], np.unique(self.rows[modality], return_index=True)
        chosen = items if len(keep) == len(items) else items.select(keep)
        return replace(chosen, columns=LateTable(lambda: self._columns(first)))

    def _columns(self, pairs: NDArray[np.int64]) -> pa.Table:
        table = self.table.take(pa.array(pairs))
        return table if "split" in table.column_names else table.append_column("split", pa.array(self.splits[pairs]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.items)

    @property
    def table(self) -> pa.Table:
        """The user's plain columns, N rows."""
        return self.late.table

    @property
    def modalities(self) -> tuple[str, ...]:
        """The user's words, in the order they were given."""
        return tuple(self.items)

    @property
    def split_name(self) -> str:
        """The split that all pairs belong to, or the names of all of them."""
        return "+".join(np.unique(self.splits).tolist())

    def take(self, keep: NDArray[Any]) -> "Latents":
        """Return some of the pairs: a mask (N,) or row numbers."""
        keep = np.flatnonzero(keep) if keep.dtype == bool else keep
        rows = {modality: rows[keep] for modality, rows in self.rows.items()}
        late = self.late.take(keep)
        return replace(self, rows=rows, groups=self.groups[keep], splits=self.splits[keep], late=late)

    def only(self, split: str) -> "Latents":
        """Return the pairs of one split.

        Raises:
            DataError: no pair has this split.
        """
        keep = self.splits == split
        if not keep.any():
            raise DataError(f"there is no split {split!r}; {choices(split, np.unique(self.splits).tolist())}")
        return self.take(keep)

    def split(
        self, group_by: str | None = None, fractions: tuple[float, float, float] | None = None, seed: int = 0
    ) -> tuple["Latents", "Latents", "Latents"]:
        """Return the pairs of train, val and test; a part can be empty.

        Args:
            group_by: column whose equal values must stay in one split; makes a new split.
            fractions: shares of the groups; makes a new split. Without both, the splits are the recorded ones.
            seed: of a new split.
        """
        splits, groups = self.splits, self.groups
        if group_by is not None:
            if group_by not in self.table.column_names:
                raise DataError(f"no column {group_by!r} to group by; {choices(group_by, self.table.column_names)}")
            groups = group_codes(self.table[group_by])
        if group_by is not None or fractions is not None:
            splits = random_splits(groups, fractions or (0.8, 0.1, 0.1), seed)
        whole = replace(self, groups=groups, splits=splits)
        train, val, test = (whole.take(splits == name) for name in ("train", "val", "test"))
        return train, val, test

    @classmethod
    def from_arrays(cls, split: str = "arrays", **arrays: ArrayLike) -> "Latents":
        """Pair arrays row by row. Equal rows of an array are one item, as an image is that has five captions.

        Args:
            split: name to give these pairs.
            **arrays: modality=(N, D) array; the same N everywhere. Rows that share an item of the first are one group,
                of which no part is held out to judge the others.

        Raises:
            DataError: no numbers, shapes that do not pair, or values that are not finite.
        """
        tensors = {name: _floats(name, array) for name, array in arrays.items()}
        for name, tensor in tensors.items():
            if tensor.ndim != 2:
                raise DataError(f"{name}: wanted latents of shape (N, D), got {tuple(tensor.shape)}")
            if not bool(tensor.isfinite().all()):
                row = int((~tensor.isfinite().all(dim=1)).nonzero()[0])
                raise DataError(f"{name}: row {row} holds NaN or infinity; drop or mend such rows in both modalities")
        sizes = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"row i of each array must belong together, but the arrays have {sizes} rows")
        count = next(iter(sizes.values()), 0)
        numbers = np.arange(count)
        items, rows = {}, {}
        for name, tensor in tensors.items():
            items[name], rows[name] = _vectors(name, tensor)
        late = LateTable(lambda: pa.table({"row": numbers}))
        return cls(items, rows, next(iter(rows.values()), numbers), np.full(count, split), late)


def _floats(modality: str, array: ArrayLike | Tensor) -> Tensor:
    """Return an array as float32 on the CPU, a copy."""
    if isinstance(array, Tensor):
        return array.detach().cpu().float().clone()
    try:
        return torch.from_numpy(np.array(np.asarray(array), dtype=np.float32))
    except (ValueError, TypeError) as error:
        raise DataError(f"{modality}: wanted an array (N, D) of numbers, got {type(array).__name__}: {error}") from None


def _vectors(modality: str, tensor: Tensor) -> tuple[ItemLatents, NDArray[np.int64]]:
    """Make distinct items of latents (N, D) that came without any, and return the item of each; ids are hashes."""
    hashes = [content_hash(row.tobytes()) for row in tensor.numpy()]
    item_of = {id_: item for item, id_ in enumerate(dict.fromkeys(hashes))}
    rows = np.array([item_of[id_] for id_ in hashes], np.int64)
    table = pa.table({"id": pa.array([*item_of], pa.string()), "value": pa.nulls(len(item_of), pa.string())})
    first = torch.from_numpy(np.unique(rows, return_index=True)[1])
    return ItemLatents(modality, "vector", LateTable(lambda: table), LatentRows.of(tensor[first])), rows


def as_latents(x: Latents | ArrayLike, y: ArrayLike | None = None) -> Latents:
    """Return latents as they are, or pair two arrays row by row.

    Raises:
        DataError: one array alone, or latents and an array.
    """
    if isinstance(x, Latents):
        if y is not None:
            raise DataError("Latents hold both sides of the pairs: give validation pairs as val=")
        return x
    if y is None:
        raise DataError("wanted Latents, or two arrays whose rows belong together, got one array")
    return Latents.from_arrays(x=x, y=y)


def open_latents(folder: str | Path, modalities: Sequence[str] | None = None) -> Latents:
    """Open what `extract` wrote: the rows of the table that have a latent of each modality.

    Args:
        folder: of the latents.
        modalities: look at these alone, so that a row may lack any other; None is all of them.

    Raises:
        DataError: no such modality.
        StoreError: nothing there, an extraction that did not finish, or a damaged file; it says what to do.
    """
    folder = Path(folder)
    if not (folder / "pairs.parquet").is_file():
        raise StoreError(
            f"{folder} holds no latents (no pairs.parquet); make them with `fusemix extract ... -o {folder}`"
        )
    opened = _OpenPairs.of(folder / "pairs.parquet")
    items, rows = {}, {}
    for modality in opened.places if modalities is None else dict.fromkeys(modalities):
        if modality not in opened.places:
            raise DataError(f"no modality {modality!r} in {folder}; {choices(modality, opened.places)}")
        places = opened.places[modality]
        store = LatentStore.open(store_folder(folder, modality))
        if len(places) and not -1 <= places.min() <= places.max() < store.facts.count:
            raise StoreError(f"{opened.path} is not of the items in {store.folder}; delete it and extract again")
        items[modality], rows[modality] = _items(store, opened.root), _rows(store, places)
    whole = Latents(items, rows, opened.groups, opened.splits, LateTable(opened.plain))
    pa.default_memory_pool().release_unused()  # what decoding took and gave back would stay with the process
    paired = np.all([row >= 0 for row in rows.values()], axis=0)
    return whole if paired.all() else whole.take(paired)


@dataclass(frozen=True)
class _OpenPairs:
    """What pairs.parquet says of the pairs. The user's columns are read later, if at all.

    The file stays open: who extracts again puts another in its place, and columns read from that would not fit.
    """

    path: Path
    file: pa.parquet.ParquetFile
    root: Path
    groups: Rows
    splits: NDArray[np.str_]
    places: dict[str, Rows]  # for each modality (N,) the item of each pair, encoded or not; -1 where there is none

    @classmethod
    def of(cls, path: Path) -> "_OpenPairs":
        try:
            file = pa.parquet.ParquetFile(path, read_dictionary=["fusemix.split"], pre_buffer=False)
            meta = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
            modalities = meta["fusemix.modalities"].split("\n")
            own = ["fusemix.group", "fusemix.split", *(f"fusemix.item.{modality}" for modality in modalities)]
            table = file.read(own, use_threads=False)
            split = table["fusemix.split"].unify_dictionaries().combine_chunks()
            splits = np.array(split.dictionary.to_pylist(), dtype=str)[np.from_dlpack(split.indices)]
            places = {modality: _numbers(table[f"fusemix.item.{modality}"]) for modality in modalities}
            return cls(path, file, Path(meta["fusemix.root"]), _numbers(table["fusemix.group"]), splits, places)
        except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError, TypeError, BufferError) as error:
            raise StoreError(f"{path} is damaged or not of fusemix ({error}); delete it and extract again") from error

    def plain(self) -> pa.Table:
        """Read the user's columns."""
        names = [name for name in self.file.schema_arrow.names if not name.startswith("fusemix.")]
        try:
            return self.file.read(names).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.path} is damaged ({error}); delete it and extract again") from error


def _items(store: LatentStore, root: Path) -> ItemLatents:
    """Join the encoded items of a store to their latents; reads neither."""
    facts, late = store.facts, LateTable(lambda: store.items)
    return ItemLatents(
        facts.modality,
        facts.kind,
        late.take(store.encoded) if store.failures else late,
        store.rows,
        facts.encoder,
        facts.source,
        root,
        store.canaries,
        facts.decode,
    )


def _rows(store: LatentStore, places: Rows) -> Rows:
    """Return the row of the latent of each item, -1 where there is none."""
    if not store.failures:
        return places
    row_of = np.full(store.facts.count + 1, -1)  # the last entry is what an empty cell, -1, looks up
    row_of[store.encoded] = np.arange(len(store.encoded))
    return row_of[places]


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column without nulls as it lies in memory; pyarrow's own `to_numpy` first imports pandas."""
    return np.from_dlpack(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def pairs_file(pairs: Pairs) -> bytes:
    """Return the content of pairs.parquet: the user's columns and, under "fusemix.", item numbers, group and split."""
    table = pairs.table
    numbers = {**{f"fusemix.item.{name}": rows for name, rows in pairs.rows.items()}, "fusemix.group": pairs.groups}
    for name, column in {**numbers, "fusemix.split": pairs.splits.tolist()}.items():
        array = pa.array(column)
        table = table.append_column(pa.field(name, array.type, nullable=False), array)
    root = next(iter(pairs.items.values())).root.resolve()
    meta = {"fusemix.modalities": "\n".join(pairs.items), "fusemix.root": str(root)}
    sink = pa.BufferOutputStream()
    # Numbers that mostly count up are half as long, and read three times as fast, as differences without nulls.
    encodings = dict.fromkeys(numbers, "DELTA_BINARY_PACKED")
    words = [name for name in table.column_names if name not in numbers]
    pa.parquet.write_table(table.replace_schema_metadata(meta), sink, use_dictionary=words, column_encoding=encodings)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def store_folder(folder: Path, modality: str) -> Path:
    """Return the one store of a modality.

    Raises:
        StoreError: there is none, or there are several.
    """
    found = sorted(path.parent for path in (folder / modality).glob("*/facts.json"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise StoreError(
            f"{folder} lacks the latents of {modality!r}: the extraction did not finish; run the same command again"
        )
    names = ", ".join(path.name for path in found)
    raise StoreError(
        f"{folder / modality} holds the latents of {len(found)} encoders ({names}); keep one and delete the others"
    )
