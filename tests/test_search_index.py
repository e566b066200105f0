"""An index as a whole: what it finds and says, how it changes, and a folder that is always one index or another."""

import datetime as dt
import json
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

import fusemix as fm
from conftest import encode_image, encode_text
from fusemix import durable
from fusemix.data.latents import ItemLatents, Latents, LateTable
from fusemix.data.rows import LatentRows
from fusemix.errors import DataError, EncoderError, MismatchError, StoreError
from fusemix.queries import QueryEncoder
from fusemix.search import approximate, exact, opening
from fusemix.search import folder as on_disk
from fusemix.search.approximate import Approximate
from fusemix.search.index import Index
from fusemix.search.query import ItemId, Term
from fusemix.search.space import Space

DAY = dt.date(2024, 5, 1)


@pytest.fixture
def index(model, latents):
    return model.index(latents["image"])


@pytest.fixture(scope="module")
def small():
    """A model of two modalities, "photo" (5 numbers) and "title" (4 numbers)."""
    rng = np.random.default_rng(0)
    pairs = Latents.from_arrays(photo=rng.normal(size=(30, 5)), title=rng.normal(size=(30, 4)))
    return fm.FuseMix(dim=6, depth=0, epochs=1, batch_size=10, recipe="scaled").fit(pairs)


def items(modality, ids, /, kind="text", seed=0, root="/data", values=None, encoder=None, own=None, **columns):
    """Items of the small model, with a user's columns."""
    columns = own or columns
    width = {"photo": 5, "title": 4}[modality]
    latents = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(seed))
    table = pa.table({"id": pa.array(ids, pa.string()), "value": pa.array(values or ids, pa.string())})
    late = LateTable(lambda: pa.table(columns)) if columns else None
    return ItemLatents(
        modality, kind, LateTable(lambda: table), LatentRows.of(latents), encoder or {}, root=Path(root), columns=late
    )


def ids_of(index):
    return index.items["id"].to_pylist()


