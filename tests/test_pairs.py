"""A table becomes distinct items and rows of pairs, in groups that no split tears apart."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemix.data.media import Span
from fusemix.data.pairs import SPLITS, content_hash, random_splits, read_pairs, require_files
from fusemix.errors import DataError


def csv(tmp_path, *lines, header="image,text"):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def jsonl(tmp_path, *rows):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(source, **options):
    with pytest.raises(DataError) as caught:
        read_pairs(source, **options)
    return str(caught.value)


def test_a_picture_with_five_captions_is_one_item_in_five_pairs(tmp_path):
    lines = [f"{name},caption {i} of {name}" for i in range(5) for name in ("b.jpg", "a.jpg")]
    pairs = read_pairs(csv(tmp_path, *lines))
    assert len(pairs) == 10
    assert pairs.items["image"].values == ["b.jpg", "a.jpg"]
    assert pairs.rows["image"].tolist() == [0, 1] * 5
    assert len(pairs.items["text"]) == 10
    assert pairs.rows["text"].tolist() == list(range(10))


def test_one_caption_of_several_pictures_is_one_item(tmp_path):
    pairs = read_pairs(csv(tmp_path, "a.jpg,x", "b.jpg,y", "c.jpg,x"))
    assert pairs.items["text"].values == ["x", "y"]
    assert pairs.rows["text"].tolist() == [0, 1, 0]


def test_ids_are_stable_file_names_and_hashes_of_texts(tmp_path):
    first = read_pairs(csv(tmp_path, "a.jpg,x", "b.jpg,y"))
    second = read_pairs(csv(tmp_path, "b.jpg,y", "c.jpg,z", "a.jpg,x"))
    assert first.items["image"].ids == ["a.jpg", "b.jpg"]
    assert second.items["text"].ids[::2] == first.items["text"].ids[::-1]
    assert len(set(second.items["text"].ids)) == 3


def test_empty_cells_are_minus_one_and_no_items(tmp_path):
    pairs = read_pairs(csv(tmp_path, ",x", "a.jpg,", "b.jpg,   ", "a.jpg,y", ","))
    assert pairs.items["image"].values == ["a.jpg", "b.jpg"]
    assert pairs.rows["image"].tolist() == [-1, 0, 1, 0, -1]
    assert pairs.items["text"].values == ["x", "y"]
    assert pairs.rows["text"].tolist() == [0, -1, -1, 1, -1]


def test_missing_values_of_json_are_empty_cells(tmp_path):
    pairs = read_pairs(jsonl(tmp_path, {"image": "a.jpg", "text": None}, {"text": "x"}, {"image": "b.jpg", "text": ""}))
    assert pairs.rows["image"].tolist() == [0, -1, 1]
    assert pairs.rows["text"].tolist() == [-1, 0, -1]


def test_a_column_that_is_empty_everywhere_is_named(tmp_path):
    assert refusal(csv(tmp_path, "a.jpg,", "b.jpg, ")) == "column 'text' is empty in all 2 rows"


@pytest.mark.parametrize("wrong", ["column", "group", "split"])
def test_a_wrong_column_names_what_was_found_and_the_nearest(tmp_path, wrong):
    path = csv(tmp_path, "a.jpg,x,7", header="photo,title,sku")
    columns = {"image": "photo", "text": "titel" if wrong == "column" else "title"}
    options = {} if wrong == "column" else {wrong: "titel"}
    message = refusal(path, **columns, **options)
    assert message == f"{path} has no column 'titel'; found: photo, title, sku; did you mean 'title'?"


def test_items_of_one_modality_are_rows_without_partners(tmp_path):
    found = read_pairs(csv(tmp_path, "a.jpg,x", "b.jpg,y"), text="text")
    assert list(found.items) == ["text"] and len(found) == 2


def test_three_modalities_keep_their_words_and_order(tmp_path):
    path = csv(tmp_path, "x,7,a.jpg", header="title,number,photo")
    pairs = read_pairs(path, words="title", look="photo", price="number")
    assert list(pairs.items) == ["words", "look", "price"]
    assert [items.name for items in pairs.items.values()] == ["words", "look", "price"]
    assert [items.kind for items in pairs.items.values()] == ["text", "image", "text"]


def test_pairs_of_one_picture_are_one_group_unless_told_otherwise(tmp_path):
    path = csv(tmp_path, "a.jpg,x,1", "b.jpg,y,2", "a.jpg,z,2", header="image,text,sku")
    assert read_pairs(path).groups.tolist() == [0, 1, 0]
    assert read_pairs(path, group="sku").groups.tolist() == [0, 1, 1]
    assert read_pairs(path, text="text", image="image").groups.tolist() == [0, 1, 0]


def test_rows_without_a_group_are_groups_of_their_own(tmp_path):
    path = csv(tmp_path, "a.jpg,u,", "b.jpg,v,7", "c.jpg,w, ", "d.jpg,x,7", header="image,text,sku")
    groups = read_pairs(path, group="sku").groups
    assert groups[1] == groups[3]
    assert len(set(groups.tolist())) == 3
    rows = [{"image": f"{i}.jpg", "text": "x", "sku": sku} for i, sku in enumerate([None, 7, None, 7])]
    groups = read_pairs(jsonl(tmp_path, *rows), group="sku").groups
    assert groups[1] == groups[3]
    assert len(set(groups.tolist())) == 3
    groups = read_pairs(csv(tmp_path, ",u", "b.jpg,v", ",w", "b.jpg,x")).groups
    assert groups[1] == groups[3]
    assert len(set(groups.tolist())) == 3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(0, 2**32), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_random_splits_never_tear_a_group_and_keep_the_shares(sizes, seed, order):
    groups = np.random.default_rng(order).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    splits = random_splits(groups, seed=seed)
    np.testing.assert_array_equal(splits, random_splits(groups, seed=seed))
    assert set(splits) <= set(SPLITS)
    split_of = dict(zip(groups.tolist(), splits.tolist(), strict=True))
    assert all(split_of[group] == split for group, split in zip(groups.tolist(), splits.tolist(), strict=True))
    counts = [list(split_of.values()).count(name) for name in SPLITS]
    np.testing.assert_allclose(counts, np.array([0.8, 0.1, 0.1]) * len(sizes), atol=1)


def test_pairs_that_share_a_picture_share_a_split(tmp_path):
    rng = np.random.default_rng(0)
    path = csv(tmp_path, *(f"{image}.jpg,caption {row}" for row, image in enumerate(rng.integers(0, 60, 300))))
    for seed in range(5):
        pairs = read_pairs(path, seed=seed)
        found = set(zip(pairs.rows["image"].tolist(), pairs.splits.tolist(), strict=True))
        assert len(found) == len(pairs.items["image"])
        assert {split for _, split in found} == set(SPLITS)


def test_the_same_seed_gives_the_same_split_and_another_seed_another(tmp_path):
    path = csv(tmp_path, *(f"{i}.jpg,x" for i in range(50)))
    splits = [read_pairs(path, seed=seed).splits.tolist() for seed in (3, 3, 4)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(DataError, match="must be positive and sum to 1, got"):
        random_splits(np.arange(10), fractions)


def test_a_split_column_is_followed_with_its_synonyms(tmp_path):
    words = ["train", "Training", " VAL ", "valid", "validation", "dev", "test", "testing", "restval"]
    path = csv(tmp_path, *(f"{i}.jpg,x,{word}" for i, word in enumerate(words)), header="image,text,split")
    expected = ["train", "train", "val", "val", "val", "val", "test", "test", "restval"]
    assert read_pairs(path).splits.tolist() == expected
    path = csv(tmp_path, *(f"{i}.jpg,x,{word}" for i, word in enumerate(words)), header="image,text,part")
    assert read_pairs(path, split="part").splits.tolist() == expected


def test_a_missing_split_is_named_by_its_row(tmp_path):
    path = csv(tmp_path, "a.jpg,x,train", "b.jpg,y,", header="image,text,split")
    assert refusal(path) == "row 2 has no value in the split column 'split'"
    rows = [{"image": "a.jpg", "text": "x", "part": part} for part in ("test", None)]
    assert refusal(jsonl(tmp_path, *rows), split="part") == "row 2 has no value in the split column 'part'"


def test_vectors_are_distinct_by_content(tmp_path):
    vectors = [[1, 2], [3, 4], None, [1, 2]]
    pairs = read_pairs(jsonl(tmp_path, *({"v": v, "text": f"t{i}"} for i, v in enumerate(vectors))), v="v", text="text")
    items = pairs.items["v"]
    assert items.kind == "vector"
    assert pairs.rows["v"].tolist() == [0, 1, -1, 0]
    np.testing.assert_array_equal(items.vectors, [[1, 2], [3, 4]])
    assert items.values == [None, None]
    assert len(set(items.ids)) == 2
    assert "v" not in pairs.table.column_names


def test_vectors_of_every_list_type_of_parquet_are_read(tmp_path):
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.int16())):
        table = pa.table({"v": pa.array([[1, 2], [3, 4]], kind), "text": ["x", "y"]})
        pa.parquet.write_table(table, tmp_path / "t.parquet")
        pairs = read_pairs(tmp_path / "t.parquet", v="v", text="text")
        np.testing.assert_array_equal(pairs.items["v"].vectors, [[1, 2], [3, 4]])


def test_ragged_vectors_are_refused(tmp_path):
    message = refusal(jsonl(tmp_path, {"v": [1, 2], "t": "x"}, {"v": [1, 2, 3], "t": "y"}), v="v", text="t")
    assert message == "column 'v': the vectors must have one length, found [2, 3]"


def test_vectors_that_are_missing_everywhere_are_refused(tmp_path):
    table = pa.table({"v": pa.array([None, None], pa.list_(pa.float32())), "t": ["x", "y"]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet", v="v", text="t").endswith("must have one length, found none")


@pytest.mark.parametrize("value", [["red", "kite"], [[1], [2, 3]]])
def test_lists_of_something_else_than_numbers_are_refused(tmp_path, value):
    message = refusal(jsonl(tmp_path, {"v": [], "t": "x"}, {"v": value, "t": "y"}), v="v", text="t")
    assert message.startswith("column 'v', row 2: not a list of numbers")


def test_columns_of_objects_are_refused(tmp_path):
    message = refusal(jsonl(tmp_path, {"v": {"a": 1}, "t": "x"}), v="v", text="t")
    assert "column 'v' holds struct<a: int64>; wanted text, file names, embedded files or lists of numbers" in message


def test_the_kind_follows_the_word_the_suffix_or_the_files(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    path = csv(tmp_path, "a.wav,b.JPG,c.jpg,words", header="sound,photo,image,text")
    pairs = read_pairs(path, sound="sound", photo="photo", text="image", image="text", caption="text")
    kinds = {name: items.kind for name, items in pairs.items.items()}
    assert kinds == {"sound": "audio", "photo": "image", "text": "text", "image": "image", "caption": "text"}


def test_a_long_caption_is_a_text_and_not_a_file_name(tmp_path):
    pairs = read_pairs(csv(tmp_path, f"a.jpg,{'long ' * 2000}"), image="image", caption="text")
    assert pairs.items["caption"].kind == "text"


def test_numbers_are_texts(tmp_path):
    pairs = read_pairs(jsonl(tmp_path, {"image": "a.jpg", "n": 7}, {"image": "b.jpg", "n": 8}), image="image", text="n")
    assert pairs.items["text"].values == ["7", "8"]


def test_the_table_keeps_its_plain_columns(tmp_path):
    path = csv(tmp_path, "a.jpg,x,007", header="image,text,sku")
    assert read_pairs(path).table.to_pylist() == [{"image": "a.jpg", "text": "x", "sku": "007"}]


def test_a_folder_of_pictures_is_its_own_root(tmp_path):
    for name in ("dog/1.jpg", "cat/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    pairs = read_pairs(tmp_path)
    assert pairs.items["image"].values == ["cat/1.jpg", "dog/1.jpg"]
    assert pairs.items["text"].values == ["cat", "dog"]
    require_files(pairs.items["image"])


@pytest.mark.parametrize("name", ["a.jpg", "deep/a.jpg", "a[1]**.jpg"])
def test_files_that_lie_one_folder_down_are_found_and_the_root_is_told(tmp_path, name):
    path = csv(tmp_path, f"{name},x", "b.jpg,y")
    (tmp_path / "photos" / name).parent.mkdir(parents=True)
    (tmp_path / "photos" / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        require_files(read_pairs(path).items["image"])
    root = tmp_path / "photos"
    assert str(caught.value) == (
        f"image: no file {tmp_path / name}, nor any of the next 1 in the table; "
        f"{name} is in {root}: give it as root (--root {root})"
    )
    require_files(read_pairs(path, root=root).items["image"])


def test_files_that_are_nowhere_ask_for_the_root(tmp_path):
    for root in (tmp_path, tmp_path / "no such folder"):
        with pytest.raises(DataError, match=r"give the folder that the names are relative to as root \(--root\)$"):
            require_files(read_pairs(csv(tmp_path, "a.jpg,x"), root=root).items["image"])


def test_one_file_in_the_first_hundred_is_enough(tmp_path):
    pairs = read_pairs(csv(tmp_path, *(f"{i}.jpg,x" for i in range(150))))
    (tmp_path / "120.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="nor any of the next 149"):
        require_files(pairs.items["image"])
    (tmp_path / "99.jpg").write_bytes(b"")
    require_files(pairs.items["image"])
    require_files(pairs.items["text"])


MAGIC = {
    "image": [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n", b"GIF89a", b"BM12", b"II*\0", b"RIFF1234WEBP"],
    "audio": [b"RIFF1234WAVEfmt ", b"fLaC", b"OggS", b"ID3", b"\xff\xfb\x90", b"1234ftypM4A "],
    "video": [b"1234ftypisom", b"\x1aE\xdf\xa3", b"RIFF1234AVI LIST", b"\0\0\1\xba"],
}


def parquet(tmp_path, **columns):
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def embedded(contents, paths=None):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array(
        [
            {"bytes": content, "path": path}
            for content, path in zip(contents, paths or [None] * len(contents), strict=True)
        ],
        kind,
    )


@pytest.mark.parametrize("form", [pa.binary(), pa.large_binary(), pa.binary(5), pa.binary_view(), "struct"])
def test_embedded_files_are_items_by_their_content(tmp_path, form):
    contents = [b"GIF81", b"GIF82", None, b"GIF81"]
    column = embedded(contents) if form == "struct" else pa.array(contents, form)
    pairs = read_pairs(parquet(tmp_path, photo=column, text=list("abcd")), photo="photo", text="text")
    items = pairs.items["photo"]
    assert (items.kind, len(items), len(items.content)) == ("image", 2, 2)
    assert pairs.rows["photo"].tolist() == [0, 1, -1, 0]
    assert [items.source(i) for i in range(2)] == [b"GIF81", b"GIF82"]
    assert items.ids == [content_hash(b"GIF81"), content_hash(b"GIF82")]
    assert items.values == [None, None]
    assert list(items.content[1:]) == [b"GIF82"]
    assert pairs.table.column_names == ["text"]
    require_files(items)


def test_embedded_files_are_called_by_their_paths_where_these_tell_them_apart(tmp_path):
    contents = [b"GIF81", b"GIF82", b"GIF81", b""]
    path = parquet(tmp_path, image=embedded(contents, ["a.gif", "b.gif", "c.gif", "d.gif"]), text=list("abcd"))
    items = read_pairs(path).items["image"]
    assert items.ids == items.values == ["a.gif", "b.gif", "d.gif"]
    assert [items.source(i) for i in range(3)] == [b"GIF81", b"GIF82", b""]
    for names in (["a.gif", "a.gif"], ["a.gif", None], ["a.gif", ""]):
        path = parquet(tmp_path, image=embedded(contents[:2], names), text=list("ab"))
        assert read_pairs(path).items["image"].ids == [content_hash(content) for content in contents[:2]]


def test_a_struct_without_bytes_names_files(tmp_path):
    path = parquet(tmp_path, image=embedded([None] * 3, ["a.gif", None, "b.gif"]), text=list("abc"))
    pairs = read_pairs(path)
    assert pairs.items["image"].source(1) == tmp_path / "b.gif"
    assert pairs.items["image"].content is None
    assert pairs.rows["image"].tolist() == [0, -1, 1]
    path = parquet(tmp_path, image=embedded([b"GIF8", None, None], ["a.gif", "b.gif", "b.gif"]), text=list("abc"))
    pairs = read_pairs(path)
    assert [pairs.items["image"].source(i) for i in range(2)] == [b"GIF8", tmp_path / "b.gif"]
    assert pairs.rows["image"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("kind", MAGIC)
def test_first_bytes_tell_what_embedded_files_are(tmp_path, kind):
    for content in MAGIC[kind]:
        pairs = read_pairs(parquet(tmp_path, a=[content], text=["x"]), thing="a", audio="a", other="text")
        assert pairs.items["thing"].kind == kind, content
        assert pairs.items["audio"].kind == ("audio" if kind == "video" else kind)


@pytest.mark.parametrize(
    ("modality", "kind"), [("image", "image"), ("sound", "audio"), ("video", "video"), ("scan", "file")]
)
def test_content_of_no_known_form_is_what_the_modality_says(tmp_path, modality, kind):
    path = parquet(tmp_path, a=[b"DICM"], text=["x"])
    assert read_pairs(path, **{modality: "a", "text": "text"}).items[modality].kind == kind


def test_bytes_are_no_text_and_an_empty_column_of_them_is_named(tmp_path):
    path = parquet(tmp_path, a=[b"x"], b=pa.array([None], pa.binary()), c=["x"])
    assert "column 'a' holds binary; wanted text" in refusal(path, image="c", text="a")
    assert refusal(path, image="b", text="c") == "column 'b' is empty in all 1 rows"


def test_names_of_sounds_and_videos_help_only_files(tmp_path):
    path = csv(tmp_path, "a.ogg,a.mp4,a.xyz,a dog", header="s,v,u,t")
    pairs = read_pairs(path, audio="s", sound="v", video="u", film="v", noise="s", other="u", text="t")
    kinds = {name: items.kind for name, items in pairs.items.items()}
    assert kinds == {
        "audio": "audio", "sound": "audio", "video": "video", "film": "video", "noise": "audio", "other": "file",
        "text": "text",
    }  # fmt: skip
    assert read_pairs(path, audio="t", image="s").items["audio"].kind == "text"


def test_a_value_may_be_a_part_of_a_tar(tmp_path):
    items = read_pairs(csv(tmp_path, "shards/0.tar#512+9,x", "b.jpg,y")).items["image"]
    assert items.source(0) == Span(tmp_path / "shards/0.tar", 512, 9)
    assert items.source(1) == tmp_path / "b.jpg"
    with pytest.raises(
        DataError, match=r"image: no file .*/shards/0.tar, nor any of the next 1 in the table; give the f"
    ):
        require_files(items)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/0.tar").write_bytes(b"")
    require_files(items)


def test_a_caption_of_more_than_a_million_characters_is_an_item(tmp_path):
    assert len(read_pairs(csv(tmp_path, f"a.jpg,{'word ' * 250_000}")).items["text"].values[0]) == 1_250_000


def test_dictionaries_of_parquet_are_texts(tmp_path):
    path = parquet(tmp_path, image=pa.array(["a.jpg", None]).dictionary_encode(), text=["x", "y"])
    pairs = read_pairs(path)
    assert pairs.items["image"].values == ["a.jpg"]
    assert pairs.rows["image"].tolist() == [0, -1]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "embedded"])
def test_no_reader_shifts_a_row(tmp_path_factory, form, cells):
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"image": f"{i}.jpg" if i else None, "text": f"text {t}" if t else None} for i, t in [*cells, (1, 1)]]
    if form == "csv":
        path = csv(folder, *(f"{row['image'] or ''},{row['text'] or ''}" for row in rows))
    elif form == "jsonl":
        path = jsonl(folder, *rows)
    else:
        images = [row["image"] for row in rows]
        if form == "embedded":
            images = embedded([image and image.encode() for image in images])
        path = parquet(folder, image=images, text=[row["text"] for row in rows])
    pairs = read_pairs(path)
    for modality, items in pairs.items.items():
        for row, item in zip(rows, pairs.rows[modality].tolist(), strict=True):
            value = items.content[item].decode() if items.content is not None and item >= 0 else items.values[item]
            assert row[modality] == (value if item >= 0 else None)
