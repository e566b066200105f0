"""What is asked of a fitted model: words, files, pictures, sounds and videos find their modality and their decoder."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

import fusemix as fm
from fusemix.errors import DataError
from fusemix.queries import modality_of
from fusemix.state import Side

ENCODERS = """
import numpy as np

def hear(sounds):
    return [[s.samples.std(), np.abs(np.diff(s.samples)).mean(), s.rate / 16000] for s in sounds]

def watch(clips):
    return [np.concatenate([np.asarray(f.resize((2, 2))).ravel() / 255 for f in frames]) for frames in clips]

def read(texts):
    return [[text.count(c) for c in "abcdefghij"] for text in texts]

hear.takes, hear.sample_rate = "audio", 16000
"""


def tone(path, height):
    times = np.arange(8000) / 8000
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * height * times), 8000)
    return path


def clip(path, grey):
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey + i, np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sides(**kinds):
    return {name: Side(kind, 3, {"name": name}, "") for name, kind in kinds.items()}


@pytest.mark.parametrize(
    ("item", "kinds", "expected"),
    [
        ("words", {"caption": "text", "photo": "image"}, "caption"),
        (Path("a.wav"), {"caption": "text", "clip": "audio"}, "clip"),
        (Path("a.wav"), {"photo": "image", "clip": "audio"}, "clip"),
        (Path("a.jpg"), {"photo": "image", "clip": "audio"}, "photo"),
        (Path("a.mp4"), {"film": "video", "clip": "audio"}, "film"),
        (fm.Sound(np.zeros(3, np.float32), 8000), {"photo": "image", "clip": "audio"}, "clip"),
        (Image.new("RGB", (2, 2)), {"photo": "image", "film": "video"}, "photo"),
        ([Image.new("RGB", (2, 2))], {"photo": "image", "film": "video"}, "film"),
    ],
)
def test_an_item_finds_its_modality(item, kinds, expected):
    assert modality_of(item, sides(**kinds)) == expected


@pytest.mark.parametrize("item", [Path("a.xyz"), Path("a.jpg"), 5])
def test_what_could_be_either_is_asked_for(item):
    with pytest.raises(DataError, match=r"cannot tell which modality .* say modality= \(--from\)"):
        modality_of(item, sides(left="image", right="image"))


def test_a_sound_file_asks_a_model_of_sounds(tmp_path):
    (tmp_path / "enc.py").write_text(ENCODERS)
    lines = ["sound,text,split"]
    for i in range(30):
        tone(tmp_path / f"{i}.wav", 100 + 100 * i)
        lines.append(f"{i}.wav,{'abcdefghij'[i // 3] * (i % 3 + 1)},{'train' if i % 5 else 'test'}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    hear, read = (f"{tmp_path / 'enc.py'}:{name}" for name in ("hear", "read"))
    pairs = fm.read_pairs(tmp_path / "t.csv", sound="sound", text="text")
    latents = fm.extract(pairs, out=tmp_path / "l", sound=hear, text=read)
    assert latents["sound"].numpy()[0, 2] == 1  # resampled to 16 kHz
    model = fm.FuseMix(dim=8, epochs=2).fit(latents.only("train"))
    model.use_encoder("sound", hear)
    expected = model.embed_latents("sound", latents["sound"].latents[:1])
    found = model.embed([tmp_path / "0.wav"])
    np.testing.assert_allclose(found, expected, atol=1e-2)
    score = {hit.id: hit.score for hit in model.index(latents["sound"]).search(tmp_path / "7.wav", k=3)}
    assert score["7.wav"] > 0.999
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"broken.wav: wrong format: "):
        model.embed([tmp_path / "broken.wav"])


def test_a_video_asks_a_model_of_videos(tmp_path):
    (tmp_path / "enc.py").write_text(ENCODERS)
    lines = ["video,text"]
    for i in range(6):
        clip(tmp_path / f"{i}.mp4", 40 * i)
        lines.append(f"{i}.mp4,{'abcdef'[i]}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    watch, read = (f"{tmp_path / 'enc.py'}:{name}" for name in ("watch", "read"))
    pairs = fm.read_pairs(tmp_path / "t.csv", video="video", text="text")
    latents = fm.extract(pairs, out=tmp_path / "l", video=watch, text=read)
    model = fm.FuseMix(dim=8, epochs=2).fit(latents)
    model.use_encoder("video", watch)
    assert model.index(latents["video"]).search(tmp_path / "4.mp4", k=1)[0].id == "4.mp4"
