"""What an item can be read from, the limits of decoding, and a typed reason for every failure."""

import errno
import io
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

from fusemix.errors import DataError, choices

Reason = Literal[
    "empty", "missing", "no access", "no content", "wrong format", "truncated", "unreadable", "too large", "too long",
    "timed out", "decoder crashed", "decode failed", "duplicate", "refused", "not finite",
]  # fmt: skip
"""Why an item has no latent: a closed set.

empty: no text or no value in the table. missing: no such file. no access: the disk or its permissions refuse it.
no content: zero bytes, or a file without a picture, a frame or a sample. wrong format: not one of the allowed formats.
truncated: less than the file itself declares. unreadable: of an allowed format, but damaged. too large: more than
MAX_PIXELS, or than MAX_ASPECT times as long as wide; more memory than a decoder may take, or than the device has for
one item. too long: more than MAX_SECONDS, or a text of more than a million characters. timed out, decoder crashed: the
decoder hung or died. decode failed: the user's own decoder raised. duplicate: a key that an archive holds twice.
refused: the encoder gave no latent. not finite: it gave NaN or infinity.
"""

MAX_PIXELS = 40_000_000
MAX_ASPECT = 100  # long edge to short: processors enlarge the short edge first, and the whole picture with it
MAX_SECONDS = 600
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
AUDIO_SUFFIXES = (".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class ItemError(Exception):
    """One item cannot be used. It is recorded and left out; the run goes on.

    Args:
        reason: one of the closed set.
        message: what is wrong with this item.

    Raises:
        DataError: no such reason.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        if reason not in get_args(Reason):
            raise DataError(f"ItemError: {reason!r} is no reason; {choices(str(reason), get_args(Reason))}")
        super().__init__(message)
        self.reason: Reason = reason


def check_size(width: int, height: int) -> None:
    """Hold the declared size of a picture, or of the frames of a video, to the limits.

    Raises:
        ItemError: too large.
    """
    if width * height > MAX_PIXELS:
        raise ItemError("too large", f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ItemError("too large", f"{width} x {height} pixels, more than {MAX_ASPECT} times as long as wide")


def words_of(error: Exception) -> str:
    """Repeat what a library says, without the places in memory: the same file must fail with the same words again."""
    text = re.sub(r"<_io\.[^<>]*>", "the file", str(error))
    return f"{type(error).__name__}: {text}"


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


def path_or_bytes(source: Source) -> Path | bytes:
    """Return what the user's own code gets of an item: its Path, or the bytes of what lies in a tar or in the table.

    Raises:
        ItemError: there is nothing.
    """
    if not isinstance(source, Path):
        with opened(source) as file:
            return file.read()
    try:
        there = source.exists()  # a folder too: a series of scans may be one item
    except (OSError, ValueError):
        there = False
    if not there:
        raise ItemError("missing", f"no file {source}")
    return source


class _Disk(io.FileIO):
    """A file that remembers what the disk refused: the libraries that read it swallow or rename the error."""

    refusal: OSError | None = None

    def readinto(self, buffer: Any, /) -> int:
        try:
            return super().readinto(buffer) or 0
        except OSError as error:
            self.refusal = error
            raise

    def readall(self) -> bytes:
        try:
            return super().readall() or b""
        except OSError as error:
            self.refusal = error
            raise


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """Open the bytes of an item; a span is read whole, a file is not.

    Raises:
        ItemError: missing, no content, or a span that reaches beyond the end of its file (truncated); no access, also
            at the end if the disk refused a read in between, whatever became of that error.
    """
    if isinstance(source, bytes):
        if not source:
            raise ItemError("no content", "zero bytes")
        yield io.BytesIO(source)
        return
    path = source.path if isinstance(source, Span) else source
    size = _size(path)
    try:
        disk = _Disk(path)
    except OSError as error:
        raise ItemError("no access", f"{path}: {error.strerror}") from error
    with io.BufferedReader(disk) as file:
        try:
            if isinstance(source, Span):
                yield io.BytesIO(_part(file, source, size))
            elif size:
                yield file
            else:
                raise ItemError("no content", "zero bytes")
        finally:
            if disk.refusal is not None:
                raise ItemError("no access", f"{path}: {disk.refusal.strerror}") from disk.refusal


def _size(path: Path) -> int:
    """Return the bytes of a file; a pipe or a device is none, as reading it may wait for ever."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise ItemError("missing", f"no file {path}") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ItemError("missing", f"no file {path}") from error
        raise ItemError("no access", f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ItemError("missing", f"{path} is not a file")
    return facts.st_size


def _part(file: BinaryIO, span: Span, size: int) -> bytes:
    if span.offset + span.size > size:
        raise ItemError("truncated", f"{span.path} ends at byte {size:,}, inside of this member")
    if not span.size:
        raise ItemError("no content", "zero bytes")
    file.seek(span.offset)
    return file.read(span.size)
