"""The process that decodes: requests on stdin, answers on stdout, until stdin closes. See `decoding` for the other end.

A message is one line of JSON and then as many raw bytes as it says. No pickle: both ends are ours, and what is sent are
only names, numbers and arrays.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusemix.data.media import ItemError, Source, Span, words_of
from fusemix.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

STRIP = 1 << 22  # pixels that are taken out of a picture at a time
# The limit is on data: address space is no measure, as libraries map what they never touch. From 48 MiB at its start, a
# worker comes to 1.1 GiB for the hungriest picture of 40 megapixels, a WebP with transparency.
MEMORY = 3 << 30

Message = tuple[dict[str, Any], list[NDArray[Any]]]


def send(pipe: IO[bytes] | None, facts: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
    """Write one message."""
    assert pipe is not None
    shapes = [[str(array.dtype), list(array.shape)] for array in arrays]
    pipe.write(json.dumps({**facts, "arrays": shapes}).encode() + b"\n")
    for array in arrays:
        pipe.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    pipe.flush()


def receive(pipe: IO[bytes] | None) -> Message | None:
    """Read one message; None where the other end is gone."""
    assert pipe is not None
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    facts = json.loads(line)
    arrays = []
    for dtype, shape in facts.pop("arrays"):
        content = bytearray(math.prod(shape) * np.dtype(dtype).itemsize)
        if pipe.readinto(content) < len(content):  # type: ignore[attr-defined]
            return None
        arrays.append(np.frombuffer(content, dtype).reshape(shape))
    return facts, arrays


def pack_source(source: Source) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Say where the bytes of an item are."""
    if isinstance(source, bytes):
        return {}, [np.frombuffer(source, np.uint8)]
    if isinstance(source, Span):
        return {"path": str(source.path.absolute()), "offset": source.offset, "size": source.size}, []
    return {"path": str(source.absolute())}, []  # the worker is not in this folder if the script has left another


def _unpack_source(facts: dict[str, Any], arrays: list[NDArray[Any]]) -> Source:
    if "path" not in facts:
        return arrays[0].tobytes()
    path = Path(facts["path"])
    return Span(path, facts["offset"], facts["size"]) if "offset" in facts else path


def _image(source: Source) -> Message:
    from fusemix.data.images import load_image

    return {}, [_pixels(load_image(source))]


def _pixels(image: "Image") -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3), taken in strips: Pillow holds all of them twice while it gives them away at once."""
    width, height = image.size
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, STRIP // width)
    for top in range(0, height, rows):
        pixels[top : top + rows] = np.asarray(image.crop((0, top, width, min(top + rows, height))))
    return pixels


def _sound(source: Source) -> Message:
    from fusemix.data.sounds import load_sound

    sound = load_sound(source)
    return {"rate": sound.rate}, [sound.samples]


def _frames(source: Source) -> Message:
    from fusemix.data.videos import load_frames

    return {}, [np.asarray(frame) for frame in load_frames(source)]


FORMS: dict[str, Callable[[Source], Message]] = {"image": _image, "audio": _sound, "video": _frames}


def answer(form: str, source: Source) -> Message:
    """Decode one item; a failure is an answer too."""
    decode = FORMS[form]
    try:
        return decode(source)
    except ItemError as error:
        return {"reason": error.reason, "message": str(error)}, []
    except MissingExtraError as error:
        return {"missing": [error.package, error.extra, error.purpose]}, []
    except ImportError as error:  # a library that is there but does not load is no fault of the item
        return {"broken": words_of(error)}, []
    except MemoryError:
        return {"reason": "too large", "message": "more memory than a decoder may take"}, []
    except Exception as error:  # decoders of untrusted bytes raise whatever comes to their authors' minds
        return {"reason": "unreadable", "message": words_of(error)}, []


def main() -> None:
    """Answer until stdin closes."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not speak between the messages
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    send(pipe, {"ready": True}, [])
    while (request := receive(sys.stdin.buffer)) is not None:
        facts, arrays = request
        if hasattr(signal, "alarm"):  # should the other end be killed while a decoder hangs, nobody would end it
            signal.alarm(2 * math.ceil(facts["seconds"]))
        reply = answer(facts["form"], _unpack_source(facts, arrays))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        send(pipe, *reply)
        del request, arrays, reply  # or they would be held until the next item comes


if __name__ == "__main__":
    main()
