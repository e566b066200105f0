"""Decode video through PyAV: frames spread over its length, or its sound track."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from fusemix.data.complete import check_video
from fusemix.data.media import MAX_PIXELS, MAX_SECONDS, ItemError, Source, opened
from fusemix.data.sounds import as_sound
from fusemix.errors import MissingExtraError
from fusemix.sound import Sound

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = 8
# Containers that FFmpeg reads without opening other files or addresses: playlists and the like are left out.
VIDEO_FORMATS = {"avi", "matroska", "mov", "mp4", "mpeg", "webm"}
CUT = 0.9  # of the declared duration; the rest is forgiven, since tracks of one file differ in length


def load_frames(source: Source, count: int = FRAMES) -> "list[Image]":
    """Decode `count` frames, in the middle of as many equal parts of the video; upright RGB.

    Raises:
        ItemError: with one of the reasons missing, no access, no content, wrong format, truncated, unreadable, too
            large, too long.
        MissingExtraError: the extra `video` is not installed.
    """
    with _container(source) as container:
        stream = _stream(container, "video")
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > MAX_PIXELS:
            raise ItemError("too large", f"frames of {pixels:,} pixels, the limit is {MAX_PIXELS:,}")
        times = _times(container, stream)
        wanted = [times[int((i + 0.5) * len(times) / count)] for i in range(count)]
        found: dict[int, Image] = {}
        for time in sorted(set(wanted)):
            found[time] = _frame_at(container, stream, time)
        return [found[time] for time in wanted]


def is_container(source: Source) -> bool:
    """Tell a file of streams, such as MP4, Matroska or AVI, from a plain audio file by its first bytes.

    Raises:
        ItemError: as `media.opened`.
    """
    with opened(source) as file:
        head = file.read(12)
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return riff or head[4:8] == b"ftyp" or head[:4] in (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba")


def load_track(source: Source) -> Sound:
    """Decode the sound track to one channel.

    Raises:
        ItemError: as `load_frames`; a video without a sound track is "no content".
        MissingExtraError: the extra `video` is not installed.
    """
    with _container(source) as container:
        stream = _stream(container, "audio")
        _times(container, stream)
        container.seek(0)
        import av

        rate = stream.codec_context.sample_rate
        plain = av.AudioResampler(format="fltp", rate=rate)
        parts, total = [], 0
        for frame in container.decode(stream):
            parts += [part.to_ndarray() for part in plain.resample(frame)]
            total += frame.samples
            if total > MAX_SECONDS * rate:
                raise ItemError("too long", f"more than {MAX_SECONDS} s of sound")
        samples = np.concatenate(parts, axis=1).T if parts else np.empty((0, 1), np.float32)
        return as_sound(samples, rate)


@contextmanager
def _container(source: Source) -> Iterator[Any]:
    """Open a video, and turn whatever FFmpeg raises into a reason."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtraError("av", "video", "decoding video") from error
    try:
        with opened(source) as file:
            check_video(file)
            with av.open(file, metadata_errors="replace") as container:
                name = container.format.name
                if not VIDEO_FORMATS & set(name.split(",")):
                    raise ItemError("wrong format", f"{name} is not one of {', '.join(sorted(VIDEO_FORMATS))}")
                yield container
    except ItemError:
        raise
    except MemoryError as error:
        raise ItemError("too large", "more memory than a decoder may take") from error
    except av.error.InvalidDataError as error:
        raise ItemError("unreadable", f"FFmpeg: {error.strerror}") from error
    except Exception as error:  # PyAV raises its own, ValueError and OSError on bad bytes
        raise ItemError("unreadable", f"{type(error).__name__}: {error}") from error


def _stream(container: Any, kind: str) -> Any:
    """Return the first stream of a kind, and check the declared duration before anything is decoded."""
    streams = getattr(container.streams, kind)
    if not streams:
        raise ItemError("no content", f"no {kind} in it")
    seconds = (container.duration or 0) / 1_000_000
    if seconds > MAX_SECONDS:
        raise ItemError("too long", f"{seconds:,.0f} s, the limit is {MAX_SECONDS} s")
    streams[0].thread_type = "NONE"
    return streams[0]


def _times(container: Any, stream: Any) -> list[int]:
    """List the presentation times of a stream, in its own units, without decoding; find out whether all are there."""
    times: list[int] = []
    end = 0
    for packet in container.demux(stream):
        if packet.pts is None or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise ItemError("truncated", f"a packet is cut at {float(packet.pts * stream.time_base):.1f} s")
        times.append(packet.pts)
        end = max(end, packet.pts + (packet.duration or 0))
    if not times:
        raise ItemError("no content", "no packets")
    times.sort()
    unit = stream.time_base or Fraction(1, 1_000_000)
    seconds = float((end - times[0]) * unit)
    if seconds > MAX_SECONDS:
        raise ItemError("too long", f"{seconds:,.0f} s, the limit is {MAX_SECONDS} s")
    declared = float(stream.duration * unit) if stream.duration else (container.duration or 0) / 1_000_000
    if seconds < CUT * declared or len(times) < CUT * stream.frames:
        raise ItemError("truncated", f"{seconds:.1f} s of {declared:.1f} s")
    return times


def _frame_at(container: Any, stream: Any, time: int) -> "Image":
    """Decode the frame that is shown at a time."""
    container.seek(time, stream=stream, backward=True)
    last = None
    for frame in container.decode(stream):
        last = frame
        if frame.pts is not None and frame.pts >= time:
            break
    if last is None or last.pts is None or last.pts < time:
        raise ItemError("truncated", f"no frame at {float(time * stream.time_base):.1f} s")
    image: Image = last.to_image()
    return image.rotate(last.rotation, expand=True) if last.rotation else image
