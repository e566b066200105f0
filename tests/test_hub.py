"""Hugging Face data sets: saved folders and the hub, media undecoded, code never run, the extra asked for."""

import sys

import pyarrow as pa
import pytest

from fusemix.data.pairs import read_pairs
from fusemix.data.sources import read_source
from fusemix.errors import DataError, MissingExtraError

datasets = pytest.importorskip("datasets")
PICTURES = [b"\xff\xd8\xff picture 0", b"\xff\xd8\xff picture 1", b"\xff\xd8\xff picture 2"]


@pytest.fixture(autouse=True, scope="module")
def quiet():
    datasets.disable_progress_bars()


def saved_set(words, pictures=PICTURES, names=None):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    names = names or [f"{i}.jpg" for i in range(len(pictures))]
    rows = {
        "image": [{"bytes": content, "path": name} for content, name in zip(pictures, names, strict=True)],
        "caption": words,
        "label": [i % 2 for i in range(len(words))],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def refusal(source):
    with pytest.raises(DataError) as caught:
        read_source(source)
    return str(caught.value)


def test_a_saved_data_set_is_read_without_decoding(tmp_path):
    saved_set(["a", "b", "c"]).save_to_disk(tmp_path / "set")
    pairs = read_pairs(tmp_path / "set", image="image", text="caption", name="label")
    image = pairs.items["image"]
    assert (image.kind, image.ids) == ("image", ["0.jpg", "1.jpg", "2.jpg"])
    assert [image.source(i) for i in range(3)] == PICTURES
    assert pairs.items["name"].values == ["cat", "dog"]
    assert pairs.table.column_names == ["caption", "label"]


def test_each_split_is_a_split_and_rows_do_not_shift(tmp_path):
    splits = {"train": saved_set(["a", "b", "c"]), "validation": saved_set(["d", "e", "f"], PICTURES[::-1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    pairs = read_pairs(tmp_path / "set", image="image", text="caption")
    image = pairs.items["image"]
    assert len(image) == 3
    assert [image.source(i) for i in pairs.rows["image"]] == PICTURES + PICTURES[::-1]
    assert pairs.splits.tolist() == ["train"] * 3 + ["val"] * 3


def test_a_single_split_is_dealt_at_random(tmp_path):
    datasets.DatasetDict({"train": saved_set(["a", "b", "c"])}).save_to_disk(tmp_path / "set")
    assert "split" not in read_source(tmp_path / "set").table.column_names


def test_shuffled_and_filtered_sets_keep_their_rows(tmp_path, monkeypatch):
    chosen = saved_set(["a", "b", "c"]).select([2, 0])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: chosen)
    pairs = read_pairs("hf://datasets/org/name", image="image", text="caption")
    assert pairs.items["text"].values == ["c", "a"]
    assert [pairs.items["image"].source(i) for i in range(2)] == [PICTURES[2], PICTURES[0]]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hf://datasets/org/name", ("org/name", None, None)),
        ("hf://datasets/org/name@v1.0", ("org/name", None, "v1.0")),
        ("hf://datasets/org/name/small", ("org/name", "small", None)),
        ("hf://datasets/org/na-me@refs/pr/1", ("org/na-me", None, "refs/pr/1")),
        ("hf://datasets/org/name@main/small", ("org/name", "small", "main")),
    ],
)
def test_the_hub_is_asked_for_all_splits_and_never_for_code(monkeypatch, source, asked):
    calls = []

    def load(name, config=None, *, revision=None, **options):
        calls.append((name, config, revision, options))
        return datasets.DatasetDict({"train": saved_set(["a", "b", "c"]), "test": saved_set(["d", "e", "f"])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = read_source(source).table
    assert calls == [(*asked, {})]
    assert table["split"].to_pylist() == ["train"] * 3 + ["test"] * 3
    assert table.schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    "source", ["hf://models/org/name", "hf://datasets/name", "hf://datasets/../x", "hf://datasets/a/.."]
)
def test_other_addresses_say_what_was_wanted(source):
    assert "wanted hf://datasets/ORG/NAME" in refusal(source)


def test_a_folder_of_the_same_name_is_not_read_in_place_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "the folder org/name here would be read instead" in refusal("hf://datasets/org/name")


def test_whatever_the_hub_raises_names_the_source(monkeypatch):
    def load(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert refusal("hf://datasets/org/name") == "hf://datasets/org/name cannot be read: ConnectionError: no route"


def test_a_damaged_folder_is_refused(tmp_path):
    saved_set(["a", "b", "c"]).save_to_disk(tmp_path / "set")
    file = next((tmp_path / "set").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    assert "set cannot be read as a saved data set" in refusal(tmp_path / "set")


def test_an_empty_set_names_its_columns(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: saved_set([], []))
    assert refusal("hf://datasets/org/name").endswith("name has no rows (columns: image, caption, label)")


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    saved_set(["a", "b", "c"]).save_to_disk(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (tmp_path / "set", "hf://datasets/org/name"):
        with pytest.raises(
            MissingExtraError, match=r'needs datasets, which is not installed: pip install "fusemix\[data\]"'
        ):
            read_source(source)


def test_paths_that_two_contents_share_are_no_ids(tmp_path):
    saved_set(["a", "b", "c"], names=["x.jpg", "x.jpg", None]).save_to_disk(tmp_path / "set")
    ids = read_pairs(tmp_path / "set", image="image", text="caption").items["image"].ids
    assert len(set(ids)) == 3
    assert all(len(name) == 16 for name in ids)
