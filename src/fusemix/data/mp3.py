"""Count the frames of MPEG audio: the only way to tell a whole MP3 file from a cut one."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fusemix.data.media import ItemError


def count_samples(file: BinaryIO) -> int:
    """Count the samples of each channel by the headers of the frames; 0 where these do not say, as at a free bit rate.

    Padding that a decoder removes at both ends is counted too, up to SLACK samples.

    Raises:
        ItemError: truncated: fewer frames than a Xing, Info or VBRI header declares, or the last one is cut.
    """
    file.seek(0)
    content = file.read()
    frames = list(_frames(content))
    if not frames:
        return 0
    last = frames[-1]
    rest = content[last.place + last.length :]
    if last.place + last.length > len(content) or (0 < len(rest) < 4 and rest[0] == 0xFF):
        raise ItemError("truncated", "the last frame is cut")
    count, length = _declared(content, frames[0])
    if len(frames) < count or frames[0].place + length > len(content):
        raise ItemError("truncated", f"{len(frames):,} MP3 frames of {count:,}")
    return len(frames) * last.samples


class _Frame(NamedTuple):
    place: int
    length: int
    samples: int  # of each channel
    kind: int  # bits of the header that stay the same in one stream: version, layer, rate


def _frames(content: bytes) -> Iterator[_Frame]:
    """Walk over the frames of MPEG audio (ISO 11172-3, 2.4.1; 13818-3); ends at the first that cannot be measured."""
    place = _after_tags(content)
    frame = None
    while place + 4 <= len(content):
        found = _frame(content, place)
        if found and (frame is None or found.kind == frame.kind):
            yield found
            frame, place = found, place + found.length
            continue
        if content.startswith(_TAGS, place):
            return
        sync = _next(content, place + 1, frame)
        if sync is None:
            return
        place = sync


def _next(content: bytes, place: int, frame: _Frame | None) -> int | None:
    """Find the next frame behind bytes that are none; it counts only if a second one follows it."""
    while (place := content.find(b"\xff", place)) >= 0:
        found = _frame(content, place)
        if found and (frame is None or found.kind == frame.kind):
            after = _frame(content, place + found.length)
            if after and after.kind == found.kind:
                return place
        place += 1
    return None


SLACK = 4 * 1152
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_RATES = (44_100, 48_000, 32_000)
_KBITS = {  # by version 1 or 2 and layer
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _frame(content: bytes, place: int) -> _Frame | None:
    """Read one header; None where there is none, or one without a bit rate."""
    head = int.from_bytes(content[place : place + 4], "big")
    version, layer, bits, rate = head >> 19 & 3, 4 - (head >> 17 & 3), head >> 12 & 15, head >> 10 & 3
    if place + 4 > len(content) or head >> 21 != 0x7FF or version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kbits = _KBITS[1 if version == 3 else 2, layer][bits - 1]
    padding = head >> 9 & 1
    if layer == 1:
        samples, length = 384, (12_000 * kbits // hertz + padding) * 4
    else:
        samples = 576 if layer == 3 and version != 3 else 1152
        length = 125 * samples * kbits // hertz + padding
    return _Frame(place, length, samples, head & 0x1E0C00)


def _after_tags(content: bytes) -> int:
    """Skip ID3v2 tags, which may hold anything (id3.org/id3v2.4.0-structure)."""
    place = 0
    while content.startswith(b"ID3", place) and place + 10 <= len(content):
        bytes_ = content[place + 6 : place + 10]
        length = sum((byte & 127) << shift for byte, shift in zip(bytes_, (21, 14, 7, 0), strict=True))
        place += length + (20 if content[place + 5] & 16 else 10)
    return place


def _declared(content: bytes, first: _Frame) -> tuple[int, int]:
    """Read the frames and bytes that the first frame declares; zero where it says nothing."""
    frame = content[first.place : first.place + first.length]
    if frame.startswith(b"VBRI", 36) and len(frame) >= 54:
        length, count = struct.unpack_from(">II", frame, 46)
        return count, length
    place = next((place for place in (13, 21, 36) if frame[place : place + 4] in (b"Xing", b"Info")), None)
    if place is None or len(frame) < place + 16:
        return 0, 0
    flags, *numbers = struct.unpack_from(">3I", frame, place + 4)
    count = numbers.pop(0) if flags & 1 else 0
    return count, numbers[0] if flags & 2 else 0
