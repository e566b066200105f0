"""Previews: small, made anew, of whatever can be read; what cannot has none, and costs nobody else theirs."""

import io
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from PIL import Image

from fusemix.errors import MissingExtraError
from fusemix.search import previews
from fusemix.search.hit import Found
from fusemix.search.index import Index
from fusemix.search.previews import encoded, media_type, with_previews
from fusemix.sound import Sound


def index_of(root, *rows, made=None):
    """An index of (modality, value) rows; a modality is called as its kind."""
    names, values = zip(*rows, strict=True)
    ids = [f"{name}-{row}" for row, name in enumerate(names)]
    table = pa.table({"modality": list(names), "id": ids, "value": pa.array(values, pa.string())})
    found = {name: Found(name, root) for name in names}
    columns = pa.table({"n": range(len(rows))})
    old = pa.chunked_array([pa.array(made, pa.large_binary())]) if made is not None else None
    return Index(torch.eye(len(rows)), table, columns, found, None, old)


def picture(path, colour=(200, 60, 20), size=(600, 300)):
    Image.new("RGB", size, colour).save(path)


def tone(path, seconds=1.0, rate=16_000, channels=1, height=440):
    times = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, np.stack([0.5 * np.sin(2 * np.pi * height * times)] * channels, axis=1), rate)


def clip(path, greys):
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for i, grey in enumerate(greys):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), grey, np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown(content):
    assert media_type(content) == "image/webp"
    image = Image.open(io.BytesIO(content))
    assert image.format == "WEBP"
    return image.convert("RGB")


def heard(content):
    assert media_type(content) == "audio/mpeg"
    return soundfile.read(io.BytesIO(content))


def test_pictures_sounds_and_videos_get_one_and_nothing_else_does(tmp_path):
    picture(tmp_path / "a.png")
    tone(tmp_path / "a.wav", channels=2)
    clip(tmp_path / "a.mp4", [0] * 8 + [128] * 8 + [255] * 8)
    picture(tmp_path / "b.jpg", (20, 60, 200), (100, 50))
    (tmp_path / "a.tar").write_bytes(bytes(512) + (tmp_path / "a.png").read_bytes() + bytes(512))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    (tmp_path / "empty.wav").touch()
    span = f"a.tar#512+{(tmp_path / 'a.png').stat().st_size}"
    index = index_of(
        tmp_path,
        ("image", "a.png"), ("image", "gone.png"), ("image", "broken.png"), ("image", "cut.png"), ("image", None),
        ("text", "a.png"), ("file", "a.png"), ("vector", None), ("audio", "a.wav"), ("audio", "empty.wav"),
        ("audio", "a.png"), ("video", "a.mp4"), ("video", "gone.mp4"), ("image", span), ("image", "a.tar#512+999999"),
        ("image", "b.jpg"),
    )  # fmt: skip
    steps = []
    made = with_previews(index, lambda *step: steps.append(step)).previews.to_pylist()
    assert [row for row, content in enumerate(made) if content is not None] == [0, 8, 11, 13, 15]
    assert shown(made[0]).size == (256, 128) == shown(made[13]).size and shown(made[15]).size == (100, 50)
    np.testing.assert_allclose(np.asarray(shown(made[0])).mean(axis=(0, 1)), (200, 60, 20), atol=4)
    np.testing.assert_allclose(np.asarray(shown(made[15])).mean(axis=(0, 1)), (20, 60, 200), atol=4)
    np.testing.assert_allclose(np.asarray(shown(made[11])).mean(), 128, atol=6)  # the middle one
    samples, rate = heard(made[8])
    assert rate == previews.RATE and samples.ndim == 1 and abs(len(samples) / rate - 1) < 0.15
    assert abs(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples) - 440) < 3
    # A step is told of each that was tried and made; the last one says that all are done.
    assert steps[-1][:3] == ("previews", 12, 12) and {step[2] for step in steps} == {12}


def test_only_what_has_none_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "_AHEAD", 2)
    rows = [("image", f"{i}.png") for i in range(6)]
    for i in (0, 1, 4):
        picture(tmp_path / f"{i}.png", (40 * i, 0, 0), (20, 20))
    made = with_previews(index_of(tmp_path, *rows, made=[b"old", None, None, b"older", None, None]))
    first = made.previews.to_pylist()
    assert first[0] == b"old" and first[3] == b"older" and first[2] is None is first[5]
    assert [round(float(np.asarray(shown(first[i]))[..., 0].mean()), -1) for i in (1, 4)] == [40, 160]
    for i in (0, 1, 4):
        (tmp_path / f"{i}.png").unlink()
    picture(tmp_path / "5.png", (200, 0, 0), (20, 20))
    second = with_previews(made).previews.to_pylist()
    assert second[:5] == first[:5] and second[5] is not None  # mended in the meantime


def test_where_there_is_nothing_to_decode_no_process_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(previews.Decoders, "submit", None)
    for rows in ([("text", "a"), ("image", None)], [("vector", None)]):
        made = with_previews(index_of(tmp_path, *rows))
        assert made.previews.to_pylist() == [None] * len(rows) and made.previews.type == pa.large_binary()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 2), (300, 200), (256, 256)])
def test_a_picture_keeps_its_shape(size):
    small = shown(encoded(Image.new("RGB", size, (0, 200, 0))))
    assert max(small.size) == min(256, max(size)) and min(small.size) >= 1
    assert (
        small.size == size
        if max(size) <= 256
        else small.size[0] / small.size[1]
        == pytest.approx(max(1, round(256 * size[0] / max(size))) / max(1, round(256 * size[1] / max(size))), rel=0.02)
    )


def test_the_picture_itself_is_left_as_it_was():
    image = Image.new("RGB", (600, 300))
    encoded(image)
    assert image.size == (600, 300)


@pytest.mark.parametrize(("seconds", "rate"), [(25, 8_000), (0.5, 44_100), (12, 24_000), (0.001, 16_000)])
def test_of_a_sound_the_beginning_is_kept(seconds, rate):
    times = np.arange(int(seconds * rate)) / rate
    height = 300 + 200 * (times > 10)  # what comes later sounds otherwise
    samples, found = heard(encoded(Sound(np.sin(2 * np.pi * height * times).astype(np.float32), rate)))
    assert found == 24_000 and min(seconds, 10) - 0.1 < len(samples) / found < min(seconds, 10) + 0.15
    if seconds > 1:
        spectrum = np.abs(np.fft.rfft(samples))
        place = len(samples) / found
        assert spectrum[round(300 * place)] > 50 * spectrum[round(500 * place)]


def test_a_sound_too_short_to_be_heard_has_none(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(2), 192_000)
    assert with_previews(index_of(tmp_path, ("audio", "a.wav"))).previews.to_pylist() == [None]


def test_what_is_too_loud_is_clipped():
    loud = 5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    assert np.abs(heard(encoded(Sound(loud, 16_000)))[0]).max() < 1.5


@pytest.mark.parametrize("name", ["soundfile", "soxr"])
def test_without_the_extra_the_error_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'a preview of sound needs {name}.*pip install "fusemix\[audio\]"'):
        encoded(Sound(np.zeros(100, np.float32), 8000))


def test_previews_are_taken_and_joined_with_their_rows():
    index = index_of(Path("/r"), *[("image", f"{i}.png") for i in range(4)], made=[b"0", None, b"2", b"3"])
    assert index.take(np.array([3, 1, 0])).previews.to_pylist() == [b"3", None, b"0"]
    assert index.remove(["image-2"]).previews.to_pylist() == [b"0", None, b"3"]
