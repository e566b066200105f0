"""What is asked of a fitted model: words, files, pictures, sounds and videos find their modality and their decoder."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

import fusemix as fm
from fusemix.errors import DataError, EncoderError, MismatchError
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
    model = fm.FuseMix(dim=8, epochs=2, recipe="scaled").fit(latents.only("train"))
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


def test_files_that_the_users_own_code_decoded_are_never_decoded_by_ours(tmp_path):
    (tmp_path / "enc.py").write_text(SCANS)
    lines = ["scan,text"]
    for i in range(12):
        Image.new("L", (4, 4), 20 * i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'abcdefghijkl'[i]}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    bright, read, invert = (f"{tmp_path / 'enc.py'}:{name}" for name in ("bright", "read", "invert"))
    pairs = fm.read_pairs(tmp_path / "t.csv", scan="scan", text="text")
    latents = fm.extract(pairs, out=tmp_path / "l", scan=bright, text=read, decode={"scan": invert})
    assert latents["scan"].numpy()[0].tolist() == [255, 1]
    fm.FuseMix(dim=8, epochs=2).fit(latents).save(tmp_path / "m")
    model = fm.FuseMix.load(tmp_path / "m").use_encoder("scan", bright)
    with pytest.raises(EncoderError, match=r"scan files were decoded by enc:invert; name this decoder: --decode scan="):
        model.embed([tmp_path / "3.png"], "scan")
    np.testing.assert_allclose(model.embed([195], "scan"), model.embed_latents("scan", [[195.0, 1.0]]), atol=1e-6)
    with pytest.raises(MismatchError, match="this is not the decoder of 'scan' that the model was fitted on: name"):
        model.use_encoder("scan", bright, decode=f"{tmp_path / 'enc.py'}:same")
    model.use_encoder("scan", bright, decode=invert)
    np.testing.assert_allclose(model.embed([tmp_path / "3.png"], "scan"), model.embed([195], "scan"))
    for name, words in (("broken.png", "decode failed: UnidentifiedImageError"), ("none.png", "missing: no file")):
        (tmp_path / "broken.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match=f"{name}: {words}"):
            model.embed([tmp_path / name], "scan")
    with pytest.raises(DataError, match="the encoder of 'scan' gave no latent for it"):
        model.embed([-1], "scan")
    model.index(latents["scan"]).save(tmp_path / "i")
    words = [sys.executable, "-m", "fusemix", "search", "i", "3.png", "-k", "1", "--scan", "enc.py:bright"]
    done = subprocess.run([*words, "--decode", "scan=enc.py:invert"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert model.index(latents["scan"]).search(195, 1, "scan")[0].id in done.stdout


SCANS = """
from PIL import Image

def invert(path):
    return 255 - Image.open(path).getpixel((0, 0))

def same(path):
    return Image.open(path).getpixel((0, 0))

def bright(values):
    return [None if value < 0 else [value, 1] for value in values]

def read(texts):
    return [[text.count(c) for c in "abcdefghijkl"] for text in texts]
"""
