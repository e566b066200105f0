"""`fusemix index`, `add`, `remove` and `search` in processes of their own: what they print, and every mistake."""

import datetime as dt
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import fusemix as fm
import warm
from fusemix.errors import StoreError
from fusemix.search import approximate, previews
from fusemix.search.query import ItemId
from fusemix.verbs import index as verbs
from test_cli import ENCODERS, fusemix

BOTH = ("--modality", "image", "--modality", "text")
OWN = ("--image", "enc.py:colours", "--text", "enc.py:letters")


def table(path, numbers, price):
    """Pictures of a colour of their own each, with a price; a CSV file holds texts only."""
    lines = ["photo,title,price,split"]
    for i in numbers:
        Image.new("RGB", (300, 20), (2 * i, 250 - 2 * i, (37 * i) % 250)).save(path.parent / f"{i:03d}.png")
        lines.append(
            f"{i:03d}.png,{chr(97 + i % 26) * (i // 26 + 1)} number {i},{price(i)},{'test' if i % 5 else 'train'}"
        )
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with latents and models of two modalities, of another pair of them, and with an index."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "enc.py").write_text(ENCODERS)
    table(folder / "t.csv", range(100), lambda i: i)
    table(folder / "more.csv", range(90, 120), lambda i: 1000 + i)
    colours, letters = (f"{folder / 'enc.py'}:{name}" for name in ("colours", "letters"))
    for out, source in (("l", "t.csv"), ("more", "more.csv")):
        pairs = fm.read_pairs(folder / source, image="photo", text="title")
        fm.extract(pairs, image=colours, text=letters, out=folder / out)
    pairs = fm.read_pairs(folder / "t.csv", label="split", text="title")
    fm.extract(pairs, label=letters, text=letters, out=folder / "labels")
    for out, source in (("m", "l"), ("other", "labels")):
        fm.FuseMix(lock="text", epochs=5).fit(fm.open_latents(folder / source)).save(folder / out)
    fusemix("index", "m", "l", "-o", "i", *BOTH, "-q", "--no-previews", cwd=folder)
    return folder


def hits(*words, cwd):
    return json.loads(fusemix("search", *words, "--json", cwd=cwd).stdout)


def test_an_index_of_two_modalities_says_what_it_holds(place):
    done = fusemix("index", "m", "l", "-o", "new", *BOTH, cwd=place)
    assert done.stdout.splitlines() == [
        "100 image and 100 text items of 26 numbers each, 100 with a preview",
        'next: fusemix search new "your words", or fusemix serve new',
    ]
    assert "previews: 100 done in" in done.stderr
    words = ("--split", "test", "--dtype", "float16", "--no-previews", "--json", "-q")
    said = json.loads(fusemix("index", "m", "l", "-o", "new", *words, cwd=place).stdout)
    assert said == {
        "out": "new", "generation": 2, "items": {"image": 80}, "previews": 0, "dtype": "float16", "approximate": None,
    }  # fmt: skip


def test_words_files_items_vectors_and_their_sums_are_searched_with(place, tmp_path):
    index = fm.open_index(place / "i")
    first = lambda *words: hits("i", *words, "-k", 1, *OWN, cwd=place)[0]["id"]  # noqa: E731
    assert first("042.png") == "042.png"
    np.save(tmp_path / "seventeen.npy", index.embed(ItemId("017.png")))
    latent = fm.open_latents(place / "l")["image"].numpy()[42]
    np.save(tmp_path / "latent.npy", latent)
    assert first(tmp_path / "latent.npy", "--from", "image") == "042.png"
    query = f"2 * 042.png - {tmp_path / 'seventeen.npy'} + 0.5 * id:003.png + 'aaa number 5'"
    found = hits("i", query, "-k", 5, *OWN, cwd=place)
    model = fm.FuseMix.load(place / "m").use_encoder("text", f"{place / 'enc.py'}:letters")
    total = 2 * index.embed(latent, "image") - index.embed(ItemId("017.png"))
    total += 0.5 * index.embed(ItemId("003.png")) + model.embed(["aaa number 5"])[0]
    expected = index.search(total, 5)
    assert [hit["id"] for hit in found] == [hit.id for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in expected], atol=1e-3)


