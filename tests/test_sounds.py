"""Sound comes as one channel at its own rate, or the reason why there is none: never half of it without a word."""

import io
import sys

import numpy as np
import pytest
import soundfile

from fusemix.data import sounds
from fusemix.data.media import ItemError, Span
from fusemix.data.sounds import load_sound
from fusemix.errors import MissingExtraError

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
    monkeypatch.setattr(sounds, "_mixed", None)  # nothing may be decoded
    monkeypatch.setattr(sounds, "MAX_SECONDS", 1)
    assert reason_of(content) == "too long"


def test_a_flac_stream_of_unknown_length_is_decoded_to_its_end(tmp_path):
    content = bytearray(encoded(wave(2), "flac"))
    content[21] &= 0xF0  # 36 bits of STREAMINFO
    content[22:26] = bytes(4)
    assert len(load_sound(bytes(content)).samples) == 32_000
    assert reason_of(bytes(content[:-5])) == "truncated"


def test_a_tag_with_a_large_picture_does_not_make_an_mp3_too_long():
    size = 20_000_000  # as much as twenty minutes
    tag = b"ID3\3\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)
    assert len(load_sound(tag + encoded(wave(2), "mp3")).samples) >= 32_000


def test_many_channels_and_long_sounds_are_mixed_block_by_block(monkeypatch):
    samples = wave(1, channels=6)
    monkeypatch.setattr(sounds, "BLOCK", 1000)
    np.testing.assert_allclose(load_sound(encoded(samples)).samples, samples.mean(axis=1), atol=1e-4)


def test_a_part_of_an_archive_is_a_sound_too(tmp_path):
    content = encoded(wave(1), "ogg")
    (tmp_path / "a.tar").write_bytes(bytes(512) + content + bytes(512))
    found = load_sound(Span(tmp_path / "a.tar", 512, len(content)))
    np.testing.assert_array_equal(found.samples, load_sound(content).samples)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"fusemix\[audio\]"):
        load_sound(encoded(wave(1)))
