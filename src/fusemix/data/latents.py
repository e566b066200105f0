"""Latents: pairs joined to the latents of their items. What `extract` returns and `fit` takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fusemix.data.pairs import Pairs, Rows, content_hash, group_codes, random_splits
from fusemix.data.store import LatentStore
from fusemix.errors import DataError, StoreError, choices


@dataclass(frozen=True)
class ItemLatents:
    """Latents of the distinct items of one modality.

    Attributes:
        modality: the user's word.
        kind: what the raw items are, see `data.pairs.Kind`.
        ids: n stable keys.
        values: n file names or texts; None where there is nothing to show.
        latents: (n, D).
        encoder: fingerprint of the encoder.
        source: how to load the encoder again.
        root: folder that file names are relative to.
        canaries: (16, D) latents of the encoder's canary items; None where it has none.
        decode: fingerprint of the user's own decoder; None for ours.
    """

    modality: str
    kind: str
    ids: list[str]
    values: list[str | None]
    latents: Tensor
    encoder: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    root: Path = Path()
    canaries: Tensor | None = None
    decode: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

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
        table: the user's plain columns, N rows.
    """

    items: dict[str, ItemLatents]
    rows: dict[str, Rows]
    groups: Rows
    splits: NDArray[np.str_]
    table: pa.Table

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, modality: str) -> ItemLatents:
        """Items of one modality that occur in these pairs, in order of their place in the store."""
        if modality not in self.items:
            raise DataError(f"no modality {modality!r} in these latents; {choices(modality, self.items)}")
        items, keep = self.items[modality], np.unique(self.rows[modality])
        if len(keep) == len(items):
            return items
        return replace(
            items,
            ids=[items.ids[i] for i in keep],
            values=[items.values[i] for i in keep],
            latents=items.latents[torch.from_numpy(keep)],
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.items)

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
        table = self.table.take(pa.array(keep))
        return replace(self, rows=rows, groups=self.groups[keep], splits=self.splits[keep], table=table)

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
        """Pair arrays row by row.

        Args:
            split: name to give these pairs.
            **arrays: modality=(N, D) array; the same N everywhere.

        Raises:
            DataError: shapes that do not pair, or values that are not finite.
        """
        tensors = {
            name: torch.from_numpy(np.array(np.asarray(array), dtype=np.float32)) for name, array in arrays.items()
        }
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
        items = {}
        for name, tensor in tensors.items():
            ids = [content_hash(row.tobytes()) for row in tensor.numpy()]
            items[name] = ItemLatents(name, "vector", ids, [None] * count, tensor)
        numbers = np.arange(count)
        table = pa.table({"row": numbers})
        return cls(items, dict.fromkeys(arrays, numbers), numbers, np.full(count, split), table)


def open_latents(folder: str | Path) -> Latents:
    """Open what `extract` wrote.

    Raises:
        StoreError: nothing there, an extraction that did not finish, or a damaged file; it says what to do.
    """
    folder = Path(folder)
    if not (folder / "pairs.parquet").is_file():
        raise StoreError(
            f"{folder} holds no latents (no pairs.parquet); make them with `fusemix extract ... -o {folder}`"
        )
    try:
        table = pa.parquet.read_table(folder / "pairs.parquet")
        meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        modalities = meta["fusemix.modalities"].split("\n")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreError(
            f"{folder / 'pairs.parquet'} is damaged or not of fusemix ({error}); delete it and extract again"
        ) from error
    groups, splits = table["fusemix.group"].to_numpy(), table["fusemix.split"].to_numpy().astype(str)
    items, rows = {}, {}
    for modality in modalities:
        store = LatentStore.open(store_folder(folder, modality))
        kept = store.items.take(pa.array(store.encoded))
        facts = store.facts
        items[modality] = ItemLatents(
            modality,
            facts.kind,
            kept["id"].to_pylist(),
            kept["value"].to_pylist(),
            store.latents,
            facts.encoder,
            facts.source,
            Path(meta["fusemix.root"]),
            store.canaries,
            facts.decode,
        )
        place = np.full(facts.count + 1, -1)  # the last entry is what an empty cell, -1, looks up
        place[store.encoded] = np.arange(len(store.encoded))
        rows[modality] = place[table[f"fusemix.item.{modality}"].to_numpy()]
    plain = table.select([name for name in table.column_names if not name.startswith("fusemix.")])
    whole = Latents(items, rows, groups, splits, plain.replace_schema_metadata(None))
    return whole.take(np.all([row >= 0 for row in rows.values()], axis=0))


def pairs_file(pairs: Pairs) -> bytes:
    """Return the content of pairs.parquet: the user's columns and, under "fusemix.", item numbers, group and split."""
    table = pairs.table
    own = {f"fusemix.item.{name}": rows for name, rows in pairs.rows.items()}
    for name, column in {**own, "fusemix.group": pairs.groups, "fusemix.split": pairs.splits.tolist()}.items():
        table = table.append_column(name, pa.array(column))
    root = next(iter(pairs.items.values())).root.resolve()
    meta = {"fusemix.modalities": "\n".join(pairs.items), "fusemix.root": str(root)}
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table.replace_schema_metadata(meta), sink)
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
