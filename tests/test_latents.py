"""Latents as pairs: taken, split, looked up by modality, opened from a folder."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import fusemix as fm
from fusemix.data.latents import Latents, open_latents
from fusemix.data.mapped import Mapped
from fusemix.data.pairs import read_pairs
from fusemix.errors import DataError, StoreError
from fusemix.extraction import extract


def length_and_vowels(texts):
    return [[len(text), sum(letter in "aeiou" for letter in text)] for text in texts]


def arrays(count=10):
    return {"x": np.arange(count * 3.0).reshape(count, 3), "y": np.arange(count * 2.0).reshape(count, 2) + 100}


def extracted(tmp_path, count=12, shard_items=2048):
    lines = [f"{'u' * (i % 5)}{'z' * (i // 5)},{'x' * (i + 1)},{i // 3}" for i in range(1, count + 1)]
    (tmp_path / "t.csv").write_text("\n".join(["left,right,sku", *lines]) + "\n")
    pairs = read_pairs(tmp_path / "t.csv", left="left", right="right")
    how = {"left": length_and_vowels, "right": length_and_vowels, "shard_items": shard_items}
    return extract(pairs, out=tmp_path / "out", **how)


def refusal(call, error=DataError):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_arrays_are_paired_row_by_row():
    given = arrays()
    latents = Latents.from_arrays(**given)
    assert len(latents) == 10
    assert latents.modalities == ("x", "y") == tuple(latents)
    assert latents.split_name == "arrays"
    for name, array in given.items():
        np.testing.assert_array_equal(latents[name].numpy(), array)
        np.testing.assert_array_equal(latents.rows[name], np.arange(10))
    given["x"][0] = 77
    assert latents["x"].numpy()[0, 0] == 0


def test_arrays_may_be_lists_or_tensors():
    import torch

    latents = Latents.from_arrays(split="mine", x=[[1, 2], [3, 4]], y=torch.ones(2, 1, dtype=torch.float16))
    assert latents.split_name == "mine"
    assert latents["y"].latents.dtype == torch.float32


@pytest.mark.parametrize("shape", [(10,), (10, 2, 2), ()])
def test_arrays_of_another_shape_are_refused(shape):
    message = refusal(lambda: Latents.from_arrays(x=np.zeros((10, 2)), y=np.zeros(shape)))
    assert message == f"y: wanted latents of shape (N, D), got {shape}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(value):
    given = arrays()
    given["y"][[4, 7], 1] = value
    assert "y: row 4 holds NaN or infinity" in refusal(lambda: Latents.from_arrays(**given))


def test_arrays_of_different_lengths_are_refused_with_their_lengths():
    message = refusal(lambda: Latents.from_arrays(x=np.zeros((3, 2)), y=np.zeros((4, 2))))
    assert "the arrays have {'x': 3, 'y': 4} rows" in message


def test_taking_by_mask_and_by_row_numbers_agree():
    latents = Latents.from_arrays(**arrays())
    keep = np.array([1, 4, 7])
    mask = np.isin(np.arange(10), keep)
    for taken in (latents.take(keep), latents.take(mask)):
        assert len(taken) == 3
        assert taken.rows["x"].tolist() == taken.groups.tolist() == [1, 4, 7]
        assert taken.table["row"].to_pylist() == [1, 4, 7]
    assert len(latents.take(np.zeros(10, bool))) == 0
    assert latents.take(keep[::-1]).take(np.array([0])).groups.tolist() == [7]


def test_a_modality_gives_only_the_items_that_occur_once_each_and_in_order():
    latents = Latents.from_arrays(**arrays())
    some = latents.take(np.array([7, 1, 7, 4]))["x"]
    assert some.ids == [latents["x"].ids[i] for i in (1, 4, 7)]
    assert len(some) == len(some.values) == 3
    np.testing.assert_array_equal(some.numpy(), arrays()["x"][[1, 4, 7]])
    assert latents["x"].rows is latents.items["x"].rows and latents["x"].late is latents.items["x"].late


def test_an_unknown_modality_names_the_known_ones():
    message = refusal(lambda: Latents.from_arrays(image=np.zeros((2, 2)), text=np.zeros((2, 2)))["texts"])
    assert message == "no modality 'texts' in these latents; found: image, text; did you mean 'text'?"


def test_only_keeps_one_split_and_names_the_others_when_there_is_none(tmp_path):
    latents = extracted(tmp_path)
    parts = {name: latents.only(name) for name in np.unique(latents.splits).tolist()}
    assert sum(len(part) for part in parts.values()) == len(latents)
    assert all(part.split_name == name for name, part in parts.items())
    assert refusal(lambda: latents.only("trian")).startswith("there is no split 'trian'; found: ")
    assert "did you mean 'train'?" in refusal(lambda: latents.only("trian"))


def test_split_returns_the_recorded_splits(tmp_path):
    latents = extracted(tmp_path)
    for name, part in zip(("train", "val", "test"), latents.split(), strict=True):
        np.testing.assert_array_equal(part.groups, latents.groups[latents.splits == name])
        assert part.split_name in (name, "")


def test_split_by_a_column_keeps_equal_values_together(tmp_path):
    latents = extracted(tmp_path, 30)
    for seed in range(3):
        parts = latents.split(group_by="sku", fractions=(0.5, 0.25, 0.25), seed=seed)
        values = [set(part.table["sku"].to_pylist()) for part in parts]
        assert sum(map(len, values)) == len(set.union(*values)) == len(set(latents.table["sku"].to_pylist()))
        assert sum(map(len, parts)) == len(latents)
        assert all(len(part) for part in parts)


def test_split_by_fractions_keeps_the_recorded_groups():
    latents = Latents.from_arrays(**arrays(20))
    train, val, test = latents.split(fractions=(0.5, 0.5, 0.0), seed=1)
    assert (len(train), len(val), len(test)) == (10, 10, 0)
    assert sorted([*train.groups, *val.groups]) == list(range(20))
    assert latents.split(fractions=(0.5, 0.5, 0.0), seed=1)[0].groups.tolist() == train.groups.tolist()
    assert latents.split(fractions=(0.5, 0.5, 0.0), seed=2)[0].groups.tolist() != train.groups.tolist()


def test_an_unknown_column_to_group_by_names_the_nearest(tmp_path):
    message = refusal(lambda: extracted(tmp_path).split(group_by="skus"))
    assert message == "no column 'skus' to group by; found: left, right, sku; did you mean 'sku'?"


def test_opened_latents_are_those_that_extract_returned(tmp_path):
    made = extracted(tmp_path)
    opened = open_latents(str(tmp_path / "out"))
    assert len(opened) == len(made) == 12
    for name in ("left", "right"):
        texts = opened.table[name].to_pylist()
        np.testing.assert_array_equal(opened.items[name].numpy()[opened.rows[name]], length_and_vowels(texts))
        np.testing.assert_array_equal(opened.rows[name], made.rows[name])
        assert [opened.items[name].values[row] for row in opened.rows[name]] == texts
    np.testing.assert_array_equal(opened.splits, made.splits)
    np.testing.assert_array_equal(opened.groups, made.groups)
    assert all(items.root == tmp_path.resolve() for items in opened.items.values())
    assert opened.table.column_names == ["left", "right", "sku"]
    assert opened["left"].encoder["name"].endswith(":length_and_vowels")


def test_opening_and_splitting_read_no_latents_ids_or_columns(tmp_path, monkeypatch):
    extracted(tmp_path, 30, shard_items=4)
    with monkeypatch.context() as patch:
        patch.setattr(Mapped, "map", lambda _: pytest.fail("latents"))
        patch.setattr(pa.parquet, "read_table", lambda *_, **__: pytest.fail("ids"))
        opened = open_latents(tmp_path / "out")
        parts = {part.split_name: part for part in opened.split(fractions=(0.5, 0.2, 0.3))}
        sides = {name: part["right"] for name, part in parts.items()}
        assert [len(sides[name]) for name in ("train", "val", "test")] == [15, 6, 9]
        assert sides["train"].rows.shape == (15, 2) and not sides["train"].rows.resident
    whole = opened["right"]
    for name, part in parts.items():
        texts = part.table["right"].to_pylist()
        np.testing.assert_array_equal(whole.rows.take(part.rows["right"]), length_and_vowels(texts))
        assert [whole.values[row] for row in part.rows["right"]] == texts
        assert sides[name].values == [whole.values[row] for row in np.unique(part.rows["right"])]
        np.testing.assert_array_equal(sides[name].numpy(), length_and_vowels(sides[name].values))


def test_items_that_failed_have_no_row_and_their_pairs_are_left_out(tmp_path):
    lines = ["left,right", *(f"{'' if i in (3, 17) else 'e' * i},{'o' * (40 - i)}" for i in range(1, 21))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")

    def picky(texts):
        return [[len(text), 1] if len(text) % 7 else [float("nan"), 1] for text in texts]

    pairs = read_pairs(tmp_path / "t.csv", left="left", right="right")
    latents = extract(pairs, out=tmp_path / "out", left=picky, right=length_and_vowels, shard_items=3, max_failed=1)
    kept = [i for i in range(1, 21) if i % 7 and i not in (3, 17)]
    assert latents.table["left"].to_pylist() == ["e" * i for i in kept]
    assert latents["left"].values == ["e" * i for i in kept]
    np.testing.assert_array_equal(latents["left"].numpy()[:, 0], kept)
    np.testing.assert_array_equal(latents["right"].numpy()[:, 0], [40 - i for i in kept])


def test_columns_that_are_read_late_are_those_of_the_pairs_that_were_opened(tmp_path):
    extracted(tmp_path)
    opened = open_latents(tmp_path / "out")
    other = tmp_path / "other.parquet"
    pa.parquet.write_table(pa.table({"left": ["another"]}), other)
    other.replace(tmp_path / "out" / "pairs.parquet")
    assert opened.only("train").table["sku"].to_pylist() == [
        opened.table["sku"][i].as_py() for i in np.flatnonzero(opened.splits == "train")
    ]


def test_a_damaged_list_of_items_is_found_when_it_is_looked_at(tmp_path):
    extracted(tmp_path)
    (path,) = (tmp_path / "out" / "left").glob("*/items.parquet")
    pa.parquet.write_table(pa.parquet.read_table(path).slice(1), path)
    opened = open_latents(tmp_path / "out")
    assert "items.parquet is damaged (11 items, wanted 12)" in refusal(lambda: opened["left"].ids, StoreError)
    path.write_bytes(b"PAR1")
    assert "delete" in refusal(lambda: opened.only("train")["left"].values, StoreError)


def test_pairs_of_other_items_are_refused(tmp_path):
    extracted(tmp_path)
    (tmp_path / "b").mkdir()
    extracted(tmp_path / "b", 13)
    (tmp_path / "b" / "out" / "pairs.parquet").replace(tmp_path / "out" / "pairs.parquet")
    message = refusal(lambda: open_latents(tmp_path / "out"), StoreError)
    assert "pairs.parquet is not of the items in" in message and "delete it and extract again" in message


def test_a_folder_without_latents_says_how_to_make_them(tmp_path):
    message = refusal(lambda: open_latents(tmp_path), StoreError)
    assert message == (
        f"{tmp_path} holds no latents (no pairs.parquet); make them with `fusemix extract ... -o {tmp_path}`"
    )


def test_a_modality_without_latents_says_to_run_again(tmp_path):
    extracted(tmp_path)
    (folder,) = (tmp_path / "out" / "right").iterdir()
    (folder / "facts.json").unlink()
    message = refusal(lambda: open_latents(tmp_path / "out"), StoreError)
    assert "lacks the latents of 'right': the extraction did not finish; run the same command again" in message


def test_latents_of_two_encoders_are_named(tmp_path):
    extracted(tmp_path)
    (folder,) = (tmp_path / "out" / "right").iterdir()
    (folder.parent / "another").mkdir()
    os.link(folder / "facts.json", folder.parent / "another" / "facts.json")
    message = refusal(lambda: open_latents(tmp_path / "out"), StoreError)
    assert f"holds the latents of 2 encoders (another, {folder.name}); keep one and delete the others" in message


def test_a_shard_that_is_not_there_says_to_run_again(tmp_path):
    extracted(tmp_path)
    next((tmp_path / "out").glob("left/*/shard-00000.safetensors")).unlink()
    message = refusal(lambda: open_latents(tmp_path / "out"), StoreError)
    assert "shard 1 of 1 is missing" in message


def test_damaged_or_foreign_pairs_say_what_to_do(tmp_path):
    extracted(tmp_path)
    path = tmp_path / "out" / "pairs.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert "pairs.parquet is damaged" in refusal(lambda: open_latents(tmp_path / "out"), StoreError)
    pa.parquet.write_table(pa.table({"a": [1]}), path)
    message = refusal(lambda: open_latents(tmp_path / "out"), StoreError)
    assert "not of fusemix" in message
    assert "delete it and extract again" in message


def test_equal_rows_of_an_array_are_one_item_and_those_of_the_first_one_group():
    rng = np.random.default_rng(0)
    pictures, captions = rng.normal(size=(30, 4)).astype("f4"), rng.normal(size=(150, 3)).astype("f4")
    found = Latents.from_arrays(image=np.repeat(pictures, 5, axis=0), text=captions)
    assert (len(found), len(found["image"]), len(found["text"]), len(np.unique(found.groups))) == (150, 30, 150, 30)
    assert np.array_equal(found["image"].numpy()[found.rows["image"]], np.repeat(pictures, 5, axis=0))
    turned = Latents.from_arrays(text=captions, image=np.repeat(pictures, 5, axis=0))
    assert len(turned["image"]) == 30 and len(np.unique(turned.groups)) == 150, "groups are of the first"
    model = fm.FuseMix(adapter="cca").fit(found)
    assert model.evaluate(found).retrieval["image->text"].queries == 30


def test_what_is_no_array_of_numbers_is_told():
    import torch

    with pytest.raises(DataError, match="text: wanted an array .* of numbers, got list"):
        Latents.from_arrays(image=np.ones((2, 2)), text=[["a"], ["b"]])
    x = torch.ones(2, 3, requires_grad=True)
    assert Latents.from_arrays(image=x)["image"].rows.shape == (1, 3)