def same(one, other):
    """Compare two indexes in all that they hold."""
    previews = [each.previews.to_pylist() if each.previews is not None else None for each in (one, other)]
    return (
        torch.equal(one.embeddings, other.embeddings)
        and one.embeddings.dtype == other.embeddings.dtype
        and one.items.equals(other.items)
        and one.columns.equals(other.columns)
        and one.found == other.found
        and previews[0] == previews[1]
    )


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_a_text_and_a_file_find_items_with_id_score_path_and_columns(index, world, model):
    model.use_encoder("text", encode_text).use_encoder("image", encode_image)
    hits = index.search("red above blue number 3", k=5)
    assert len(hits) == 5 and [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert hits[0].path == str(world.resolve() / hits[0].id) and hits[0].text is None
    first = index.search(world / "017.png", k=3)[0]
    assert first.id == "017.png" and first.score == pytest.approx(1, abs=1e-3)
    assert set(json.loads(json.dumps(asdict(first)))) == {"id", "score", "modality", "path", "text", "columns"}
    # The column "photo" only repeats the id; the caption is that of the first pair.
    assert set(first.columns) == {"title", "maker", "split"} and first.columns["maker"] == "m3"
    assert first.columns["title"].endswith("number 17")


def test_scores_are_the_cosines_that_float64_gives(index, model):
    query = np.random.default_rng(1).normal(size=32)
    found = index.search(query, k=len(index))
    whole = index.embeddings.double().numpy() @ (query / np.linalg.norm(query))
    order = np.argsort(-whole, kind="stable")
    assert [hit.id for hit in found] == [ids_of(index)[row] for row in order]
    np.testing.assert_allclose([hit.score for hit in found], whole[order], atol=1e-6)


def test_an_index_of_texts_returns_texts(model, latents, world):
    model.use_encoder("image", encode_image)
    hit = model.index(latents["text"]).search(world / "003.png", k=1)[0]
    assert hit.text is not None and hit.path is None and hit.modality == "text"
    assert hit.columns["photo"].endswith(".png") and "title" not in hit.columns


def test_several_modalities_lie_in_one_index(model, latents):
    both = model.index(latents["image"], latents["text"])
    assert len(both) == 120 + 240 and [*both.found] == ["image", "text"]
    query = model.embed_latents("text", latents["text"].latents[5:6])[0]
    whole = torch.cat([model.index(latents[name]).embeddings for name in ("image", "text")])
    expected = np.argsort(-(whole.double() @ torch.from_numpy(query).double()).numpy(), kind="stable")[:20]
    assert [hit.id for hit in both.search(query, 20)] == [ids_of(both)[row] for row in expected]
    assert {hit.modality for hit in both.search(query, 360)} == {"image", "text"}
    assert all(hit.modality == "image" for hit in both.search(query, 360, where=["modality = image"]))
    rows = both.rows((), "text")
    assert rows.tolist() == list(range(120, 360))
    with pytest.raises(DataError, match="the index holds no 'txt'; found: image, text; did you mean 'text'"):
        both.rows((), "txt")


def test_conditions_are_about_the_users_columns_and_the_modality_and_the_id(small):
    index = small.index(
        items("photo", ["a", "b", "c"], price=[3, None, 20], maker=["x=y", None, "z"], day=[DAY, None, DAY]),
        items("title", ["a", "d"], price=[5.5, 1.0], new=[True, False]),
    )
    found = lambda *where: [(hit.modality, hit.id) for hit in index.search(np.ones(6), 9, where=where)]  # noqa: E731
    assert sorted(found("price < 6")) == [("photo", "a"), ("title", "a"), ("title", "d")]
    assert found("price < 6", "modality = photo") == [("photo", "a")] == found("maker = x=y")
    assert sorted(found("id = a")) == [("photo", "a"), ("title", "a")]
    assert found("new = true") == [("title", "a")] and found("day > 2024-04-30", "price = 20") == [("photo", "c")]
    assert found("price > 100") == []
    with pytest.raises(DataError, match="no column 'prise'; found: price, .*did you mean 'price'"):
        found("prise < 3")
    hits = {(hit.modality, hit.id): hit.columns for hit in index.search(np.ones(6), 9)}
    assert hits["title", "d"] == {"price": 1.0, "maker": None, "day": None, "new": False}


def test_the_users_own_id_and_modality_go_before_ours(small, tmp_path):
    own = {"id": [7, 8], "modality": ["deed", "seal"], "value": [1.5, 2.5], "root": ["r", "s"]}
    index = small.index(items("photo", ["a", "b"], own=own))
    index.save(tmp_path / "i")
    for each in (index, fm.open_index(tmp_path / "i")):
        (hit,) = each.search(np.ones(6), where=["id = 8", "modality = seal", "value > 2"])
        assert (hit.id, hit.modality) == ("b", "photo")
        assert hit.columns == {"id": 8, "modality": "seal", "value": 2.5, "root": "s"}
        assert each.row(ItemId("a", "photo")) == 0


def test_k_and_an_empty_choice(index):
    assert len(index.search(np.ones(32), 1000)) == 120
    assert index.search(np.ones(32), where=["maker = none"]) == []
    assert index.search_embeddings(torch.ones(2, 32), 3, torch.tensor([], dtype=torch.int64))[1].shape == (2, 0)
    with pytest.raises(DataError, match="k must be at least 1, got 0"):
        index.search(np.ones(32), 0)


def test_equal_rows_come_in_order_of_the_index(index, monkeypatch):
    monkeypatch.setattr(exact, "_ROWS_PER_BLOCK", 50)
    doubled = index.take(np.repeat(np.arange(40), 3))
    rows = doubled.search_embeddings(index.embeddings[7:8], 3)[1]
    assert rows.tolist() == [[21, 22, 23]]
    among = torch.tensor([2, 22, 23, 100])
    assert doubled.search_embeddings(index.embeddings[7:8], 2, among)[1].tolist() == [[22, 23]]


def test_rows_in_half_the_memory_find_the_same(model, latents, index, tmp_path):
    half = model.index(latents["image"], dtype="float16")
    assert half.embeddings.dtype == torch.float16
    queries = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    scores, rows = half.search_embeddings(queries, 10)
    expected = (queries.double() @ half.embeddings.double().T).topk(10)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(scores.double(), expected.values, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores, index.search_embeddings(queries, 10)[0], atol=2e-3, rtol=0)
    half.save(tmp_path / "i")
    assert same(fm.open_index(tmp_path / "i"), half)
    assert half.remove(["003.png"]).add(latents["image"]).embeddings.dtype == torch.float16
    with pytest.raises(DataError, match="no rows of 'float61'; found: float32, float16; did you mean 'float16'"):
        model.index(latents["image"], dtype="float61")


def test_items_that_lie_in_a_table_have_neither_path_nor_text(small, tmp_path):
    """What a table embeds has no name, or one that no file has."""
    index = small.index(
        items("photo", ["a", "b"], kind="image", values=[None, None]),
        items("title", ["c"], kind="image", values=["in/the/table.png"]),
    )
    index.save(tmp_path / "i")
    hits = fm.open_index(tmp_path / "i").search(np.ones(6))
    assert [(hit.path, hit.text) for hit in hits] == [(None, None)] * 3
    (tmp_path / "there.tar").write_bytes(b"x")
    (tmp_path / "there.png").write_bytes(b"x")
    values = ["there.tar#512+10", "there.png", "gone.png", "gone.tar#512+10"]
    index = small.index(items("photo", [*"abcd"], kind="image", values=values, root=str(tmp_path)))
    paths = {hit.id: hit.path for hit in index.search(np.ones(6))}
    assert paths == {"a": f"{tmp_path}/{values[0]}", "b": f"{tmp_path}/there.png", "c": None, "d": None}


# ---- queries ---------------------------------------------------------------------------------------------------------


def test_terms_of_any_kind_are_added_up(model, index, world, latents):
    model.use_encoder("text", encode_text).use_encoder("image", encode_image)
    vector = np.random.default_rng(0).normal(size=32)
    latent = latents["text"].numpy()[3]
    found = index.embed(
        [
            Term(world / "004.png"),
            Term("red", None, -0.5),
            Term(ItemId("009.png"), None, 2),
            Term(vector),
            Term(latent, "text"),
        ]
    )
    parts = [
        model.embed([world / "004.png"])[0],
        -0.5 * model.embed(["red"])[0],
        2 * index.embeddings[9].numpy(),
        vector / np.linalg.norm(vector),
        model.embed_latents("text", latent[None])[0],
    ]
    total = np.sum(np.array(parts, np.float64), axis=0)
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-6)


