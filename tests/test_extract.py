"""Extraction loses nothing and repeats nothing, whatever breaks and whenever it is killed."""

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

import fusemix.extraction
from fusemix.data.latents import open_latents
from fusemix.data.pairs import read_pairs
from fusemix.errors import DataError, EncoderError, MismatchError, StoreError

LETTERS = """
from hashlib import blake2b


def letters(texts):
    return [[value / 256 for value in blake2b(text.encode(), digest_size=4).digest()] for text in texts]
"""


def extract(pairs, **options):
    """Most of these small tables hold more broken items than a run would go on with."""
    return fusemix.extraction.extract(pairs, **{"max_failed": 1, **options})


def colour(images):
    return [np.asarray(image)[0, 0] / 255 for image in images]


def letters(texts):
    return [letters_of(text) for text in texts]


def letters_of(text):
    return [value / 256 for value in blake2b(text.encode(), digest_size=4).digest()]


def rgb(number):
    return (number % 256, number // 256, 7)


def photo(folder, number):
    Image.new("RGB", (2, 2), rgb(number)).save(folder / f"{number}.png")
    return f"{number}.png"


def table_of(folder, rows, header="image,text"):
    path = folder / "t.csv"
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def small_table(folder, count=12):
    """Twelve pictures of which one is broken and one missing, in pairs with as many texts."""
    names = [photo(folder, i) for i in range(count)]
    (folder / names[4]).write_bytes(b"broken")
    (folder / names[7]).unlink()
    return table_of(folder, [(name, f"text {i}") for i, name in enumerate(names)])


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failed(out):
    return pa.parquet.read_table(out / "failed.parquet").to_pylist()


def refusal(error, pairs, **options):
    with pytest.raises(error) as caught:
        extract(pairs, **options)
    return str(caught.value)


def texts_only(folder, left=("a", "bb", "ccc"), right=("x", "yy", "zzz")):
    return read_pairs(table_of(folder, zip(left, right, strict=True), "left,right"), left="left", right="right")


def test_each_distinct_item_is_encoded_once_whatever_the_number_of_pairs(tmp_path):
    names = [photo(tmp_path, i) for i in range(7)]
    pairs = read_pairs(table_of(tmp_path, [(name, f"text {i % 4}") for i in range(5) for name in names]))
    seen = {"image": [], "text": []}

    def see(images):
        seen["image"] += [image.getpixel((0, 0)) for image in images]
        return colour(images)

    def read(texts):
        seen["text"] += texts
        return letters(texts)

    latents = extract(pairs, out=tmp_path / "out", image=see, text=read)
    assert seen["image"] == [rgb(i) for i in range(7)]
    assert sorted(seen["text"]) == [f"text {i}" for i in range(4)]
    assert (len(latents), len(latents.items["image"]), len(latents.items["text"])) == (35, 7, 4)


def test_batches_never_exceed_the_encoder_and_its_shard(tmp_path):
    sizes = []

    def read(texts):
        sizes.append(len(texts))
        return letters(texts)

    read.batch_size = 4
    pairs = texts_only(tmp_path, [str(i) for i in range(15)], [str(i) for i in range(15)])
    extract(pairs, out=tmp_path / "out", shard_items=7, left=read, right=letters)
    assert sizes == [4, 3, 4, 3, 1]


@pytest.mark.parametrize(
    ("dtype", "shard_items", "seed"), [("float16", 2048, 0), ("float32", 16, 1), ("float16", 5, 2)]
)
def test_pairs_with_a_failed_item_are_left_out_and_no_other_pair_is_shifted(tmp_path, dtype, shard_items, seed):
    rng = np.random.default_rng(seed)
    names = [photo(tmp_path, i) for i in range(200)]
    rows = [(names[i], f"text {t}") for i, t in zip(rng.integers(0, 200, 300), rng.integers(0, 250, 300), strict=True)]
    rows = [("" if rng.random() < 0.05 else image, " " if rng.random() < 0.05 else text) for image, text in rows]
    fate = {name: rng.choice(["ok", "ok", "ok", "missing", "truncated", "not finite"]) for name in names}
    fate |= {f"text {t}": rng.choice(["ok", "ok", "not finite"]) for t in range(250)}
    for name in names:
        if fate[name] == "missing":
            (tmp_path / name).unlink()
        elif fate[name] == "truncated":
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])

    def see(images):
        latents = np.array(colour(images))
        numbers = [image.getpixel((0, 0))[0] for image in images]
        latents[[fate[f"{number}.png"] == "not finite" for number in numbers], 1] = np.nan
        return latents

    def read(texts):
        return [[np.inf] * 4 if fate[text] == "not finite" else letters_of(text) for text in texts]

    pairs = read_pairs(table_of(tmp_path, rows))
    latents = extract(pairs, out=tmp_path / "out", dtype=dtype, shard_items=shard_items, image=see, text=read)
    left = [(image, text) for image, text in rows if fate.get(image) == "ok" and fate.get(text) == "ok"]
    table = latents.table.select(["image", "text"]).to_pylist()
    assert [(row["image"], row["text"]) for row in table] == left
    assert 50 < len(left) < 250
    images = np.array([np.array(rgb(int(image[:-4]))) / 255 for image, _ in left])
    texts = np.array([letters_of(text) for _, text in left])
    for name, expected in (("image", images), ("text", texts)):
        found = latents.items[name].numpy()[latents.rows[name]]
        np.testing.assert_array_equal(found, expected.astype(np.float32).astype(dtype))
    records = failed(tmp_path / "out")
    for place, name in enumerate(("image", "text")):
        used = {row[place] for row in rows if row[place].strip()}
        bad = {value: fate[value] for value in used if fate[value] != "ok"}
        value_of = dict(zip(pairs.items[name].ids, pairs.items[name].values, strict=True))
        mine = [record for record in records if record["modality"] == name and record["reason"] != "empty"]
        assert {value_of[record["id"]]: record["reason"] for record in mine} == bad
        assert len(mine) == len(bad)
        assert len(latents.items[name]) + len(mine) == len(pairs.items[name])
        empty = [record["id"] for record in records if (record["modality"], record["reason"]) == (name, "empty")]
        assert empty == [f"row {row}" for row, cells in enumerate(rows, 1) if not cells[place].strip()]