def test_words_that_are_no_arithmetic_are_words(place):
    found = hits("i", "it's snowing - not", "-k", 2, *OWN, cwd=place)
    index = fm.open_index(place / "i")
    index.space.use_encoder("text", f"{place / 'enc.py'}:letters")
    assert [hit["id"] for hit in found] == [hit.id for hit in index.search("it's snowing - not", 2)]


def test_conditions_and_what_is_printed(place):
    found = hits("i", "042.png", *OWN, "--where", "price < 9", "--where", "modality = image", cwd=place)
    assert {hit["id"] for hit in found} == {f"{i:03d}.png" for i in range(9)}  # as numbers, not as texts
    assert set(found[0]) == {"id", "score", "modality", "path", "text", "columns"}
    assert found[0]["path"] == str(place.resolve() / found[0]["id"]) and found[0]["columns"]["price"] in "012345678"
    lines = fusemix("search", "i", "042.png", *OWN, "--where", "price = 42", cwd=place).stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("  1   1.000  ") and lines[0].endswith("042.png")
    assert lines[1].endswith("qq number 42")
    done = fusemix("search", "i", "042.png", *OWN, "--where", "price > 1000", cwd=place)
    assert done.stdout == "nothing: no item fulfils the conditions, or the index has none\n"


def test_what_json_does_not_know_is_null_or_text(place):
    """Of a Parquet table there are numbers that are none, and dates."""
    index = fm.open_index(place / "i")
    cells = pa.table({"number": [math.nan, math.inf, 1.5, None] * 50, "day": [dt.date(2024, 5, 1)] * 200})
    replace(index, columns=cells).save(place / "cells")
    out = fusemix("search", "cells", "id:000.png", "-k", 200, "--json", cwd=place).stdout
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {hit["columns"]["number"] for hit in found} == {None, 1.5}
    assert {hit["columns"]["day"] for hit in found} == {"2024-05-01"}


def test_a_folder_of_other_files_is_not_written_into(place):
    (place / "pictures").mkdir()
    (place / "pictures" / "a.png").write_bytes(b"")
    done = fusemix("index", "m", "l", "-o", "pictures", cwd=place, code=2)
    assert "pictures holds other files (a.png, ...); give a new folder" in done.stderr
    assert [path.name for path in (place / "pictures").iterdir()] == ["a.png"]


NO_EXTRA = """
from fusemix.errors import MissingExtraError
from fusemix.search import previews
def with_previews(*given):
    raise MissingExtraError("soxr", "audio", "a preview of sound")
previews.with_previews = with_previews
"""


def test_an_extra_that_only_previews_need_is_not_needed_without_them(place):
    done = warm.run(["index", "m", "l", "-o", "bare"], place, dict(os.environ), before=NO_EXTRA)
    assert done.returncode == 2 and not (place / "bare" / "facts.json").exists()
    assert 'pip install "fusemix[audio]"; or make the index without previews: --no-previews' in done.stderr


def test_items_are_added_put_in_the_place_of_old_ones_and_removed(place):
    fusemix("index", "m", "l", "-o", "changing", "-q", "--no-previews", cwd=place)
    done = fusemix("add", "changing", "more", "-q", cwd=place)
    assert done.stdout.startswith("120 image items of 26 numbers each, 120 with a preview\n")  # also of the old ones
    found = hits("changing", "id:000.png", "-k", 500, "--where", "price > 1000", cwd=place)
    assert {hit["id"] for hit in found} == {f"{i:03d}.png" for i in range(90, 120)}
    where = ("--where", "price >= 1000", "--where", "split = test")
    done = fusemix("remove", "changing", "000.png", "001.png", *where, cwd=place)
    assert done.stdout.splitlines()[:2] == [
        "26 removed",
        "94 image items of 26 numbers each, 94 with a preview",
    ]
    said = json.loads(fusemix("remove", "changing", "--where", "price < 0", "--json", cwd=place).stdout)
    assert said["items"] == {"image": 94} and said["generation"] == 4
    assert sorted(fm.open_index(place / "changing").items["id"].to_pylist())[:2] == ["002.png", "003.png"]


def test_a_removal_may_be_of_one_modality_or_of_all(place):
    fm.open_index(place / "i").save(place / "two")
    out = fusemix("remove", "two", "--where", "price < 30", "--modality", "text", cwd=place).stdout
    assert out.startswith("30 removed\n100 image and 70 text items")
    out = fusemix("remove", "two", "--where", "split != none", cwd=place).stdout
    assert out.startswith("170 removed\n0 image and 0 text items of 26 numbers each, 0 with a preview\n")


