"""The work of one extraction: decode and encode the items of some shards, and commit each shard whole.

Batches follow the place of an item in its shard and its length, never what failed or when: a run that was killed, or
that shared its shards with others, ends with the same bytes.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.data.decoding import Decoders
from fusemix.data.media import ItemError, Span, is_file
from fusemix.data.pairs import Items
from fusemix.data.store import Encoded, Failure, LatentStore, Shard
from fusemix.encoders import Encoder, encode_batch
from fusemix.errors import EncoderError, MismatchError, TooManyFailuresError
from fusemix.progress import Progress

MAX_CHARACTERS = 1_000_000  # a tokenizer takes seconds for a text of this length, and every model cuts it anyway
FIRST = 1_000  # items that tell whether a run is worth its hours
ANSWERS = 16  # items that a function is asked for again before a run goes on
AHEAD = 2  # batches that are decoded while the model works on one


class Batch(NamedTuple):
    """Items that go through the encoder together.

    Attributes:
        shard: whose items they are.
        number: place of this batch in the shard.
        places: of its items among all items.
    """

    shard: int
    number: int
    places: list[int]


@dataclass(frozen=True)
class Work:
    """One modality: its items, what decodes and encodes them, and where their latents go.

    Attributes:
        store: committed shards and the plan.
        items: all of the modality.
        encoder: loaded.
        decode: the user's own decoder of one Path, Span or bytes; None for ours.
        max_failed: largest share of the first 1,000 items that may fail, in [0, 1].
        progress: called after every batch.
    """

    store: LatentStore
    items: Items
    encoder: Encoder
    decode: Callable[..., Any] | None
    max_failed: float
    progress: Progress


def fill(work: Work, shards: Sequence[int], done: int = 0) -> None:
    """Encode these shards and commit each.

    Args:
        work: of one modality.
        shards: numbers of the shards; one that is there is done again only where its batches hold failed items.
        done: items that are finished already, for the progress.

    Raises:
        EncoderError: an encoder that fails, or whose latents change their width.
        MismatchError: an encoder that no longer gives the latents it gave before.
        TooManyFailuresError: more than the allowed share of the first 1,000 items fail.
        StoreError: the latents do not fit the precision, or the disk gave back other bytes.
        OSError: the disk refused.
    """
    store, count = work.store, done
    old = {shard: store.read(shard) for shard in shards if store.sound(shard)}
    failures = [failure for shard in range(store.shards) if shard not in shards for failure in store.failures_of(shard)]
    batches = (batch for shard in shards for batch in plan(work, shard))
    widths: set[int] = set()
    for shard, group in groupby(_run(work, batches, old), key=lambda result: result.batch.shard):
        parts = []
        for part in group:
            parts.append(part)
            count += len(part.batch.places)
            failures += part.failures
            check_failures(work, failures)
            widths |= {part.latents.shape[1]} if part.places else set()
            if len(widths) > 1:
                name = work.encoder.fingerprint["name"]
                raise EncoderError(f"{name}: latents of {sorted(widths)} dimensions; wanted the same in every batch")
            note = f"{len(failures):,} failed" if failures else ""
            work.progress(f"extract {work.items.name}", count, len(work.items), note)
        _commit(work, shard, parts)


def plan(work: Work, shard: int) -> list[Batch]:
    """Deal the items of a shard to batches of like length, the longest first: memory runs out at once or never."""
    places = list(work.store.items_of(shard))
    lengths = _lengths(work, places)
    if lengths is not None:
        order = sorted(range(len(places)), key=lambda i: (-lengths[i], i))
        places = [places[i] for i in order]
    size = work.store.facts.batch_size
    return [Batch(shard, n, places[i : i + size]) for n, i in enumerate(range(0, len(places), size))]


def check_failures(work: Work, failures: Sequence[Failure]) -> None:
    """Stop when more than the allowed share of the first 1,000 items failed.

    Raises:
        TooManyFailuresError: it names the commonest reasons and the first item.
    """
    first = min(FIRST, len(work.items))
    early = [failure for failure in failures if failure.item < first]
    if len(early) <= work.max_failed * first:
        return
    raise TooManyFailuresError(
        f"{work.items.name}: {len(early):,} of the first {first:,} items failed, more than {work.max_failed:.0%}: "
        f"{histogram(failure.reason for failure in early)}; such as {work.items.ids[early[0].item]} "
        f"({early[0].message}). What is finished is kept; mend these items, or allow more: --max-failed 1",
        {work.items.name: list(failures)},
    )


def check_answers(work: Work, shards: Sequence[int]) -> None:
    """Ask the user's own function again for a few latents that it has given: a service may change behind its name.

    Raises:
        MismatchError: they differ by more than rounding.
    """
    if work.encoder.fingerprint.get("loader") != "function":
        return
    others = (shard for shard in range(work.store.shards) if shard not in shards and work.store.sound(shard))
    committed = next((shard for shard in others if len(work.store.read(shard).items)), None)
    if committed is None:
        return
    shard = work.store.read(committed)
    places, old = shard.items[:ANSWERS].tolist(), shard.latents[:ANSWERS].float().numpy()
    with Decoders() as decoders:
        raw = [_submit(work, decoders, place) for place in places]
        again = _finish(work, Batch(committed, 0, places), None, raw)
    if again.places != places:
        return  # a file that is gone now is not the encoder's fault
    apart = (
        np.linalg.norm(again.latents - old, axis=1) if again.latents.shape == old.shape else np.full(len(old), np.inf)
    )
    worst = int(np.argmax(apart - 0.04 * np.linalg.norm(old, axis=1)))
    if apart[worst] > 0.04 * np.linalg.norm(old[worst]) + 1e-3:
        raise MismatchError(
            f"{work.encoder.fingerprint['name']} answers differently than when {work.store.folder} was begun: the "
            f"latent of {work.items.ids[places[worst]]} has moved by {apart[worst]:.3g} (its norm is "
            f"{np.linalg.norm(old[worst]):.3g}); extract into another folder, or delete this one to start again"
        )


def sample(work: Work, places: Sequence[int]) -> tuple[int, list[Failure]]:
    """Decode and encode a few items without keeping anything; return D (0 when all failed) and what failed."""
    with Decoders() as decoders:
        raw = [_submit(work, decoders, place) for place in places]
        done = _finish(work, Batch(0, 0, list(places)), None, raw)
    return (done.latents.shape[1] if done.places else 0), done.failures


def histogram(reasons: Iterable[str]) -> str:
    """Count reasons, the commonest first: "missing 12, truncated 3"."""
    names, counts = np.unique(np.array(list(reasons), dtype=str), return_counts=True)
    return ", ".join(f"{names[i]} {counts[i]:,}" for i in np.argsort(-counts, kind="stable"))


def _lengths(work: Work, places: list[int]) -> list[int] | None:
    """Return what the cost of each item grows with, or None where all cost the same."""
    if work.items.kind == "text" and hasattr(work.encoder, "lengths"):
        # What is too long will fail; it must not be tokenised for this.
        texts = [work.items.values[place][:MAX_CHARACTERS] for place in places]
        lengths: list[int] = list(work.encoder.lengths(texts))
        return lengths
    if getattr(work.encoder, "variable_length", False):
        return [_size(work.items.source(place)) for place in places]
    return None


def _size(source: Any) -> int:
    """Return the bytes of an undecoded item: they grow with its duration."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, Span):
        return source.size
    return os.stat(source).st_size if is_file(source) else 0  # noqa: PTH116


