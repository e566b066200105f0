"""From raw items to latents: decode a few batches ahead, encode each, and say of every item what became of it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.data.decoding import Decoders, bytes_of
from fusemix.data.media import ItemError
from fusemix.data.pairs import Items
from fusemix.data.store import Failure
from fusemix.encoders import Encoder, encode_batch

MAX_CHARACTERS = 1_000_000  # a tokenizer takes seconds for a text of this length, and every model cuts it anyway
AHEAD = 2  # batches that are decoded while the model works on one
PART_BYTES = 1 << 29  # of decoded items that the encoder gets at once, such as 15 photographs of 12 megapixels


@dataclass(frozen=True)
class Pipeline:
    """What turns the items of one modality into latents.

    Attributes:
        items: all of the modality.
        encoder: loaded.
        decode: the user's own decoder of one Path or bytes; None for ours.
    """

    items: Items
    encoder: Encoder
    decode: Callable[..., Any] | None = None


class Batch(NamedTuple):
    """Items that go through the encoder together.

    Attributes:
        shard: whose items they are.
        number: place of this batch in the shard.
        places: of its items among all items.
        last: of its shard.
    """

    shard: int
    number: int
    places: list[int]
    last: bool = True


class Result(NamedTuple):
    """What became of a batch.

    Attributes:
        batch: which.
        latents: (n, D) float32.
        places: n, of the items that could be encoded.
        failures: the other items.
        halved: the device had no memory for the whole batch.
    """

    batch: Batch
    latents: NDArray[np.float32]
    places: list[int]
    failures: list[Failure]
    halved: bool = False


Kept = Callable[[Batch], Result | None]
"""Returns the result of a batch that need not be encoded, or None."""


def run(pipeline: Pipeline, batches: Iterable[Batch], kept: Kept = lambda batch: None) -> Generator[Result]:
    """Encode batches in order, while the next ones are being decoded; close it to end the decoders."""
    with Decoders() as decoders:
        waiting: deque[tuple[Batch, Result | None, _Raw]] = deque()
        turns = count()
        for batch in batches:
            done = kept(batch)
            raw: _Raw = deque()
            for place in batch.places if done is None else ():
                turn = next(turns)
                raw.append((place, turn, submit(pipeline, decoders, place, turn)))
            waiting.append((batch, done, raw))
            if len(waiting) > AHEAD:
                yield _finish(pipeline, decoders, *waiting.popleft())
        while waiting:
            yield _finish(pipeline, decoders, *waiting.popleft())


def encode_places(pipeline: Pipeline, decoders: Decoders, places: Sequence[int]) -> Result:
    """Decode and encode a few items as one batch."""
    raw = deque((place, 0, submit(pipeline, decoders, place)) for place in places)
    return _finish(pipeline, decoders, Batch(0, 0, list(places)), None, raw)


def submit(pipeline: Pipeline, decoders: Decoders, place: int, turn: int = 0) -> Any:
    """Start to decode one item; return what the encoder gets, a future of it, or the reason why there is nothing."""
    items = pipeline.items
    if items.vectors is not None:
        return items.vectors[place]
    if items.kind == "text":
        text = items.values[place]
        if len(text) > MAX_CHARACTERS:
            return ItemError("too long", f"{len(text):,} characters, the limit is {MAX_CHARACTERS:,}")
        return text
    if pipeline.decode is not None:
        return decoders.submit_call(pipeline.decode, items.source(place), turn)
    form = pipeline.encoder.takes if pipeline.encoder.takes != "any" else items.kind
    return decoders.submit(form, items.source(place), turn)


_Raw = deque[tuple[int, int, Any]]  # of each item its place, its turn, and what `submit` returned


def _finish(pipeline: Pipeline, decoders: Decoders, batch: Batch, done: Result | None, raw: _Raw) -> Result:
    """Wait for the decoded items of a batch and encode them, in parts where they are large; what is done stays."""
    if done is not None:
        return done
    good: list[int] = []
    failures: list[Failure] = []
    parts: list[_Encoded] = []
    values: list[Any] = []
    weight = 0
    while raw:
        place, turn, value = raw.popleft()
        decoders.take_turn(turn)
        try:
            values.append(_decoded(value))
            good.append(place)
            weight += bytes_of(values[-1])
        except ItemError as error:
            failures.append(Failure(place, error.reason, str(error)))
        del value  # a future keeps what it holds
        if not raw or weight >= PART_BYTES:
            parts.append(_encode(pipeline.encoder, values))
            values, weight = [], 0
            decoders.let_go(turn)
    latents, refusals, halved = _join(parts)
    for i in np.flatnonzero(~np.isfinite(latents).all(axis=1)).tolist():
        refusals.setdefault(i, ItemError("not finite", "the encoder returned NaN or infinity"))
    failures += [Failure(good[i], error.reason, str(error)) for i, error in refusals.items()]
    ok = [i for i in range(len(good)) if i not in refusals]
    return Result(batch, latents[ok], [good[i] for i in ok], failures, halved)


def _decoded(value: Any) -> Any:
    value = value.result() if isinstance(value, Future) else value
    if isinstance(value, ItemError):
        raise value
    return value


class _Encoded(NamedTuple):
    latents: NDArray[np.float32]  # (n, D), not finite where an item has none
    refusals: dict[int, ItemError]  # by row
    halved: bool = False


def _encode(encoder: Encoder, values: Sequence[Any]) -> _Encoded:
    """Encode n decoded items, in halves where the device has too little memory."""
    if not values:
        return _Encoded(np.empty((0, 0), np.float32), {})
    with suppress(torch.OutOfMemoryError, MemoryError):
        latents = encode_batch(encoder, values)
        refused = getattr(encoder, "refused", ())
        return _Encoded(latents, {i: ItemError("refused", "the encoder gave no latent for it") for i in refused})
    if len(values) == 1:
        alone = ItemError("too large", "the device has too little memory for this item alone")
        return _Encoded(np.empty((1, 0), np.float32), {0: alone}, halved=True)
    middle = len(values) // 2
    return _join([_encode(encoder, values[:middle]), _encode(encoder, values[middle:])])._replace(halved=True)


def _join(parts: Sequence[_Encoded]) -> _Encoded:
    """Put parts of a batch together; one in which all was refused may not know the width."""
    width = max(part.latents.shape[1] for part in parts)
    rows = [part.latents for part in parts]
    rows = [row if row.shape[1] == width else np.full((len(row), width), np.nan, np.float32) for row in rows]
    starts = np.cumsum([0, *map(len, rows)]).tolist()
    refusals = {start + i: e for start, part in zip(starts, parts, strict=False) for i, e in part.refusals.items()}
    return _Encoded(np.concatenate(rows), refusals, any(part.halved for part in parts))
