"""Is a file as long as it says? Decoders often return half a picture or half a sound without a word.

Each check compares what a container declares with what is there, and raises ItemError("truncated"). What comes behind
the declared end does not matter: cameras append films and notes to their pictures.
"""

import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from fusemix.data.media import ItemError

PAGE = 1 << 16  # bytes in which the last page of an Ogg file must begin; the largest has 65,307


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _read(file: BinaryIO, form: str, place: int) -> tuple[Any, ...]:
    """Unpack what lies at a place; a file that ends before is cut."""
    end = place + struct.calcsize(form)
    _require(end, _size(file))
    return struct.unpack(form, _at(file, place, end - place))


def _require(end: int, size: int) -> None:
    if end > size:
        raise ItemError("truncated", f"{size:,} bytes of {end:,}")


# ---- pictures --------------------------------------------------------------------------------------------------------


def check_image(file: BinaryIO, kind: str) -> None:
    """Look for the end that the format of a picture requires; leaves the position of the file as it was.

    Args:
        file: open for reading.
        kind: format of the picture in the words of Pillow; PPM is left to its decoder.

    Raises:
        ItemError: truncated.
    """
    place = file.tell()
    try:
        if kind in _PICTURES:
            _PICTURES[kind](file)
    finally:
        file.seek(place)


def _check_jpeg(file: BinaryIO) -> None:
    """The end mark may be followed by more, such as the film of a "motion photo" (ITU T.81, B.1)."""
    size = _size(file)
    if _at(file, max(0, size - 2), 2) == b"\xff\xd9":
        return
    content, place = _at(file, 0, size), 2
    while mark := _MARK.search(content, place):
        if mark[1] == b"\xd9":
            return
        place = mark.end()
        if not b"\xd0" <= mark[1] <= b"\xd8" and mark[1] != b"\x01":  # these have no length
            place += int.from_bytes(content[place : place + 2], "big")
    raise ItemError("truncated", "the end mark of a JPEG file is missing")


_MARK = re.compile(rb"\xff([^\0\xff\xd0-\xd7])", re.DOTALL)


def _check_png(file: BinaryIO) -> None:
    size, place = _size(file), 8
    while place + 12 <= size:
        length, kind = _read(file, ">I4s", place)
        place += 12 + length
        if kind == b"IEND":
            break
    else:
        raise ItemError("truncated", "the end chunk of a PNG file is missing")
    _require(place, size)


def _check_gif(file: BinaryIO) -> None:
    """Walk over the blocks to the trailer (GIF89a specification): its mark is a byte that can occur anywhere."""
    place = 13 + _palette(_at(file, 10, 1))
    while (kind := _at(file, place, 1)) != b";":
        if not kind:
            raise ItemError("truncated", "the trailer of a GIF file is missing")
        place += 1
        if kind == b",":
            place += 10 + _palette(_at(file, place + 8, 1))
        elif kind == b"!":
            place += 1
        else:
            continue  # some writers pad between blocks
        while length := _at(file, place, 1):
            place += 1 + length[0]
            if not length[0]:
                break


