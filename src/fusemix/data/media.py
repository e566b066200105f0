"""What an item can be read from, the limits of decoding, and a typed reason for every failure."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

Reason = Literal[
    "empty", "missing", "no access", "no content", "wrong format", "truncated", "unreadable", "too large", "too long",
    "timed out", "decoder crashed", "decode failed", "duplicate", "refused", "not finite",
]  # fmt: skip
"""Why an item has no latent: a closed set.

empty: no text or no value in the table. missing: no such file. no access: the disk or its permissions refuse it.
no content: zero bytes, or a file without a picture, a frame or a sample. wrong format: not one of the allowed formats.
truncated: less than the file itself declares. unreadable: of an allowed format, but damaged. too large: more than
MAX_PIXELS, or more memory than a decoder may take. too long: more than MAX_SECONDS, or a text of more than a million
characters. timed out, decoder crashed: the decoding process hung or died. decode failed: the user's own decoder raised.
duplicate: a key that an archive holds twice. refused: the encoder gave no latent. not finite: it gave NaN or infinity.
"""

MAX_PIXELS = 40_000_000
MAX_SECONDS = 600
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
AUDIO_SUFFIXES = (".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class ItemError(Exception):
    """One item cannot be used. It is recorded and left out; the run goes on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class Span(NamedTuple):
    """A part of a file, as a member of a tar that is never unpacked.

    Attributes:
        path: the file.
        offset: of the first byte.
        size: in bytes.
    """

    path: Path
    offset: int
    size: int


Source = Path | Span | bytes
"""Where the bytes of an item are: a file, a part of one, or in memory."""


def is_file(path: Path) -> bool:
    """Tell whether there is such a file; a name that no disk can hold, as a long caption, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """Open the bytes of an item; a span is read whole, a file is not.

    Raises:
        ItemError: missing, no access, no content, or a span that reaches beyond the end of its file (truncated).
    """
    if isinstance(source, bytes):
        if not source:
            raise ItemError("no content", "zero bytes")
        yield io.BytesIO(source)
        return
    path = source.path if isinstance(source, Span) else source
    if not is_file(path):
        raise ItemError("missing", f"no file {path}")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ItemError("no access", f"{path}: {error.strerror}") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if isinstance(source, Span):
            if source.offset + source.size > size:
                raise ItemError("truncated", f"{path} ends at byte {size:,}, inside of this member")
            file.seek(source.offset)
            with opened(file.read(source.size)) as content:
                yield content
            return
        if not size:
            raise ItemError("no content", "zero bytes")
        yield file
