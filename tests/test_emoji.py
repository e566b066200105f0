"""The recipe that draws emoji from sounds, on a few made-up pictures and latents."""

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

RECIPE = Path(__file__).parents[1] / "recipes" / "sounds_to_emoji"
pytest.importorskip("diffusers")


def load(name):
    spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def painter():
    yield load("painter")
    del sys.modules["painter"]


def encode(texts):
    """Sum random vectors, one for each word: texts that share words are near."""
    vectors = lambda text: [np.random.default_rng(sum(map(ord, word))).normal(size=64) for word in text.split()]  # noqa: E731
    return torch.tensor(np.array([np.sum(vectors(text), axis=0) for text in texts]), dtype=torch.float32)


@pytest.fixture(scope="module")
def data(painter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji")
    (folder / "images").mkdir()
    names = [*painter.CONCEPTS.values(), *(f"thing{i} number{i}" for i in range(20)), "dog again"]
    with (folder / "emoji.tsv").open("w") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["image", "group", "subgroup", "name", "keywords"])
        for i, name in enumerate(names):
            Image.new("RGBA", (96, 96), (10 * i % 255, 99, 200, 255)).save(folder / "images" / f"{i}.png")
            rows.writerow([f"images/{i}.png", "flags" if i == 15 else "objects", 0, name, f"word{i}, shared"])
    return folder


def test_the_ten_come_first_and_what_competes_is_left_out(painter, data, monkeypatch):
    monkeypatch.setattr(painter, "EMOJI", 20)
    emoji = painter.open_emoji(data, encode)
    assert emoji.names[:10] == list(painter.CONCEPTS.values()) and len(emoji.names) == 20
    assert "dog again" not in emoji.names and "thing5 number5" not in emoji.names  # a flag
    assert emoji.pictures.shape == (20, 3, painter.SIDE, painter.SIDE) and emoji.pictures.abs().max() <= 1
    assert emoji.latents.shape == (20, painter.TEXTS, 64)
    assert torch.equal(emoji.pictures[:10], painter.open_concepts(data))


def test_a_word_that_several_share_says_nothing_alone(painter):
    row = {"name": "dog face", "keywords": "animal, dog, pet"}
    texts = painter.texts_of(row, Counter({"dog": 1, "face": 5, "animal": 9, "pet": 1}))
    assert texts[:2] == ["dog face", "dog face: animal, pet"] and set(texts[2:4]) == {"animal dog face", "pet dog face"}
    assert texts[-2:] == ["dog", "pet"] and "animal" not in texts and "face" not in texts


def test_it_learns_and_the_condition_decides_what_is_drawn(painter, monkeypatch):
    monkeypatch.setattr(painter, "BATCH", 8)
    monkeypatch.setattr(painter, "SIDE", 8)
    rng = torch.Generator().manual_seed(0)
    pictures = torch.stack([torch.full((3, painter.SIDE, painter.SIDE), value) for value in (-0.9, 0.9)])
    emoji = painter.Emoji(["dark", "bright"], pictures, torch.randn(2, painter.TEXTS, 16, generator=rng))
    said = []
    unet = painter.train(emoji, 200, told=said.append)
    assert len(said) == 2 and "loss" in said[0]
    drawn = painter.draw(unet, emoji.latents[:, 0], [0, 0], steps=4)
    assert drawn.shape == (2, 3, painter.SIDE, painter.SIDE) and drawn[0].mean() < drawn[1].mean() - 0.3
    assert torch.equal(drawn, painter.draw(unet, emoji.latents[:, 0], [0, 0], steps=4))


def test_noise_on_a_condition_keeps_its_length_and_its_neighbourhood(painter):
    latents = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    moved = painter.disturbed(latents, torch.Generator().manual_seed(1))
    cosines = F.cosine_similarity(latents, moved)
    assert torch.allclose(moved.norm(dim=1), torch.tensor(8.0)) and cosines.min() > 0.2 and cosines.max() > 0.99


def test_shots_are_so_many_of_each_class_and_nested_measures_hold(painter):
    table = load("table")
    classes = np.repeat(np.arange(10), 6)
    sounds = table.Sounds(
        np.zeros((60, 4), np.float32), np.zeros((60, 4), np.float32), classes, [str(i) for i in range(60)]
    )
    for count, expected in ((1, 1), (5, 5), (20, 6), (0, 6)):
        assert (np.bincount(table.shots(sounds, count, 3).classes) == expected).all()
    assert table.half_width(np.array([1.0, 2, 3])) == pytest.approx(2.484, abs=1e-3)
    assert table.spread([]) == "" and painter.as_image(torch.ones(3, 4, 4)).getpixel((0, 0)) == (255, 255, 255)


def test_sounds_are_landed_drawn_and_judged(painter, monkeypatch, tmp_path):
    """The whole second half, on ten classes that anything tells apart."""
    table = load("table")
    monkeypatch.setattr(painter, "SIDE", 8)
    monkeypatch.setattr(table, "FIT", {"epochs": 200})
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(10), 4)
    audio, text = (rng.normal(size=(10, 12)).astype(np.float32)[classes] for _ in range(2))
    sounds = table.Sounds(audio, text, classes, [f"audio/{i}.ogg" for i in range(40)])
    found = table.conditions((sounds, sounds, 0, 0))
    assert next(iter(found)) == "FuseMix" and "shuffled pairs" in found and "ridge with the prior" in found
    own = F.normalize(torch.tensor(text[::4]), dim=1)
    judge = lambda wanted: (F.normalize(wanted, dim=1) @ own.T).argmax(dim=1).numpy()  # noqa: E731
    assert (judge(found["FuseMix"]) == classes).all() and (judge(found["nearest training caption"]) == classes).all()
    assert (judge(found["shuffled pairs"]) == classes).mean() < 0.5 and table.probe(sounds, sounds) == 100
    unet = painter.make_unet(12).eval()
    unet.save_pretrained(tmp_path / "painter")
    figure, pictures = table.measure(unet, lambda pictures: classes, found["FuseMix"], classes)
    assert figure == 100 and pictures.shape == (40, 3, 8, 8)
    table.write_sheet(pictures[::4], pictures, sounds, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").convert("RGB").height > 10 * 96
    monkeypatch.setenv("EMOJI_PAINTER", str(tmp_path / "painter"))
    drawn = painter.paint(found["FuseMix"][:2].numpy(), [0, 1])
    assert [np.array(each).shape for each in drawn] == [(8, 8, 3)] * 2
    assert np.array_equal(np.array(drawn[1]), np.array(painter.as_image(pictures[1])))