def test_an_item_and_a_vector_and_a_tensor_are_queries(index):
    row = index.embeddings[9]
    for query in (ItemId("009.png"), ItemId("009.png", "image"), row.numpy(), row, row.double() * 7, row.bfloat16()):
        assert index.search(query, 1)[0].id == "009.png"
    assert index.search(row.clone().requires_grad_(), 1)[0].id == "009.png"
    assert index.search(ItemId("009.png"), 1, "image")[0].id == "009.png"


def test_many_queries_go_through_an_encoder_together(model, index, monkeypatch):
    model.use_encoder("text", encode_text)
    calls, encode = [], QueryEncoder.encode
    monkeypatch.setattr(QueryEncoder, "encode", lambda self, texts: calls.append(len(texts)) or encode(self, texts))
    queries = [[Term("red above blue")], [Term("green"), Term("blue", None, -1)], [Term(ItemId("003.png"))]]
    together = index.embed_queries(queries)
    assert calls == [3]
    np.testing.assert_allclose(together, np.stack([index.embed(each) for each in queries]), atol=1e-6)
    assert index.embed_queries([]).shape == (0, 32)
    with pytest.raises(DataError, match="nothing to search for: the query has no terms"):
        index.embed_queries([[Term("red")], []])


def test_a_name_that_is_said_to_be_text_is_text(model, index, world):
    model.use_encoder("text", encode_text)
    np.testing.assert_array_equal(index.embed(Path("red"), "text"), index.embed("red"))


