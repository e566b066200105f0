"""Zero-shot labels against brute force in float64, their figures against loops, and `fusemix classify` end to end."""

import builtins
import csv
import io
import json
import os
from contextlib import chdir
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image
from scipy.stats import binomtest
from typer.testing import CliRunner

import fusemix as fm
import warm
from conftest import COLOURS
from fusemix import zeroshot
from fusemix.curves import rendered
from fusemix.errors import DataError, FusemixError, MissingExtraError
from fusemix.judgement import Judgement, draw_confusion
from fusemix.search.index import Index
from fusemix.search.space import Space
from fusemix.verbs.classify import classify
from fusemix.zeroshot import class_embeddings, seen_notes, zero_shot

rng = np.random.default_rng(0)
NAMES = [f"class {i}" for i in range(8)]


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


class Fake:
    """A model that embeds a text as a random vector of its own, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def embed(self, items, modality=None):
        self.asked.append((list(items), modality))
        return np.stack([self.vector(item) for item in items])

    def vector(self, text):
        return unit(np.random.default_rng(list(text.encode())).normal(size=6)).astype(np.float32)


def judgement(right, said, names=NAMES, in_five=None, unlabelled=0):
    return Judgement(names, np.array(right), np.array(said), in_five, unlabelled)


# --- class embeddings


def test_a_class_is_the_unit_mean_over_its_templates(monkeypatch):
    monkeypatch.setattr(zeroshot, "_TEXTS_PER_BLOCK", 4)  # of 3 templates one name at a time
    model, templates, told = Fake(), ["{}", "a photo of a {}", "{}, and {} again"], []
    got = class_embeddings(model, ["dog", "cat"], templates, "text", lambda *stage: told.append(stage))
    for row, name in zip(got.numpy(), ("dog", "cat"), strict=True):
        texts = [name, f"a photo of a {name}", f"{name}, and {name} again"]
        mean = np.mean([model.vector(text).astype(np.float64) for text in texts], axis=0)
        np.testing.assert_allclose(row, unit(mean), atol=1e-6)
    assert model.asked[0] == (["dog", "a photo of a dog", "dog, and dog again"], "text")
    assert told == [("class names", 1, 2), ("class names", 2, 2)] and got.dtype == torch.float32


def test_each_template_counts_the_same_whatever_the_length_of_its_embedding():
    model = Fake()
    model.embed = lambda texts, modality=None: np.array([[9.0, 0] if text == "dog" else [0, 1.0] for text in texts])
    np.testing.assert_allclose(class_embeddings(model, ["dog", "cat"], ["{}", "a {}"])[0], [0.5**0.5] * 2, atol=1e-6)


def test_by_default_the_name_stands_alone_and_goes_to_the_modality_of_texts(place):
    fake = Fake()
    assert torch.equal(class_embeddings(fake, [" dog ", "cat"]), torch.tensor(fake.embed(["dog", "cat"])))
    assert fake.asked[0] == (["dog", "cat"], None)
    model = fm.FuseMix.load(place / "m").use_encoder("text", f"{place / 'enc.py'}:words")
    embedded = class_embeddings(model, ["red above blue", "blue above red"], ["{} number 1"])
    np.testing.assert_allclose(embedded, model.embed(["red above blue number 1", "blue above red number 1"]), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["a"], ["{}"], r"wanted two class names or more, none of them empty; got \['a'\]"),
        (["a", " "], ["{}"], r"none of them empty; got \['a', ' '\]"),
        (["a", 3], ["{}"], r"none of them empty; got \['a', 3\]"),
        (["a", "b", "a "], ["{}"], "class 'a' is named 2 times; name each class once"),
        ("dog", ["{}"], "wanted a list of class names, got one str: 'dog'"),
        (["a", "b"], ["{}", "a photo"], "template 'a photo' has no {} for the class, as in \"a photo of a {}\""),
        (["a", "b"], "a {}", "wanted a list of templates such as .* got 'a {}'"),
        (["a", "b"], [], r"wanted a list of templates such as \[\"a photo of a {}\"\], got \[\]"),
    ],
)
def test_names_and_templates_that_cannot_be_used(names, templates, message):
    with pytest.raises(DataError, match=message):
        class_embeddings(Fake(), names, templates)


# --- labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_labels_scores_and_probabilities_are_those_of_brute_force(monkeypatch, dtype):
    monkeypatch.setattr(zeroshot, "_SCORES_PER_BLOCK", 30)  # three items at a time
    items, classes = torch.tensor(rng.normal(size=(40, 6))).to(dtype), rng.normal(size=(8, 6))
    found = zero_shot(items, classes, NAMES, k=3, temperature=0.1)
    cosines = unit(items.double().numpy()) @ unit(classes).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.places, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(cosines, order, axis=1), atol=1e-6)
    shares = np.exp(cosines / 0.1)
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, np.take_along_axis(shares, order, axis=1), atol=1e-5)
    assert found.labels == [NAMES[i] for i in order[:, 0]] and len(found) == 40 and found.judgement is None
    assert sum(found.counts.values()) == 40 and list(found.counts.values()) == sorted(found.counts.values())[::-1]


def test_equal_scores_come_in_the_order_of_the_names():
    classes = np.eye(4)[[2, 0, 1, 0, 1, 0, 0, 3]]  # places 1, 3, 5 and 6 are one point, and so are 2 and 4
    found = zero_shot(np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]), classes, NAMES, k=8)
    assert found.places.tolist() == [[1, 3, 5, 6, 0, 2, 4, 7], [2, 4, 0, 1, 3, 5, 6, 7], [7, 0, 1, 2, 3, 4, 5, 6]]
    assert zero_shot(np.array([[1.0, 0, 0, 0]]), classes, NAMES, k=2).places.tolist() == [[1, 3]]
    assert zero_shot(np.ones((1, 4)), classes, NAMES, k=1).labels == ["class 0"]


def test_more_labels_than_classes_are_all_of_them():
    found = zero_shot(rng.normal(size=(5, 3)), np.eye(3), ["a", "b", "c"], k=10)
    assert found.places.shape == found.scores.shape == (5, 3) and found.probabilities is None


def test_the_table_has_a_row_for_each_item():
    found = zero_shot(np.eye(2), np.eye(2), ["a", "b"], k=2, temperature=1.0)
    table = found.table()
    assert table.column_names == ["label", "score", "probability", "label_2", "score_2", "probability_2"]
    assert table["label"].to_pylist() == ["a", "b"] and table["label_2"].to_pylist() == ["b", "a"]
    assert table["score"].to_pylist() == [1, 1]
    e = np.e
    np.testing.assert_allclose(table["probability"].to_numpy(), [e / (e + 1)] * 2, rtol=1e-6)
    assert zero_shot(np.eye(2), np.eye(2), ["a", "b"], k=1).table().column_names == ["label", "score"]


@pytest.mark.parametrize(
    ("items", "classes", "more", "message"),
    [
        (np.eye(2), np.eye(3), {}, r"classes \(2, S\), a row for each name; got \(2, 2\) and \(3, 3\)"),
        (np.ones(2), np.eye(2), {}, r"got \(2,\) and \(2, 2\)"),
        (np.eye(3), np.eye(3), {}, r"wanted embeddings \(N, S\) and classes \(2, S\)"),
        (np.empty((0, 2)), np.eye(2), {}, "there are no items to classify"),
        (np.array([[1, 0], [np.nan, 0]]), np.eye(2), {}, "the embedding of item 1 holds NaN or infinity"),
        (np.eye(2), np.array([[np.inf, 0], [1, 0]]), {}, "the embedding of class 0 holds NaN or infinity"),
        (np.eye(2), np.eye(2), {"k": 0}, "k must be at least 1, got 0"),
        (np.eye(2), np.eye(2), {"temperature": 0.0}, "the temperature must be positive, got 0.0"),
        (np.eye(2), np.eye(2), {"truth": ["a"]}, "wanted a truth for each of 2 items .* got 1"),
        (np.eye(2), np.eye(2), {"truth": [None, " "]}, "the truth is empty for all 2 items"),
    ],
)
def test_what_cannot_be_compared_says_why(items, classes, more, message):
    with pytest.raises(DataError, match=message):
        zero_shot(items, classes, ["a", "b"], **more)


def test_truths_that_are_no_class_are_listed_with_the_nearest_name():
    truth = ["Dgo", "dgo", "dgo", None, "DOG", "cat", *"uvwxyz"]
    with pytest.raises(DataError) as caught:
        zero_shot(np.ones((12, 2)), np.eye(2), ["dog", "cat"], truth)
    assert str(caught.value) == (
        "the truth holds what is no class: 'dgo' (2 items; did you mean 'dog'?), 'Dgo' (1 item; did you mean 'dog'?), "
        "'DOG' (1 item; did you mean 'dog'?), 'u' (1 item), 'v' (1 item) and 4 more; "
        "add these to the classes, or empty their cells"
    )


# --- how often they are right


def test_items_are_judged_or_without_a_truth_and_none_is_lost():
    items, classes = rng.normal(size=(30, 6)), rng.normal(size=(8, 6))
    truth = [None, float("nan"), np.float32("nan"), "", " ", *(NAMES[i % 8] for i in range(25))]
    found = zero_shot(items, classes, NAMES, truth, k=2)
    judged, said = found.judgement, found.labels[5:]
    assert (judged.judged, judged.unlabelled) == (25, 5) and judged.judged + judged.unlabelled == len(found)
    right = sum(label == true for label, true in zip(said, truth[5:], strict=True))
    assert judged.accuracy == pytest.approx(100 * right / 25)
    best = np.argsort(-(unit(items) @ unit(classes).T), axis=1)[5:, :5]
    in_five = sum(NAMES.index(true) in row for true, row in zip(truth[5:], best.tolist(), strict=True))
    assert judged.top5 == pytest.approx(100 * in_five / 25)  # also where fewer labels are kept
    assert "30 items among 8 classes: 25 judged + 5 without a truth" in str(found)
    column = pa.chunked_array([[value if isinstance(value, str) else None for value in truth]])
    assert zero_shot(items, classes, NAMES, column).judgement.to_dict() == judged.to_dict()


def test_the_figures_are_those_of_loops():
    right, said = rng.integers(0, 6, 60), rng.integers(0, 8, 60)  # of classes 6 and 7 there are no items
    judged = judgement(right, said, in_five=40)
    table = np.zeros((8, 8), dtype=np.int64)
    for i, j in zip(right, said, strict=True):
        table[i, j] += 1
    np.testing.assert_array_equal(judged.confusion, table)
    assert judged.confusion.dtype == np.int64 and judged.counts.tolist() == table.sum(axis=1).tolist()
    assert judged.accuracy == pytest.approx(100 * np.trace(table) / 60)
    each = [100 * table[i, i] / table[i].sum() for i in range(6)]
    np.testing.assert_allclose(judged.per_class[:6], each)
    assert np.isnan(judged.per_class[6:]).all() and judged.mean_per_class == pytest.approx(np.mean(each))
    wrong = [(-int(table[i, j]), i, j) for i in range(8) for j in range(8) if i != j and table[i, j]]
    assert judged.confused(9) == [(-n, NAMES[i], NAMES[j]) for n, i, j in sorted(wrong)[:9]]
    sizes = sorted(table.sum(axis=1).tolist())[::-1]
    assert judged.most_frequent == NAMES[int(table.sum(axis=1).argmax())]
    assert judged.baselines["chance"] == {"accuracy": 12.5, "mean_per_class": 12.5, "top5": 62.5}
    assert judged.baselines["most frequent"] == pytest.approx(
        {"accuracy": 100 * sizes[0] / 60, "mean_per_class": 100 / 6, "top5": 100 * sum(sizes[:5]) / 60}
    )


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (13, 40), (399, 400), (1, 1)])
def test_the_interval_is_wilsons(hits, count):
    judged = judgement([0] * count, [0] * hits + [1] * (count - hits))
    wanted = binomtest(hits, count).proportion_ci(method="wilson")
    np.testing.assert_allclose(judged.interval, [100 * wanted.low, 100 * wanted.high], atol=1e-9)


def test_a_mean_per_class_counts_rare_classes_as_much_as_frequent_ones():
    judged = judgement([0] * 90 + [1] * 10, [0] * 100, ["common", "rare"])
    assert (judged.accuracy, judged.mean_per_class) == (90, 50)
    assert judged.baselines["most frequent"] == {"accuracy": 90, "mean_per_class": 50}


def test_five_classes_have_no_top_5():
    found = zero_shot(np.eye(5), np.eye(5), list("abcde"), list("abcde"))
    assert found.judgement.top5 is None and "top-5" not in str(found) and "top5" not in json.dumps(found.to_dict())
    assert "0 of 5 are named wrongly" in str(found) and "most often" not in str(found)


def test_the_words_say_items_baselines_and_confusions():
    judged = judgement([0] * 6 + [1] * 4, [0] * 3 + [2] * 3 + [1] * 4, in_five=9, unlabelled=2)
    assert str(judged).splitlines() == [
        "method          accuracy       95 %  mean per class  top-5",
        "chance              12.5                       12.5   62.5",
        "always class 0      60.0                       50.0  100.0",
        "zero-shot           70.0  39.7-89.2            75.0   90.0",
        "the mean is over the 2 of 8 classes that have items",
        "3 of 10 are named wrongly, most often",
        "     3 x class 0 named class 2 (of 6)",
    ]
    plain = json.loads(json.dumps(judged.to_dict()))
    assert plain["per_class"]["class 0"] == {"items": 6, "accuracy": 50} and plain["unlabelled"] == 2
    assert plain["per_class"]["class 7"] == {"items": 0, "accuracy": None}
    assert plain["confused"] == [{"items": 3, "truth": "class 0", "label": "class 2"}]


def test_without_a_truth_the_labels_are_counted():
    names = [f"{i}" for i in range(12)]
    found = zero_shot(np.eye(12)[[*range(12), 3, 3]], np.eye(12), names)
    lines = str(found).splitlines()
    assert lines[:2] == ["14 items among 12 classes; no truth was given, so nothing is judged", "     3 x 3"]
    assert len(lines) == 12 and lines[-1] == "and 2 labels more"
    assert found.to_dict()["judgement"] is None and found.to_dict()["labels"]["3"] == 3


def test_items_that_were_trained_on_are_noted(place):
    model, items = fm.FuseMix.load(place / "m"), fm.open_latents(place / "l")["image"].items
    table = pa.table({"modality": ["image"] * len(items), "id": items["id"]})
    assert seen_notes(model, table) == [
        "80 of 120 image items were trained on: no measure of these",
        "15 of 120 image items were used to choose: slightly in our favour",
    ]
    assert seen_notes(model, table.slice(95)) == []
    assert seen_notes(model, pa.table({"modality": ["sound"], "id": ["000.png"]})) == []


# --- the picture


@pytest.mark.parametrize("size", [2, 12, 50, 61])
def test_a_picture_of_confusions_has_names_for_as_many_as_can_be_read(size):
    names = [f"$class$ {i} of a long name, longer than a picture has room for" for i in range(size)]
    figure = draw_confusion(judgement([0, 0, 1, 1, 1], [0, 1, 1, 0, 0], names))
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[1:2] == (["$class$ 1 of a long name, l…"] if size <= 60 else [])
    assert [text.get_text() for text in axes.texts] == (["50", "50", "67", "33"] if size <= 12 else [])
    shares = axes.images[0].get_array()
    assert shares[:2, :2].tolist() == [[50, 50], pytest.approx([200 / 3, 100 / 3])]
    assert np.ma.getmaskarray(shares)[2:].all()
    said = figure.get_suptitle()
    assert "40.0 % of 5 items are named rightly (11.8-76.9)" in said and f"chance {100 / size:.1f} %, always " in said
    image = Image.open(io.BytesIO(rendered(figure, "png")))
    assert max(image.size) < 2600


def test_without_matplotlib_a_picture_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r'pip install "fusemix\[plot\]"'):
        draw_confusion(judgement([0], [0]))


# --- the command line

ENCODERS = """
import numpy as np

