"""Inspection of raw data: one planted fault at a time is found, where it is, and nothing else; clean data are clean."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import fusemix as fm
from fusemix.cli import app
from fusemix.errors import DataError
from fusemix.inspection import inspect
from fusemix.inspection.findings import KINDS, MEANING

WORDS = ["red", "green", "blue", "small", "large", "round", "old", "new", "wooden", "glass"]


def picture(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def clean(tmp_path):
    """Twenty pictures with a caption each: 12 train, 4 val, 4 test."""
    rows = []
    for i in range(20):
        picture(tmp_path / f"{i}.png", i)
        caption = f"a {WORDS[i % 10]} thing beside {WORDS[(i * 3 + 1) % 10]} number {i}"
        rows.append([f"{i}.png", caption, "train" if i < 12 else "val" if i < 16 else "test", f"s{i}"])
    return tmp_path, rows


def look(folder, rows, **options):
    head = ["image", "text", "split", "shoot"]
    lines = ["\t".join(row) for row in [head, *rows]]
    (folder / "t.tsv").write_text("\n".join(lines) + "\n")
    return inspect(folder / "t.tsv", **options)


def faults(found):
    return {(f.kind, f.severity, f.modality): f for f in found.findings if f.severity != "note"}


def only(found):
    (finding,) = faults(found).values()
    return finding


def ids(found, kind):
    table = found.table.to_pylist()
    return [(row["row"], row["id"], row["other_row"], row["other_id"]) for row in table if row["kind"] == kind]


def test_clean_data_have_notes_only(clean):
    found = look(*clean, group="shoot")
    assert faults(found) == {}
    assert {f.kind for f in found.findings} == {"counts", "splits", "caption length", "media"}
    for name, account in found.accounts.items():
        assert (account.items, account.ok, account.failed, account.skipped) == (20, 20, 0, 0), name


def test_every_kind_has_a_meaning_and_no_other():
    assert set(MEANING) == set(KINDS)


def test_missing_and_broken_files_are_told_apart(clean):
    folder, rows = clean
    (folder / "3.png").unlink()
    whole = (folder / "7.png").read_bytes()
    (folder / "7.png").write_bytes(whole[: len(whole) // 2])
    (folder / "9.png").write_text("not a picture")
    found = look(folder, rows)
    assert {key[0] for key in faults(found)} == {"missing file", "broken item"}
    assert ids(found, "missing file") == [(4, "3.png", None, None)]
    assert [row[1] for row in ids(found, "broken item")] == ["7.png", "9.png"]
    account = found.accounts["image"]
    assert account.ok + account.failed + account.skipped == account.items == 20
    assert account.reasons == {"missing": 1, "truncated": 1, "wrong format": 1}


def test_a_sample_still_finds_every_missing_file(clean):
    folder, rows = clean
    (folder / "3.png").unlink()
    found = look(folder, rows, sample=5)
    account = found.accounts["image"]
    assert ids(found, "missing file") == [(4, "3.png", None, None)]
    assert account.items == account.ok + account.failed + account.skipped and account.skipped == 14
    with pytest.raises(DataError, match="at least 1"):
        look(folder, rows, sample=0)


def test_the_same_bytes_under_two_names(clean):
    folder, rows = clean
    (folder / "5.png").write_bytes((folder / "2.png").read_bytes())
    found = look(folder, rows)
    assert only(found).severity == "warning" and ids(found, "same content") == [(6, "5.png", 3, "2.png")]
    (folder / "13.png").write_bytes((folder / "2.png").read_bytes())  # of val: now it leaks
    found = look(folder, rows)
    assert only(found).severity == "problem" and only(found).figures == {"contents": 1, "across splits": 1}
    assert {row[1] for row in ids(found, "same content")} == {"5.png", "13.png"}


def test_an_item_in_two_splits_is_a_problem_and_told_once(clean):
    folder, rows = clean
    rows.append(["2.png", "the same picture again", "test", "s2"])
    found = look(folder, rows, group="shoot")
    assert only(found).severity == "problem" and ids(found, "straddling item") == [(3, "2.png", 21, None)]
    assert found.table.to_pylist()[0]["message"] == "in train and test"


def test_a_group_in_two_splits(clean):
    folder, rows = clean
    rows[13][3] = "s2"
    found = look(folder, rows, group="shoot")
    assert only(found).kind == "straddling group" and ids(found, "straddling group") == [(3, None, 14, None)]


def test_empty_cells_and_repeated_rows(clean):
    folder, rows = clean
    rows[4][1] = ""
    rows.append(list(rows[1]))
    found = look(folder, rows)
    assert {key[0] for key in faults(found)} == {"empty cell", "repeated row"}
    assert ids(found, "empty cell") == [(5, None, None, None)]
    assert ids(found, "repeated row") == [(21, None, 2, None)]
    assert found.accounts["text"].empty_cells == 1 and found.accounts["text"].items == 19


def test_captions_repeated_alike_wordless_and_long(clean):
    folder, rows = clean
    rows[1][1] = rows[0][1]
    rows[2][1] = "A  PICTURE, of it!"
    rows[3][1] = "a picture of it"
    rows[4][1] = "... !"
    rows[5][1] = "word " * 200
    found = look(folder, rows)
    assert {key[0] for key in faults(found)} == {
        "repeated caption", "alike captions", "wordless caption", "long caption",
    }  # fmt: skip
    values = {row["kind"]: (row["row"], row["other_row"], row["message"]) for row in found.table.to_pylist()}
    assert values["repeated caption"] == (1, None, "beside 2 different image items")
    assert values["alike captions"] == (4, 3, "")
    assert values["wordless caption"][0] == 5
    assert values["long caption"] == (6, None, "200 words")


def test_blank_pictures(clean):
    folder, rows = clean
    Image.new("RGB", (30, 30), (9, 9, 9)).save(folder / "6.png")
    found = look(folder, rows)
    assert only(found).kind == "blank item" and ids(found, "blank item") == [(7, "6.png", None, None)]


def test_silent_sounds(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", rng.normal(size=800) * (0.1 if i else 0), 8000)
    (tmp_path / "t.csv").write_text("clip,text\n" + "".join(f"{i}.wav,sound {i}\n" for i in range(4)))
    found = inspect(tmp_path / "t.csv", sound="clip", text="text", out=tmp_path / "report")
    assert only(found).kind == "blank item" and ids(found, "blank item") == [(1, "0.wav", None, None)]
    media = next(f for f in found.findings if f.kind == "media")
    assert media.figures["seconds median"] == pytest.approx(0.1) and media.figures["Hz max"] == 8000
    assert '<audio controls preload="none" src="data:audio/ogg;base64,' in (tmp_path / "report/report.html").read_text()


def test_balance_counts_by_split_and_names_what_is_never_trained_on(clean):
    folder, rows = clean
    for i, row in enumerate(rows):
        row[3] = "a" if i % 2 else "b"
    rows[15][3] = "c"
    found = look(folder, rows, by=["shoot"])
    (balance,) = (f for f in found.findings if f.kind == "balance")
    assert balance.concerns[0].message == "shoot = b: train 6, val 2, test 2"
    assert balance.figures == {"values": 3, "most": 10, "least": 1}
    assert only(found).kind == "absent value" and [c.message for c in only(found).concerns] == ["shoot = c: val 1"]
    with pytest.raises(DataError, match="did you mean 'shoot'"):
        look(folder, rows, by=["shot"])


def test_the_readers_problems_and_rows_without_files(tmp_path):
    (tmp_path / "t.csv").write_text("image,text\nno.png,a\nneither.png,b\n")
    with pytest.raises(DataError, match="--root"):  # as an extraction says it
        inspect(tmp_path / "t.csv")


def test_vectors_that_are_not_finite(tmp_path):
    import pyarrow as pa

    vectors = [[1.0, 2.0], [float("nan"), 1.0], [3.0, 1.0]]
    pq.write_table(pa.table({"v": vectors, "text": ["a", "b", "c"]}), tmp_path / "t.parquet")
    found = inspect(tmp_path / "t.parquet", v="v", text="text")
    assert only(found).kind == "broken item" and found.accounts["v"].reasons == {"not finite": 1}


def test_your_own_decoder_is_asked(clean):
    folder, rows = clean

    def decode(path):
        if path.name == "8.png":
            raise ValueError("bad scan")
        return object()

    found = look(folder, rows, decode={"image": decode})
    assert found.accounts["image"].reasons == {"decode failed": 1}
    with pytest.raises(DataError, match="no modality"):
        look(folder, rows, decode={"picture": decode})


def test_the_page_escapes_what_comes_from_the_data(clean):
    folder, rows = clean
    evil = "<script>alert(1)</script>"
    rows[1][1] = rows[0][1] = evil
    picture(folder / "<img onerror=x>.png", 99)
    rows[7][0] = "<img onerror=x>.png"
    rows.append(list(rows[7]))
    (folder / "9.png").write_bytes(b"no picture")  # shown by its name
    found = look(folder, rows, out=folder / "report")
    page = (folder / "report/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<img onerror" not in page and "&lt;img onerror" in page
    assert "data:image/jpeg;base64," in page and "9.png" in page
    assert pq.read_table(folder / "report/inspect.parquet").equals(found.table)


def test_a_page_has_a_limit(clean, monkeypatch):
    from fusemix.inspection import page

    folder, rows = clean
    rows += [list(row) for row in rows[:5]]
    monkeypatch.setattr(page, "MOST_BYTES", 1)
    look(folder, rows, out=folder / "report")
    text = (folder / "report/report.html").read_text()
    assert text.count("data:image") == 1 and "pictures and sounds more would not fit" in text


def run(*words):
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


def test_the_command_takes_the_words_of_extract(clean):
    folder, rows = clean
    (folder / "3.png").unlink()
    look(folder, rows)
    done = run(folder / "t.tsv", "--image", "image=hog", "--text", "text=minilm", "-o", folder / "r", "--quiet")
    assert done.exit_code == 0, done.output
    first, *_, last = done.stdout.splitlines()
    assert first == "image: 20 distinct items = 19 ok + 1 failed" and last.startswith("next: fusemix extract")
    assert "problem  image: missing file: 1 of 20 (5.0 %) image items are files that are not there" in done.stdout
    plain = json.loads(run(folder / "t.tsv", "--json", "-q").stdout)
    assert plain["rows"] == 20 and plain["findings"][0]["kind"] == "missing file" and plain["out"] is None
    with pytest.raises(DataError, match="inspect runs no encoder"):
        raise run(folder / "t.tsv", "--pooling", "image=cls").exception


def test_it_is_a_public_name():
    assert fm.inspect is inspect
