"""Tables as users write them: separators, quotes, marks, captions beside pictures, and what is said of broken ones."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from fusemix.data.tables import read_table
from fusemix.errors import DataError


def written(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(tmp_path, name, content):
    return read_table(written(tmp_path, name, content)).to_pylist()


def refusal(source):
    with pytest.raises(DataError) as caught:
        read_table(source)
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_sniffed_from_the_header(tmp_path, separator):
    lines = [("image", "text", "price"), ("a.jpg", "a red kite", "1"), ("b.jpg", "a dog", "2")]
    table = read_table(written(tmp_path, "t.csv", "".join(separator.join(line) + "\n" for line in lines)))
    assert table.column_names == ["image", "text", "price"]
    assert table["text"].to_pylist() == ["a red kite", "a dog"]


def test_commas_in_the_cells_do_not_outvote_the_header(tmp_path):
    content = "image;text\na.jpg;one, two, three, four\nb.jpg;five, six\n"
    assert [row["text"] for row in rows_of(tmp_path, "t.csv", content)] == ["one, two, three, four", "five, six"]


def test_quoted_cells_hold_separators_newlines_and_doubled_quotes(tmp_path):
    content = 'image,text\na.jpg,"a kite, red\nin the sky"\nb.jpg,"so called ""dog"""\n'
    assert [row["text"] for row in rows_of(tmp_path, "t.csv", content)] == [
        "a kite, red\nin the sky",
        'so called "dog"',
    ]


def test_properly_quoted_tsv_is_unquoted(tmp_path):
    content = 'image\ttext\na.jpg\t"so called ""dog"""\n"b.jpg"\t""\nc.jpg\t"""all"""\n'
    assert rows_of(tmp_path, "t.tsv", content) == [
        {"image": "a.jpg", "text": 'so called "dog"'},
        {"image": "b.jpg", "text": ""},
        {"image": "c.jpg", "text": '"all"'},
    ]


@pytest.mark.parametrize(
    "text", ['a 5" pipe', '"unfinished', '"Hello" she said', '"', 'ends with a "quote"', '"a" and "b"', "it's", '"" x']
)
def test_bare_quotes_in_a_tsv_stay_what_they_are(tmp_path, text):
    content = f"image\ttext\tprice\na.jpg\t{text}\t1\nb.jpg\tplain\t2\n{text}\t{text}\t{text}\n"
    table = read_table(written(tmp_path, "t.tsv", content))
    assert table["text"].to_pylist() == [text, "plain", text]
    assert table["price"].to_pylist() == ["1", "2", text]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    for name, separator in (("t.csv", ","), ("t.tsv", "\t")):
        content = f"image{separator}text\na.jpg{separator}käfer\n".encode("utf-8-sig")
        assert rows_of(tmp_path, name, content) == [{"image": "a.jpg", "text": "käfer"}]


def test_cells_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    texts = ["007", "nan", "NULL", "N/A", "true", "1e5", "2024-01-01", " padded ", ""]
    table = read_table(written(tmp_path, "t.csv", "id,text\n" + "".join(f"007,{text}\n" for text in texts)))
    assert table["text"].to_pylist() == texts
    assert set(table["id"].to_pylist()) == {"007"}


def test_windows_line_ends_and_blank_lines_make_no_rows(tmp_path):
    expected = [{"image": "a.jpg", "text": "x"}, {"image": "b.jpg", "text": "y"}]
    assert rows_of(tmp_path, "t.csv", "image,text\r\na.jpg,x\r\nb.jpg,y\r\n") == expected
    assert rows_of(tmp_path, "u.csv", "\n\nimage,text\n\na.jpg,x\n\nb.jpg,y") == expected


