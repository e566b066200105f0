"""Is a file as long as it says? Decoders often return half a picture or half a sound without a word."""

import os
import struct
from typing import BinaryIO

from fusemix.data.media import ItemError

TAIL = 1 << 16  # bytes at the end in which a closing mark must lie; cameras append thumbnails and notes after it


def check_image(file: BinaryIO, kind: str) -> None:
    """Look for the end that the format of a picture requires; leaves the position of the file as it was.

    Args:
        file: open for reading.
        kind: format of the picture; others than "JPEG", "PNG", "GIF", "WEBP" and "BMP" are left to their decoder.

    Raises:
        ItemError: truncated.
    """
    place = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        tail = file.read()
        file.seek(0)
        head = file.read(12)
    finally:
        file.seek(place)
    if kind == "GIF":
        _check_gif(file)
        file.seek(place)
    if kind in _MARKS and _MARKS[kind] not in tail:
        raise ItemError("truncated", f"the end mark of a {kind} file is missing")
    declared = None
    if kind == "WEBP":
        declared = struct.unpack("<I", head[4:8])[0] + 8
    elif kind == "BMP":
        declared = struct.unpack("<I", head[2:6])[0]
    if declared is not None and declared > size:
        raise ItemError("truncated", f"{size:,} bytes of {declared:,}")


_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def _check_gif(file: BinaryIO) -> None:
    """Walk over the blocks to the trailer (GIF89a specification): its mark is a byte that can occur anywhere."""
    file.seek(10)
    flags = file.read(3)[:1]
    place = 13 + _palette(flags)
    while True:
        file.seek(place)
        kind = file.read(1)
        if kind == b";":
            return
        if kind == b",":
            place += 11 + _palette(file.read(9)[8:])
        elif kind == b"!":
            place += 2
        else:
            raise ItemError("truncated", "the trailer of a GIF file is missing")
        file.seek(place)
        while length := file.read(1) or None:
            place += 1 + length[0]
            if not length[0]:
                break
            file.seek(place)


def _palette(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 128 else 0


def check_sound(file: BinaryIO, frames: int, decoded: int) -> None:
    """Compare what an audio file declares with what it holds; leaves the position of the file as it was.

    Args:
        file: open for reading.
        frames: that its header declares, as the library says.
        decoded: frames that came out.

    Raises:
        ItemError: truncated.
    """
    if decoded < frames:
        raise ItemError("truncated", f"{decoded:,} frames of {frames:,}")
    place = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(1 << 16)
        file.seek(max(0, size - TAIL))
        tail = file.read()
    finally:
        file.seek(place)
    if head[:4] == b"RIFF":
        _check_riff(head, size)
    elif head[:4] == b"OggS":
        _check_ogg(tail)
    elif head[:4] != b"fLaC":
        _check_mp3(head, size)


def _check_riff(head: bytes, size: int) -> None:
    """Find the chunk with the samples; writers that stream leave its length at zero or at the maximum."""
    place = 12
    while place + 8 <= len(head):
        name, length = head[place : place + 4], struct.unpack("<I", head[place + 4 : place + 8])[0]
        if name == b"data":
            if length not in (0, 0xFFFFFFFF) and place + 8 + length > size:
                raise ItemError("truncated", f"{size - place - 8:,} bytes of samples of {length:,}")
            return
        place += 8 + length + length % 2
    if place > size:
        raise ItemError("truncated", "the samples are missing")


def _check_ogg(tail: bytes) -> None:
    """The last page must be whole and carry the mark of the end of the stream (RFC 3533)."""
    place = tail.rfind(b"OggS")
    page = tail[place:]
    if place < 0 or len(page) < 27:
        raise ItemError("truncated", "the last Ogg page is cut")
    segments = page[27 : 27 + page[26]]
    if len(segments) < page[26] or len(page) < 27 + page[26] + sum(segments):
        raise ItemError("truncated", "the last Ogg page is cut")
    if not page[5] & 4:
        raise ItemError("truncated", "the last Ogg page does not end the stream")


def _check_mp3(head: bytes, size: int) -> None:
    """A Xing or Info header declares the bytes of the stream; without one nothing is declared."""
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0 or place + 16 > len(head):
        return
    flags = struct.unpack(">I", head[place + 4 : place + 8])[0]
    if flags & 3 != 3:
        return
    declared = struct.unpack(">I", head[place + 12 : place + 16])[0]
    start = 0
    if head[:3] == b"ID3":
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    if start + declared > size:
        raise ItemError("truncated", f"{size - start:,} bytes of {declared:,}")


def check_video(file: BinaryIO) -> None:
    """Compare the length that a video container declares with the file; leaves the position at the start.

    Raises:
        ItemError: truncated.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(64)
    end = 0
    if head[:4] == b"RIFF":
        end = 8 + struct.unpack("<I", head[4:8])[0]
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        end = _matroska_end(head)
    elif head[4:8] == b"ftyp":
        end = _boxes_end(file, size)
    file.seek(0)
    if end > size:
        raise ItemError("truncated", f"{size:,} bytes of {end:,}")


def _matroska_end(head: bytes) -> int:
    """Where the one segment of a Matroska or WebM file ends; 0 where it does not say, as in streams (RFC 8794)."""
    length, width = _vint(head[4:])
    place = 4 + width + length
    if head[place : place + 4] != b"\x18\x53\x80\x67":
        return 0
    length, width = _vint(head[place + 4 :])
    return 0 if length == (1 << 7 * width) - 1 else place + 4 + width + length


def _vint(content: bytes) -> tuple[int, int]:
    """Read a number of variable width: the number, and its width in bytes."""
    width = 9 - content[0].bit_length() if content else 9
    if width > 8 or len(content) < width:
        return 0, 1
    return int.from_bytes(content[:width], "big") & ((1 << 7 * width) - 1), width


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last box of an MP4 or MOV file ends (ISO 14496-12)."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or not kind.isascii():  # 0 is "to the end of the file"; the rest is no box
            return size
        place += length
    return place if place == size else max(place, size + 1)