def test_what_another_model_embeds_is_searched_with_too(place):
    fusemix("index", "m", "l", "-o", "both", "--also", "other", "-q", "--no-previews", cwd=place)
    found = hits("both", "test", "--from", "label", "--label", "enc.py:letters", "-k", 3, cwd=place)
    assert len(found) == 3 and found[0]["modality"] == "image"
    assert len(fm.open_index(place / "both").space.models) == 2


def test_an_approximate_index_says_what_it_measured(place, monkeypatch, capsys):
    monkeypatch.setattr(approximate, "FEWEST", 50)
    verbs.index(place / "m", place / "l", place / "near", approximate=True, previews=False, quiet=True)
    out = capsys.readouterr().out
    near = fm.open_index(place / "near")
    facts = near.approximate.facts
    assert facts["of"] == "queries" and facts["queries"] == 100 and facts["recall"] >= facts["goal"] == 0.95
    assert (
        f"approximate: recall@10 {facts['recall']:.3f} beside exact search (goal 0.95), on 100 queries; "
        f"each looks into {facts['probed']} of 40 cells\n"
    ) in out
    queries = near.space.embed_latents("text", fm.open_latents(place / "l")["text"].latents)
    truth = np.argsort(-queries.astype(float) @ near.embeddings.double().numpy().T, kind="stable")[:, :10]
    found = near.search_embeddings(torch.from_numpy(queries), 10)[1]
    shares = [len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    assert np.mean(shares) == pytest.approx(facts["recall"], abs=1e-6)
    verbs.add(place / "near", place / "more", previews=False, quiet=True)
    assert "120 image items" in (out := capsys.readouterr().out) and "(goal 0.95), on 30 queries" in out
    verbs.remove(place / "near", ["000.png"])
    assert capsys.readouterr().out.startswith(
        "1 removed; search looks at all items again, until the index is made anew\n119 image items"
    )
    assert fm.open_index(place / "near").approximate is None


def test_what_another_process_added_meanwhile_is_not_lost(place, monkeypatch):
    index = fm.open_index(place / "i")
    index.save(place / "raced")
    made = previews.with_previews

    def meanwhile(*given):
        fm.open_index(place / "raced").remove(["000.png"]).save(place / "raced")
        return made(*given)

    monkeypatch.setattr(previews, "with_previews", meanwhile)
    with pytest.raises(StoreError, match=r"another process changed .*raced meanwhile; run the same command again"):
        verbs.add(place / "raced", place / "more", quiet=True)
    assert len(fm.open_index(place / "raced")) == 199


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "i", "042.png + day", *OWN), "'day' in the query: no such file; words in arithmetic stand in quo"),
        (("search", "i", "id:142.png"), "the index holds no item '142.png'; did you mean"),
        (("search", "i", "narrow.npy"), "a vector of the shared space: wanted 26 numbers, got float64 of shape (3,);"),
        (("search", "i", "red", "--whre", "price < 3"), "--whre is no option, nor a modality of this index (image, t"),
        (("search", "i", "042.png", "--where", "prise < 3", *OWN), "no column 'prise'; found: photo, title, price, sp"),
        (("index", "m", "l", "-o", "x", "--approximate"), "100 items: exact search is as fast below 10,000; leave --a"),
        (("index", "m", "l", "-o", "x", "--modality", "txt"), "--modality: no 'txt' in these latents; found: image, t"),
        (("index", "m", "labels", "-o", "x"), "no modality 'label' in this space; found: image, text"),
        (("index", "m", "l", "-o", "t.csv"), "t.csv cannot be the output folder: it is a file"),
        (("add", "i", "labels", "--modality", "label"), "no modality 'label' in this space"),
        (("remove", "i"), "nothing to remove: name ids, or give conditions with --where"),
    ],
)  # fmt: skip
def test_a_mistake_exits_with_2_and_says_what_to_do(place, words, message):
    np.save(place / "narrow.npy", np.ones(3))
    before = (place / "i" / "facts.json").read_bytes()
    done = fusemix(*words, cwd=place, code=2)
    assert message in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert (place / "i" / "facts.json").read_bytes() == before
