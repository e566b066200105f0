"""The work on shards: batches of like length, failures that stop or are tried again, and never a shifted latent."""

import io
import json
import subprocess
import sys
import tarfile
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from bench_extraction import captions
from fusemix import pipeline
from fusemix.data.media import ItemError
from fusemix.data.pairs import read_pairs
from fusemix.data.store import LatentStore
from fusemix.errors import DataError, EncoderError, MismatchError, TooManyFailuresError
from fusemix.extraction import extract


class Letters:
    """An encoder that is no plain function: it has lengths, canaries, and a memory for what it was asked."""

    takes = "text"
    source = "letters"

    def __init__(self, batch_size=4, fingerprint=None, change=lambda latents, texts: latents):
        self.batch_size = batch_size
        self.fingerprint = fingerprint or {"loader": "own", "name": "letters", "dtype": "float32"}
        self.change = change
        self.batches = []

    def lengths(self, texts):
        return [len(text) for text in texts]

    def encode(self, texts):
        self.batches.append(list(texts))
        # The last bits of a latent depend on the batch, as those of a matrix product do.
        together = 1 + 1e-7 * sum(map(len, texts))
        return self.change(np.stack([truth(text) for text in texts]) * together, texts).astype(np.float32)


def truth(text):
    return np.frombuffer(blake2b(text.encode(), digest_size=8).digest(), np.uint8) / 255


def table(folder, texts, others=None, header="a,b"):
    path = folder / "t.csv"
    others = others or [f"other {i}" for i in range(len(texts))]
    path.write_text("\n".join([header, *(f"{a},{b}" for a, b in zip(texts, others, strict=True))]) + "\n")
    return path


def texts_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [f"{i}" + "x" * int(rng.integers(0, 50)) for i in range(count)]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failed(out):
    return [
        (row["id"], row["reason"], row["row"]) for row in pyarrow.parquet.read_table(out / "failed.parquet").to_pylist()
    ]


def files(folder, count, missing=()):
    names = [f"{i}.bin" for i in range(count)]
    for i, name in enumerate(names):
        if i not in missing:
            (folder / name).write_bytes(bytes([i]))
    return read_pairs(table(folder, names, header="f,b"), f="f", b="b")


def read_files(paths):
    """Latents whose last bits depend on the batch."""
    read_files.asked += [path.name for path in paths]
    values = [path.read_bytes()[0] for path in paths]
    return [[value, value * (1 + 1e-4 * sum(values))] for value in values]


read_files.takes = "file"
read_files.batch_size = 4


@pytest.fixture(autouse=True)
def forget():
    read_files.asked = []


def plain(texts):
    return [truth(text) for text in texts]


def test_batches_hold_texts_of_like_length_and_latents_stay_with_their_text(tmp_path):
    texts = texts_of(50)
    encoder = Letters(batch_size=8)
    pairs = read_pairs(table(tmp_path, texts), a="a", b="b")
    latents = extract(pairs, out=tmp_path / "out", shard_items=20, a=encoder, b=plain)
    found = [batch for batch in encoder.batches if set(batch) <= set(texts)]
    assert sorted(text for batch in found for text in batch) == sorted(texts)
    assert [len(batch) for batch in found] == [8, 8, 4, 8, 8, 4, 8, 2]
    for shard in (found[:3], found[3:6], found[6:]):
        lengths = [len(text) for batch in shard for text in batch]
        assert lengths == sorted(lengths, reverse=True)
    expected = np.stack([truth(text) for text in latents.table["a"].to_pylist()])
    np.testing.assert_allclose(latents["a"].numpy()[latents.rows["a"]], expected, atol=1e-3)


def test_batches_of_like_length_spare_a_quarter_of_the_tokens(tmp_path):
    """What benchmarks/bench_extraction.py measures in seconds, counted."""
    texts = captions(1024, seed=0)
    encoder = Letters(batch_size=64)
    encoder.lengths = lambda texts: [len(text.split()) for text in texts]
    extract(read_pairs(table(tmp_path, texts), a="a", b="b"), out=tmp_path / "out", a=encoder, b=plain)
    ours = [batch for batch in encoder.batches if set(batch) <= set(texts)]
    theirs = [texts[i : i + 64] for i in range(0, len(texts), 64)]
    cost = [sum(len(batch) * max(encoder.lengths(batch)) for batch in batches) for batches in (theirs, ours)]
    assert sum(map(len, ours)) == len(texts) and cost[0] > 1.3 * cost[1]


