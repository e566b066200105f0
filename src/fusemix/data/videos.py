"""Decode frames of a video through PyAV, spread over its length."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from fusemix.data.complete import check_video
from fusemix.data.media import MAX_PIXELS, MAX_SECONDS, ItemError, Source, check_size, opened, words_of
from fusemix.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = 8
SLACK = 0.05  # of the declared duration, and at least a second, may be missing: writers round, and tracks differ
# FFmpeg is told which of these it is: left to guess, it would also take playlists that name other files and addresses.
_CONTAINERS = {
    "mov": rb"....(ftyp|moov|mdat|wide|free|skip)",
    "matroska": rb"\x1a\x45\xdf\xa3",
    "avi": rb"RIFF....AVI ",
    "mpeg": rb"\0\0\x01\xba",
    "mpegvideo": rb"\0\0\x01\xb3",
}
_WITHOUT_INDEX = ("mpeg", "mpegvideo")  # seeking lands near the place, on either side


def load_frames(source: Source, count: int = FRAMES) -> "list[Image]":
    """Decode `count` frames, in the middle of as many equal parts of the video; upright RGB.

    Raises:
        ItemError: with one of the reasons missing, no access, no content, wrong format, truncated, unreadable, too
            large, too long.
        MissingExtraError: the extra `video` is not installed.
    """
    with opened_container(source) as container:
        stream = first_stream(container, "video")
        check_size(stream.codec_context.width, stream.codec_context.height)
        times = packet_times(container, stream)
        wanted = [times[int((i + 0.5) * len(times) / count)] for i in range(count)]
        found = _frames_at(container, stream, sorted(set(wanted)))
        return [found[time] for time in wanted]


def container_of(head: bytes) -> str | None:
    """Name the container, in FFmpeg's words, that a file with these first bytes is; None for all that is no video."""
    return next((name for name, start in _CONTAINERS.items() if re.match(start, head, re.DOTALL)), None)


@contextmanager
def opened_container(source: Source) -> Iterator[Any]:
    """Open a video as a container of PyAV, and turn whatever FFmpeg raises into a reason.

    Raises:
        ItemError: with one of the reasons missing, no access, no content, wrong format, truncated and unreadable.
        MissingExtraError: the extra `video` is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtraError("av", "video", "decoding video") from error
    with opened(source) as file:
        name = container_of(file.read(12))
        if name is None:
            raise ItemError("wrong format", "no video of the formats MP4, MOV, Matroska, WebM, AVI, MPEG")
        check_video(file)
        try:
            with av.open(file, format=name, metadata_errors="replace") as container:
                yield container
        except ItemError:
            raise
        except MemoryError as error:
            raise ItemError("too large", "more memory than a decoder may take") from error
        except Exception as error:  # PyAV raises its own, ValueError and OSError on bad bytes
            raise ItemError("unreadable", words_of(error)) from error


def first_stream(container: Any, kind: str) -> Any:
    """Return the first stream of a kind, and check the declared duration before anything is decoded.

    Raises:
        ItemError: no content, or too long.
    """
    streams = getattr(container.streams, kind)
    if not streams:
        raise ItemError("no content", f"no {kind} in it")
    seconds = (container.duration or 0) / 1_000_000
    if seconds > MAX_SECONDS:
        raise ItemError("too long", f"{seconds:,.0f} s, the limit is {MAX_SECONDS} s")
    streams[0].thread_type = "NONE"
    streams[0].codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may grow on its way
    return streams[0]


def packet_times(container: Any, stream: Any) -> list[int]:
    """List the presentation times of a stream, in its own units, without decoding; find out whether all are there.

    Raises:
        ItemError: no content, truncated, or too long.
    """
    times: list[int] = []
    end, start = Fraction(0), Fraction(container.start_time or 0, 1_000_000)
    for packet in container.demux():
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None or not packet.size:
            continue
        if packet.is_corrupt:
            raise ItemError("truncated", f"a packet is cut at {float(time * packet.time_base):.1f} s")
        end = max(end, (time + (packet.duration or 0)) * packet.time_base - start)
        if packet.stream_index == stream.index and not packet.is_discard:
            times.append(time)
    if not times:
        raise ItemError("no content", "no packets")
    if end > MAX_SECONDS:
        raise ItemError("too long", f"{float(end):,.0f} s, the limit is {MAX_SECONDS} s")
    # Numbers of frames are of no use here: those that an edit list leaves out are counted in them.
    declared = (container.duration or 0) / 1_000_000
    if float(end) < declared - max(1.0, SLACK * declared):
        raise ItemError("truncated", f"{float(end):.1f} s of {declared:.1f} s")
    return sorted(times)


def _frames_at(container: Any, stream: Any, times: list[int]) -> "dict[int, Image]":
    """Decode the frames that are shown at these times, which ascend."""
    found: dict[int, Image] = {}
    if container.format.name not in _WITHOUT_INDEX:
        for time in times:
            container.seek(time, stream=stream)
            found |= _collect(container.decode(stream), [time], sure=False)
    left = [time for time in times if time not in found]
    if left:
        container.seek(min(0, container.start_time or 0))
        found |= _collect(container.decode(stream), left, sure=True)
    for time in left:
        if time not in found:
            raise ItemError("truncated", f"no frame at {float(time * stream.time_base):.1f} s")
    return found


def _collect(frames: Iterable[Any], times: list[int], sure: bool) -> "dict[int, Image]":
    """Take the first frame at or behind each time; unless we are sure to start before it, only if one is before it."""
    found: dict[int, Image] = {}
    waiting = deque(times)
    for frame in frames:
        shown = frame.pts if frame.pts is not None else frame.dts
        while waiting and shown is not None and shown >= waiting[0]:
            if shown > waiting[0] and not sure:
                return found
            image = frame.to_image()
            found[waiting.popleft()] = image.rotate(frame.rotation, expand=True) if frame.rotation else image
        if not waiting:
            break
        sure = True
    return found
