"""Decode sound: audio files through libsndfile, the sound track of a video through PyAV."""

import re
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusemix.data import mp3
from fusemix.data.complete import check_sound
from fusemix.data.media import MAX_SECONDS, ItemError, Source, opened, words_of
from fusemix.data.videos import container_of, first_stream, opened_container, packet_times
from fusemix.errors import MissingExtraError
from fusemix.sound import Sound

AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
_STARTS = {
    "WAV": rb"RIF[FX]....WAVE",
    "FLAC": rb"fLaC",
    "OGG": rb"OggS",
    "MP3": rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]",
}
UNKNOWN = (1 << 63) - 1  # frames of a FLAC stream that does not say
BLOCK = 1 << 18  # frames that are decoded at a time, so that many channels never lie in memory together


def load_sound(source: Source) -> Sound:
    """Decode an audio file, or the sound track of a video, to one channel at its own rate.

    Raises:
        ItemError: with one of the reasons missing, no access, no content, wrong format, truncated, unreadable, too
            long and too large.
        MissingExtraError: the extra `audio`, or for videos and M4A `video`, is not installed.
    """
    with opened(source) as file:
        if container_of(file.read(12)) is None:
            file.seek(0)
            return _audio_file(file)
    return _track(source)


def _audio_file(file: BinaryIO) -> Sound:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise MissingExtraError("soundfile", "audio", "decoding sound") from error
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise _diagnosis(file, error) from error
    try:
        with sound:
            return _decode(file, sound)
    except ItemError:
        raise
    except MemoryError as error:
        raise ItemError("too large", "more memory than a decoder may take") from error
    except Exception as error:  # libsndfile's bindings raise several types on bad bytes
        at_end = isinstance(error, soundfile.LibsndfileError) and not file.read(1)
        raise ItemError("truncated" if at_end else "unreadable", words_of(error)) from error


def _decode(file: BinaryIO, sound: Any) -> Sound:
    """Decode block by block, never more than the limit, whatever the header says."""
    if sound.format not in AUDIO_FORMATS:
        raise ItemError("wrong format", f"{sound.format} is not one of WAV, FLAC, OGG, MP3")
    declared, slack = sound.frames, 0
    check_sound(file, sound.format)
    if sound.format == "MP3":  # libsndfile guesses from the size of the file
        declared, slack = _mp3_samples(file), mp3.SLACK
    limit = MAX_SECONDS * sound.samplerate
    if declared == UNKNOWN:
        declared, sound.seekable = 0, lambda: False  # soundfile seeks after each block, which has no place to go to
    if declared > limit:
        raise ItemError("too long", f"{declared / sound.samplerate:,.0f} s, the limit is {MAX_SECONDS} s")
    blocks, count = [], 0
    while count <= limit and len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
        blocks.append(_mixed(block))
        count += len(block)
    if count > limit:
        raise ItemError("too long", f"more than {MAX_SECONDS} s")
    if count < declared - slack:
        raise ItemError("truncated", f"{count:,} frames of {declared:,}")
    return _joined(blocks, sound.samplerate)


def _mp3_samples(file: BinaryIO) -> int:
    place = file.tell()
    try:
        return mp3.count_samples(file)
    finally:
        file.seek(place)


def _diagnosis(file: BinaryIO, error: Exception) -> ItemError:
    """Find out why a sound does not open: it is none, it is cut, or it is damaged."""
    file.seek(0)
    head = file.read(12)
    kind = next((kind for kind, start in _STARTS.items() if re.match(start, head, re.DOTALL)), None)
    if kind is None:
        return ItemError("wrong format", "no sound of the formats WAV, FLAC, OGG, MP3")
    try:
        check_sound(file, kind)
        if kind == "MP3":
            mp3.count_samples(file)
    except ItemError as cut:
        return cut
    return ItemError("unreadable", words_of(error))


def _track(source: Source) -> Sound:
    """Decode the first sound track of a video."""
    with opened_container(source) as container:
        stream = first_stream(container, "audio")
        packet_times(container, stream)
        container.seek(0)
        import av

        rate = stream.codec_context.sample_rate
        plain = av.AudioResampler(format="fltp", rate=rate)
        blocks, count = [], 0
        for frame in container.decode(stream):
            blocks += [_mixed(part.to_ndarray().T) for part in plain.resample(frame)]
            count += frame.samples
            if count > MAX_SECONDS * rate:
                raise ItemError("too long", f"more than {MAX_SECONDS} s")
        return _joined(blocks, rate)


def _mixed(block: NDArray[Any]) -> NDArray[np.float32]:
    """Average the channels of (T, C)."""
    samples: NDArray[np.float32] = block.mean(axis=1, dtype=np.float32)
    return samples


def _joined(blocks: list[NDArray[np.float32]], rate: int) -> Sound:
    samples = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if not len(samples):
        raise ItemError("no content", "no samples")
    if not np.isfinite(samples).all():
        raise ItemError("unreadable", "samples that are NaN or infinite")
    return Sound(samples, rate)
