"""Frames are the right frames, in every container; the sound track is a sound; a cut video is found."""

import av
import numpy as np
import pytest

from fusemix.data import videos
from fusemix.data.media import ItemError
from fusemix.data.videos import load_frames, load_track

CONTAINERS = {
    "mp4": ("libx264", "aac"),
    "mov": ("mpeg4", "aac"),
    "mkv": ("mpeg4", "aac"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", None),
}


def film(path, frames=48, sound=True):
    """Frame i is a grey of 5 i; the sound is a tone of 440 Hz."""
    picture, voice = CONTAINERS[path.suffix[1:]]
    rate = 48_000 if voice == "libopus" else 16_000
    with av.open(path, "w") as container:
        video = container.add_stream(picture, rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(voice, rate=rate) if voice and sound else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i * 5, np.uint8), format="rgb24")
            frame.pts = i
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


def test_a_video_of_one_frame_gives_it_many_times(tmp_path):
    found = load_frames(film(tmp_path / "a.mp4", frames=1, sound=False))
    assert len(found) == 8
    assert all(np.array_equal(np.asarray(frame), np.asarray(found[0])) for frame in found)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_the_sound_track_is_a_sound(suffix, tmp_path):
    sound = load_track(film(tmp_path / f"a.{suffix}"))
    assert sound.samples.ndim == 1 and 1.8 < len(sound.samples) / sound.rate < 2.2
    spectrum = np.abs(np.fft.rfft(sound.samples))
    assert abs(spectrum.argmax() * sound.rate / len(sound.samples) - 440) < 5


def test_a_video_without_a_sound_track_has_no_content_to_hear(tmp_path):
    assert reason_of(load_track, film(tmp_path / "a.mp4", sound=False)) == "no content"


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_video_cut_anywhere_is_found(suffix, tmp_path):
    content = film(tmp_path / f"a.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for part in range(20):
        path.write_bytes(content[: len(content) * part // 20])
        assert reason_of(load_frames, path) in ("no content", "truncated", "unreadable"), part


def test_limits_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4")
    monkeypatch.setattr(videos, "_frame_at", None)
    with monkeypatch.context() as patch:
        patch.setattr(videos, "MAX_SECONDS", 1)
        assert reason_of(load_frames, path) == "too long"
        assert reason_of(load_track, path) == "too long"
    monkeypatch.setattr(videos, "MAX_PIXELS", 64 * 48 - 1)
    assert reason_of(load_frames, path) == "too large"


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"hello, I am text" * 100)
    assert reason_of(load_frames, tmp_path / "a.mp4") in ("unreadable", "wrong format")
    assert reason_of(load_frames, tmp_path / "no.mp4") == "missing"


def test_a_playlist_that_names_other_files_is_not_followed(tmp_path):
    film(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.mp4'}\n")
    (tmp_path / "list.mkv").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "list.mkv"):
        assert reason_of(load_frames, tmp_path / name) in ("unreadable", "wrong format")
