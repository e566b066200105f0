"""Extract: run each frozen encoder once over the distinct items and keep the latents; resumable, nothing lost."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fusemix import durable
from fusemix.data.latents import Latents, open_latents, pairs_file
from fusemix.data.media import ItemError, is_file, load_image
from fusemix.data.pairs import Items, Pairs, require_files
from fusemix.data.store import Facts, Failure, LatentStore
from fusemix.encoders import Encoder, encode_batch, load_encoder
from fusemix.encoders.base import hash_json
from fusemix.encoders.vectors import Precomputed, read_vectors
from fusemix.errors import DataError, EncoderError, MismatchError, choices
from fusemix.progress import Progress, silent

EncoderSpec = str | Path | Encoder | Callable[..., Any]


def extract(
    pairs: Pairs,
    *,
    out: str | Path,
    dtype: str = "float16",
    shard_items: int = 2048,
    progress: Progress = silent,
    **encoders: EncoderSpec,
) -> Latents:
    """Encode every distinct item of the pairs once and keep the latents in a folder.

    Run again after an interruption, it does only the shards that are missing or damaged, and the files end up byte
    for byte the same. An item that cannot be used is recorded in failed.parquet with its reason; in = ok + failed.

    Args:
        pairs: from `read_pairs`.
        out: folder to write, or to go on with.
        dtype: precision on disk, "float16" or "float32".
        shard_items: items per shard: what an interruption can cost.
        progress: called after every batch.
        **encoders: modality=encoder, see `load_encoder`; a .npy file of precomputed latents; nothing for a modality
            that is a column of vectors.

    Raises:
        DataError: a modality without an encoder, an encoder without a modality, or files that are not there.
        EncoderError: an encoder that does not load or returns no latents.
        MismatchError: the folder holds latents that were made differently.
        StoreError: the disk or the precision failed.
    """
    out = Path(out)
    if dtype not in ("float16", "float32"):
        raise DataError(f"latents are kept as float16 or float32, not as {dtype!r}")
    if shard_items < 1:
        raise DataError(f"shard_items must be at least 1, got {shard_items}")
    for name in encoders:
        if name not in pairs.items:
            raise DataError(
                f"an encoder is given for {name!r}, but the pairs have no such modality; {choices(name, pairs.items)}"
            )
    sources = {name: _precomputed(pairs, name, encoders.get(name)) for name in pairs.items}
    for name, (items, _) in sources.items():
        if items.vectors is None and name not in encoders:
            raise DataError(f"no encoder for {name!r} ({items.kind} items); give {name}=ENCODER")
        require_files(items)
    durable.remove_leftovers(out)
    _write_pairs(out, pairs)
    stores: dict[str, LatentStore] = {}
    # Every encoder loads once before the first one works: a misspelt second name must not cost the hours of the first.
    for name, (items, given) in sources.items():
        stores[name] = _create(out, items, _load(items, given, encoders.get(name)), dtype, shard_items)
    for name, (items, given) in sources.items():
        missing = stores[name].missing()
        progress(f"extract {name}", len(items) - sum(len(stores[name].items_of(s)) for s in missing), len(items))
        if missing:
            # One modality at a time: this encoder leaves memory when _fill returns.
            _fill(stores[name], items, _load(items, given, encoders.get(name)), missing, progress)
    durable.write(out / "failed.parquet", _failed_file(pairs, {name: s.failures for name, s in stores.items()}))
    return open_latents(out)


def _precomputed(pairs: Pairs, name: str, spec: EncoderSpec | None) -> tuple[Items, Precomputed | None]:
    """Attach the latents that the user brings, if any."""
    items = pairs.items[name]
    if items.vectors is not None:
        return items, Precomputed()
    if isinstance(spec, (str, Path)) and str(spec).endswith(".npy"):
        vectors, fingerprint = read_vectors(Path(spec), pairs.rows[name], len(items))
        return replace(items, vectors=vectors), Precomputed(fingerprint)
    return items, None


def _load(items: Items, given: Precomputed | None, spec: EncoderSpec | None) -> Encoder:
    """Load what encodes these items."""
    if given is not None:
        return given
    assert spec is not None, "checked by extract"
    return load_encoder(str(spec) if isinstance(spec, Path) else spec, items.kind)


def _create(out: Path, items: Items, encoder: Encoder, dtype: str, shard_items: int) -> LatentStore:
    """Start the store of one modality, or go on with it."""
    known = hash_json([items.kind, items.ids])
    facts = Facts(items.name, items.kind, encoder.fingerprint, encoder.source, len(items), known, shard_items, dtype)
    folder = out / items.name / _slug(encoder.fingerprint["name"])
    others = sorted(path.parent.name for path in folder.parent.glob("*/facts.json") if path.parent != folder)
    if others:
        raise MismatchError(
            f"{folder.parent} holds latents of another encoder (was {others[0]}, is {folder.name}); "
            "give another output folder, or delete this one to start again"
        )
    return LatentStore.create(folder, facts, items)


def _fill(store: LatentStore, items: Items, encoder: Encoder, missing: list[int], progress: Progress) -> None:
    """Encode the missing shards of one modality."""
    done = len(items) - sum(len(store.items_of(shard)) for shard in missing)
    failed = 0
    widths: set[int] = set()
    for shard in missing:
        parts = []
        # Batches follow the place in the shard, so an interrupted run repeats them exactly, rounding included.
        for batch in _batches(store.items_of(shard), encoder.batch_size):
            parts.append(_encode(encoder, items, batch))
            if parts[-1].items:
                widths.add(parts[-1].latents.shape[1])
            if len(widths) > 1:
                name = encoder.fingerprint["name"]
                raise EncoderError(f"{name}: latents of {sorted(widths)} dimensions; wanted the same in every batch")
            done += len(batch)
            failed += len(parts[-1].failures)
            progress(f"extract {items.name}", done, len(items), f"{failed} failed" if failed else "")
        latents = [part.latents for part in parts if part.items]
        store.commit(
            shard,
            [item for part in parts for item in part.items],
            np.concatenate(latents) if latents else np.empty((0, 0), np.float32),
            [failure for part in parts for failure in part.failures],
        )


def _batches(span: range, size: int) -> Iterator[range]:
    for start in range(span.start, span.stop, size):
        yield range(start, min(start + size, span.stop))


class _Batch(NamedTuple):
    latents: np.ndarray[Any, Any]  # (n, D)
    items: list[int]  # n places of the items that could be encoded
    failures: list[Failure]


def _encode(encoder: Encoder, items: Items, batch: Sequence[int]) -> _Batch:
    """Decode and encode one batch."""
    good: list[int] = []
    raw: list[Any] = []
    failures: list[Failure] = []
    for item in batch:
        try:
            raw.append(_decode(items, item))
            good.append(item)
        except ItemError as error:
            failures.append(Failure(item, error.reason, str(error)))
    latents = encode_batch(encoder, raw) if raw else np.empty((0, 0), np.float32)
    finite = np.isfinite(latents).all(axis=1)
    message = "the encoder returned NaN or infinity"
    failures += [Failure(good[i], "not finite", message) for i in np.flatnonzero(~finite)]
    return _Batch(latents[finite], [good[i] for i in np.flatnonzero(finite)], failures)


def _decode(items: Items, item: int) -> Any:
    """Return what the encoder gets for one item."""
    if items.vectors is not None:
        return items.vectors[item]
    value = items.values[item]
    if items.kind == "text":
        return value
    path = items.root / value
    if items.kind == "image":
        return load_image(path)
    if not is_file(path):
        raise ItemError("missing", f"no file {path}")
    return path


def _write_pairs(out: Path, pairs: Pairs) -> None:
    """Write pairs.parquet, once."""
    path, content = out / "pairs.parquet", pairs_file(pairs)
    if not path.exists():
        durable.write(path, content)
        return
    old, new = pa.parquet.read_table(path), pa.parquet.read_table(pa.BufferReader(content))
    if old.schema.metadata != new.schema.metadata:
        what = f"from {_meta(old)}, these are from {_meta(new)}"
    elif not old.equals(new):
        what = "with other rows, splits or groups (another table, --split, --group or --seed)"
    else:
        return
    raise MismatchError(f"{path} holds pairs {what}; give another output folder, or delete this one to start again")


def _meta(table: pa.Table) -> str:
    """Say where the pairs of a pairs.parquet come from."""
    meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return f"{meta.get('fusemix.root')} ({meta.get('fusemix.modalities', '').replace(chr(10), ', ')})"


def _failed_file(pairs: Pairs, failures: dict[str, list[Failure]]) -> bytes:
    """Return the content of failed.parquet: items without a latent, and table rows with an empty cell."""
    rows: list[tuple[str, str, str, str]] = []
    for name, items in pairs.items.items():
        rows += [(items.ids[f.item], name, f.reason, f.message) for f in failures[name]]
        empty = np.flatnonzero(pairs.rows[name] < 0)
        rows += [(f"row {row + 1}", name, "empty", "nothing in this cell of the table") for row in empty]
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    names = ("id", "modality", "reason", "message")
    table = pa.table({key: pa.array(column, pa.string()) for key, column in zip(names, columns, strict=True)})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _slug(name: str) -> str:
    """Make a folder name of an encoder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip("-.") or "encoder"