@pytest.mark.parametrize(
    ("query", "modality", "message"),
    [
        (np.ones(31), None, r"a vector of the shared space: wanted 32 numbers, got float64 of shape \(31,\); of a lat"),
        (np.ones(31), "image", r"a latent of 'image': wanted 51 numbers, got float64 of shape \(31,\)"),
        (np.ones((2, 51)), "image", r"a latent of 'image': wanted 51 numbers, got float64 of shape \(2, 51\)"),
        (np.array(["a"] * 51), "image", "a latent of 'image': wanted 51 numbers, got <U1"),
        (np.array([None] * 51), "image", "a latent of 'image': wanted 51 numbers, got object"),
        (np.full(51, np.nan), "image", "a latent of 'image': the numbers must be finite"),
        (np.full(51, 1e300), "image", "a latent of 'image': the numbers must be finite"),
        (np.zeros(32), None, "the numbers must not all be zero"),
        (np.ones(64), "txt", "no modality 'txt' in this space; found: image, text; did you mean 'text'"),
        ("red", "txt", "no modality 'txt' in this space; found: image, text; did you mean 'text'"),
        (ItemId("9.png"), None, "the index holds no item '9.png'; did you mean '119.png'"),
        (ItemId("zzz"), None, "the index holds no item 'zzz'; it has such as '.*png'$"),
        (ItemId("009.png", "text"), None, "the index holds no item '009.png' of the modality 'text'; found: image"),
        (5, None, "cannot tell which modality a int is"),
        ([], None, "cannot tell which modality a list is"),
        ([Term("a", None, 0.0)], None, "cancel each other"),
        ([Term(ItemId("009.png")), Term(ItemId("009.png"), None, -1.0)], None, "cancel each other"),
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_used_is_told(model, index, query, modality, message):
    model.use_encoder("text", encode_text)
    with pytest.raises(DataError, match=message):
        index.search(query, 1, modality)


def test_an_id_of_two_modalities_asks_which():
    numbers = np.random.default_rng(0).normal(size=(20, 4))
    pairs = Latents.from_arrays(left=numbers, right=numbers)  # ids are hashes of the numbers
    index = fm.FuseMix(dim=4, depth=0, epochs=1).fit(pairs).index(pairs["left"], pairs["right"])
    same_id = ids_of(index)[3]
    with pytest.raises(DataError, match=f"2 items have the id '{same_id}', of left and right; say which: --from MOD"):
        index.search(ItemId(same_id))
    with pytest.raises(DataError, match="say which: .*--modality MODALITY in a removal"):
        index.remove([same_id])
    for name, row in (("left", 3), ("right", 23)):
        assert index.row(ItemId(same_id, name)) == row
        for query, modality in ((ItemId(same_id, name), None), (ItemId(same_id), name)):
            np.testing.assert_allclose(index.embed(query, modality), index.embeddings[row].numpy(), atol=1e-6)
    left = index.remove(ItemId(same_id, "right"))
    assert len(left) == 39 and left.row(ItemId(same_id)) == 3


# ---- add and remove --------------------------------------------------------------------------------------------------


def test_removed_and_added_again_is_the_same_in_another_order(small, tmp_path):
    photos = items("photo", [*"abcde"], price=[1, 2, 3, 4, 5])
    index = small.index(photos)
    less = index.remove(["b", ItemId("d", "photo")])
    assert ids_of(less) == [*"ace"] and less.columns["price"].to_pylist() == [1, 3, 5]
    assert torch.equal(less.embeddings, index.embeddings[[0, 2, 4]]) and len(index) == 5
    more = less.add(photos.select(np.array([1, 3])))
    assert same(more, index.take(np.array([0, 2, 4, 1, 3])))
    assert [hit.id for hit in more.search(np.ones(6))] == [hit.id for hit in index.search(np.ones(6))]


def test_an_item_of_the_same_id_takes_the_place_of_the_old_one(small):
    old, new = items("photo", [*"abc"], price=[1, 2, 3]), items("photo", [*"bcd"], seed=1, price=[20, 30, 40])
    index = small.index(old).add(new)
    assert ids_of(index) == [*"abcd"] and index.columns["price"].to_pylist() == [1, 20, 30, 40]
    expected = torch.cat([small.index(old).embeddings[:1], small.index(new).embeddings])
    assert torch.equal(index.embeddings, expected)
    assert same(small.index(old, new), index) and len(small.index(old, old)) == 3
    other = index.add(items("title", ["b"], seed=2))
    assert ids_of(other) == [*"abcdb"] and [*other.found] == ["photo", "title"]


def test_a_row_that_arrays_hold_twice_is_one_item():
    """Its id is a hash of it."""
    numbers = np.random.default_rng(0).normal(size=(10, 4))
    numbers[4] = numbers[2]
    pairs = Latents.from_arrays(x=numbers, y=numbers[:, :3])
    model = fm.FuseMix(dim=4, depth=0, epochs=1).fit(pairs)
    index = model.index(pairs["x"])
    assert len(index) == 9 == len(index.add(pairs["x"])) and len(index.add(pairs["y"])) == 18
    assert len(index.remove([ids_of(index)[2]])) == 8


@pytest.mark.parametrize("ids", ["b", ItemId("b"), ["b"], ["b", "b"], [ItemId("b", "photo"), "b"]])
def test_one_id_alone_or_twice_is_one_item(small, ids):
    assert ids_of(small.index(items("photo", ["a", "b", "c"])).remove(ids)) == ["a", "c"]


def test_what_is_not_there_cannot_be_removed(small):
    index = small.index(items("photo", ["sole", "b; c"]))
    with pytest.raises(DataError, match="the index holds no item 'soles'; did you mean 'sole'\\?$"):
        index.remove(["sole", "soles"])
    with pytest.raises(DataError, match="the index holds no item 'b: c'; did you mean 'b; c'\\?$"):
        index.remove(["b: c"])


def test_an_index_may_be_emptied_saved_opened_and_filled_again(small, tmp_path):
    photos = items("photo", [*"abc"], price=[1, 2, 3])
    empty = small.index(photos).remove([*"abc"])
    empty.save(tmp_path / "i")
    again = fm.open_index(tmp_path / "i")
    for each in (empty, again):
        assert len(each) == 0 and each.search(np.ones(6)) == [] == each.search(np.ones(6), where=["price < 3"])
        assert same(each.add(photos), small.index(photos))
        with pytest.raises(DataError, match="the index holds no item 'a'; it is empty$"):
            each.remove(["a"])
    moved = again.add(items("photo", ["a"], root="/elsewhere", price=[1]))
    assert moved.found["photo"].root == Path("/elsewhere")


def test_items_without_columns_are_items_too(small, model, latents, tmp_path):
    whole = small.index(items("photo", [*"abc"])).add(items("photo", [*"de"]))
    assert len(whole.columns) == 5 and whole.search(np.ones(6), where=["id = d"])[0].id == "d"
    bare = whole.remove(["b"])
    bare.save(tmp_path / "i")
    for each in (bare, fm.open_index(tmp_path / "i")):
        assert len(each.search(np.ones(6))) == 4 == len(each.columns)
        assert all(hit.columns == {} for hit in each.search(np.ones(6)))
        assert each.search(np.ones(6), where=["id = c"])[0].id == "c"
        mixed = each.add(items("title", ["f"], price=[7]))
        assert mixed.columns["price"].to_pylist() == [None] * 4 + [7]
        assert mixed.search(np.ones(6), where=["price = 7"])[0].id == "f"
    assert len(model.index(latents.items["image"]).search(np.ones(32), 3)) == 3  # those that are in no pair, too


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2], [1.5, None], [1, 2, 1.5, None]),
        ([1, 2], [None, None], [1, 2, None, None]),
        (["p", "q"], pa.array(["r", None], pa.large_string()), ["p", "q", "r", None]),
        (["p", "q"], pa.array(["r", "r"]).dictionary_encode(), ["p", "q", "r", "r"]),
        (pa.array(["p", "p"]).dictionary_encode(), ["q", "q"], ["p", "p", "q", "q"]),
        (pa.array([1, 2], pa.int8()), pa.array([1000, 2], pa.int64()), [1, 2, 1000, 2]),
    ],
)
def test_columns_of_like_types_go_together(small, one, other, expected, tmp_path):
    index = small.index(items("photo", ["a", "b"], c=one)).add(items("photo", ["d", "e"], c=other))
    index.save(tmp_path / "i")
    assert index.columns["c"].to_pylist() == expected == fm.open_index(tmp_path / "i").columns["c"].to_pylist()


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ([1, 2], ["a", "b"], r"'c' \(int64 and string\)"),
        (["1", "2"], [1.5, 2.5], r"'c' \(string and double\)"),
        ([True, False], [1, 0], r"'c' \(bool and int64\)"),
        ([DAY, DAY], ["2024-05-01", ""], r"'c' \(date32\[day\] and string\)"),
        ([2**60 + 1, 2], [1.5, 2.5], r"'c' \(int64 and double\)"),
    ],
)
def test_columns_of_unlike_types_are_told(small, one, other, words):
    index = small.index(items("photo", ["a", "b"], c=one, d=[1, 2]))
    with pytest.raises(DataError, match=f"another type in the new items than in those before: {words}; write both"):
        index.add(items("photo", ["d", "e"], c=other, d=[1, 2]))


