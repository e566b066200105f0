"""Extract: run each frozen encoder once over the distinct items and keep the latents; resumable, nothing lost."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fusemix import durable, engines
from fusemix.data.latents import Latents, open_latents, pairs_file
from fusemix.data.pairs import Items, Pairs, require_files
from fusemix.data.store import Facts, Failure, LatentStore
from fusemix.encoders import Encoder
from fusemix.encoders.base import hash_json
from fusemix.encoders.canaries import encode_canaries
from fusemix.encoders.vectors import Precomputed, read_vectors
from fusemix.engines import Job
from fusemix.errors import DataError, MismatchError, TooManyFailuresError, choices
from fusemix.progress import Progress, silent
from fusemix.ranks import barrier, join_ranks, ranks
from fusemix.shards import Work, check_answers, check_failures

EncoderSpec = str | Path | Encoder | Callable[..., Any]


def extract(
    pairs: Pairs,
    *,
    out: str | Path,
    dtype: str = "float16",
    shard_items: int = 2048,
    pooling: Mapping[str, str] | None = None,
    decode: Mapping[str, str | Callable[..., Any]] | None = None,
    precision: str | None = None,
    max_failed: float = 0.05,
    retry_failed: bool = False,
    engine: str = "local",
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
        pooling: modality=pooling where the default of the architecture is not wanted: "cls", "mean", "last" or
            "pooler", of another layer than the last "mean@-2", and several side by side "mean+mean@0".
        decode: modality=your own decoder of one file (DICOM, GeoTIFF, ...): a function, or "module:function", from a
            Path (or the bytes of what lies in a tar or in the table) to what the encoder takes. It is called in
            threads, and given up after a minute.
        precision: of the encoders' arithmetic, such as "bfloat16"; by default what the device does best.
        max_failed: stop when more than this share of the first 1,000 items of a modality fail.
        retry_failed: try the failed items again, with the batches that they belong to; of sounds of any length, which
            are dealt to batches by the size of their files, with all batches that a mended file makes anew.
        engine: "local", or "ray" to run the shards as tasks of a Ray cluster. Under torchrun the ranks share them.
        progress: called after every batch.
        **encoders: modality=encoder, see `load_encoder`; a .npy file of precomputed latents; nothing for a modality
            that is a column of vectors.

    Raises:
        DataError: a modality without an encoder, an encoder without a modality, or files that are not there.
        EncoderError: an encoder that does not load or returns no latents.
        MismatchError: the folder holds latents that were made differently.
        StoreError: the latents do not fit the precision.
        TooManyFailuresError: see `max_failed`; what is known so far is in failed.parquet.
        OSError: the disk refused, or gave back other bytes; what is finished is kept.
    """
    out = Path(out)
    _check_options(dtype, shard_items, max_failed, engine)
    given = Given(encoders, pooling or {}, decode or {}, precision, max_failed)
    jobs = plan_jobs(pairs, out, given)
    join_ranks()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be the output folder: {error.strerror}") from error
    durable.remove_leftovers(out)
    _write_pairs(out, pairs)
    # Every encoder loads once before the first one works: a misspelt second name must not cost the hours of the first.
    started = [_start(job, dtype, shard_items, retry_failed) for job in jobs.values()]
    jobs = {job.items.name: job for job, _ in started}
    barrier()
    known: Mapping[str, Sequence[Failure]] = {}
    try:
        for job, shards in started:
            engines.run(engine, job, shards, progress)
            check_failures(job.items, max_failed, LatentStore.open(job.folder).failures)  # of all ranks
    except TooManyFailuresError as error:
        known = error.failures
        raise
    finally:  # whatever ended the work, the report says what is known
        if ranks()[0] == 0:
            _write_failed(out, pairs, jobs, known)
    barrier()
    return open_latents(out)


@dataclass(frozen=True)
class Given:
    """What the user says of the encoders, see `extract`."""

    encoders: Mapping[str, EncoderSpec]
    pooling: Mapping[str, str] = field(default_factory=dict)
    decode: Mapping[str, str | Callable[..., Any]] = field(default_factory=dict)
    precision: str | None = None
    max_failed: float = 0.05