def test_json_lines_keep_their_types(tmp_path):
    rows = [{"image": "007", "text": 'a "red"\nkite', "price": 3, "v": [1.0, 2.0]}, {"image": "b", "text": None}]
    found = rows_of(tmp_path, "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert found == [rows[0], {"image": "b", "text": None, "price": None, "v": None}]


def test_parquet_is_read_as_it_is(tmp_path):
    table = pa.table({"image": ["a.jpg", None], "v": [[1.5], [2.5]], "n": [1, 2]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").equals(table)


def test_the_suffix_may_be_in_capitals(tmp_path):
    assert rows_of(tmp_path, "T.CSV", "a,b\n1,2\n") == [{"a": "1", "b": "2"}]


def test_each_line_of_a_sidecar_is_a_row_and_a_picture_without_one_gets_an_empty_caption(tmp_path):
    for name in ("b.jpg", "a.PNG", "deep/c.webp", "notes.md"):
        written(tmp_path, name, b"")
    written(tmp_path, "a.txt", "a red kite\n\n  \nin the sky\n".encode("utf-8-sig"))
    written(tmp_path, "deep/c.txt", "a dog")
    assert read_table(tmp_path).to_pylist() == [
        {"image": "a.PNG", "text": "a red kite"},
        {"image": "a.PNG", "text": "in the sky"},
        {"image": "b.jpg", "text": ""},
        {"image": "deep/c.webp", "text": "a dog"},
    ]


def test_an_empty_sidecar_is_an_empty_caption(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        written(tmp_path, name, b"")
    written(tmp_path, "a.txt", "\n")
    written(tmp_path, "b.txt", "kite")
    assert read_table(tmp_path)["text"].to_pylist() == ["", "kite"]


def test_class_folders_name_their_pictures(tmp_path):
    for name in ("dog/1.jpg", "dog/2.jpg", "red kite/1.jpg"):
        written(tmp_path, name, b"")
    assert [tuple(row.values()) for row in read_table(tmp_path).to_pylist()] == [
        ("dog/1.jpg", "dog"),
        ("dog/2.jpg", "dog"),
        ("red kite/1.jpg", "red kite"),
    ]


def test_a_missing_table_says_where_was_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("no.csv")) == f"no.csv: no such file or folder (looked in {tmp_path.resolve()})"


def test_an_empty_file_says_what_was_wanted(tmp_path):
    assert "t.csv is empty: wanted a header line" in refusal(written(tmp_path, "t.csv", ""))


@pytest.mark.parametrize("content", ["image,text\n", "image,text", "image,text\n\n\n", "\nimage,text"])
def test_a_header_alone_names_its_columns(tmp_path, content):
    assert refusal(written(tmp_path, "t.csv", content)).endswith("has a header but no rows (columns: image, text)")


def test_a_parquet_file_without_rows_names_its_columns(tmp_path):
    pa.parquet.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet").endswith("has a header but no rows (columns: image)")


@pytest.mark.parametrize(("name", "named"), [("t.xlsx", ".xlsx"), ("table", "a file without suffix")])
def test_an_unknown_suffix_lists_the_known_ones(tmp_path, name, named):
    message = refusal(written(tmp_path, name, "image,text\na,b\n"))
    assert f"cannot read {named}; give .csv, .tsv, .jsonl, .parquet or a folder" in message


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("rows", [1, 3000])
def test_text_that_is_not_utf_8_is_refused(tmp_path, name, rows):
    separator = "," if name == "t.csv" else "\t"
    lines = ["image" + separator + "text"] + [f"{i}.jpg{separator}plain" for i in range(rows)]
    content = ("\n".join([*lines, f"z.jpg{separator}käfer"]) + "\n").encode("latin-1")
    assert "cannot be read as" in (message := refusal(written(tmp_path, name, content)))
    assert "UTF-8" in message


@pytest.mark.parametrize("content", ["image,text\na.jpg,x\nb.jpg\n", "image,text\na.jpg,x\nb.jpg,a,dog\n"])
def test_ragged_rows_say_how_many_columns_were_expected(tmp_path, content):
    message = refusal(written(tmp_path, "t.csv", content))
    assert "t.csv cannot be read as CSV" in message
    assert "Expected 2 columns, got" in message


def test_two_columns_of_one_name_are_named(tmp_path):
    message = refusal(written(tmp_path, "t.csv", "image,text,text\na,b,c\n"))
    assert message.endswith("has several columns named 'text'; rename or delete them")


@pytest.mark.parametrize(("name", "content"), [("t.jsonl", "{not json}\n"), ("t.parquet", "not parquet")])
def test_content_that_does_not_parse_names_the_file_and_the_format(tmp_path, name, content):
    message = refusal(written(tmp_path, name, content))
    assert f"{name} cannot be read as {name[2:].upper()}" in message


def test_a_folder_without_pictures_lists_what_counts_as_one(tmp_path):
    written(tmp_path, "readme.txt", "hello")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} holds no pictures (.bmp, .gif, .jpeg, .jpg, .png,")
    assert message.endswith("nor is it a table")


def test_a_flat_folder_without_captions_says_what_to_add(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        written(tmp_path, name, b"")
    message = refusal(tmp_path)
    assert "2 pictures and nothing to pair them with; wanted a caption file beside each (a.txt)" in message
    assert "one folder per class, or a table" in message


def test_a_caption_file_that_is_not_utf_8_is_refused(tmp_path):
    written(tmp_path, "a.jpg", b"")
    written(tmp_path, "a.txt", "käfer".encode("latin-1"))
    assert "a caption file is not UTF-8 text" in refusal(tmp_path)