def test_a_column_that_repeats_the_items_is_no_part_of_a_hit_but_can_be_asked_for(small):
    ids = ["a.png", "b.png"]
    for photo in (ids, pa.array(ids, pa.large_string()), pa.array(ids).dictionary_encode()):
        index = small.index(items("photo", ids, photo=photo, n=[1, 2]))
        assert index.telling.column_names == ["n"] and index.rows(["photo = b.png"]).tolist() == [1]
    assert small.index(items("photo", ids, photo=["a.png", "x"], n=[1, 2])).telling.column_names == ["photo", "n"]


def test_a_condition_reaches_the_items_that_a_column_repeats_and_the_others(model, latents):
    index = model.index(latents["image"], latents["text"])
    found = {index.keys[row][0] for row in index.rows(["title ~ red above"]).tolist()}
    assert found == {"image", "text"} and "title" in index.telling.column_names


def test_latents_of_another_encoder_or_width_or_place_are_refused(small):
    index = small.index(items("photo", ["a", "b"], root="/data"))
    with pytest.raises(MismatchError, match="the photo latents come from another encoder than the model was fitted on"):
        index.add(items("photo", ["c"], encoder={"name": "other"}))
    wide = ItemLatents("photo", "text", items("photo", ["c"]).late, LatentRows.of(torch.zeros(1, 7)))
    with pytest.raises(MismatchError, match="the model takes photo latents of width 5, got 7"):
        index.add(wide)
    with pytest.raises(
        DataError, match="the photo items lie in /data, the new ones in /tmp; extract them with the same"
    ):
        index.add(items("photo", ["c"], root="/tmp"))
    assert ids_of(index.add(items("photo", ["a", "b"], root="/tmp"))) == ["a", "b"]  # all of them moved
    with pytest.raises(DataError, match="no modality 'scan' in this space; found: photo, title"):
        index.add(Latents.from_arrays(scan=np.zeros((2, 5)))["scan"])
    with pytest.raises(DataError, match=r"needs the items of a modality at least, such as latents\['image'\]"):
        small.index()


# ---- one space, several models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three():
    """Pictures, sounds and words of 400 things: all are linear maps of six numbers, the words those themselves."""
    rng = np.random.default_rng(0)
    words = rng.normal(size=(400, 6))
    return {"image": words @ rng.normal(size=(6, 9)), "sound": words @ rng.normal(size=(6, 8)), "word": words}


def locked(three, name, things, word="word"):
    settings = {"prior": 0, "input_dropout": 0.0, "warmup_steps": 5, "weight_decay": 0.0}
    model = fm.FuseMix(lock=word, depth=0, epochs=40, batch_size=45, lr=0.03, alpha=0, dropout=0.0, settings=settings)
    return model.fit(Latents.from_arrays(**{name: three[name][things], word: three["word"][things]}))


def test_sounds_find_pictures_that_they_never_met(three, tmp_path):
    """One model knows pictures and words of some things, another sounds and words of others; both lock the words."""
    space = Space([locked(three, "image", slice(0, 180)), locked(three, "sound", slice(180, 360))])
    assert space.modalities_ == ("image", "word", "sound") and space.home("sound") is space.models[1]
    unseen = {name: numbers[360:] for name, numbers in three.items()}
    index = Index.of(space, Latents.from_arrays(**unseen)["image"])
    index.save(tmp_path / "i")
    for each in (index, fm.open_index(tmp_path / "i")):
        for name in ("sound", "word"):
            found = [each.search(latent, 1, name)[0].columns["row"] for latent in unseen[name]]
            assert np.mean(np.array(found) == np.arange(40)) > 0.9, name  # by chance 0.025
    assert len(fm.open_index(tmp_path / "i").space.models) == 2
    more = index.add(Latents.from_arrays(sound=unseen["sound"])["sound"])
    assert len(more) == 80 and more.search(unseen["word"][0], 2, "word")[1].modality in ("image", "sound")


