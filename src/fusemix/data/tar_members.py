"""Walk over a tar by its headers, whatever it holds: nothing is unpacked, and every byte that matters is checked.

The standard library parses each header. Going from one to the next is done here, because `tarfile` follows negative
sizes backwards, reads long names of any length into memory and ends at a damaged header without a word.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fusemix.data.items import Problem
from fusemix.data.media import Reason

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 1 << 20  # of a long name, or of the records of a PAX header
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_RECORD = re.compile(rb"([1-9]\d{0,7}) ([^=\n]+)=", re.DOTALL)
_EXTRA = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Member(NamedTuple):
    """One regular file in a tar: its bytes are at [offset, offset + size)."""

    name: str
    offset: int
    size: int


class TarError(Exception):
    """The tar cannot be followed further."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def members(file: BinaryIO) -> Iterator[Member | Problem]:
    """Walk over a tar by its headers; a link, a device, a sparse file or a name that leads elsewhere is a problem.

    Args:
        file: an uncompressed tar, best unbuffered. Its position may be changed between steps.

    Raises:
        TarError: the tar cannot be followed further.
    """
    end = file.seek(0, os.SEEK_END)
    place = 0
    extra: dict[str, str] = {}
    while True:
        block = read_at(file, place, BLOCK)
        if len(block) < BLOCK:
            raise TarError("truncated", f"ends at byte {end:,} without the mark of the end")
        if not block.strip(b"\0"):
            _check_end(file, place)
            return
        info = _header(block, place)
        data = place + BLOCK
        if info.type == tarfile.GNUTYPE_SPARSE:
            data = _skip_sparse(file, block, data)
        size = 0  # of a link or a device, whatever its header says
        if info.type in _EXTRA:
            extra |= _extra(file, info, data, end)
            size = info.size
        elif info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
            size = int(extra.get("size", info.size))
        if data + size > end:
            raise TarError("truncated", f"ends at byte {end:,}, inside of the member at byte {place:,} ({info.name!r})")
        if info.type not in _EXTRA:
            name = extra.get("path", info.name).removeprefix("./")
            if info.type != tarfile.DIRTYPE:
                why = _refusal(name, info, extra)
                yield Problem(name, "wrong format", f"is {why}: never opened") if why else Member(name, data, size)
            extra = {}
        place = data + -(-size // BLOCK) * BLOCK


def read_at(file: BinaryIO, place: int, size: int) -> bytes:
    """Read that many bytes, or fewer at the end of the file."""
    file.seek(place)
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _header(block: bytes, place: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        if place == 0:
            raise TarError("wrong format", f"is no tar ({error})") from error
        raise TarError("truncated", f"damaged at byte {place:,} ({error})") from error
    if info.size < 0:
        raise TarError("truncated", f"damaged at byte {place:,} (a size of {info.size:,})")
    return info


def _check_end(file: BinaryIO, place: int) -> None:
    """Look behind the first block of zeros: only zeros may follow, to the end of a record.

    Raises:
        TarError: there is more, as after `cat a.tar b.tar` or a hole in the file.
    """
    rest = read_at(file, place, MAX_HEADER_BYTES)
    if rest.strip(b"\0"):
        raise TarError("unreadable", f"is not at its end after the mark of the end at byte {place:,}: two tars in one?")


def _skip_sparse(file: BinaryIO, block: bytes, data: int) -> int:
    """Return where the data of a sparse file begins: behind the continuations of its map."""
    more = block[482]
    while more:
        block = read_at(file, data, BLOCK)
        if len(block) < BLOCK:
            raise TarError("truncated", f"ends inside of the map of a sparse file at byte {data:,}")
        more = block[504]
        data += BLOCK
    return data


def _extra(file: BinaryIO, info: tarfile.TarInfo, data: int, end: int) -> dict[str, str]:
    """Read a member that describes the next one: a long name of GNU, or the records of PAX."""
    if info.size > MAX_HEADER_BYTES:
        raise TarError("truncated", f"damaged at byte {data - BLOCK:,} (a header of {info.size:,} bytes)")
    content = read_at(file, data, info.size)
    if len(content) < info.size:
        raise TarError("truncated", f"ends at byte {end:,}, inside of a header")
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    if info.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
        return {}
    return _records(content, data)


def _records(content: bytes, data: int) -> dict[str, str]:
    """Parse the records of a PAX header, "30 path=...newline"."""
    records: dict[str, str] = {}
    place = 0
    while place < len(content) and content[place]:
        match = _RECORD.match(content, place)
        stop = place + int(match[1]) if match else 0
        if match is None or stop <= match.end() or stop > len(content) or content[stop - 1] != 10:
            raise TarError("truncated", f"damaged at byte {data + place:,} (no record of a PAX header)")
        records[match[2].decode("utf-8", "replace")] = content[match.end() : stop - 1].decode(
            "utf-8", "surrogateescape"
        )
        place = stop
    if "size" in records and not re.fullmatch(r"\d{1,18}", records["size"], re.ASCII):
        raise TarError("truncated", f"damaged at byte {data:,} (a size of {records['size'][:20]!r})")
    return records


def _refusal(name: str, info: tarfile.TarInfo, extra: dict[str, str]) -> str | None:
    """Say what a member is that is not to be used; None for a plain file."""
    what = _KINDS.get(info.type)
    if any(record.startswith("GNU.sparse.") for record in extra):
        what = "a sparse file"
    if what is None and not info.isreg():
        what = "of an unknown type"
    if what is None and (name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name)):
        what = "named by a path that leads elsewhere"
    if what is None and (not name or _NO_TEXT.search(name)):
        what = "named by what is no text"
    return what
