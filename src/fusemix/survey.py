"""What an extraction would cost, before it is done: rows, shards, disk and time, tried on a few items."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusemix.data.decoding import Decoders
from fusemix.data.pairs import Items, Pairs
from fusemix.engines import Job
from fusemix.extraction import Given, plan_jobs
from fusemix.pipeline import encode_places
from fusemix.progress import Progress, silent
from fusemix.shards import histogram

BYTES = {"float16": 2, "float32": 4}
BATCHES = 3  # tried: the first pays for warming up, the others are timed


@dataclass(frozen=True)
class Forecast:
    """What one modality would cost.

    Attributes:
        items: distinct items.
        encoder: its name.
        dim: D, width of a latent; 0 where every tried item failed.
        shards: files of latents.
        disk_bytes: of the whole store.
        seconds: to encode all items on this machine.
        tried: items that were tried, spread evenly over the data.
        failed: of those.
        reasons: why, counted.
    """

    items: int
    encoder: str
    dim: int
    shards: int
    disk_bytes: int
    seconds: float
    tried: int
    failed: int
    reasons: str


def survey(
    pairs: Pairs, given: Given, *, dtype: str = "float16", shard_items: int = 2048, progress: Progress = silent
) -> Mapping[str, Forecast]:
    """Load every encoder, try it on a few batches of items, and say what `extract` would cost; nothing is written.

    A function of the user's own is called for these items, too.

    Raises:
        DataError: as `extract`.
        EncoderError: as `extract`.
    """
    found = {}
    for i, (name, job) in enumerate(plan_jobs(pairs, Path(), given).items()):
        progress("survey", i, len(pairs.items), name)
        found[name] = _forecast(job, dtype, shard_items)
    progress("survey", len(pairs.items), len(pairs.items))
    return found


def _forecast(job: Job, dtype: str, shard_items: int) -> Forecast:
    items, encoder = job.items, job.load()
    pipeline = job.pipeline(encoder)
    size = min(encoder.batch_size, len(items))
    places = np.unique(np.linspace(0, len(items) - 1, BATCHES * size).astype(int)).tolist()
    # Every BATCHES-th item makes a batch, so that each of them is spread over the data.
    batches = [places[i::BATCHES] for i in range(BATCHES) if places[i::BATCHES]]
    dim, failures, seconds = 0, [], []
    with Decoders() as decoders:
        for batch in batches:
            started = time.perf_counter()
            done = encode_places(pipeline, decoders, batch)
            seconds.append((time.perf_counter() - started) / len(batch))
            dim = max(dim, done.latents.shape[1])
            failures += [failure.reason for failure in done.failures]
    shards = -(-len(items) // shard_items)
    disk = len(items) * (dim * BYTES[dtype] + _described(items)) + shards * 1024
    whole = float(np.median(seconds[1:] or seconds)) * len(items)  # the first batch pays for warming up
    name = encoder.fingerprint["name"]
    why = histogram(failures)
    return Forecast(len(items), name, dim, shards, disk, round(whole, 1), len(places), len(failures), why)


def _described(items: Items) -> int:
    """Bytes that an item takes beside its latent: place and batch, and its id and value in items.parquet."""
    look = range(0, len(items), max(1, len(items) // 1000))
    text = sum(len(items.ids[i].encode()) + len((items.values[i] or "").encode()) for i in look)
    return 12 + text // len(look)
