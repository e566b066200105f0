"""Sound comes as one channel at its own rate, or the reason why there is none: never half of it without a word."""

import io

import numpy as np
import pytest
import soundfile

from fusemix.data import sounds
from fusemix.data.media import ItemError
from fusemix.data.sounds import load_sound

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def wave(seconds=1.0, rate=16_000, channels=1):
    times = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.02, (len(times), channels))
    return (np.sin(2 * np.pi * 440 * times)[:, None] * 0.5 + noise).astype(np.float32)


def encoded(samples, suffix="wav", rate=16_000):
    file = io.BytesIO()
    format_, subtype = FORMATS[suffix]
    soundfile.write(file, samples, rate, format=format_, subtype=subtype)
    return file.getvalue()


def reason_of(source):
    with pytest.raises(ItemError) as caught:
        load_sound(source)
    return caught.value.reason


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_comes_as_one_channel_at_its_own_rate(suffix, channels):
    rate = 24_000
    sound = load_sound(encoded(wave(1, rate, channels), suffix, rate))
    assert sound.rate == rate and sound.samples.dtype == np.float32 and sound.samples.ndim == 1
    assert abs(len(sound.samples) - rate) < 3000  # mp3 pads
    spectrum = np.abs(np.fft.rfft(sound.samples[:rate]))
    assert abs(int(spectrum.argmax()) * rate / min(rate, len(sound.samples)) - 440) < 5


def test_channels_are_averaged(tmp_path):
    samples = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    np.testing.assert_allclose(load_sound(tmp_path / "a.wav").samples, 0.125)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_sound_cut_anywhere_is_never_half_a_sound(suffix):
    content = encoded(wave(2), suffix)
    load_sound(content)
    for part in range(1, 40):
        assert reason_of(content[: len(content) * part // 40]) in ("truncated", "wrong format", "unreadable"), part


def test_what_is_no_sound_is_refused(tmp_path):
    assert reason_of(b"") == "no content"
    assert reason_of(b"hello, I am text") == "wrong format"
    assert reason_of(encoded(wave(0))) == "no content"
    assert reason_of(tmp_path / "no.wav") == "missing"
    file = io.BytesIO()
    soundfile.write(file, wave(), 16_000, format="AIFF", subtype="PCM_16")
    assert reason_of(file.getvalue()) == "wrong format"
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 8000, subtype="FLOAT")
    assert reason_of(tmp_path / "nan.wav") == "unreadable"


def test_a_sound_that_is_too_long_is_refused_by_its_header(monkeypatch):
    content = encoded(wave(2))
    monkeypatch.setattr(sounds, "_read", None)  # nothing may be decoded
    monkeypatch.setattr(sounds, "MAX_SECONDS", 1)
    assert reason_of(content) == "too long"
