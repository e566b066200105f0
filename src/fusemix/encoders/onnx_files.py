"""The files that an ONNX model consists of, found without running it.

Tensors of an ONNX file may name other files that hold their numbers. Only files of the same folder are accepted: a
model from elsewhere must not read what its folder does not hold.
"""

import mmap
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from fusemix.errors import EncoderError

# Where tensors can be in an ONNX file: of each message, the fields that lead on (onnx.proto).
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}


def external_files(file: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold weights of it.

    Raises:
        EncoderError: no ONNX file, or a location that is not a file within its folder, links resolved.
    """
    folder = file.parent.resolve()
    if file.stat().st_size == 0:
        raise EncoderError(f"{file} is empty; wanted an ONNX file")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            locations = sorted(set(_locations(content)))
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise EncoderError(f"{file} is no ONNX file, or a damaged one: {error}") from error
    found = []
    for location in locations:
        path = folder / location
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or Path(location).is_absolute() or ".." in parts:
            raise EncoderError(f"{file} keeps weights in {location!r}; wanted a file in its own folder")
        if not path.resolve().is_relative_to(folder):
            raise EncoderError(f"{file} keeps weights in {location!r}, a link out of its folder; copy the file there")
        if not path.is_file():
            raise EncoderError(f"{file} keeps weights in {location!r}, which is not beside it")
        found.append(path)
    return found


def _locations(content: mmap.mmap) -> Iterator[str]:
    """Read from the bytes of an ONNX file where its tensors say that their numbers lie.

    All messages are followed that can hold a tensor, so that none is overlooked in a subgraph or a function.
    """
    waiting = [("model", 0, len(content))]
    while waiting:
        message, start, end = waiting.pop()
        entry: dict[int, str] = {}
        for field, first, last in _fields(content, start, end):
            if message == "entry" and field in (1, 2):
                entry[field] = content[first:last].decode()
            elif field in MESSAGES[message]:
                waiting.append((MESSAGES[message][field], first, last))
        if entry.get(1) == "location":
            yield entry.get(2, "")


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """List the length-delimited fields of a message: number, first and last byte (protobuf's wire format)."""
    while at < end:
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == 0:
            _, at = _varint(content, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("a field is longer than the file")
            yield tag >> 3, at, at + size
            at += size
        else:
            raise ValueError(f"a field of wire type {wire}")
    if at != end:
        raise ValueError("a field is cut off")


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value & (2**64 - 1), at
    raise ValueError("a number of more than ten bytes")


def hash_files(files: Sequence[Path]) -> str:
    """Hash the content of files, in their order."""
    digest = sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
