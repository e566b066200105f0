"""Frames are the right frames, in every container; the sound track is a sound; a cut video is found."""

import struct
import sys

import av
import numpy as np
import pytest

from fusemix.data import media, videos
from fusemix.data.media import ItemError
from fusemix.data.sounds import load_sound
from fusemix.data.videos import load_frames
from fusemix.errors import MissingExtraError

CONTAINERS = {  # codecs of picture and sound
    "mp4": ("libx264", "aac"),
    "mov": ("mpeg4", "aac"),
    "mkv": ("mpeg4", "aac"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", None),
    "mpg": ("mpeg1video", None),
}


def film(path, frames=48, sound=True, codec=None, start=0, gop=12, b_frames=0):
    """Frame i is a grey of 5 i; the sound is a tone of 440 Hz."""
    picture, voice = CONTAINERS[path.suffix[1:]]
    picture = codec or picture
    rate = 48_000 if voice == "libopus" else 16_000
    with av.open(path, "w") as container:
        video = container.add_stream(picture, rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.gop_size = gop
        if b_frames:
            video.codec_context.max_b_frames = b_frames
        audio = container.add_stream(voice, rate=rate) if voice and sound else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i * 5, np.uint8), format="rgb24")
            frame.pts = i + start
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, frames * rate // 24 if audio else 0, 960):
            tone = np.sin(2 * np.pi * 440 * np.arange(start, start + 960) / rate).astype(np.float32)[None] / 2
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.rate, frame.pts = rate, start
            container.mux(audio.encode(frame))
        if audio:
            container.mux(audio.encode())
    return path


def reason_of(load, source):
    with pytest.raises(ItemError) as caught:
        load(source)
    return caught.value.reason


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_frames_are_spread_evenly(suffix, tmp_path):
    found = load_frames(film(tmp_path / f"a.{suffix}"))
    assert len(found) == 8 and found[0].size == (64, 48) and found[0].mode == "RGB"
    numbers = [np.asarray(frame).mean() / 5 for frame in found]
    np.testing.assert_allclose(numbers, [3, 9, 15, 21, 27, 33, 39, 45], atol=1)


@pytest.mark.parametrize("gop", [6, 100])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("mkv", "libx264"),
        ("avi", "mpeg4"),
        ("avi", "libx264"),
        ("mpg", "mpeg2video"),
    ],
)
def test_frames_are_the_right_ones_among_b_frames(suffix, codec, gop, tmp_path):
    path = film(tmp_path / f"a.{suffix}", codec=codec, gop=gop, b_frames=2, sound=False)
    numbers = [np.asarray(frame).mean() / 5 for frame in load_frames(path)]
    np.testing.assert_allclose(numbers, [3, 9, 15, 21, 27, 33, 39, 45], atol=1.2)  # AVI knows no other order


def test_what_an_edit_list_leaves_out_is_left_out(tmp_path):
    found = load_frames(film(tmp_path / "a.mp4", start=-24, sound=False))  # the first second is cut off
    numbers = [np.asarray(frame).mean() / 5 for frame in found]
    np.testing.assert_allclose(numbers, [25, 28, 31, 34, 37, 40, 43, 46], atol=1)


def test_a_picture_under_a_long_sound_is_no_cut_video(tmp_path):
    with av.open(tmp_path / "a.mkv", "w") as container:
        video, audio = container.add_stream("mpeg4", rate=24), container.add_stream("aac", rate=16_000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(video.encode())
        for start in range(0, 160_000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16_000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    assert len(load_frames(tmp_path / "a.mkv")) == 8
    assert abs(len(load_sound(tmp_path / "a.mkv").samples) - 160_000) < 3000


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_frames_are_turned_upright(turn, tmp_path):
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32] = 250  # the upper left quarter is bright
    with av.open(tmp_path / "a.mp4", "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            container.mux(video.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(video.encode())
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    a, b = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]  # clockwise, as telephones write it
    matrix = struct.pack(">9i", *(65536 * x for x in (a, b, 0, -b, a, 0, 0, 0)), 1 << 30)
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = matrix
    (tmp_path / "a.mp4").write_bytes(content)
    found = np.asarray(load_frames(tmp_path / "a.mp4")[0])
    wanted = np.rot90(stored, -turn // 90)
    assert found.shape == wanted.shape
    assert np.abs(found[8:-8, 8:-8].astype(int) - wanted[8:-8, 8:-8]).mean() < 12


def test_a_video_of_one_frame_gives_it_many_times(tmp_path):
    found = load_frames(film(tmp_path / "a.mp4", frames=1, sound=False))
    assert len(found) == 8
    assert all(np.array_equal(np.asarray(frame), np.asarray(found[0])) for frame in found)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_the_sound_track_is_a_sound(suffix, tmp_path):
    sound = load_sound(film(tmp_path / f"a.{suffix}"))
    assert sound.samples.ndim == 1 and 1.8 < len(sound.samples) / sound.rate < 2.2
    spectrum = np.abs(np.fft.rfft(sound.samples))
    assert abs(spectrum.argmax() * sound.rate / len(sound.samples) - 440) < 5


def test_a_sound_in_an_mp4_container_is_a_sound_and_no_video(tmp_path):
    with av.open(tmp_path / "a.m4a", "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=16_000)
        for start in range(0, 32_768, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16_000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    assert load_sound(tmp_path / "a.m4a").rate == 16_000
    assert reason_of(load_frames, tmp_path / "a.m4a") == "no content"


def test_a_video_without_a_sound_track_has_no_content_to_hear(tmp_path):
    assert reason_of(load_sound, film(tmp_path / "a.mp4", sound=False)) == "no content"


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi"])
def test_a_video_cut_anywhere_is_found(suffix, tmp_path):
    content = film(tmp_path / f"a.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for part in range(20):
        path.write_bytes(content[: len(content) * part // 20])
        assert reason_of(load_frames, path) in ("no content", "truncated", "unreadable"), part


def test_limits_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4")
    monkeypatch.setattr(videos, "_frames_at", None)
    with monkeypatch.context() as patch:
        patch.setattr(videos, "MAX_SECONDS", 1)
        assert reason_of(load_frames, path) == "too long"
        assert reason_of(load_sound, path) == "too long"
    for limit, value in (("MAX_PIXELS", 64 * 48 - 1), ("MAX_ASPECT", 64 / 48 - 0.01)):
        with monkeypatch.context() as patch:
            patch.setattr(media, limit, value)
            assert reason_of(load_frames, path) == "too large"


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"hello, I am text" * 100)
    assert reason_of(load_frames, tmp_path / "a.mp4") == "wrong format"
    assert reason_of(load_frames, tmp_path / "no.mp4") == "missing"


def test_a_playlist_that_names_other_files_is_not_followed(tmp_path):
    film(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.mp4'}\n")
    (tmp_path / "list.mkv").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "list.mkv"):
        assert reason_of(load_frames, tmp_path / name) == "wrong format"


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", frames=4)
    monkeypatch.setitem(sys.modules, "av", None)
    for load in (load_frames, load_sound):
        with pytest.raises(MissingExtraError, match=r"fusemix\[video\]"):
            load(path)