class _Result(NamedTuple):
    batch: Batch
    latents: NDArray[np.float32]  # (n, D)
    places: list[int]  # n, of the items that could be encoded
    failures: list[Failure]
    halved: bool = False  # the device had no memory for the whole batch


def _run(work: Work, batches: Iterable[Batch], old: dict[int, Shard]) -> Iterator[_Result]:
    """Encode batches in order, while the next ones are being decoded."""
    with Decoders() as decoders:
        waiting: deque[tuple[Batch, NDArray[np.float32] | None, list[Any]]] = deque()
        for batch in batches:
            kept = _kept(batch, old.get(batch.shard))
            raw = [_submit(work, decoders, place) for place in batch.places] if kept is None else []
            waiting.append((batch, kept, raw))
            if len(waiting) > AHEAD:
                yield _finish(work, *waiting.popleft())
        while waiting:
            yield _finish(work, *waiting.popleft())


def _kept(batch: Batch, shard: Shard | None) -> NDArray[np.float32] | None:
    """Return the latents that a shard already has of a batch in which nothing failed."""
    if shard is None:
        return None
    rows = {int(shard.items[row]): row for row in np.flatnonzero(shard.batches == batch.number)}
    if rows.keys() != set(batch.places):
        return None
    latents: NDArray[np.float32] = shard.latents[[rows[place] for place in batch.places]].float().numpy()
    return latents