def test_failed_items_are_recorded_with_their_reasons(tmp_path):
    names = [photo(tmp_path, i) for i in range(5)]
    (tmp_path / names[0]).write_bytes(b"no picture")
    (tmp_path / names[1]).unlink()
    rows = [*((name, "a kite") for name in names), ("", "a dog"), (names[3], "")]

    def see(images):
        return [[np.nan if image.getpixel((0, 0)) == rgb(2) else 1.0, 2.0] for image in images]

    latents = extract(read_pairs(table_of(tmp_path, rows)), out=tmp_path / "out", image=see, text=letters)
    records = failed(tmp_path / "out")
    assert [(r["id"], r["modality"], r["reason"]) for r in records] == [
        ("0.png", "image", "wrong format"),
        ("1.png", "image", "missing"),
        ("2.png", "image", "not finite"),
        ("row 6", "image", "empty"),
        ("row 7", "text", "empty"),
    ]
    assert records[1]["message"] == f"no file {tmp_path / '1.png'}"
    assert records[2]["message"] == "the encoder returned NaN or infinity"
    assert latents.table["image"].to_pylist() == ["3.png", "4.png"]


def test_without_failures_the_record_is_empty_but_there(tmp_path):
    extract(texts_only(tmp_path), out=tmp_path / "out", left=letters, right=letters)
    table = pa.parquet.read_table(tmp_path / "out" / "failed.parquet")
    assert table.num_rows == 0
    assert table.column_names == ["id", "modality", "reason", "message", "row"]