def test_spaces_that_are_not_one_are_refused(three, small):
    few = slice(0, 20)
    make = lambda lock, epochs=1, **given: fm.FuseMix(lock=lock, epochs=epochs, depth=0).fit(  # noqa: E731
        Latents.from_arrays(**given)
    )
    word, image, sound = (three[name][few] for name in ("word", "image", "sound"))
    first = make("word", image=image, word=word)
    with pytest.raises(MismatchError, match="share a space only where both embed one modality in the very same way"):
        Space([first, small])
    with pytest.raises(MismatchError, match=r"locked to different encoders.*: width \(was 6, is 5\)"):
        Space([first, make("word", sound=sound, word=word[:, :5])])
    with pytest.raises(MismatchError, match=r"both models have a modality 'image', by different encoders: width"):
        Space([first, make("word", image=sound, word=word)])
    other = make("word", sound=sound, word=word)
    other.sides_["word"] = other.sides_["word"].__class__("text", 6, {"name": "b"}, "")
    first.sides_["word"] = other.sides_["word"].__class__("text", 6, {"name": "a"}, "")
    with pytest.raises(
        MismatchError, match=r"locked to different encoders, so they share no space: name \(was 'a', is"
    ):
        Space([first]).joined(other)
    with pytest.raises(DataError, match="no modality 'sound' in this space; found: image, word"):
        Space([first]).home("sound")
    assert Space([first]).embed([]).shape == (0, 6)


# ---- on disk ---------------------------------------------------------------------------------------------------------


def with_stubs(index):
    """Previews of any bytes."""
    made = [f"preview {row}".encode() if row % 2 else None for row in range(len(index))]
    return index.__class__(**{**index.__dict__, "previews": pa.chunked_array([pa.array(made, pa.large_binary())])})


@pytest.fixture
def plain(small):
    """Three generations of an index would be these, of 3, 4 and 5 items."""
    return [
        with_stubs(small.index(items("photo", [*"abcde"[:count]], price=[1.5, None, 3, 4, 5][:count])))
        for count in (3, 4, 5)
    ]


def test_a_saved_index_needs_nothing_else_and_runs_no_code(model, latents, tmp_path):
    index = model.index(latents["image"], latents["text"])
    assert index.save(tmp_path / "i").generation == 1
    again = fm.open_index(tmp_path / "i")
    assert same(again, index) and again.generation == 1
    with pytest.raises(EncoderError, match="never runs code by itself"):
        again.search("red above blue")
    again.space.use_encoder("text", encode_text)
    model.use_encoder("text", encode_text)
    assert again.search("red above blue", k=4) == index.search("red above blue", k=4)


def test_each_save_is_a_generation_and_the_one_before_goes(plain, tmp_path):
    folder = tmp_path / "i"
    for number, index in enumerate(plain, 1):
        assert index.save(folder).generation == number
        assert sorted(path.name for path in folder.iterdir()) == ["facts.json", f"generation-{number}"]
        opened = fm.open_index(folder)
        assert same(opened, index) and opened.generation == number
    changed = opened.remove(["a"]).save(folder)
    assert changed.generation == 4 and same(fm.open_index(folder), plain[2].remove(["a"]))


def test_previews_stay_with_their_items(plain, small, tmp_path):
    three, _, five = plain
    assert three.previews.to_pylist() == [None, b"preview 1", None]
    changed = five.remove(["a"]).add(items("photo", ["d", "f"], price=[7.0, 8.0]))
    kept = dict(zip(ids_of(changed), changed.previews.to_pylist(), strict=True))
    assert kept == {"b": b"preview 1", "c": None, "e": None, "d": None, "f": None}
    joined = small.index(items("title", ["t"])).add(items("title", ["u"]))
    assert joined.previews is None
    changed.save(tmp_path / "i")
    assert same(fm.open_index(tmp_path / "i").remove(["b"]), changed.remove(["b"]))


def test_a_folder_of_something_else_is_not_touched(index, model, latents, tmp_path):
    model.save(tmp_path / "m")
    with pytest.raises(
        StoreError, match="m holds something else .fusemix-model-.*; write the index into another folder"
    ):
        index.save(tmp_path / "m")
    own = tmp_path / "i" / "generation-7"
    own.mkdir(parents=True)
    (own / "my.txt").write_text("mine")
    assert index.save(tmp_path / "i").generation == 8 and index.save(tmp_path / "i").generation == 9
    assert (own / "my.txt").read_text() == "mine"


