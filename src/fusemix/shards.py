"""The work of one extraction: decode and encode the items of some shards, and commit each shard whole.

Batches follow the place of an item in its shard and its length, never what failed or when: a run that was killed, or
that shared its shards with others, ends with the same bytes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusemix.data.decoding import Decoders
from fusemix.data.media import Span, is_file
from fusemix.data.pairs import Items
from fusemix.data.store import Encoded, Failure, LatentStore, Shard
from fusemix.encoders.canaries import loaders
from fusemix.errors import EncoderError, MismatchError, TooManyFailuresError
from fusemix.pipeline import MAX_CHARACTERS, Batch, Pipeline, Result, encode_places, run
from fusemix.progress import Progress

FIRST = 1_000  # items that tell whether a run is worth its hours
ANSWERS = 16  # items that a function is asked for again before a run goes on
# How far an answer may move, in parts of its length and at least: float16 on disk and another batch round it.
MOVED, MOVED_LEAST = 0.04, 1e-3


@dataclass(frozen=True)
class Work:
    """One modality: what makes its latents, and where they go.

    Attributes:
        store: committed shards and the plan.
        pipeline: items, encoder and decoder.
        max_failed: largest share of the first 1,000 items that may fail, in [0, 1].
        progress: called after every batch.
    """

    store: LatentStore
    pipeline: Pipeline
    max_failed: float
    progress: Progress


def fill(work: Work, shards: Sequence[int], done: int = 0, failed: int = 0) -> None:
    """Encode these shards and commit each.

    Args:
        work: of one modality.
        shards: numbers of the shards; one that is there is done again only where its batches hold failed items.
        done: items that are finished already, for the progress.
        failed: of those.

    Raises:
        EncoderError: an encoder that fails, or whose latents change their width.
        TooManyFailuresError: more than the allowed share of the first 1,000 items fail.
        StoreError: the latents do not fit the precision.
        OSError: the disk refused, or gave back other bytes.
    """
    store, items, count = work.store, work.pipeline.items, done
    old = {shard: store.read(shard) for shard in shards if store.sound(shard)}
    beginning = range(min(store.shards, -(-FIRST // store.facts.shard_items)))
    failures = [failure for shard in beginning if shard not in shards for failure in store.failures_of(shard)]
    failed -= len(failures)
    check_failures(items, work.max_failed, failures)
    batches = (batch for shard in shards for batch in plan(work, shard))
    width, parts = 0, []
    results = run(work.pipeline, batches, lambda batch: _kept(batch, old.get(batch.shard)))
    with _kept_on_failure(), closing(results):
        for part in results:
            parts.append(part)
            count += len(part.batch.places)
            failures += part.failures
            if any(failure.item < FIRST for failure in part.failures):
                check_failures(items, work.max_failed, failures)
            width = _same_width(width, part, work.pipeline.encoder.fingerprint["name"])
            if part.batch.last:  # before the next batch is encoded: a kill costs this shard and no more
                _commit(work, part.batch.shard, parts)
                parts = []
            so_far = failed + len(failures)
            work.progress(f"extract {items.name}", count, len(items), f"{so_far:,} failed" if so_far else "")


@contextmanager
def _kept_on_failure() -> Iterator[None]:
    """Tell the user of an encoder that failed what becomes of the work until then."""
    try:
        yield
    except EncoderError as error:
        raise EncoderError(f"{error}; what is finished is kept, and the same call goes on from there") from error


def _same_width(width: int, part: Result, name: str) -> int:
    """Return D of this batch, which must be that of the others, 0 where none is known."""
    if not part.places:
        return width
    found: int = part.latents.shape[1]
    if width not in (0, found):
        raise EncoderError(f"{name}: latents of {width} and {found} dimensions; wanted the same in every batch")
    return found


def plan(work: Work, shard: int) -> list[Batch]:
    """Deal the items of a shard to batches."""
    return deal(work.pipeline, list(work.store.items_of(shard)), work.store.facts.batch_size, shard)


def deal(pipeline: Pipeline, places: list[int], size: int, shard: int = 0) -> list[Batch]:
    """Deal items to batches of like length, the longest first: memory runs out at once or never."""
    lengths = _lengths(pipeline, places)
    if lengths is not None:
        order = sorted(range(len(places)), key=lambda i: (-lengths[i], i))
        places = [places[i] for i in order]
    parts = [places[i : i + size] for i in range(0, len(places), size)]
    return [Batch(shard, number, part, number == len(parts) - 1) for number, part in enumerate(parts)]


def check_failures(items: Items, max_failed: float, failures: Sequence[Failure]) -> None:
    """Stop when more than the allowed share of the first 1,000 items failed.

    Raises:
        TooManyFailuresError: it names the commonest reasons and the first item.
    """
    first = min(FIRST, len(items))
    early = [failure for failure in failures if failure.item < first]
    if len(early) <= max_failed * first:
        return
    raise TooManyFailuresError(
        f"{items.name}: {len(early):,} of the first {first:,} items failed, more than {max_failed:.0%}: "
        f"{histogram(failure.reason for failure in early)}; such as {items.ids[early[0].item]} "
        f"({early[0].message}). What is finished is kept; mend these items, or allow more: --max-failed 1",
        {items.name: list(failures)},
    )


def check_answers(work: Work, shards: Sequence[int]) -> None:
    """Ask the user's own function again for a few latents that it has given: a service may change behind its name.

    Args:
        work: of one modality.
        shards: those that are to be done; the latents are taken from another.

    Raises:
        MismatchError: they differ by more than rounding.
    """
    pipeline, store = work.pipeline, work.store
    if "function" not in loaders(pipeline.encoder.fingerprint):
        return
    others = (store.read(shard) for shard in range(store.shards) if shard not in shards)
    shard = next((shard for shard in others if len(shard.items)), None)
    if shard is None:
        return
    places, old = shard.items[:ANSWERS].tolist(), shard.latents[:ANSWERS].float().numpy()
    with Decoders() as decoders:
        again = encode_places(pipeline, decoders, places)
    if again.places != places:
        return  # a file that is gone now is not the encoder's fault
    sizes = np.linalg.norm(old, axis=1)
    same_width = again.latents.shape == old.shape
    apart = np.linalg.norm(again.latents - old, axis=1) if same_width else np.full(len(old), np.inf)
    worst = int(np.argmax(apart - MOVED * sizes))
    if apart[worst] > MOVED * sizes[worst] + MOVED_LEAST:
        raise MismatchError(
            f"{pipeline.encoder.fingerprint['name']} answers differently than when {store.folder} was begun: the "
            f"latent of {pipeline.items.ids[places[worst]]} has moved by {apart[worst]:.3g} (its norm is "
            f"{sizes[worst]:.3g}); extract into another folder, or delete this one to start again"
        )


def histogram(reasons: Iterable[str]) -> str:
    """Count reasons, the commonest first: "missing 12, truncated 3"."""
    names, counts = np.unique(np.array(list(reasons), dtype=str), return_counts=True)
    return ", ".join(f"{names[i]} {counts[i]:,}" for i in np.argsort(-counts, kind="stable"))


def _lengths(pipeline: Pipeline, places: list[int]) -> list[int] | None:
    """Return what the cost of each item grows with, or None where all cost the same."""
    items, encoder = pipeline.items, pipeline.encoder
    if items.kind == "text" and hasattr(encoder, "lengths"):
        # What is too long will fail; it must not be tokenised for this.
        texts = [items.values[place][:MAX_CHARACTERS] for place in places]
        lengths: list[int] = list(encoder.lengths(texts))
        return lengths
    if getattr(encoder, "variable_length", False):
        return [_size(items.source(place)) for place in places]
    return None


def _size(source: Any) -> int:
    """Return the bytes of an undecoded item: they grow with its duration."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, Span):
        return source.size
    return os.stat(source).st_size if is_file(source) else 0  # noqa: PTH116


def _kept(batch: Batch, shard: Shard | None) -> Result | None:
    """Return the latents that a shard already has of a batch in which nothing failed."""
    if shard is None:
        return None
    rows = {int(shard.items[row]): row for row in np.flatnonzero(shard.batches == batch.number)}
    if rows.keys() != set(batch.places):
        return None
    latents = shard.latents[[rows[place] for place in batch.places]].float().numpy()
    return Result(batch, latents, batch.places, [], shard.halved)


def _commit(work: Work, shard: int, parts: list[Result]) -> None:
    """Write one shard, its items back in the order of the table."""
    latents = [part.latents for part in parts if part.places]
    places = np.array([place for part in parts for place in part.places], dtype=np.int64)
    numbers = np.array([part.batch.number for part in parts for _ in part.places], dtype=np.int32)
    order = np.argsort(places)
    work.store.commit(
        shard,
        Encoded(
            places[order],
            np.concatenate(latents)[order] if latents else np.empty((0, 0), np.float32),
            numbers[order],
            sorted((failure for part in parts for failure in part.failures), key=lambda failure: failure.item),
            any(part.halved for part in parts),
        ),
    )
