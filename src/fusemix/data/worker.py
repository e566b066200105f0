"""The process that decodes: requests on stdin, answers on stdout, until stdin closes. See `decoding` for the other end.

A message is one line of JSON and then as many raw bytes as it says. No pickle: both ends are ours, and what is sent are
only names, numbers and arrays.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusemix.data.media import ItemError, Source, Span
from fusemix.errors import MissingExtraError

# Address space is no measure (libraries map what they never touch), so the limit is on data: a 40-megapixel picture
# with transparency takes about 700 MB while it is composed.
MEMORY = 3 << 30

Message = tuple[dict[str, Any], list[NDArray[Any]]]


def send(pipe: BinaryIO, facts: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
    """Write one message."""
    shapes = [[str(array.dtype), list(array.shape)] for array in arrays]
    pipe.write(json.dumps({**facts, "arrays": shapes}).encode() + b"\n")
    for array in arrays:
        pipe.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Message | None:
    """Read one message; None where the other end is gone."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    facts = json.loads(line)
    arrays = []
    for dtype, shape in facts.pop("arrays"):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        content = bytearray(size)
        view, filled = memoryview(content), 0
        while filled < size:
            count = pipe.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                return None
            filled += count
        arrays.append(np.frombuffer(content, dtype).reshape(shape))
    return facts, arrays


def pack_source(source: Source) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Say where the bytes of an item are."""
    if isinstance(source, bytes):
        return {}, [np.frombuffer(source, np.uint8)]
    if isinstance(source, Span):
        return {"path": str(source.path), "offset": source.offset, "size": source.size}, []
    return {"path": str(source)}, []


def _unpack_source(facts: dict[str, Any], arrays: list[NDArray[Any]]) -> Source:
    if "path" not in facts:
        return arrays[0].tobytes()
    path = Path(facts["path"])
    return Span(path, facts["offset"], facts["size"]) if "offset" in facts else path


def _image(source: Source) -> Message:
    from fusemix.data.images import load_image

    return {}, [np.asarray(load_image(source))]


def _sound(source: Source) -> Message:
    from fusemix.data.sounds import load_sound
    from fusemix.data.videos import is_container, load_track

    sound = load_track(source) if is_container(source) else load_sound(source)
    return {"rate": sound.rate}, [sound.samples]


def _frames(source: Source) -> Message:
    from fusemix.data.videos import load_frames

    return {}, [np.asarray(frame) for frame in load_frames(source)]


FORMS: dict[str, Callable[[Source], Message]] = {"image": _image, "audio": _sound, "video": _frames}


def answer(form: str, source: Source) -> Message:
    """Decode one item; a failure is an answer too."""
    try:
        return FORMS[form](source)
    except ItemError as error:
        return {"reason": error.reason, "message": str(error)}, []
    except MissingExtraError as error:
        return {"missing": [error.package, error.extra, error.purpose]}, []
    except MemoryError:
        return {"reason": "too large", "message": "more memory than a decoder may take"}, []


def main() -> None:
    """Answer until stdin closes."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not speak between the messages
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    while (request := receive(sys.stdin.buffer)) is not None:
        facts, arrays = request
        send(pipe, *answer(facts["form"], _unpack_source(facts, arrays)))


if __name__ == "__main__":
    main()
