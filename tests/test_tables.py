"""Tables as users write them: separators, quotes, marks, and what is said of broken ones."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize(("name", "named"), [("t.doc", ".doc"), ("table", "a file without suffix")])
def test_an_unknown_suffix_lists_the_known_ones(tmp_path, name, named):
    message = refusal(written(tmp_path, name, "image,text\na,b\n"))
    assert f"cannot read {named}; give .csv, .tsv, .jsonl, .parquet, .tar or a folder" in message


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


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("t.xlsx", "save the sheet as CSV UTF-8"),
        ("t.csv.gz", "gunzip t.csv.gz"),
        ("t.jsonl.zst", "unzstd t.jsonl.zst"),
        ("t.zip", "unzip t.zip"),
        ("t.json", "jq -c '.[]' t.json > t.jsonl"),
    ],
)
def test_files_that_are_not_read_name_the_next_step(tmp_path, name, step):
    assert step in refusal(written(tmp_path, name, "[]"))


HARD = [
    ("a quoted header", ",", 'image,"text, in English"\n1,x\n', [{"image": "1", "text, in English": "x"}]),
    ("a quoted header of semicolons", ";", '"image, or none";text\n1;x\n', [{"image, or none": "1", "text": "x"}]),
    ("decimal commas", ";", "n;price\na;1,5\nb;2,5\n", [{"n": "a", "price": "1,5"}, {"n": "b", "price": "2,5"}]),
    ("commas as well", ";", "n;a, b\n1;x\n2;y, z\n", [{"n": "1", "a, b": "x"}, {"n": "2", "a, b": "y, z"}]),
    ("commas in a header with tabs", "\t", "image\ttext, long\na\tx\n", [{"image": "a", "text, long": "x"}]),
    ("one column", "", "text\na kite, red; in\tthe | sky\n", [{"text": "a kite, red; in\tthe | sky"}]),
    ("one column of quoted lines", "", 'text\n"a kite,\nred"\n', [{"text": "a kite,\nred"}]),
    ("one column with quotes", "", 'text\n"hello" she said\n"x\n', [{"text": '"hello" she said'}, {"text": '"x'}]),
    ("lines of a Mac", ",", "image,text\ra,x\rb,y\r", [{"image": "a", "text": "x"}, {"image": "b", "text": "y"}]),
    ("quoted lines between tabs", "\t", 'image\ttext\na\t"x\ny"\n', [{"image": "a", "text": "x\ny"}]),
    ("a separator at the end", ",", "image,text,\na,x,\n", [{"image": "a", "text": "x", "": ""}]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "separator", "content", "rows"), HARD, ids=[case[0] for case in HARD])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_hard_files_are_read_as_they_are_meant(tmp_path, what, separator, content, rows, mark):
    assert rows_of(tmp_path, "t.csv", mark + content) == rows


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_a_quote_that_never_closes_names_its_line(tmp_path, separator):
    lines = ["image{}text", 'a{}"fine"', 'b{}"so" she said', 'c{}"never', "d{}closed"]
    for end in ("\n", "\r\n"):
        content = end.join(line.format(separator) for line in lines) + end
        assert ", line 4: a cell opens with a quote that does not close" in refusal(written(tmp_path, "t.csv", content))
    content = "\n".join(line.format(separator) for line in [*lines, 'e{}"fine"']) + "\n"
    assert ", line 4: a cell opens" in refusal(written(tmp_path, "t.csv", content))


def test_a_quote_with_text_behind_it_loses_no_row(tmp_path):
    assert [row["b"] for row in rows_of(tmp_path, "t.csv", 'a,b\n1,"so" she said\n2,x\n')] == ["so she said", "x"]


def test_a_cell_longer_than_a_block_is_read(tmp_path):
    long = "word " * 500_000
    assert [row["text"] for row in rows_of(tmp_path, "t.csv", f"image,text\na,{long}\nb,x\n")] == [long, "x"]
    lines = [json.dumps({"text": text}) for text in (long, "x")]
    assert [row["text"] for row in rows_of(tmp_path, "t.jsonl", "\n".join(lines))] == [long, "x"]


def test_a_ragged_row_far_down_is_named_by_its_number(tmp_path):
    content = "image,text\n" + "a.jpg,a caption of some length\n" * 80_000 + "b.jpg\n"
    assert "Row #80002: Expected 2 columns, got 1: b.jpg" in refusal(written(tmp_path, "t.csv", content))


def test_bytes_that_are_not_utf_8_are_named_by_their_line(tmp_path):
    content = "image,text\na,x\nb,käfer\n".encode("latin-1")
    message = refusal(written(tmp_path, "t.csv", content))
    assert "line 3 has the byte 0xe4; save the file as UTF-8" in message
    message = refusal(written(tmp_path, "t.csv", "image,text\na,x\n".encode("utf-16")))
    assert message.endswith("t.csv cannot be read as CSV in UTF-8: it is UTF-16; save the file as UTF-8")
    assert refusal(written(tmp_path, "t.csv", b"\n\n")).endswith("t.csv is blank")
    for line in (b'{"a": "k\xe4fer"}', b'{"k\xe4fer": 1}'):
        message = refusal(written(tmp_path, "t.jsonl", b'{"a": "x"}\n' + line + b"\n"))
        assert "t.jsonl cannot be read as JSONL in UTF-8: line 2 has the byte 0xe4" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json}", "line 3: Expecting property name"),
        ("[1, 2]", "line 3: wanted a whole object in each line, got [1, 2]; of another form"),
        ('{"n": "two"}', "line 3: 'n' is a text; in line 2 it is a number"),
        ('{"n": [2]}', "line 3: 'n' is a list; in line 2 it is a number"),
        ('{"n": 1', 'line 3: wanted a whole object in each line, got {"n": 1;'),
    ],
)
def test_a_line_that_is_no_object_or_of_another_type_is_named(tmp_path, line, said):
    assert said in refusal(written(tmp_path, "t.jsonl", f'{{"n": null}}\n{{"n": 1}}\n{line}\n{{"n": 3}}\n'))


@pytest.mark.parametrize("separator", ["\n", "\r", "\t"])
def test_json_that_is_nested_over_many_lines_is_refused(tmp_path, separator):
    content = f'{{"a":{separator}' * 20_000 + "1" + f"{separator}}}" * 20_000 + "\n"
    assert ", line 1: " in refusal(written(tmp_path, "t.jsonl", content))


@pytest.mark.parametrize("content", ['{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"a":' * 50_000, "[" * 10**6])
def test_json_that_is_nested_without_end_is_refused(tmp_path, content):
    assert ", line 2: " in refusal(written(tmp_path, "t.jsonl", '{"a": 1}\n' + content + "\n"))


def test_texts_that_look_like_dates_stay_texts(tmp_path):
    rows = [{"text": "2024-01-01", "n": 1}, {"text": "2024-01-02 10:00:00", "n": 2}]
    assert rows_of(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows))) == rows


def test_a_folder_named_like_a_split_adds_no_column(tmp_path):
    (tmp_path / "split=train").mkdir()
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "split=train" / "t.parquet")
    assert read_table(tmp_path / "split=train" / "t.parquet").column_names == ["a"]


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=20),
    st.sampled_from(",;|\t"),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=150, deadline=None)
def test_what_a_spreadsheet_writes_is_read_back(tmp_path_factory, rows, separator, end):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("image", "text", "note"), *rows])
    assert [tuple(row.values()) for row in read_table(path).to_pylist()] == rows


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_json_lines_are_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "t.jsonl"
    written = [{"image": image, "text": text} for image, text in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    assert read_table(path).to_pylist() == written


def test_mutated_tables_and_tars_are_refused_or_read_with_every_row_accounted_for():
    torture = Path(__file__).parent.parent / "benchmarks" / "torture_tables.py"
    done = subprocess.run([sys.executable, torture, "100"], capture_output=True, text=True, check=True, timeout=300)
    results = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line[:6] == "RESULT"]
    assert len(results) == 5
    assert [result for result in results if not result["holds"]] == [], done.stdout
