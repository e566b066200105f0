"""A folder as a data set: captions beside pictures, sounds and videos, class folders, and what is said of others."""

import json

import pytest

from fusemix.data.folders import files_below
from fusemix.data.pairs import read_pairs
from fusemix.data.sources import read_source
from fusemix.errors import DataError


def files(folder, *names, **texts):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())


def rows_of(folder):
    return [tuple(row.values()) for row in read_source(folder).table.to_pylist()]


def refusal(source):
    with pytest.raises(DataError) as caught:
        read_source(source)
    return str(caught.value)


def test_each_line_of_a_sidecar_is_a_row_and_a_picture_without_one_gets_an_empty_caption(tmp_path):
    files(tmp_path, "b.jpg", "a.PNG", "deep/c.webp", "notes.md", a_txt="\ufeffa red kite\n\n  \nin the sky\n")
    (tmp_path / "deep/c.TXT").write_text("a dog")
    assert read_source(tmp_path).table.to_pylist() == [
        {"image": "a.PNG", "text": "a red kite"},
        {"image": "a.PNG", "text": "in the sky"},
        {"image": "b.jpg", "text": ""},
        {"image": "deep/c.webp", "text": "a dog"},
    ]


def test_an_empty_sidecar_is_an_empty_caption(tmp_path):
    files(tmp_path, "a.jpg", "b.jpg", a_txt="\n", b_txt="kite")
    assert rows_of(tmp_path) == [("a.jpg", ""), ("b.jpg", "kite")]


def test_class_folders_name_their_files(tmp_path):
    files(tmp_path, "dog/1.jpg", "dog/2.jpg", "red kite/1.jpg", "zoo/deep/1.jpg")
    expected = [("dog/1.jpg", "dog"), ("dog/2.jpg", "dog"), ("red kite/1.jpg", "red kite"), ("zoo/deep/1.jpg", "deep")]
    assert rows_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("kind", "suffix"), [("audio", ".ogg"), ("audio", ".WAV"), ("video", ".mp4"), ("image", ".gif")]
)
def test_sounds_and_videos_have_columns_of_their_own(tmp_path, kind, suffix):
    files(tmp_path, f"a{suffix}", f"b{suffix}", a_txt="one", b_txt="two")
    table = read_source(tmp_path).table
    assert table.column_names == [kind, "text"]
    pairs = read_pairs(tmp_path, thing=kind, text="text")
    assert pairs.items["thing"].kind == kind
    assert pairs.items["thing"].source(1) == tmp_path / f"b{suffix}"


def test_files_of_one_name_and_several_kinds_are_one_row(tmp_path):
    files(tmp_path, "a.jpg", "a.wav", "b.wav", "c.jpg", "c.png", a_txt="one\ntwo", b_txt="three", c_txt="four")
    assert rows_of(tmp_path) == [
        ("a.jpg", "a.wav", "one"),
        ("a.jpg", "a.wav", "two"),
        (None, "b.wav", "three"),
        ("c.jpg", None, "four"),
        ("c.png", None, "four"),
    ]


def test_two_kinds_pair_with_one_another_without_any_caption(tmp_path):
    files(tmp_path, "a.jpg", "a.wav", "b.jpg", "b.wav")
    pairs = read_pairs(tmp_path, image="image", audio="audio")
    assert pairs.rows["image"].tolist() == pairs.rows["audio"].tolist() == [0, 1]


@pytest.mark.parametrize("field", ["caption", "text"])
def test_captions_may_lie_in_a_json_beside_the_picture(tmp_path, field):
    fields = {"url": "x", field: "a kite", "width": 3}
    files(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", a_json=json.dumps(fields), d_txt="a dog")
    (tmp_path / "b.json").write_text(json.dumps({field: ["one", " ", "two"]}))
    (tmp_path / "c.json").write_text(json.dumps({"width": 3}))
    (tmp_path / "d.json").write_text(json.dumps(fields))
    assert rows_of(tmp_path) == [
        ("a.jpg", "a kite"),
        ("b.jpg", "one"),
        ("b.jpg", "two"),
        ("c.jpg", ""),
        ("d.jpg", "a dog"),
    ]


BAD = [
    ("a.txt", "käfer".encode("latin-1")),
    ("a.json", b"{"),
    ("a.json", b"[1]"),
    ("a.json", b"[" * 100_000),
    ("a.json", b"9" * 5000),
]


@pytest.mark.parametrize(("name", "content"), BAD)
def test_a_caption_file_that_cannot_be_read_is_a_problem_and_no_end(tmp_path, name, content):
    files(tmp_path, "a.jpg", "b.jpg", b_txt="kite")
    (tmp_path / name).write_bytes(content)
    reading = read_source(tmp_path)
    assert reading.table["text"].to_pylist() == ["", "kite"]
    assert [(problem.id, problem.reason) for problem in reading.problems] == [(name, "wrong format")]
    assert read_pairs(tmp_path).problems == reading.problems


def test_a_caption_file_of_10_mb_is_too_large(tmp_path):
    files(tmp_path, "a.jpg", "b.jpg", b_txt="kite", a_txt=b"x" * 10_000_001)
    assert [problem.reason for problem in read_source(tmp_path).problems] == ["too large"]


def test_hidden_files_are_no_items(tmp_path):
    files(tmp_path, "dog/a.jpg", "dog/._a.jpg", ".cache/b.jpg", "__MACOSX/dog/._a.jpg", "cat/.ipynb_checkpoints/a.jpg")
    assert rows_of(tmp_path) == [("dog/a.jpg", "dog")]


def test_a_folder_without_media_lists_what_counts_as_one(tmp_path):
    files(tmp_path, "readme.txt")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} holds no media (.bmp, .gif, .jpeg, .jpg, .png,")
    assert message.endswith(".webm), nor is it a table")


def test_a_table_in_the_folder_is_pointed_at(tmp_path):
    files(tmp_path, "t.csv")
    assert refusal(tmp_path).endswith(f"; for the table in it give {tmp_path / 't.csv'}")
    files(tmp_path, "a.jpg")
    assert refusal(tmp_path).endswith(f"; for the table in it give {tmp_path / 't.csv'}")


def test_a_flat_folder_without_captions_says_what_to_add(tmp_path):
    files(tmp_path, "a.jpg", "b.jpg")
    message = refusal(tmp_path)
    assert "2 pictures and nothing to pair them with; wanted a caption file beside each (a.txt)" in message
    assert "one folder per class, or a table" in message


def test_a_folder_that_may_not_be_looked_into_is_no_empty_folder(tmp_path):
    with pytest.raises(DataError, match="No such file or directory; files in it would be missing without a word"):
        list(files_below(tmp_path / "gone"))
    assert "File name too long" in refusal("x" * 300)


def test_tars_beside_media_are_not_overlooked(tmp_path):
    files(tmp_path, "a.jpg", "0.tar", a_txt="x")
    assert f"holds 1 tars and 1 media files; give one of both: {tmp_path}/*.tar" in refusal(tmp_path)