def test_files_of_any_kind_reach_the_encoder_as_paths(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(name.encode())
    rows = [("a.wav", "x"), ("b.wav", "y"), ("c.wav", "z"), (f"{'long' * 100}.wav", "z")]
    pairs = read_pairs(table_of(tmp_path, rows, "sound,text"), sound="sound", text="text")

    def listen(paths):
        return [list(path.read_bytes()) for path in paths]

    listen.takes = "file"

    latents = extract(pairs, out=tmp_path / "out", sound=listen, text=letters)
    np.testing.assert_array_equal(latents.items["sound"].numpy(), [list(b"a.wav"), list(b"b.wav")])
    assert [record["reason"] for record in failed(tmp_path / "out")] == ["missing", "missing"]


def test_when_every_item_fails_the_record_is_written_and_named(tmp_path):
    pairs = texts_only(tmp_path)
    assert "none of 3 items could be encoded; see failed.parquet" in refusal(
        StoreError, pairs, out=tmp_path / "out", left=lambda t: np.full((len(t), 2), np.nan), right=letters
    )
    assert [record["reason"] for record in failed(tmp_path / "out")] == ["not finite"] * 3


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (np.zeros((3, 2, 2)), "wanted an array of shape (3, D) for 3 items, got (3, 2, 2)"),
        (np.zeros((2, 4)), "wanted an array of shape (3, D) for 3 items, got (2, 4)"),
        (np.zeros(3), "wanted an array of shape (3, D) for 3 items, got (3,)"),
        ([[1, 2], [3], [4]], "wanted 3 rows of numbers for 3 items"),
        (None, "wanted an array of shape (3, D) for 3 items, got ()"),
        ([["a"], ["b"], ["c"]], "wanted 3 rows of numbers for 3 items"),
    ],
)
def test_what_is_no_row_per_item_is_refused_with_the_shapes(tmp_path, result, said):
    assert said in refusal(
        EncoderError, texts_only(tmp_path), out=tmp_path / "out", left=lambda _: result, right=letters
    )


@pytest.mark.parametrize("shard_items", [2, 2048])
def test_an_encoder_that_changes_its_width_is_refused(tmp_path, shard_items):
    def grow(texts):
        return [[1.0] * len(max(texts, key=len))] * len(texts)

    grow.batch_size = 2
    assert "latents of 2 and 3 dimensions; wanted the same in every batch" in refusal(
        EncoderError, texts_only(tmp_path), out=tmp_path / "out", shard_items=shard_items, left=grow, right=letters
    )


def test_latents_too_large_for_float16_fit_float32(tmp_path):
    def large(texts):
        return [[1e6 * len(text)] for text in texts]

    pairs = texts_only(tmp_path)
    assert "latents up to 3e+06 do not fit float16; extract into another folder with dtype float32" in refusal(
        StoreError, pairs, out=tmp_path / "out", left=large, right=letters
    )
    latents = extract(pairs, out=tmp_path / "out32", dtype="float32", left=large, right=letters)
    np.testing.assert_array_equal(latents.items["left"].numpy(), [[1e6], [2e6], [3e6]])


def test_encoders_and_modalities_must_fit_together(tmp_path):
    pairs, out = texts_only(tmp_path), tmp_path / "out"
    message = refusal(DataError, pairs, out=out, left=letters, rihgt=letters)
    assert message == (
        "an encoder is given for 'rihgt', but the pairs have no such modality; "
        "found: left, right; did you mean 'right'?"
    )
    message = refusal(DataError, pairs, out=out, left=letters)
    assert message == "no encoder for 'right' (text items); give right=ENCODER"
    assert not out.exists()


def test_pictures_that_are_elsewhere_stop_the_run_before_it_writes(tmp_path):
    (tmp_path / "photos").mkdir()
    pairs = read_pairs(table_of(tmp_path, [(photo(tmp_path / "photos", 1), "x")]))
    assert f"(--root {tmp_path / 'photos'})" in refusal(
        DataError, pairs, out=tmp_path / "out", image=colour, text=letters
    )
    assert not (tmp_path / "out").exists()


def repeated(tmp_path):
    """Five rows with three distinct items on the left and one empty cell."""
    return texts_only(tmp_path, ["b", "a", "b", "", "c"], ["v", "w", "x", "y", "z"])


def test_precomputed_latents_by_distinct_items_follow_the_first_appearance(tmp_path):
    np.save(tmp_path / "v.npy", np.array([[1, 1], [2, 2], [3, 3]], np.float64))
    latents = extract(repeated(tmp_path), out=tmp_path / "out", left=tmp_path / "v.npy", right=letters)
    assert latents.table["left"].to_pylist() == ["b", "a", "b", "c"]
    assert latents.items["left"].numpy()[latents.rows["left"]][:, 0].tolist() == [1, 2, 1, 3]
    assert latents["left"].encoder["name"] == "v.npy"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.uint8])
def test_precomputed_latents_by_table_rows_are_those_of_their_row(tmp_path, dtype):
    np.save(tmp_path / "v.npy", np.array([[1, 1], [2, 2], [1, 1], [9, 9], [3, 3]], dtype))
    latents = extract(repeated(tmp_path), out=tmp_path / "out", left=str(tmp_path / "v.npy"), right=letters)
    assert latents.items["left"].numpy()[latents.rows["left"]][:, 0].tolist() == [1, 2, 1, 3]