def _palette(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 128 else 0


def _check_webp(file: BinaryIO) -> None:
    _require(8 + _read(file, "<I", 4)[0], _size(file))


def _check_bmp(file: BinaryIO) -> None:
    _require(_read(file, "<I", 2)[0], _size(file))


def _check_pages(file: BinaryIO) -> None:
    """The first page is left to its decoder: writers exist that declare more for it than it needs."""
    for place, page in enumerate(_pages(file)):
        if place:
            _check_strips(file, page)


def check_first_page(file: BinaryIO) -> None:
    """Tell whether a TIFF file that does not decode ends before its first page does.

    Raises:
        ItemError: truncated.
    """
    for page in _pages(file):
        _check_strips(file, page)
        return


class _Page(NamedTuple):
    start: int  # place of the first entry
    entries: int
    order: str
    large: bool  # BigTIFF


def _pages(file: BinaryIO) -> Iterator[_Page]:
    """Follow the chain of directories (TIFF 6.0, section 2)."""
    order = "<" if _at(file, 0, 2) == b"II" else ">"
    large = _at(file, 2, 2).strip(b"\0") == b"+"
    word = "Q" if large else "I"
    seen: set[int] = set()
    place = _read(file, order + word, 8 if large else 4)[0]
    while place and place not in seen and len(seen) < _MOST_PAGES:
        seen.add(place)
        count = _read(file, order + ("Q" if large else "H"), place)[0]
        page = _Page(place + (8 if large else 2), count, order, large)
        yield page
        place = _read(file, order + word, page.start + count * (20 if large else 12))[0]


def _check_strips(file: BinaryIO, page: _Page) -> None:
    """All values, and all strips or tiles, of a page must be in the file."""
    size, word, width = _size(file), "Q" if page.large else "I", 20 if page.large else 12
    _require(page.start + page.entries * width, size)
    lists: dict[int, tuple[int, ...]] = {}
    for place in range(page.start, page.start + min(page.entries, 1000) * width, width):
        tag, form, count = _read(file, f"{page.order}HH{word}", place)
        place += width - struct.calcsize(word)
        length = count * _TIFF_SIZES.get(form, 0)
        if length > struct.calcsize(word):  # what does not fit into the entry lies where it says
            place = _read(file, page.order + word, place)[0]
        _require(place + length, size)
        if tag in (*_STRIPS, *_STRIPS.values()) and form in _TIFF_FORMS:
            lists[tag] = _read(file, f"{page.order}{count}{_TIFF_FORMS[form]}", place)
    for offsets, lengths in _STRIPS.items():
        for offset, length in zip(lists.get(offsets, ()), lists.get(lengths, ()), strict=False):
            _require(offset + length, size)


_MOST_PAGES = 10_000
_STRIPS = {273: 279, 324: 325}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_FORMS = {3: "H", 4: "I", 16: "Q"}

_PICTURES: dict[str, Callable[[BinaryIO], None]] = {
    "JPEG": _check_jpeg, "PNG": _check_png, "GIF": _check_gif, "WEBP": _check_webp, "BMP": _check_bmp,
    "TIFF": _check_pages,
}  # fmt: skip


# ---- sounds ----------------------------------------------------------------------------------------------------------


def check_sound(file: BinaryIO, kind: str) -> None:
    """Compare the bytes that an audio file declares with what it has; leaves the position of the file as it was.

    Args:
        file: open for reading.
        kind: format in the words of libsndfile; others than "WAV", "WAVEX" and "OGG" have nothing to look at.

    Raises:
        ItemError: truncated.
    """
    place = file.tell()
    try:
        if kind in ("WAV", "WAVEX"):
            _check_riff(file)
        elif kind == "OGG":
            _check_ogg(file)
    finally:
        file.seek(place)


def _check_riff(file: BinaryIO) -> None:
    """The samples must be there, and the rest too; writers that stream leave lengths at zero or at the maximum."""
    size, order = _size(file), ">" if _at(file, 0, 4) == b"RIFX" else "<"
    declared = _read(file, f"{order}I", 4)[0]
    place = 12
    while place + 8 <= size:
        name, length = _read(file, f"{order}4sI", place)
        place += 8 + length
        if name == b"data":
            break
        place += length % 2
    else:
        raise ItemError("truncated", "the samples are missing")
    if length not in _UNKNOWN:
        _require(place, size)
        if declared not in (*_UNKNOWN, size):  # some writers count the eight bytes of the header too
            _require(8 + declared, size)


_UNKNOWN = (0, 0x7FFFFFFF, 0xFFFFFFFF)


def _check_ogg(file: BinaryIO) -> None:
    """The last page must be whole and carry the mark of the end of the stream (RFC 3533)."""
    size = _size(file)
    tail = _at(file, max(0, size - PAGE), PAGE)
    page = tail[tail.rfind(b"OggS") :]
    if not page.startswith(b"OggS") or len(page) < 27:
        raise ItemError("truncated", "the last Ogg page is cut")
    segments = page[27 : 27 + page[26]]
    if len(page) < 27 + page[26] + sum(segments):
        raise ItemError("truncated", "the last Ogg page is cut")
    if not page[5] & 4:
        raise ItemError("truncated", "the last Ogg page does not end the stream")


# ---- videos ----------------------------------------------------------------------------------------------------------


def check_video(file: BinaryIO) -> None:
    """Compare the length that a video container declares with the file; leaves the position at the start.

    Raises:
        ItemError: truncated.
    """
    size, head = _size(file), _at(file, 0, 4096)
    if head[:4] == b"RIFF":
        _check_avi(file, size)
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        _require(_matroska_end(head), size)
    elif head[:3] != b"\0\0\1":
        _check_boxes(file, size)
    file.seek(0)


def _check_avi(file: BinaryIO, size: int) -> None:
    """A file above a gigabyte is a row of RIFF chunks (OpenDML)."""
    place = 0
    while (head := _at(file, place, 8))[:4] == b"RIFF" and len(head) == 8:
        length = int.from_bytes(head[4:], "little")
        if length in _UNKNOWN:
            return
        place += 8 + length
        _require(place, size)
        place += length % 2


def _matroska_end(head: bytes) -> int:
    """Where the one segment of a Matroska or WebM file ends; 0 where it does not say, as in streams (RFC 8794)."""
    place = 0
    while place < len(head):
        name = head[place : place + 4]
        place += 4 if name[:1] == b"\x1a" or name[:1] == b"\x18" else 1
        length, width = _vint(head[place : place + 8])
        place += width
        if name == b"\x18\x53\x80\x67":
            return 0 if length == (1 << 7 * width) - 1 else place + length
        if name[:1] != b"\xec" and name != b"\x1a\x45\xdf\xa3":  # only padding may come between
            return 0
        place += length
    return place


def _vint(content: bytes) -> tuple[int, int]:
    """Read a number of variable width: the number, and its width in bytes."""
    width = 9 - content[0].bit_length() if content else 9
    if width > 8 or len(content) < width:
        return 0, 1
    return int.from_bytes(content[:width], "big") & ((1 << 7 * width) - 1), width


def _check_boxes(file: BinaryIO, size: int) -> None:
    """The last box of an MP4 or MOV file must end within it (ISO 14496-12), and the index must be there."""
    place, names = 0, set()
    while place + 8 <= size:
        length, name = _read(file, ">I4s", place)
        if length == 1:
            length = _read(file, ">Q", place + 8)[0]
        elif length == 0:  # to the end of the file
            length = size - place
        if length < 8 or not name.isascii():  # what follows the last box is no box
            break
        names.add(name)
        place += length
    _require(place, size)
    if b"moov" not in names:
        raise ItemError("truncated", "the index of the file is missing")