def _finish(work: Work, batch: Batch, kept: NDArray[np.float32] | None, raw: list[Any]) -> _Result:
    """Wait for the decoded items of a batch and encode them."""
    if kept is not None:
        return _Result(batch, kept, batch.places, [])
    good: list[int] = []
    values: list[Any] = []
    failures: list[Failure] = []
    for place, value in zip(batch.places, raw, strict=True):
        try:
            values.append(_decoded(value))
            good.append(place)
        except ItemError as error:
            failures.append(Failure(place, error.reason, str(error)))
    latents, refused, halved = _encode(work.encoder, values)
    finite = np.asarray(np.isfinite(latents).all(axis=1))
    for i, place in enumerate(good):
        if i in refused:
            failures.append(Failure(place, "refused", "the encoder gave no latent for it"))
        elif not finite[i]:
            failures.append(Failure(place, "not finite", "the encoder returned NaN or infinity"))
    ok = [i for i in range(len(good)) if finite[i] and i not in refused]
    return _Result(batch, latents[ok], [good[i] for i in ok], failures, halved)


def _decoded(value: Any) -> Any:
    value = value.result() if isinstance(value, Future) else value
    if isinstance(value, ItemError):
        raise value
    return value


def _encode(encoder: Encoder, values: Sequence[Any]) -> tuple[NDArray[np.float32], set[int], bool]:
    """Encode one batch, in halves where the device has too little memory: (n, D), rows refused, whether halved."""
    if not values:
        return np.empty((0, 0), np.float32), set(), False
    try:
        latents = encode_batch(encoder, values)
        return latents, set(getattr(encoder, "refused", ())), False
    except torch.OutOfMemoryError:
        if len(values) == 1:
            raise
    middle = len(values) // 2
    first, refused, _ = _encode(encoder, values[:middle])
    second, also, _ = _encode(encoder, values[middle:])
    width = max(first.shape[1], second.shape[1])  # a half in which all is refused may not know it
    halves = [half if half.shape[1] == width else np.full((len(half), width), np.nan) for half in (first, second)]
    return np.concatenate(halves), refused | {middle + i for i in also}, True


def _commit(work: Work, shard: int, parts: list[_Result]) -> None:
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


def _submit(work: Work, decoders: Decoders, place: int) -> Any:
    """Start to decode one item; return what the encoder gets, a future of it, or the reason why there is nothing."""
    items = work.items
    if items.vectors is not None:
        return items.vectors[place]
    if items.kind == "text":
        text = items.values[place]
        if len(text) > MAX_CHARACTERS:
            return ItemError("too long", f"{len(text):,} characters, the limit is {MAX_CHARACTERS:,}")
        return text
    source = items.source(place)
    if work.decode is not None:
        return decoders.submit_call(work.decode, source)
    form = work.encoder.takes if work.encoder.takes != "any" else items.kind
    if form == "file":
        return source if isinstance(source, bytes) or _there(source) else ItemError("missing", f"no file {source}")
    return decoders.submit(form, source)


def _there(source: Any) -> bool:
    return is_file(source.path if isinstance(source, Span) else source)
