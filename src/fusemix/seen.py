"""Which items a model has seen, so that an evaluation on them can say so: hashes of their ids, never the ids."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from fusemix.data.latents import ItemLatents, Latents

USES = {
    "trained on": "no measure of these",
    "used to choose": "slightly in our favour",
    "learned from without their partners": "in our favour",
}


def note_seen(train: Latents, val: Latents | None, unpaired: Mapping[str, Sequence[ItemLatents]]) -> dict[str, Tensor]:
    """Return the hashes (n,) of the items of all three, under USE/NAME for each use of USES."""
    seen = {}
    for name in train.modalities:
        items = [train[name]], [val[name]] if val is not None else [], unpaired.get(name, ())
        for use, parts in zip(USES, items, strict=True):
            none = torch.empty(0, dtype=torch.int64)
            seen[f"{use}/{name}"] = torch.cat([none, *map(id_hashes, parts)])
    return seen


def overlap(seen: dict[str, Tensor], latents: Latents) -> list[str]:
    """Say which of the items to measure on the model has seen, and how."""
    notes = []
    for use, meaning in USES.items():
        for name in latents.modalities:
            ids = id_hashes(latents[name])
            count = int(torch.isin(ids, seen[f"{use}/{name}"]).sum())
            if count:
                notes.append(f"{count:,} of {len(ids):,} {name} items were {use}: {meaning}")
    return notes


def id_hashes(items: ItemLatents) -> Tensor:
    """Return a 64-bit hash of the id of each item, (n,) int64."""
    hashes = torch.empty(len(items), dtype=torch.int64)
    done = 0
    for block in items.items.select(["id"]).to_batches(max_chunksize=8192):  # so many Python strings at a time
        digests = b"".join(blake2b(id_.encode(), digest_size=8).digest() for id_ in block["id"].to_pylist())
        hashes[done : done + len(block)] = torch.from_numpy(np.frombuffer(digests, dtype="<i8").astype(np.int64))
        done += len(block)
    return hashes
