"""LatentStore: one encoder's latents of one modality on disk.

    facts.json              what was encoded, by what, in which precision; written once, first
    items.parquet           id and value of every item, in order; written once
    shard-00000.safetensors latents of the items 0..shard_items-1 that could be encoded, and who could not and why

A shard describes itself and is committed by one rename, so there is no second file that could disagree with it. Its
place in the plan decides its items and its batches: a run that was killed goes on with the missing shards and ends
with the same bytes. Nothing that was committed is written again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fusemix import durable
from fusemix.data.media import Reason
from fusemix.data.pairs import Items
from fusemix.errors import MismatchError, StoreError

FORMAT = "fusemix-latents-1"


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
        dtype: precision on disk, "float16" or "float32".
    """

    modality: str
    kind: str
    encoder: dict[str, Any]
    source: str
    count: int
    items: str
    shard_items: int
    dtype: str

    def to_json(self) -> bytes:
        """Return the content of facts.json; the same facts always give the same bytes."""
        return (json.dumps({"format": FORMAT, **self.__dict__}, indent=2, sort_keys=True) + "\n").encode()


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
    def create(cls, folder: Path, facts: Facts, items: Items) -> "LatentStore":
        """Start a store, or go on with one that has the same facts.

        Raises:
            MismatchError: the folder holds latents that were made differently; it names what differs.
        """
        durable.remove_leftovers(folder)
        if (folder / "facts.json").exists():
            store = cls.open(folder)
            for name, new in facts.__dict__.items():
                old = getattr(store.facts, name)
                if old != new and name != "source":  # the same encoder may be called by another path
                    raise MismatchError(
                        f"{folder} holds latents made with another {difference(old, new, name)}; "
                        "give another output folder, or delete this one to start again"
                    )
            return store
        table = pa.table({"id": items.ids, "value": pa.array(items.values, pa.string())})
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(table, sink)
        durable.write(folder / "items.parquet", sink.getvalue().to_pybytes())
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
        return [shard for shard in range(self.shards) if not self._sound(shard)]

    def commit(self, shard: int, items: Sequence[int], latents: NDArray[Any], failures: Sequence[Failure]) -> None:
        """Write one shard, whole or not at all.

        Args:
            shard: its number.
            items: (n,) places of the encoded items, ascending.
            latents: (n, D), cast to the precision of the store.
            failures: the rest of the shard's items.

        Raises:
            StoreError: the latents do not fit into float16.
        """
        assert len(items) + len(failures) == len(self.items_of(shard)), "in = ok + failed"
        stored = torch.from_numpy(np.ascontiguousarray(latents)).to(getattr(torch, self.facts.dtype))
        if not bool(stored.isfinite().all()):
            peak = float(np.abs(latents).max())
            raise StoreError(
                f"{self.facts.modality}: latents up to {peak:.3g} do not fit {self.facts.dtype}; use dtype float32"
            )
        tensors = {"latents": stored, "items": torch.tensor(list(items), dtype=torch.int64)}
        durable.write(self._path(shard), save(tensors, self._header(shard, tensors, failures)))

    @cached_property
    def _parts(self) -> list[tuple[Tensor, Tensor, list[Failure]]]:
        """(items, latents, failures) of every shard; latents stay on disk until they are touched."""
        return [self._read(shard) for shard in range(self.shards)]

    @cached_property
    def latents(self) -> Tensor:
        """(n, D) of all encoded items, in order; one shard is mapped, several are gathered into memory."""
        parts = [latents for _, latents, _ in self._parts if len(latents)]
        if not parts:
            raise StoreError(f"{self.folder}: none of {self.facts.count:,} items could be encoded; see failed.parquet")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @cached_property
    def encoded(self) -> NDArray[np.int64]:
        """(n,) place of each row of `latents` among all items."""
        return torch.cat([items for items, _, _ in self._parts]).numpy()

    @property
    def failures(self) -> list[Failure]:
        """Items without a latent."""
        return [failure for _, _, failures in self._parts for failure in failures]

    @cached_property
    def items(self) -> pa.Table:
        """Columns id and value of all items, encoded or not."""
        path = self.folder / "items.parquet"
        try:
            return pa.parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path} is damaged ({error}); delete {self.folder} and extract again") from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _header(self, shard: int, tensors: dict[str, Tensor], failures: Sequence[Failure]) -> dict[str, str]:
        """Return what a shard says of itself: whose it is, who failed, and a checksum of everything."""
        record = {
            "facts": sha256(self.facts.to_json()).hexdigest(),
            "shard": shard,
            "failed": [[f.item, f.reason, f.message] for f in failures],
        }
        digest = sha256(json.dumps(record, sort_keys=True).encode())
        for name in sorted(tensors):
            digest.update(tensors[name].contiguous().numpy().tobytes())
        # One entry only: safetensors writes several in random order, and no two runs would give the same bytes.
        return {"record": json.dumps({**record, "sha256": digest.hexdigest()}, sort_keys=True)}

    def _sound(self, shard: int) -> bool:
        """Tell whether a shard is there and its checksum holds."""
        try:
            items, latents, failures = self._read(shard)
        except StoreError:
            return False
        with safe_open(self._path(shard), framework="pt") as file:
            committed: dict[str, str] = file.metadata()
        return committed == self._header(shard, {"latents": latents, "items": items}, failures)

    def _read(self, shard: int) -> tuple[Tensor, Tensor, list[Failure]]:
        """Map one shard."""
        path = self._path(shard)
        if not path.exists():
            raise StoreError(
                f"{self.folder}: shard {shard + 1} of {self.shards} is missing, the extraction did not finish; "
                "run the same `fusemix extract` again, it does only what is missing"
            )
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["record"])
                owner = record["facts"], record["shard"]
                failures = [Failure(*entry) for entry in record["failed"]]
                items, latents = file.get_tensor("items"), file.get_tensor("latents")
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"{path} is damaged ({error}); run the same `fusemix extract` again, it does this shard anew"
            ) from error
        if owner != (sha256(self.facts.to_json()).hexdigest(), shard):
            raise StoreError(
                f"{path} belongs to another store or place than this; run the same `fusemix extract` again, "
                "it does this shard anew"
            )
        return items, latents, failures


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