def test_there_is_no_index_or_one_of_another_version(plain, tmp_path):
    for place in (tmp_path, tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(StoreError, match=f"{place} holds no index; make one with `fusemix index`"):
            fm.open_index(place)
    plain[0].save(tmp_path / "i")
    facts = json.loads((tmp_path / "i" / "facts.json").read_text())
    (tmp_path / "i" / "facts.json").write_text(json.dumps({**facts, "format": "fusemix-index-1"}))
    with pytest.raises(StoreError, match="is no index of format fusemix-index-3; make one with `fusemix index`"):
        fm.open_index(tmp_path / "i")


FILES = [
    "embeddings.safetensors", "items.parquet", "previews.arrow", "model/facts.json", "model/adapters.safetensors",
    "model/seen.safetensors", "model/README.md",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_other_content_is_found(plain, tmp_path, name):
    plain[0].save(tmp_path / "i")
    path = tmp_path / "i" / "generation-1" / name
    content = path.read_bytes()
    for damaged in (content[:50], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="is damaged"):
            fm.open_index(tmp_path / "i")
    path.unlink()
    with pytest.raises(StoreError, match=r"is missing|damaged \(.* is missing\)"):
        fm.open_index(tmp_path / "i")
    path.write_bytes(content)
    assert len(fm.open_index(tmp_path / "i")) == 3


def test_facts_of_other_content_are_found(plain, tmp_path):
    plain[0].save(tmp_path / "i")
    path = tmp_path / "i" / "facts.json"
    facts = json.loads(path.read_text())
    for key in ("generation", "models", "modalities", "sha256"):
        for wrong in (
            {name: value for name, value in facts.items() if name != key},
            {**facts, key: None},
            {**facts, key: "x"},
        ):
            path.write_text(json.dumps(wrong))
            with pytest.raises(StoreError, match="the index is damaged"):
                fm.open_index(tmp_path / "i")
    for wrong in ("", "[]", "3", '{"format": ', "\x00"):
        path.write_text(wrong)
        with pytest.raises(StoreError, match="the index is damaged|is no index of format"):
            fm.open_index(tmp_path / "i")
    path.write_text(json.dumps({**facts, "generation": 5}))
    with pytest.raises(StoreError, match="generation-5"):
        fm.open_index(tmp_path / "i")
    facts["modalities"]["photo"]["encoder"] = {"name": "other"}
    path.write_text(json.dumps(facts))
    with pytest.raises(
        MismatchError, match="the photo items were embedded by another model: name .was 'other', is None"
    ):
        fm.open_index(tmp_path / "i")
    # An index that cannot be opened is made again in its place.
    path.write_text(json.dumps({**facts, "generation": 5}))
    assert plain[1].save(tmp_path / "i").generation == 6 and same(fm.open_index(tmp_path / "i"), plain[1])


def test_parts_that_do_not_go_together_are_found(plain, tmp_path, monkeypatch):
    """Whoever makes a folder makes its checksums, too."""
    written = on_disk._files
    monkeypatch.setattr(on_disk, "_files", lambda content: {**written(content), **wrong})
    of = on_disk.Content(plain[1].embeddings, plain[1].items, plain[1].columns, plain[1].previews, None)
    for name in ("embeddings.safetensors", "items.parquet", "previews.arrow"):
        wrong = {name: written(of)[name]}
        plain[0].save(tmp_path / name)
        with pytest.raises(StoreError, match=r"damaged \(\d (embeddings|previews) for \d items\)"):
            fm.open_index(tmp_path / name)
    wrong = {"embeddings.safetensors": b"no tensors"}
    plain[0].save(tmp_path / "i")
    with pytest.raises(StoreError, match="the index is damaged"):
        fm.open_index(tmp_path / "i")


def count_writes(monkeypatch, fails=0, error=None):
    """Count what is committed to the disk, and let one of them fail."""
    count, write = [0], durable.write

    def counting(*given):
        count[0] += 1
        if count[0] == fails:
            raise error
        write(*given)

    monkeypatch.setattr(durable, "write", counting)
    return count


def test_an_interrupted_save_leaves_the_old_index_whole(plain, tmp_path, monkeypatch):
    folder = tmp_path / "i"
    plain[0].save(folder)
    with pytest.MonkeyPatch.context() as patch:
        count = count_writes(patch)
        plain[1].save(tmp_path / "other")
    assert count[0] > 8
    for fails in range(1, count[0] + 1):
        error = OSError(28, "No space left on device") if fails % 2 else KeyboardInterrupt()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
            count_writes(patch, fails, error)
            plain[1].save(folder)
        assert same(fm.open_index(folder), plain[0]), fails
        left = {path.name for path in folder.iterdir()} - {"facts.json", "generation-1"}
        assert len(left) == (fails == count[0]), fails  # what was whole but for its name goes with the next
    assert plain[2].save(folder).generation == 3
    assert same(fm.open_index(folder), plain[2]) and len([*folder.iterdir()]) == 2


def test_what_a_killed_writer_left_goes_with_the_next_save(plain, tmp_path):
    folder = tmp_path / "i"
    plain[0].save(folder)
    left = folder / "generation-2"
    shutil.copytree(folder / "generation-1" / "model", left / "model")
    (left / ".items.parquet.host.1.tmp").write_bytes(b"x")
    (folder / "generation-3").mkdir()
    assert same(fm.open_index(folder), plain[0])
    assert plain[1].save(folder).generation == 4
    assert sorted(path.name for path in folder.iterdir()) == ["facts.json", "generation-4"]


def test_an_index_is_swapped_while_others_open_it_again_and_again(plain, tmp_path):
    folder = tmp_path / "i"
    plain[0].save(folder)
    done, wrong, seen = threading.Event(), [], set()

    def read():
        while not done.is_set():
            try:
                opened = fm.open_index(folder)
                if not same(opened, plain[(opened.generation - 1) % 3]):
                    wrong.append(opened.generation)
                seen.add(opened.generation)
            except Exception as error:
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    number = 0
    while len(seen) < 5 and number < 100:
        number += 1
        plain[number % 3].save(folder)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == [] and len(seen) >= 5


@pytest.mark.parametrize("step", ["model_folders", "load"])
def test_what_goes_while_it_is_opened_is_opened_anew(plain, tmp_path, monkeypatch, step):
    """The generation that was to be read is swept away before its models, or between them and the rest."""
    folder = tmp_path / "i"
    plain[0].save(folder)
    home = opening if step == "model_folders" else Index
    whole = getattr(home, step)

    def late(*given):
        monkeypatch.setattr(home, step, whole)
        plain[1].save(folder)
        return whole(*given)

    monkeypatch.setattr(home, step, late)
    opened = fm.open_index(folder)
    assert same(opened, plain[1]) and opened.generation == 2


def test_an_open_index_outlives_its_folder(plain, tmp_path):
    plain[2].save(tmp_path / "i")
    opened = fm.open_index(tmp_path / "i")
    plain[0].save(tmp_path / "i")
    shutil.rmtree(tmp_path / "i")
    assert same(opened, plain[2])  # previews are mapped, and read only now


def test_of_two_writers_at_once_one_is_told_and_the_index_is_whole(plain, tmp_path, monkeypatch):
    """The slower one began first: what it wrote was swept away, and it must not name it."""
    folder, files = tmp_path / "i", on_disk._files
    plain[0].save(folder)

    def meanwhile(content):
        monkeypatch.setattr(on_disk, "_files", files)
        assert plain[2].save(folder).generation == 3
        return files(content)

    monkeypatch.setattr(on_disk, "_files", meanwhile)
    with pytest.raises(StoreError, match=r"another process wrote .*i meanwhile \(generation 3\); run the same command"):
        plain[1].save(folder)
    assert same(fm.open_index(folder), plain[2]) and len([*folder.iterdir()]) == 2


def test_a_writer_that_began_later_is_not_swept_away(plain, tmp_path, monkeypatch):
    folder, files = tmp_path / "i", on_disk._files
    plain[0].save(folder)
    began, go_on, saved = threading.Event(), threading.Event(), []

    def slow(content):
        if threading.current_thread() is later:
            began.set()
            assert go_on.wait(60)
        return files(content)

    def start_later(content):
        monkeypatch.setattr(on_disk, "_files", slow)
        later.start()
        assert began.wait(60)
        return files(content)

    later = threading.Thread(target=lambda: saved.append(plain[2].save(folder).generation))
    monkeypatch.setattr(on_disk, "_files", start_later)
    assert plain[1].save(folder).generation == 2
    assert same(fm.open_index(folder), plain[1])
    go_on.set()
    later.join()
    assert saved == [3] and same(fm.open_index(folder), plain[2])


# ---- a part of the rows ----------------------------------------------------------------------------------------------


@pytest.fixture
def near(index, monkeypatch):
    """An approximate index of the 120 pictures that looks into one cell only."""
    monkeypatch.setattr(approximate, "FEWEST", 100)
    made = index.approximately(recall=0.001)
    assert made.approximate.facts["probed"] == 1
    return made


def test_an_approximate_index_is_saved_and_can_be_asked_exactly(near, index, tmp_path):
    near.save(tmp_path / "i")
    queries = F.normalize(torch.randn(50, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = index.search_embeddings(queries, 3)
    for each in (near, fm.open_index(tmp_path / "i")):
        found = each.search_embeddings(queries, 3)
        assert not torch.equal(found[1], whole[1])  # one cell is not enough
        assert torch.equal(each.search_embeddings(queries, 3, exact=True)[1], whole[1])
        assert torch.equal(each.search_embeddings(queries, 3, torch.arange(120))[1], whole[1])
        assert [hit.id for hit in each.search(queries[0].numpy(), 200)] == [
            hit.id for hit in index.search(queries[0].numpy(), 200)
        ]
    assert each.approximate.facts == near.approximate.facts


def test_a_changed_index_looks_at_all_rows_again(near, latents, tmp_path):
    assert near.remove(["003.png"]).approximate is None and near.add(latents["image"]).approximate is None
    with pytest.raises(DataError, match="90 items: exact search is as fast below 100; leave --approximate out"):
        near.remove(ids_of(near)[:30]).approximately()


def test_cells_of_other_rows_are_found(near, tmp_path):
    few = Approximate.build(near.embeddings[:110], None, 0.1)
    near.__class__(**{**near.__dict__, "approximate": few}).save(tmp_path / "i")
    with pytest.raises(StoreError, match="damaged .the cells hold 110 rows of 32 numbers"):
        fm.open_index(tmp_path / "i")
    near.save(tmp_path / "i")
    path = tmp_path / "i" / "generation-2" / "cells.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="cells.faiss has not the content that was written"):
        fm.open_index(tmp_path / "i")
