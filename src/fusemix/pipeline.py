"""From raw items to latents: decode a few batches ahead, encode each, and say of every item what became of it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.data.decoding import Decoders
from fusemix.data.media import ItemError
from fusemix.data.pairs import Items
from fusemix.data.store import Failure
from fusemix.encoders import Encoder, encode_batch

MAX_CHARACTERS = 1_000_000  # a tokenizer takes seconds for a text of this length, and every model cuts it anyway
AHEAD = 2  # batches that are decoded while the model works on one


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
        waiting: deque[tuple[int, Batch, Result | None, list[Any]]] = deque()
        for turn, batch in enumerate(batches):
            done = kept(batch)
            raw = [] if done is not None else [submit(pipeline, decoders, place, turn) for place in batch.places]
            waiting.append((turn, batch, done, raw))
            if len(waiting) > AHEAD:
                yield _finish(pipeline, decoders, *waiting.popleft())
        while waiting:
            yield _finish(pipeline, decoders, *waiting.popleft())


def encode_places(pipeline: Pipeline, decoders: Decoders, places: Sequence[int]) -> Result:
    """Decode and encode a few items as one batch."""
    raw = [submit(pipeline, decoders, place) for place in places]
    return _encode_decoded(pipeline, Batch(0, 0, list(places)), raw)


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


def _finish(
    pipeline: Pipeline, decoders: Decoders, turn: int, batch: Batch, done: Result | None, raw: list[Any]
) -> Result:
    decoders.take_turn(turn)
    return done if done is not None else _encode_decoded(pipeline, batch, raw)


def _encode_decoded(pipeline: Pipeline, batch: Batch, raw: list[Any]) -> Result:
    """Wait for the decoded items of a batch and encode them."""
    values: dict[int, Any] = {}
    failures: list[Failure] = []
    for place, value in zip(batch.places, raw, strict=True):
        try:
            values[place] = _decoded(value)
        except ItemError as error:
            failures.append(Failure(place, error.reason, str(error)))
    latents, refusals, halved = _encode(pipeline.encoder, list(values.values()))
    good = list(values)
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


def _encode(encoder: Encoder, values: Sequence[Any]) -> tuple[NDArray[np.float32], dict[int, ItemError], bool]:
    """Encode one batch, in halves where the device has too little memory: (n, D), rows refused, whether halved."""
    if not values:
        return np.empty((0, 0), np.float32), {}, False
    with suppress(torch.OutOfMemoryError):
        latents = encode_batch(encoder, values)
        refused = getattr(encoder, "refused", ())
        return latents, {i: ItemError("refused", "the encoder gave no latent for it") for i in refused}, False
    if len(values) == 1:
        alone = ItemError("too large", "the device has too little memory for this item alone")
        return np.full((1, 0), np.nan, np.float32), {0: alone}, True
    middle = len(values) // 2
    first, errors, _ = _encode(encoder, values[:middle])
    second, more, _ = _encode(encoder, values[middle:])
    width = max(first.shape[1], second.shape[1])  # a half in which all is refused may not know it
    nothing = np.full((len(values), width), np.nan, np.float32)
    halves = [half if half.shape[1] == width else nothing[: len(half)] for half in (first, second)]
    return np.concatenate(halves), errors | {middle + i: error for i, error in more.items()}, True