def test_too_many_failures_stop_the_run_and_what_is_finished_is_kept(tmp_path):
    pairs = files(tmp_path, 40, missing=range(20, 25))
    with pytest.raises(TooManyFailuresError) as caught:
        extract(pairs, out=tmp_path / "out", shard_items=8, f=read_files, b=plain)
    assert "f: 4 of the first 40 items failed, more than 5%: missing 4; such as 20.bin (no file" in str(caught.value)
    assert failed(tmp_path / "out") == [(f"{i}.bin", "missing", i + 1) for i in (20, 21, 22, 23)]
    assert len(list((tmp_path / "out" / "f").glob("*/shard-*"))) == 2
    extract(pairs, out=tmp_path / "out", shard_items=8, max_failed=0.2, f=read_files, b=plain)
    extract(pairs, out=tmp_path / "whole", shard_items=8, max_failed=1, f=read_files, b=plain)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_failures_after_the_first_thousand_do_not_stop_a_run(tmp_path):
    texts = [f"t{i}" for i in range(1200)]

    def late(batch):
        return [None if int(text[1:]) >= 1000 or int(text[1:]) < 50 else truth(text) for text in batch]

    pairs = read_pairs(table(tmp_path, texts), a="a", b="b")
    latents = extract(pairs, out=tmp_path / "out", a=late, b=plain)
    assert len(latents) == 950
    assert {reason for _, reason, _ in failed(tmp_path / "out")} == {"refused"}


def test_failed_items_are_tried_again_with_their_batch_alone_and_the_bytes_are_those_of_a_run_without_failures(
    tmp_path,
):
    whole = files(tmp_path, 30)
    extract(whole, out=tmp_path / "whole", shard_items=10, dtype="float32", f=read_files, b=plain)
    (tmp_path / "5.bin").unlink()
    (tmp_path / "22.bin").unlink()
    options = {
        "out": tmp_path / "out",
        "shard_items": 10,
        "dtype": "float32",
        "max_failed": 1,
        "f": read_files,
        "b": plain,
    }
    assert len(extract(whole, **options)) == 28
    before = tree(tmp_path / "out")
    read_files.asked = []
    assert len(extract(whole, retry_failed=True, **options)) == 28
    assert tree(tmp_path / "out") == before
    for i in (5, 22):
        (tmp_path / f"{i}.bin").write_bytes(bytes([i]))
    assert len(extract(whole, **options)) == 28  # without being told, what failed stays as it is
    read_files.asked = []
    assert len(extract(whole, retry_failed=True, **options)) == 30
    asked = read_files.asked[10:]  # first the function is asked whether it answers as before
    assert asked == [f"{i}.bin" for i in (4, 5, 6, 7, 20, 21, 22, 23)]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_what_a_function_gives_no_latent_for_is_refused_and_nothing_shifts(tmp_path):
    texts = texts_of(30)

    def picky(batch):
        return [None if int(text.rstrip("x")) % 7 == 3 else truth(text) for text in batch]

    pairs = read_pairs(table(tmp_path, texts), a="a", b="b")
    latents = extract(pairs, out=tmp_path / "out", max_failed=1, a=picky, b=plain)
    assert [row for _, reason, row in failed(tmp_path / "out")] == [4, 11, 18, 25]
    np.testing.assert_allclose(
        latents["a"].numpy()[latents.rows["a"]],
        np.stack([truth(text) for text in latents.table["a"].to_pylist()]),
        atol=1e-3,
    )


