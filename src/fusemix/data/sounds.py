"""Decode audio files through libsndfile."""

import math
from typing import Any

import numpy as np

from fusemix.data.complete import check_sound
from fusemix.data.media import MAX_SECONDS, ItemError, Source, opened
from fusemix.errors import MissingExtraError
from fusemix.sound import Sound

AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "MPEG")


def load_sound(source: Source) -> Sound:
    """Decode an audio file to one channel at its own rate.

    Raises:
        ItemError: with one of the reasons missing, no access, no content, wrong format, truncated, unreadable, too
            long and too large.
        MissingExtraError: the extra `audio` is not installed.
    """
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise MissingExtraError("soundfile", "audio", "decoding sound") from error
    try:
        with opened(source) as file:
            try:
                sound = soundfile.SoundFile(file)
            except soundfile.LibsndfileError as error:
                raise ItemError("wrong format", f"no sound of the formats WAV, FLAC, OGG, MP3: {error}") from error
            with sound:
                if sound.format not in AUDIO_FORMATS:
                    raise ItemError("wrong format", f"{sound.format} is not one of WAV, FLAC, OGG, MP3")
                if sound.frames > MAX_SECONDS * sound.samplerate:
                    seconds = sound.frames / sound.samplerate
                    raise ItemError("too long", f"{seconds:,.0f} s, the limit is {MAX_SECONDS} s")
                samples = _read(sound)
                check_sound(file, sound.frames, len(samples))
            return as_sound(samples, sound.samplerate)
    except ItemError:
        raise
    except MemoryError as error:
        raise ItemError("too large", "more memory than a decoder may take") from error
    except Exception as error:  # libsndfile's bindings raise several types on bad bytes
        raise ItemError("unreadable", f"{type(error).__name__}: {error}") from error


def _read(sound: Any) -> np.ndarray[Any, Any]:
    """Read (T, channels), never more than the limit, whatever the header says."""
    limit = math.ceil(MAX_SECONDS * sound.samplerate)
    samples: np.ndarray[Any, Any] = sound.read(frames=limit, dtype="float32", always_2d=True)
    return samples


def as_sound(samples: np.ndarray[Any, Any], rate: int) -> Sound:
    """Mix channels (T, C) to one.

    Raises:
        ItemError: no samples, or values that are not finite.
    """
    if not len(samples):
        raise ItemError("no content", "no samples")
    if not np.isfinite(samples).all():
        raise ItemError("unreadable", "samples that are NaN or infinite")
    return Sound(np.ascontiguousarray(samples.mean(axis=1, dtype=np.float32)), rate)