def colours(images):
    return [np.asarray(image.resize((4, 4)), dtype=float).ravel() / 255 for image in images]

def words(texts):
    known = ("red", "green", "blue", "yellow")
    places = lambda text: [word for word in text.split() if word in known]
    return [[float(known[i] == word) for word in (places(text) + ["", ""])[:2] for i in range(4)] for text in texts]
"""
ALONE = typer.Typer()  # the verb without the others
ALONE.command()(classify)
OWN = ("--encoder", "text=enc.py:words")


def fusemix(*words, cwd, code=0):
    done = warm.run(list(map(str, words)), cwd, dict(os.environ))
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def alone(*words, cwd):
    """Run the verb in this process, and return what it printed."""
    with chdir(cwd):
        return CliRunner().invoke(ALONE, [*map(str, words[1:]), "-q"], catch_exceptions=False).stdout


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """A folder with a model m, and an index i of its pictures that has the columns scene, half and split."""
    folder = tmp_path_factory.mktemp("classify")
    (folder / "enc.py").write_text(ENCODERS)
    lines = ["photo,title,scene,half,split"]
    for i, row in enumerate(list(csv.DictReader((world / "table.csv").read_text().splitlines()))[::2]):
        scene = row["title"].split(" number")[0]
        lines.append(f"{row['photo']},{row['title']},{scene},{scene if i % 2 else ''},{row['split']}")
    (folder / "scenes.csv").write_text("\n".join(lines) + "\n")
    columns = ("--root", world, "--image", "photo=enc.py:colours", "--text", "title=enc.py:words")
    fusemix("extract", "scenes.csv", *columns, "-o", "l", cwd=folder)
    fusemix("fit", "l", "-o", "m", "--epochs", "15", "--dim", "16", "-q", cwd=folder)
    fusemix("index", "m", "l", "--no-previews", "-o", "i", cwd=folder)
    return folder


def test_a_column_is_classes_and_truth(place):
    words = ("classify", "i", "--classes", "scene", "--truth", "scene", *OWN)
    printed = fusemix(*words, cwd=place).stdout.splitlines()
    assert printed[0] == "16 classes: the values of the column 'scene'; template '{}'"
    assert printed[1] == "120 items among 16 classes: 120 judged + 0 without a truth"
    assert [line.split()[0] for line in printed[2:6]] == ["method", "chance", "always", "zero-shot"]
    assert "note: 80 of 120 image items were trained on: no measure of these" in printed
    assert printed[-1] == "the labels of every item: -o labels.csv"
    got = json.loads(fusemix(*words, "--json", cwd=place).stdout)
    judged = got["judgement"]
    assert judged["accuracy"] > 3 * judged["baselines"]["most frequent"]["accuracy"]
    assert len(got["predictions"]) == got["items"] == 120 and got["classes_from"] == "the values of the column 'scene'"
    right = [row["label"] == row["truth"] for row in got["predictions"]]
    assert judged["accuracy"] == pytest.approx(100 * np.mean(right)) and got["templates"] == ["{}"]


def test_templates_a_truth_with_gaps_and_files_of_each_form(place):
    (place / "classes.txt").write_text("﻿" + "\n".join(f"{a} above {b}" for a in COLOURS for b in COLOURS) + "\n\n")
    (place / "templates.txt").write_text("{}\n\n{} number 7\n")
    words = ("classify", "i", "--classes", "classes.txt", "--truth", "half", "--template", "@templates.txt", *OWN)
    out = alone(*words, "--template", "a {}", "-k", 2, "-o", "x/l.csv", "--confusion", "c.png", cwd=place)
    assert out.startswith("16 classes: the lines of the file classes.txt; 3 templates\n")
    assert "120 items among 16 classes: 60 judged + 60 without a truth" in out
    assert out.endswith("labels of 120 items: x/l.csv\nconfusions: c.png\n")
    with (place / "x" / "l.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = ["label", "score", "probability", "label_2", "score_2", "probability_2"]
    assert list(rows[0]) == ["modality", "id", "value", "truth", *best] and len(rows) == 120
    assert [row["truth"] for row in rows[:2]] == ["", f"{rows[1]['truth']}"] and rows[1]["truth"]
    Image.open(place / "c.png").verify()
    printed = json.loads(alone(*words, "-o", "l.parquet", "--json", cwd=place))
    assert "predictions" not in printed
    again = pq.read_table(place / "l.parquet")
    assert len(again) == 120 and again["truth"].null_count == 60 and "label_5" in again.column_names
    alone(*words, "-o", "l.jsonl", "--confusion", "c.svg", cwd=place)
    lines = [json.loads(line) for line in (place / "l.jsonl").read_text().splitlines()]
    assert lines == again.to_pylist() and (place / "c.svg").read_text().startswith("<?xml")


def test_a_file_goes_before_a_column_of_its_name_and_that_is_said(place):
    (place / "half").write_text("red above blue\nblue above red\n")
    out = alone("classify", "i", "--classes", "half", *OWN, cwd=place)
    (place / "half").unlink()
    assert out.startswith("2 classes: the lines of the file half, not the values of that column; ")
    assert "no truth was given, so nothing is judged" in out


def test_a_model_names_files_and_words(place, world):
    both = (*OWN, "--encoder", "image=enc.py:colours")
    words = ("classify", "m", world / "003.png", "red over green", world / "004.png", "--classes")
    out = alone(*words, "red above green,blue above red", "-k", 2, *both, cwd=place).splitlines()
    assert out[0] == "2 classes: as given; template '{}'" and len(out) == 4
    assert out[2].startswith("red over green: red above green 1.000, blue above red ")
    got = json.loads(alone(*words, "red above green,blue above red", *both, "--json", cwd=place))
    assert [row["modality"] for row in got["predictions"]] == ["image", "text", "image"]
    model = fm.FuseMix.load(place / "m")
    model.use_encoder("image", f"{place / 'enc.py'}:colours").use_encoder("text", f"{place / 'enc.py'}:words")
    for row, path in ((0, "003.png"), (2, "004.png")):
        scores = model.embed([world / path]) @ model.embed(["red above green", "blue above red"]).T
        assert got["predictions"][row]["score"] == pytest.approx(scores.max(), abs=1e-5)
    only = alone(*words[:2], "a.png", "--classes", "red above green,b", "--from", "text", *OWN, cwd=place)
    assert "\na.png: " in only


def test_of_an_index_only_the_items_that_are_asked_for(place):
    words = ("classify", "i", "--classes", "scene", "--truth", "half", *OWN, "--json", "--from", "image")
    got = json.loads(alone(*words, "--where", "split = test", cwd=place))
    assert (got["items"], got["judgement"]["judged"], got["judgement"]["unlabelled"], got["notes"]) == (25, 13, 12, [])
    assert len(got["classes"]) == 16  # all that the index has, whatever the test split lacks
    every = json.loads(alone(*words, cwd=place))["predictions"]
    assert got["predictions"] == every[95:]


def test_several_modalities_and_models_of_one_space(place):
    latents = fm.open_latents(place / "l")
    items = {"photo": replace(latents.items["image"], modality="photo"), "text": latents.items["text"]}
    others = replace(latents, items=items, rows={"photo": latents.rows["image"], "text": latents.rows["text"]})
    models = [fm.FuseMix(lock="text", epochs=2, depth=1).fit(each.only("train")) for each in (latents, others)]
    Index.of(Space(models), latents["image"], latents["text"]).save(place / "both")
    words = ("classify", "both", "--classes", "scene", "--truth", "scene", *OWN, "--json")
    got = json.loads(alone(*words, cwd=place))
    assert got["items"] == 240 and got["temperature"] is None and "probability" not in got["predictions"][0]
    assert [note.partition(" were")[0] for note in got["notes"]] == ["80 of 120 image items", "80 of 120 text items"]
    assert json.loads(alone(*words, "--from", "text", cwd=place))["judgement"]["accuracy"] == 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none", "--classes", "a,b"), "none holds neither an index nor a model; make one with `fusemix index` or"),
        (("l", "--classes", "a,b"), "l holds neither an index nor a model"),
        (("m", "--classes", "a,b"), "m is a model: name the files or words to classify, or give an index instead"),
        (("i", "x.png", "--classes", "a,b"), "i is an index, whose own items are classified; for 'x.png' give a"),
        (("i", "--classes", "a,b"), "name the encoder yourself, --encoder text=enc.py:words"),
        (("m", "x.png", "--classes", "a,b", *OWN), "name the encoder yourself, --encoder image=enc.py:colours"),
        (("m", "no.png", "--classes", "a,b", *OWN, "--encoder", "image=enc.py:colours"), "no.png: missing: no file"),
        (("m", "red", " ", "--classes", "a,b", *OWN), "nothing to classify: one of the words is empty"),
        (("m", "red", "--classes", "a,b", "--from", "txt"), "no modality 'txt'; found: image, text; did you mean"),
        (("i", "--classes", "scnee", *OWN), "no such file, and no column of the index (photo, title, scene, half, "),
        (("m", "red", "--classes", "dog", *OWN), "--classes dog: no such file, and one name alone is no choice; write"),
        (("i", "--classes", "a,", *OWN), "wanted two class names or more, none of them empty; got ['a']"),
        (("i", "--classes", "bad.txt", *OWN), "--classes: bad.txt is no text in UTF-8 (invalid start byte at byte 1)"),
        (("i", "--classes", "empty.txt", *OWN), "--classes: empty.txt is empty; write one on each line"),
        (("i", "--classes", "a,b", "--template", "a photo", *OWN), "template 'a photo' has no {} for the class"),
        (("i", "--classes", "a,b", "--template", "@no.txt", *OWN), "--template @no.txt: there is no file no.txt"),
        (("i", "--classes", "scene", "--truth", "scnee", *OWN), "the index has no column 'scnee'; found: "),
        (("i", "--classes", "a,b", "--truth", "scene", *OWN), "the truth holds what is no class: '"),
        (
            ("m", "red", "--classes", "a,b", "--truth", "scene"),
            "'scene': only an index has columns, and m is a model; see `fusemix index`",
        ),
        (("m", "red", "--classes", "a,b", "--where", "a = b"), "'a = b': only an index has columns, and m is a model"),
        (("i", "--classes", "a,b", "-o", "l.xlsx"), "-o l.xlsx: wanted a name that ends in .csv, .parquet, .jsonl"),
        (("i", "--classes", "a,b", "--confusion", "c.gif"), "wanted a name that ends in .png or .svg"),
        (("i", "--classes", "a,b", "--confusion", "c.png"), "nothing is confused without --truth COLUMN"),
        (
            ("i", "--classes", "a,b", "--from", "imgae"),
            "the index holds no 'imgae'; found: image; did you mean 'image'?",
        ),
        (("i", "--classes", "a,b", "--where", "split = x"), "none of the 120 items of the index fulfils split = x"),
        (
            ("i", "--classes", "a,b", "--names", "image"),
            "--names image: the model has no modality of texts of this name; found: text",
        ),
        (("i", "--classes", "a,b", "--encoder", "words"), "--encoder words: wanted NAME=VALUE"),
    ],
)
def test_a_users_mistake_says_what_to_do(place, words, message):
    (place / "x.png").write_bytes(b"")
    (place / "bad.txt").write_bytes(b"a\xff\xfe")
    (place / "empty.txt").write_text("\n \n")
    with pytest.raises(FusemixError) as caught:
        alone("classify", *words, cwd=place)
    assert message in str(caught.value)


def test_a_mistake_exits_with_2(place):
    error = fusemix("classify", "i", "--classes", "a,b", cwd=place, code=2).stderr
    assert "error: 'text' was encoded by enc.py:words; a saved model never runs code" in error
    assert "Traceback" not in error


def test_names_need_a_modality_of_texts(place):
    fm.FuseMix(dim=4, epochs=1).fit(rng.normal(size=(20, 3)), rng.normal(size=(20, 3))).save(place / "arrays")
    with pytest.raises(FusemixError) as caught:
        alone("classify", "arrays", "a", "--classes", "a,b", "--from", "x", cwd=place)
    assert "what encodes the names of the classes: the model has x (vector), y (vector); classes need a model" in str(
        caught.value
    )