def plan_jobs(pairs: Pairs, out: Path, given: Given) -> dict[str, Job]:
    """Join each modality to what encodes it; loads no encoder and writes nothing.

    Raises:
        DataError: a modality without an encoder, an encoder without a modality, or files that are not there.
    """
    check_names(pairs, given.encoders, given.pooling, given.decode)
    return {name: plan_job(pairs, name, out, given) for name in pairs.items}


def check_names(pairs: Pairs, *given: Mapping[str, Any]) -> None:
    """Hold encoders, poolings and decoders, in this order, to the modalities that there are.

    Raises:
        DataError: one is given for something else.
    """
    for what, names in zip(("an encoder", "a pooling", "a decoder"), given, strict=True):
        for name in names:
            if name not in pairs.items:
                raise DataError(
                    f"{what} is given for {name!r}, but the pairs have no such modality; {choices(name, pairs.items)}"
                )


def plan_job(pairs: Pairs, name: str, out: Path, given: Given) -> Job:
    """Join one modality to what encodes it, as `plan_jobs` does."""
    spec = given.encoders.get(name)
    items, ready = _precomputed(pairs, name, spec)
    if ready is None and spec is None:
        raise DataError(f"no encoder for {name!r} ({items.kind} items); give {name}=ENCODER")
    require_files(items)
    spec = str(spec) if isinstance(spec, Path) else spec
    own = given.decode.get(name)
    if own is not None and (ready is not None or items.kind == "text"):
        what = "vectors" if ready is not None else "texts"
        raise DataError(f"a decoder is given for {name!r}, whose items are {what}; only files are decoded")
    return Job(items, out, spec, ready, given.pooling.get(name), given.precision, own, given.max_failed)


def summary(pairs: Pairs, latents: Latents, out: Path) -> dict[str, Any]:
    """Account for every row and item of an extraction: encoded are the latents, failed what failed.parquet says."""
    failed = pa.parquet.read_table(out / "failed.parquet").to_pylist()
    splits = latents.splits.tolist()
    modalities = {}
    for name, items in pairs.items.items():
        empty = int((pairs.rows[name] < 0).sum())
        reasons = Counter(row["reason"] for row in failed if row["modality"] == name)
        reasons.subtract({"empty": empty})
        modalities[name] = {
            "items": len(items), "encoded": len(latents.items[name]), "failed": reasons.total(),
            "reasons": {reason: count for reason, count in reasons.most_common() if count}, "empty_cells": empty,
        }  # fmt: skip
    unread = Counter(row["reason"] for row in failed if row["modality"] == "")
    two = combinations(pairs.items, 2) if len(pairs.items) > 2 else ()
    return {
        "out": str(out),
        "rows": len(pairs),
        "pairs": len(latents),
        "splits": {name: splits.count(name) for name in dict.fromkeys(splits)},
        "partners": {f"{x} and {y}": len(open_latents(out, (x, y))) for x, y in two},
        "modalities": modalities,
        "unread": dict(unread.most_common()),
    }


def _check_options(dtype: str, shard_items: int, max_failed: float, engine: str) -> None:
    if dtype not in ("float16", "float32"):
        raise DataError(f"latents are kept as float16 or float32, not as {dtype!r}")
    if shard_items < 1:
        raise DataError(f"shard_items must be at least 1, got {shard_items}")
    if not 0 <= max_failed <= 1:
        raise DataError(f"max_failed is a share in [0, 1], got {max_failed}")
    if engine not in engines.ENGINES:
        raise DataError(f"no engine {engine!r}; {choices(engine, engines.ENGINES)}")


def _precomputed(pairs: Pairs, name: str, spec: EncoderSpec | None) -> tuple[Items, Precomputed | None]:
    """Attach the latents that the user brings, if any."""
    items = pairs.items[name]
    if items.vectors is not None:
        return items, Precomputed()
    if isinstance(spec, (str, Path)) and str(spec).endswith(".npy"):
        vectors, fingerprint = read_vectors(Path(spec), pairs.rows[name], len(items))
        return replace(items, vectors=vectors), Precomputed(fingerprint)
    return items, None