def test_a_batch_that_does_not_fit_the_memory_is_halved_and_the_shard_says_so(tmp_path):
    def small(latents, texts):
        if len(texts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return latents

    texts = texts_of(24)
    pairs = read_pairs(table(tmp_path, texts), a="a", b="b")
    encoder = Letters(batch_size=8, fingerprint={"loader": "own", "name": "l"}, change=small)
    encoder.takes = "any"  # no canaries
    latents = extract(pairs, out=tmp_path / "out", a=encoder, b=plain)
    np.testing.assert_allclose(
        latents["a"].numpy()[latents.rows["a"]], np.stack([truth(text) for text in texts]), atol=1e-3
    )
    assert LatentStore.open(tmp_path / "out" / "a" / "l").read(0).halved

    def narrow(latents, texts):
        if texts[0] == texts_of(24)[5] or len(texts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return latents

    encoder.change = narrow
    latents = extract(pairs, out=tmp_path / "out2", a=encoder, b=plain)
    assert [(reason, row) for _, reason, row in failed(tmp_path / "out2")] == [("too large", 6)]
    assert len(latents) == 23


def test_a_mended_file_of_another_size_changes_the_batches_and_the_bytes_are_still_those_of_one_run(tmp_path):
    class Sizes:
        takes, batch_size, source, variable_length = "file", 4, "sizes", True

        def __init__(self):
            self.fingerprint = {"loader": "own", "name": "sizes"}

        def encode(self, paths):
            sizes = [len(path.read_bytes()) for path in paths]
            return np.array([[size, size * (1 + 1e-3 * sum(sizes))] for size in sizes], np.float32)

    pairs = files(tmp_path, 12, missing=[5])
    for i in range(12):
        if i != 5:
            (tmp_path / f"{i}.bin").write_bytes(bytes(i + 1))
    options = {"max_failed": 1, "f": Sizes(), "b": plain}
    assert len(extract(pairs, out=tmp_path / "out", **options)) == 11
    (tmp_path / "5.bin").write_bytes(bytes(50))
    latents = extract(pairs, out=tmp_path / "out", retry_failed=True, **options)
    assert latents["f"].numpy()[:, 0].tolist() == [50 if i == 5 else i + 1 for i in range(12)]
    extract(pairs, out=tmp_path / "whole", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_shard_that_was_halved_says_so_after_a_retry_too(tmp_path):
    pairs = files(tmp_path, 12, missing=[9])
    full = [True]

    def read(paths):
        if full[0] and len(paths) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read_files(paths)

    read.takes, read.batch_size = "file", 4
    options = {"out": tmp_path / "out", "max_failed": 1, "f": read, "b": plain}
    extract(pairs, **options)
    full[0] = False
    (tmp_path / "9.bin").write_bytes(b"\x09")
    assert len(extract(pairs, retry_failed=True, **options)) == 12
    store = LatentStore.open(next((tmp_path / "out" / "f").glob("*")))
    assert store.read(0).halved  # two of its three batches were kept


def test_an_encoder_that_changed_behind_its_fingerprint_is_caught_by_its_canaries(tmp_path):
    pairs = read_pairs(table(tmp_path, texts_of(12)), a="a", b="b")
    extract(pairs, out=tmp_path / "out", shard_items=4, a=Letters(), b=plain)
    next((tmp_path / "out" / "a").glob("*/shard-00001.*")).unlink()
    noise = np.random.default_rng(0).normal(0, 0.1, (64, 8))
    with pytest.raises(MismatchError, match="canar"):
        extract(
            pairs, out=tmp_path / "out", shard_items=4, b=plain,
            a=Letters(change=lambda latents, texts: latents + noise[: len(latents)]),
        )  # fmt: skip
    assert len(extract(pairs, out=tmp_path / "out", shard_items=4, a=Letters(), b=plain)) == 12


def test_a_service_that_changed_behind_its_name_is_caught_by_its_answers(tmp_path):
    pairs = read_pairs(table(tmp_path, texts_of(12)), a="a", b="b")
    turned = []

    def service(texts):
        return [truth(text)[::-1] if turned else truth(text) for text in texts]

    extract(pairs, out=tmp_path / "out", shard_items=4, a=service, b=plain)
    next((tmp_path / "out" / "a").glob("*/shard-00001.*")).unlink()
    turned.append(1)
    with pytest.raises(MismatchError, match="answers differently than when"):
        extract(pairs, out=tmp_path / "out", shard_items=4, a=service, b=plain)
    turned.clear()
    assert len(extract(pairs, out=tmp_path / "out", shard_items=4, a=service, b=plain)) == 12


def test_a_service_inside_of_a_cocktail_is_asked_again_too(tmp_path):
    pairs = read_pairs(table(tmp_path, texts_of(12)), a="a", b="b")
    (tmp_path / "service.py").write_text(SERVICE)
    options = {"out": tmp_path / "out", "shard_items": 4, "b": plain}
    spec = f"{tmp_path / 'service.py'}:one+{tmp_path / 'service.py'}:two"
    extract(pairs, a=spec, **options)
    next((tmp_path / "out" / "a").glob("*/shard-00001.*")).unlink()
    (tmp_path / "turned").touch()
    with pytest.raises(MismatchError, match="answers differently than when"):
        extract(pairs, a=spec, **options)
    (tmp_path / "turned").unlink()
    assert len(extract(pairs, a=spec, **options)) == 12


SERVICE = """
from pathlib import Path

def one(texts):
    return [[len(text), 1] for text in texts]

def two(texts):
    turned = (Path(__file__).parent / "turned").exists()
    return [[-3 if turned else 3, len(text)] for text in texts]
"""


@pytest.mark.parametrize("stored", ["tar", "table"])
def test_a_decoder_of_ones_own_gets_the_bytes_of_what_is_no_file_of_its_own(tmp_path, stored):
    got = []

    def scan(content):
        got.append(content)
        return content[0]

    if stored == "tar":
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for i in range(4):
                for suffix, content in (("scan", bytes([i, 7])), ("txt", f"text {i}".encode())):
                    member = tarfile.TarInfo(f"{i}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        pairs = read_pairs(tmp_path / "t.tar", f="scan", b="text")
    else:
        columns = {"f": [bytes([i, 7]) for i in range(4)], "b": [f"text {i}" for i in range(4)]}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        pairs = read_pairs(tmp_path / "t.parquet", f="f", b="b")
    value = lambda numbers: [[number, 1] for number in numbers]  # noqa: E731
    latents = extract(pairs, out=tmp_path / "out", decode={"f": scan}, f=value, b=plain)
    assert sorted(got) == [bytes([i, 7]) for i in range(4)]
    assert latents["f"].numpy()[:, 0].tolist() == [0, 1, 2, 3]

    def read(contents):
        return [[content[0], 1] for content in contents]

    read.takes = "file"
    again = extract(pairs, out=tmp_path / "whole", f=read, b=plain)
    assert again["f"].numpy().tolist() == latents["f"].numpy().tolist()


def test_large_items_go_through_the_encoder_in_parts_and_the_bytes_do_not_depend_on_who_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "PART_BYTES", 3000)
    pairs = files(tmp_path, 12, missing=[1])
    sizes = []

    def scan(path):
        return np.full(1000, path.read_bytes()[0], np.uint8)

    def mean(arrays):
        sizes.append(len(arrays))
        return [[array.mean(), array.mean() * (1 + 1e-4 * sum(map(np.mean, arrays)))] for array in arrays]

    mean.batch_size = 8
    options = {"max_failed": 1, "decode": {"f": scan}, "f": mean, "b": plain}
    latents = extract(pairs, out=tmp_path / "out", **options)
    assert sizes == [3, 3, 1, 3, 1]
    assert latents["f"].numpy()[:, 0].tolist() == [i for i in range(12) if i != 1]
    (tmp_path / "1.bin").write_bytes(b"\x01")
    extract(pairs, out=tmp_path / "out", retry_failed=True, **options)
    extract(pairs, out=tmp_path / "whole", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_resume_stops_at_once_if_too_many_have_failed_already(tmp_path):
    pairs = files(tmp_path, 40, missing=range(5))
    extract(pairs, out=tmp_path / "out", shard_items=8, max_failed=1, f=read_files, b=plain)
    next((tmp_path / "out" / "f").glob("*/shard-00004.*")).unlink()
    read_files.asked.clear()
    with pytest.raises(TooManyFailuresError, match="5 of the first 40 items failed"):
        extract(pairs, out=tmp_path / "out", shard_items=8, f=read_files, b=plain)
    assert len(read_files.asked) <= 16  # those of an earlier shard that it is asked for again


def test_the_report_is_up_to_date_after_an_interrupted_retry(tmp_path):
    pairs = files(tmp_path, 20, missing=[3, 15])
    options = {"out": tmp_path / "out", "shard_items": 10, "max_failed": 1, "b": plain}
    extract(pairs, f=read_files, **options)
    for i in (3, 15):
        (tmp_path / f"{i}.bin").write_bytes(bytes([i]))

    def stopped(paths):
        if any(path.name == "15.bin" for path in paths):
            raise KeyboardInterrupt
        return read_files(paths)

    stopped.takes, stopped.batch_size, stopped.__qualname__ = "file", 4, read_files.__qualname__
    with pytest.raises(KeyboardInterrupt):
        extract(pairs, f=stopped, retry_failed=True, **options)
    assert failed(tmp_path / "out") == [("15.bin", "missing", 16)]


def test_a_decoder_of_texts_is_refused(tmp_path):
    pairs = read_pairs(table(tmp_path, ["one", "two"]), a="a", b="b")
    with pytest.raises(DataError, match="a decoder is given for 'a', whose items are texts; only files are decoded"):
        extract(pairs, out=tmp_path / "out", decode={"a": plain}, a=plain, b=plain)


def test_a_decoder_of_ones_own_reads_any_file(tmp_path):
    pairs = files(tmp_path, 12)

    def scan(path):
        if path.name == "3.bin":
            raise ValueError("no slices")
        if path.name == "4.bin":
            raise ItemError("no content", "an empty scan")
        if path.name == "5.bin":
            return None
        return path.read_bytes()[0] * 10

    latents = extract(
        pairs, out=tmp_path / "out", max_failed=1, decode={"f": scan}, f=lambda v: [[x, 1] for x in v], b=plain
    )
    assert latents["f"].numpy()[:, 0].tolist() == [i * 10 for i in range(12) if i not in (3, 4, 5)]
    assert [(i, reason) for i, reason, _ in failed(tmp_path / "out")] == [
        ("3.bin", "decode failed"),
        ("4.bin", "no content"),
        ("5.bin", "decode failed"),
    ]


def test_another_decoder_is_a_mismatch(tmp_path):
    pairs = files(tmp_path, 4)

    def value(numbers):
        return [[number, 1] for number in numbers]

    options = {"out": tmp_path / "out", "f": value, "b": plain}
    extract(pairs, decode={"f": lambda path: 1}, **options)
    with pytest.raises(MismatchError, match="another decode"):
        extract(pairs, decode={"f": read_files}, **options)


def test_a_text_of_a_book_is_too_long(tmp_path):
    pairs = read_pairs(table(tmp_path, ["short", "x" * 1_000_001, "also short"]), a="a", b="b")
    encoder = Letters()
    extract(pairs, out=tmp_path / "out", max_failed=1, a=encoder, b=plain)
    assert [(reason, row) for _, reason, row in failed(tmp_path / "out")] == [("too long", 2)]
    assert max(len(text) for batch in encoder.batches for text in batch) < 1_000_001


def test_latents_that_change_their_width_are_refused(tmp_path):
    pairs = read_pairs(table(tmp_path, [f"{i}" for i in range(12)]), a="a", b="b")
    widths = iter([2, 2, 3])

    def grows(texts):
        return np.ones((len(texts), next(widths)))

    grows.batch_size = 4
    with pytest.raises(EncoderError, match="latents of 2 and 3 dimensions"):
        extract(pairs, out=tmp_path / "out", a=grows, b=plain)


def test_killed_faulty_and_full_disks_leave_the_bytes_of_an_undisturbed_run():
    """The small form of the torture, in a process of its own, since it forks."""
    script = Path(__file__).parents[1] / "benchmarks" / "torture_extraction.py"
    done = subprocess.run([sys.executable, script, "--small"], capture_output=True, text=True, timeout=300)
    lines = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert done.returncode == 0, done.stderr
    assert len(lines) == 6 and all(line["holds"] for line in lines), done.stdout
