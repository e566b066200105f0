"""Small pictures and sounds that an index carries, so that a page can show hits without touching the raw files."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fusemix.data.decoding import Decoders
from fusemix.data.items import located
from fusemix.data.media import ItemError
from fusemix.errors import MissingExtraError
from fusemix.progress import Progress, silent
from fusemix.search.index import Index
from fusemix.sound import Sound

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 256  # long edge of a picture
SECONDS, RATE = 10, 24_000  # of a sound
_AHEAD = 64  # items that are decoded before they are asked for
_FORMS = {"image": "image", "audio": "audio", "video": "video"}


def with_previews(index: Index, progress: Progress = silent) -> Index:
    """Return the index with a preview of every picture, sound and video that has none yet and can be read.

    Every file is decoded in another process, and what is kept is encoded anew: WebP of at most 256 pixels, the middle
    frame of a video, the first ten seconds of a sound as MP3. An item whose file is gone or damaged has none.

    Raises:
        MissingExtraError: what decodes these files is not installed.
    """
    old = index.previews if index.previews is not None else pa.chunked_array([pa.nulls(len(index), pa.large_binary())])
    made = old.to_pylist()
    with Decoders() as decoders:
        for row, content in _decoded(index, [row for row, each in enumerate(made) if each is None], decoders, progress):
            made[row] = content or None  # of three samples at 192 kHz nothing is left
    return replace(index, previews=pa.chunked_array([pa.array(made, pa.large_binary())]))


def _decoded(
    index: Index, rows: list[int], decoders: Decoders, progress: Progress
) -> Iterator[tuple[int, bytes | None]]:
    """Yield a preview of each row, decoded ahead by other processes."""
    waiting: deque[Future[Any]] = deque()
    names, values = index.items["modality"].to_pylist(), index.items["value"].to_pylist()
    jobs = [row for row in rows if index.found[names[row]].kind in _FORMS and values[row] is not None]
    for place in range(len(jobs) + _AHEAD):
        if place < len(jobs):
            row = jobs[place]
            found = index.found[names[row]]
            waiting.append(decoders.submit(_FORMS[found.kind], located(found.root / values[row]), place))
        turn = place - _AHEAD
        if turn >= 0:
            decoders.take_turn(turn)
            with suppress(ItemError):
                yield jobs[turn], encoded(waiting.popleft().result())
            decoders.let_go(turn)
            progress("previews", turn + 1, len(jobs))


def encoded(item: Any) -> bytes:
    """Encode a picture, the middle one of several, or the beginning of a sound, small and anew."""
    if isinstance(item, Sound):
        return _mp3(item)
    return _webp(item[len(item) // 2] if isinstance(item, list) else item)


def media_type(preview: bytes) -> str:
    """Return the media type of what `encoded` gave."""
    return "image/webp" if preview[8:12] == b"WEBP" else "audio/mpeg"


def _webp(image: "Image") -> bytes:
    small, out = image.copy(), BytesIO()
    small.thumbnail((PIXELS, PIXELS))
    small.save(out, "WEBP", quality=80, method=2)
    return out.getvalue()


def _mp3(sound: Sound) -> bytes:
    try:
        import soundfile
        import soxr
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "soundfile", "audio", "a preview of sound") from error
    samples = sound.samples[: SECONDS * sound.rate]
    if sound.rate != RATE:
        samples = soxr.resample(samples, sound.rate, RATE)
    out = BytesIO()
    soundfile.write(out, np.clip(samples, -1, 1), RATE, format="MP3")
    return out.getvalue()