def test_precomputed_rows_of_one_item_must_agree(tmp_path):
    np.save(tmp_path / "v.npy", np.array([[1.0], [2], [7], [9], [3]]))
    assert "differs from an earlier row of the same item; give one vector per item" in refusal(
        DataError, repeated(tmp_path), out=tmp_path / "out", left=tmp_path / "v.npy", right=letters
    )


@pytest.mark.parametrize("values", [[1.0, 2, np.nan], [1.0, 2, 1, 9, np.nan], [np.nan, 2, np.nan, 9, 3]])
def test_precomputed_latents_that_are_not_finite_are_failures_of_their_item(tmp_path, values):
    np.save(tmp_path / "v.npy", np.array(values)[:, None])
    latents = extract(repeated(tmp_path), out=tmp_path / "out", left=tmp_path / "v.npy", right=letters)
    assert [record["reason"] for record in failed(tmp_path / "out")] == ["not finite", "empty"]
    assert len(latents.items["left"]) == 2


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_precomputed_latents_of_another_length_name_both_lengths(tmp_path, rows):
    np.save(tmp_path / "v.npy", np.zeros((rows, 2)))
    message = refusal(DataError, repeated(tmp_path), out=tmp_path / "out", left=tmp_path / "v.npy", right=letters)
    assert message == f"{tmp_path / 'v.npy'} has {rows} rows; wanted 3 (distinct items) or 5 (table rows)"
    assert not (tmp_path / "out").exists()


def test_a_pickled_or_broken_file_of_latents_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "v.npy"
    np.save(path, np.array([Trap()] * 3, dtype=object), allow_pickle=True)
    assert "v.npy is not a .npy file of numbers" in refusal(
        DataError, repeated(tmp_path), out=tmp_path / "out", left=path, right=letters
    )
    assert not (tmp_path / "sprung").exists()
    np.save(path, np.zeros((3, 2)))
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-5], b"text"):
        path.write_bytes(content)
        assert "v.npy is not a .npy file of numbers" in refusal(
            DataError, repeated(tmp_path), out=tmp_path / "out", left=path, right=letters
        )
    for array in (np.zeros(3), np.zeros((3, 2, 2)), np.array([["a"]] * 3), np.zeros((3, 2), complex)):
        np.save(path, array)
        assert "wanted numbers of shape (rows, D), got" in refusal(
            DataError, repeated(tmp_path), out=tmp_path / "out", left=path, right=letters
        )
    path.unlink()
    assert f"no file {path}" in refusal(DataError, repeated(tmp_path), out=tmp_path / "out", left=path, right=letters)