def _start(job: Job, dtype: str, shard_items: int, retry_failed: bool) -> tuple[Job, list[int]]:
    """Start the store of one modality, or go on with it; the job then knows its folder, and which shards are to do."""
    items, encoder, decoder = job.items, job.load(), job.decoder()
    facts = Facts(
        modality=items.name,
        kind=items.kind,
        encoder=encoder.fingerprint,
        source=encoder.source,
        count=len(items),
        items=hash_json([items.kind, items.ids]),
        shard_items=shard_items,
        batch_size=encoder.batch_size,
        dtype=dtype,
        decode=decoder.fingerprint if decoder is not None else None,
    )
    folder = job.folder / items.name / _slug(encoder.fingerprint["name"])
    others = sorted(path.parent.name for path in folder.parent.glob("*/facts.json") if path.parent != folder)
    if others:
        raise MismatchError(
            f"{folder.parent} holds latents of another encoder (was {others[0]}, is {folder.name}); "
            "give another output folder, or delete this one to start again"
        )
    store = LatentStore.create(folder, facts, items, lambda: encode_canaries(encoder))
    missing = store.missing()
    again = [s for s in range(store.shards) if s not in missing and store.failures_of(s)] if retry_failed else []
    shards = sorted(missing + again)
    if shards and ranks()[0] == 0:  # of several processes one asks
        check_answers(Work(store, job.pipeline(encoder), job.max_failed, silent), shards)
    # Workers compute as this process would, on whatever device they find themselves.
    return replace(job, folder=folder, precision=job.precision or encoder.fingerprint.get("dtype")), shards


def _write_pairs(out: Path, pairs: Pairs) -> None:
    """Write pairs.parquet, once."""
    path, content = out / "pairs.parquet", pairs_file(pairs)
    if not path.exists():
        durable.write(path, content)
        return
    old, new = pa.parquet.read_table(path), pa.parquet.read_table(pa.BufferReader(content))
    if old.schema.metadata != new.schema.metadata:
        what = f"from {_meta(old)}, these are from {_meta(new)}"
    elif path.read_bytes() != content and not _same(old, new):
        what = "with other rows, splits or groups (another table, --split, --group or --seed)"
    else:
        return
    raise MismatchError(f"{path} holds pairs {what}; give another output folder, or delete this one to start again")


def _same(old: pa.Table, new: pa.Table) -> bool:
    """Compare two tables; NaN equals NaN, which Arrow's own comparison denies."""
    if not old.schema.equals(new.schema) or len(old) != len(new):
        return False
    for a, b in zip(old.columns, new.columns, strict=True):
        if not a.equals(b):
            same_nulls = pa.types.is_floating(a.type) and a.is_null().equals(b.is_null())
            if not same_nulls or not np.array_equal(a.to_numpy(), b.to_numpy(), equal_nan=True):
                return False
    return True


def _meta(table: pa.Table) -> str:
    """Say where the pairs of a pairs.parquet come from."""
    meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return f"{meta.get('fusemix.root')} ({meta.get('fusemix.modalities', '').replace(chr(10), ', ')})"


def _write_failed(out: Path, pairs: Pairs, jobs: Mapping[str, Job], known: Mapping[str, Sequence[Failure]]) -> None:
    """Write failed.parquet: items without a latent, table rows with an empty cell, and what the reader had to leave.

    `known` are failures of shards that are not committed; "row" counts the table's rows from 1, as far as there is one.
    """
    rows: list[tuple[str, str, str, str, int | None]] = []
    for problem in pairs.problems:
        rows.append((problem.id, "", problem.reason, problem.message, None))
    for name, job in jobs.items():
        store = LatentStore.open(job.folder)
        failures = [failure for shard in range(store.shards) for failure in store.failures_of(shard)]
        places = {failure.item for failure in failures}
        failures += [failure for failure in known.get(name, ()) if failure.item not in places]
        of_item, ids = pairs.rows[name], job.items.ids
        first = dict(zip(*(found.tolist() for found in np.unique(of_item, return_index=True)), strict=True))
        rows += [(ids[f.item], name, f.reason, f.message, first[f.item] + 1) for f in failures]
        empty = np.flatnonzero(of_item < 0).tolist()
        rows += [(f"row {row + 1}", name, "empty", "nothing in this cell of the table", row + 1) for row in empty]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    kinds = {
        "id": pa.string(),
        "modality": pa.string(),
        "reason": pa.string(),
        "message": pa.string(),
        "row": pa.int64(),
    }
    table = pa.table({key: pa.array(c, kind) for (key, kind), c in zip(kinds.items(), columns, strict=True)})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    durable.write(out / "failed.parquet", sink.getvalue().to_pybytes())


def _slug(name: str) -> str:
    """Make a folder name of an encoder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip("-.") or "encoder"
