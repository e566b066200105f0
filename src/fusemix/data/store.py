"""LatentStore: one encoder's latents of one modality on disk.

    facts.json              what was encoded, by what, in which precision; written once, first
    items.parquet           id and value of every item, in order; written once
    shard-00000.safetensors latents of the items 0..shard_items-1 that could be encoded, and who could not and why

A shard describes itself and is committed by one rename, so there is no second file that could disagree with it. Its
place in the plan decides its items and its batches: a run that was killed goes on with the missing shards and ends
with the same bytes. Nothing that was committed is written again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fusemix import durable
from fusemix.data.mapped import Mapped, damaged, read_header
from fusemix.data.media import Reason
from fusemix.data.pairs import Items
from fusemix.data.rows import LatentRows
from fusemix.errors import MismatchError, StoreError

FORMAT = "fusemix-latents-2"


@dataclass(frozen=True)
class Failure:
    """An item without a latent: its place among the items, and why."""

    item: int
    reason: Reason
    message: str


@dataclass(frozen=True)
class Facts:
    """What a store holds and how it was made.

    Attributes:
        modality: the user's word.
        kind: what the raw items are, see `data.pairs.Kind`.
        encoder: fingerprint, see `encoders.Encoder`.
        source: how to load the encoder again, or how it was called.
        count: number of items, encoded or not.
        items: SHA-256 of ids and order.
        shard_items: items per shard.
        batch_size: items per call of the encoder; the last bits of a latent depend on it.
        dtype: precision on disk, "float16" or "float32".
        decode: fingerprint of the user's own decoder; None for ours.
    """

    modality: str
    kind: str
    encoder: dict[str, Any]
    source: str
    count: int
    items: str
    shard_items: int
    batch_size: int
    dtype: str
    decode: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        """Return the content of facts.json; the same facts always give the same bytes."""
        return (json.dumps({"format": FORMAT, **self.__dict__}, indent=2, sort_keys=True) + "\n").encode()


class Encoded(NamedTuple):
    """What became of the items of one shard.

    Attributes:
        items: (n,) int64, ascending places of the items that could be encoded.
        latents: (n, D).
        batches: (n,) int32, in which batch of the shard each was encoded.
        failures: the other items, ascending.
        halved: the device had too little memory for a whole batch, so other machines may round differently.
    """

    items: NDArray[np.int64]
    latents: NDArray[Any]
    batches: NDArray[np.int32]
    failures: list[Failure]
    halved: bool = False


class Shard(NamedTuple):
    """A shard as it lies on disk, see `Encoded`; the latents stay there until they are touched."""

    items: NDArray[np.int64]
    latents: Tensor
    batches: NDArray[np.int32]
    failures: list[Failure]
    halved: bool


class Head(NamedTuple):
    """What the header of a shard says: enough to know every item, and where its latents lie.

    Attributes:
        tensors: items (n,), batches (n,) and latents (n, D), in the file.
        failures: see `Encoded`.
        halved: see `Encoded`.
        metadata: as it was committed.
    """

    tensors: dict[str, Mapped]
    failures: list[Failure]
    halved: bool
    metadata: dict[str, str]


class LatentStore:
    """Latents of the items of one modality; shards are memory-mapped.

    Attributes:
        folder: where it lies.
        facts: what it holds.
    """

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder = folder
        self.facts = facts

    @classmethod
    def create(
        cls, folder: Path, facts: Facts, items: Items, canaries: Callable[[], NDArray[Any] | None] = lambda: None
    ) -> "LatentStore":
        """Start a store, or go on with one that has the same facts.

        Args:
            folder: of the store.
            facts: what it will hold.
            items: of the modality.
            canaries: gives the latents of the encoder's canary items; only called for a new store.

        Raises:
            MismatchError: the folder holds latents that were made differently; it names what differs.
        """
        durable.remove_leftovers(folder)
        if (folder / "facts.json").exists():
            store = cls.open(folder)
            for name, new in facts.__dict__.items():
                differs = difference(getattr(store.facts, name), new, name)
                if differs and name != "source":  # the same encoder may be called by another path
                    raise MismatchError(
                        f"{folder} holds latents made with another {differs}; "
                        "give another output folder, or delete this one to start again"
                    )
            return store
        table = pa.table({"id": items.ids, "value": pa.array(items.values, pa.string())})
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(table, sink)
        durable.write(folder / "items.parquet", sink.getvalue().to_pybytes())
        answers = canaries()
        if answers is not None:
            durable.write(folder / "canaries.safetensors", save({"latents": torch.from_numpy(answers)}))
        durable.write(folder / "facts.json", facts.to_json())
        return cls(folder, facts)

    @classmethod
    def open(cls, folder: Path) -> "LatentStore":
        """Open a store, finished or not.

        Raises:
            StoreError: no store there, or its facts cannot be read.
        """
        try:
            values = json.loads((folder / "facts.json").read_bytes())
            if values.pop("format", None) != FORMAT:
                raise StoreError(f"{folder}: not in the format {FORMAT}; made by another version of fusemix?")
            return cls(folder, Facts(**values))
        except FileNotFoundError as error:
            raise StoreError(f"{folder} holds no latents (no facts.json); make them with `fusemix extract`") from error
        except (ValueError, TypeError) as error:
            raise StoreError(f"{folder / 'facts.json'} is damaged ({error}); extract into a new folder") from error

    @cached_property
    def canaries(self) -> Tensor | None:
        """(16, D) latents of the encoder's canary items, see `encoders.canaries`; None where there are none.

        Raises:
            StoreError: they are damaged.
        """
        path = self.folder / "canaries.safetensors"
        if not path.exists():
            return None
        try:
            return load(path.read_bytes())["latents"]
        except (SafetensorError, OSError, KeyError) as error:
            raise StoreError(f"{path} is damaged ({error}); delete {self.folder} and extract again") from error

    @property
    def shards(self) -> int:
        """Number of shards that a finished store has."""
        return -(-self.facts.count // self.facts.shard_items)

    def items_of(self, shard: int) -> range:
        """Return the items that a shard covers."""
        first = shard * self.facts.shard_items
        return range(first, min(first + self.facts.shard_items, self.facts.count))

    def missing(self) -> list[int]:
        """Return the shards that are not there or whose bytes are not what was committed; slow, reads everything."""
        return [shard for shard in range(self.shards) if not self.sound(shard)]

    def commit(self, shard: int, done: Encoded) -> None:
        """Write one shard, whole or not at all.

        Raises:
            StoreError: the latents do not fit into float16.
        """
        assert len(done.items) + len(done.failures) == len(self.items_of(shard)), "in = ok + failed"
        stored = torch.from_numpy(np.ascontiguousarray(done.latents)).to(getattr(torch, self.facts.dtype))
        if not bool(stored.isfinite().all()):
            peak = float(np.abs(done.latents).max())
            raise StoreError(
                f"{self.facts.modality}: latents up to {peak:.3g} do not fit {self.facts.dtype}; "
                "extract into another folder with dtype float32 (--dtype float32)"
            )
        as_stored = Shard(done.items, stored, done.batches, done.failures, done.halved)
        durable.write(self._path(shard), save(_tensors(as_stored), self._header(shard, as_stored)))

    @cached_property
    def _heads(self) -> list[Head]:
        return [self.head(shard) for shard in range(self.shards)]

    @cached_property
    def rows(self) -> LatentRows:
        """(n, D) of all encoded items, in order; they stay in their shards.

        Raises:
            StoreError: a shard is missing, damaged or of another store, or there are no latents; it says what to do.
        """
        parts = [head.tensors["latents"] for head in self._heads if head.tensors["latents"].nbytes]
        if not parts:
            raise StoreError(f"{self.folder}: none of {self.facts.count:,} items could be encoded; see failed.parquet")
        widths = sorted({part.shape[1] for part in parts})
        if len(widths) > 1:
            raise StoreError(f"{self.folder}: latents of {widths} dimensions; delete it and extract again")
        return LatentRows(parts)

    @property
    def latents(self) -> Tensor:
        """(n, D) of all encoded items, in order; one shard is mapped, several are gathered into memory."""
        return self.rows.whole()

    @cached_property
    def encoded(self) -> NDArray[np.int64]:
        """(n,) place of each row of `latents` among all items."""
        return np.delete(np.arange(self.facts.count), [failure.item for failure in self.failures])

    @property
    def failures(self) -> list[Failure]:
        """Items without a latent."""
        return [failure for head in self._heads for failure in head.failures]

    def failures_of(self, shard: int) -> list[Failure]:
        """Return what failed in a shard; nothing where the shard is not there or cannot be read."""
        try:
            return self.head(shard).failures
        except StoreError:
            return []

    @cached_property
    def items(self) -> pa.Table:
        """Columns id and value of all items, encoded or not."""
        path = self.folder / "items.parquet"
        try:
            table = pa.parquet.read_table(path, columns=["id", "value"])
            if len(table) != self.facts.count:
                raise OSError(f"{len(table):,} items, wanted {self.facts.count:,}")
            return table
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path} is damaged ({error}); delete {self.folder} and extract again") from error

    @cached_property
    def _owner(self) -> str:
        return sha256(self.facts.to_json()).hexdigest()

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _header(self, shard: int, content: Shard) -> dict[str, str]:
        """Return what a shard says of itself: whose it is, who failed, and a checksum of everything."""
        record = {
            "facts": self._owner,
            "shard": shard,
            "failed": [[f.item, f.reason, f.message] for f in content.failures],
            "halved": content.halved,
        }
        digest = sha256(json.dumps(record, sort_keys=True).encode())
        for _, tensor in sorted(_tensors(content).items()):
            digest.update(tensor.contiguous().numpy().tobytes())
        # One entry only: safetensors writes several in random order, and no two runs would give the same bytes.
        return {"record": json.dumps({**record, "sha256": digest.hexdigest()}, sort_keys=True)}

    def sound(self, shard: int) -> bool:
        """Tell whether a shard is there and its checksum holds."""
        try:
            committed, content = self.head(shard).metadata, self.read(shard)
        except StoreError:
            return False
        return committed == self._header(shard, content)

    def head(self, shard: int) -> Head:
        """Read the header of one shard, and nothing else of it.

        Raises:
            StoreError: it is not there, damaged, or of another store; it says what to do.
        """
        path, places = self._path(shard), self.items_of(shard)
        try:
            metadata, tensors = read_header(path)
            record = json.loads(metadata["record"])
            owner = record["facts"], record["shard"]
            head = Head(tensors, [Failure(*entry) for entry in record["failed"]], record["halved"], metadata)
            _check_shapes(tensors, len(places), [failure.item for failure in head.failures if failure.item in places])
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.folder}: shard {shard + 1} of {self.shards} is missing, the extraction did not finish; "
                "run the same `fusemix extract` again, it does only what is missing"
            ) from error
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(path, error) from error
        if owner != (self._owner, shard):
            raise StoreError(
                f"{path} belongs to another store or place than this; run the same `fusemix extract` again, "
                "it does this shard anew"
            )
        return head

    def read(self, shard: int) -> Shard:
        """Map one shard.

        Raises:
            StoreError: as `head`.
        """
        head = self.head(shard)
        found = {name: tensor.map() for name, tensor in head.tensors.items()}
        items, batches = found["items"].numpy(), found["batches"].numpy()
        return Shard(items, found["latents"], batches, head.failures, head.halved)


def _check_shapes(tensors: dict[str, Mapped], items: int, failed: list[int]) -> None:
    """Refuse a shard whose parts do not account for its items: in = ok + failed.

    Raises:
        ValueError: with what came.
        KeyError: a part is not there.
    """
    shapes = {name: tensors[name].shape for name in ("items", "batches", "latents")}
    count = items - len(set(failed))
    rows, *width = shapes["latents"]
    if {shapes["items"], shapes["batches"], (rows,)} != {(count,)} or len(width) != 1:
        raise ValueError(f"{items} items of which {len(failed)} failed, but {shapes}")


def _tensors(content: Shard) -> dict[str, Tensor]:
    arrays = {"items": torch.from_numpy(content.items), "batches": torch.from_numpy(content.batches)}
    return {**arrays, "latents": content.latents}


def difference(old: Any, new: Any, field: str = "") -> str | None:
    """Name the first field in which two fingerprints differ, as "config.hidden_act (was 'gelu', is 'relu')".

    Args:
        old: plain JSON values, dicts within dicts.
        new: the same.
        field: where both stand in a larger fingerprint.

    Returns:
        None when they agree.
    """
    if old == new:
        return None
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{field} (was {old!r}, is {new!r})"
    names = [
        name for name in dict.fromkeys([*old, *new]) if (name in old, old.get(name)) != (name in new, new.get(name))
    ]
    return difference(old.get(names[0]), new.get(names[0]), f"{field}.{names[0]}".removeprefix("."))