def test_a_column_of_vectors_needs_no_encoder(tmp_path):
    table = pa.table({"v": [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], None], "text": ["x", "y", "z", "w"]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    pairs = read_pairs(tmp_path / "t.parquet", v="v", text="text")
    latents = extract(pairs, out=tmp_path / "out", text=letters)
    np.testing.assert_array_equal(latents.items["v"].numpy()[latents.rows["v"]], [[1, 2], [3, 4], [1, 2]])
    assert len(latents.items["v"]) == 2


def test_a_second_run_encodes_nothing_and_writes_nothing_again(tmp_path):
    pairs = read_pairs(small_table(tmp_path))
    calls = []

    def read(texts):
        calls.append(len(texts))
        return letters(texts)

    first = extract(pairs, out=tmp_path / "out", shard_items=5, image=colour, text=read)
    before = tree(tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("shard-*")}
    calls.clear()
    seen = []
    second = extract(
        pairs, out=tmp_path / "out", shard_items=5, image=colour, text=read, progress=lambda *event: seen.append(event)
    )
    assert calls == []
    assert tree(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert [event[1:3] for event in seen] == [(12, 12), (12, 12)]
    for name in ("image", "text"):
        np.testing.assert_array_equal(first.items[name].numpy(), second.items[name].numpy())


def test_progress_counts_every_item_and_the_failed(tmp_path):
    seen = []
    colour.batch_size = 4
    try:
        extract(
            read_pairs(small_table(tmp_path)),
            out=tmp_path / "out",
            image=colour,
            text=letters,
            progress=lambda *event: seen.append(event),
        )
    finally:
        del colour.batch_size
    assert [event for event in seen if event[0] == "extract image"] == [
        ("extract image", 0, 12),
        ("extract image", 4, 12, ""),
        ("extract image", 8, 12, "2 failed"),
        ("extract image", 12, 12, "2 failed"),
    ]


def test_another_encoder_into_the_same_folder_is_a_mismatch(tmp_path):
    pairs, out = texts_only(tmp_path), tmp_path / "out"

    def other(texts):
        raise AssertionError("encodes nothing")

    extract(pairs, out=out, left=letters, right=letters)
    before = tree(out)
    message = refusal(MismatchError, pairs, out=out, left=letters, right=other)
    assert f"{out / 'right'} holds latents of another encoder (was test_extract--letters, is " in message
    assert "give another output folder" in message
    assert tree(out) == before


def test_an_encoder_whose_code_changed_is_a_mismatch_that_names_it(tmp_path):
    code = tmp_path / "enc.py"
    code.write_text(LETTERS)
    pairs, out = texts_only(tmp_path), tmp_path / "out"
    extract(pairs, out=out, left=f"{code}:letters", right=letters)
    code.write_text(LETTERS + "\n\n\n# longer")
    message = refusal(MismatchError, pairs, out=out, left=f"{code}:letters", right=letters)
    assert "made with another encoder.code (was '" in message


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"shard_items": 2}])
def test_other_settings_into_the_same_folder_are_a_mismatch(tmp_path, options):
    pairs, out = texts_only(tmp_path), tmp_path / "out"
    extract(pairs, out=out, left=letters, right=letters)
    message = refusal(MismatchError, pairs, out=out, left=letters, right=letters, **options)
    assert f"made with another {next(iter(options))} (was " in message


def test_other_pairs_into_the_same_folder_are_a_mismatch(tmp_path):
    out = tmp_path / "out"
    extract(texts_only(tmp_path), out=out, left=letters, right=letters)
    before = tree(out)
    pairs = texts_only(tmp_path, right=("x", "yy", "other"))
    message = refusal(MismatchError, pairs, out=out, left=letters, right=letters)
    assert "pairs.parquet holds pairs with other rows, splits or groups" in message
    assert tree(out) == before


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "gone"])
def test_a_damaged_shard_alone_is_done_again_to_the_same_bytes(tmp_path, damage):
    pairs, out = read_pairs(small_table(tmp_path)), tmp_path / "out"
    calls = []

    def read(texts):
        calls.append(texts)
        return letters(texts)

    extract(pairs, out=out, shard_items=5, image=colour, text=read)
    whole = tree(out)
    path = next(out.glob("text/*/shard-00001.safetensors"))
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 16]) + content[-2:]
        path.write_bytes({"torn": content[:-10], "empty": b"", "flipped": flipped}[damage])
    calls.clear()
    extract(pairs, out=out, shard_items=5, image=colour, text=read)
    asked_again, done = calls
    assert asked_again == [f"text {i}" for i in range(5)]  # does the function still answer as it did?
    assert done == [f"text {i}" for i in range(5, 10)]
    assert tree(out) == whole
    assert len(open_latents(out)) == 10


def test_a_table_with_a_nan_goes_on(tmp_path):
    columns = {"left": ["a", "bb"], "right": ["x", "yy"], "price": [1.5, float("nan")]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    options = {"out": tmp_path / "out", "left": letters, "right": letters}
    first = extract(read_pairs(tmp_path / "t.parquet", left="left", right="right"), **options)
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "pairs.parquet").write_bytes(_written_anew(tmp_path / "out" / "pairs.parquet"))
    again = extract(read_pairs(tmp_path / "t.parquet", left="left", right="right"), **options)
    assert len(again) == len(first) == 2 and tree(tmp_path / "out").keys() == before.keys()
    pa.parquet.write_table(pa.table({**columns, "price": [1.5, None]}), tmp_path / "t.parquet")
    with pytest.raises(MismatchError, match="with other rows"):
        extract(read_pairs(tmp_path / "t.parquet", left="left", right="right"), **options)


def _written_anew(path):
    """The same table in other bytes, as another version of pyarrow would write it."""
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.parquet.read_table(path), sink, compression="none")
    return sink.getvalue().to_pybytes()
