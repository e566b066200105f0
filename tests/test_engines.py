"""Shards by Ray tasks or by the ranks of torchrun: the same bytes as by one process."""

import os
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest

import warm
from fusemix import engines
from fusemix.data.latents import open_latents
from fusemix.data.pairs import read_pairs
from fusemix.errors import DataError, MismatchError
from fusemix.extraction import extract
from fusemix.progress import silent

ENCODERS = """
import os, time
from hashlib import blake2b
import numpy as np

def letters(texts):
    if "CALLS" in os.environ:
        with open(os.environ["CALLS"], "a") as file:
            file.write("x" * len(texts))
    time.sleep(float(os.environ.get("SLOW", 0)))
    scale = 1 + 1e-4 * len(texts)  # the last bits of a latent depend on the batch
    rows = [np.frombuffer(blake2b(t.encode(), digest_size=8).digest(), np.uint8) / 255 * scale for t in texts]
    return [None if t.endswith("7") else row for t, row in zip(texts, rows)]

letters.batch_size = 4

def broken(texts):
    raise RuntimeError("the service is down")

def read(path):
    return len(path.read_bytes())

def size(values):
    return [[value, 1] for value in values]
"""


def world_of(folder):
    (folder / "enc.py").write_text(ENCODERS)
    lines = ["left,right", *(f"left {i},right {i % 25}" for i in range(60))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return read_pairs(folder / "t.csv", left="left", right="right")


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment():
    return {**os.environ, "PYTHONWARNINGS": "ignore", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "OMP_NUM_THREADS": "1"}


def test_an_unknown_engine_names_the_known_ones(tmp_path):
    pairs = world_of(tmp_path)
    spec = f"{tmp_path / 'enc.py'}:letters"
    with pytest.raises(DataError, match="no engine 'rya'; found: local, ray; did you mean 'ray'"):
        extract(pairs, out=tmp_path / "out", engine="rya", left=spec, right=spec)
    assert not (tmp_path / "out").exists()


RAY = """
import shutil
import ray
from fusemix.data.pairs import read_pairs
from fusemix.errors import EncoderError, TooManyFailuresError
from fusemix.extraction import extract

ray.init(num_cpus=2, logging_level="error", log_to_driver=False, include_dashboard=False)
pairs = read_pairs("t.csv", left="left", right="right")
told = []
options = {
    "shard_items": 10, "max_failed": 1, "engine": "ray", "progress": lambda *state: told.append(state),
}
for engine in ("local", "ray"):
    extract(pairs, out=engine, left="enc.py:letters", right="enc.py:letters", **{**options, "engine": engine})
print(told[-1])
try:
    extract(pairs, out="broken", left="enc.py:letters", right="enc.py:broken", **options)
except EncoderError as error:
    print(error)
try:
    extract(pairs, out="many", left="enc.py:letters", right="enc.py:letters", **{**options, "max_failed": 0.05})
except TooManyFailuresError as error:
    print(error)
# The same folder again, with other facts: a worker that is still there must not go on with what it knows.
files = read_pairs("files.csv", left="file", right="right")
for dtype in ("float16", "float32"):
    shutil.rmtree("files", ignore_errors=True)
    extract(
        files, out="files", dtype=dtype, decode={"left": "enc.py:read"},
        left="enc.py:size", right="enc.py:letters", **options
    )
"""


def test_ray_tasks_give_the_bytes_of_a_local_run(tmp_path):
    pytest.importorskip("ray")
    world_of(tmp_path)
    (tmp_path / "files.csv").write_text("file,right\n" + "".join(f"{i}.bin,right {i}\n" for i in range(30)))
    for i in range(30):
        (tmp_path / f"{i}.bin").write_bytes(b"x" * i)
    (tmp_path / "driver.py").write_text(RAY)
    done = subprocess.run(
        [sys.executable, "driver.py"], env=environment(), capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    told, broken, many = done.stdout.splitlines()
    assert told == "('extract right', 25, 25, '2 failed')"
    assert "RuntimeError: the service is down" in broken
    assert re.match("left: [4-6] of the first 60 items failed, more than 5%: refused", many)
    failed = pyarrow.parquet.read_table(tmp_path / "many" / "failed.parquet").to_pylist()
    assert {(row["modality"], row["reason"]) for row in failed} == {("left", "refused")}
    files = open_latents(tmp_path / "files")
    assert files.items["left"].numpy()[:, 0].tolist() == list(range(30))


def test_a_worker_that_loads_another_encoder_than_the_driver_is_refused(tmp_path):
    pairs, code = world_of(tmp_path), tmp_path / "enc.py"
    extract(pairs, out=tmp_path / "out", max_failed=1, left=f"{code}:letters", right=f"{code}:letters")
    folder = next((tmp_path / "out" / "left").glob("*"))
    code.write_text(ENCODERS.replace("255", "256"))
    job = engines.Job(pairs.items["left"], folder, f"{code}:letters", None, None, None, None, 1)
    with pytest.raises(MismatchError, match="loads another encoder for 'left': code"):
        job.work(silent)


def test_sigterm_ends_a_run_on_ray_in_order(tmp_path):
    pytest.importorskip("ray")
    world_of(tmp_path)
    words = [
        "t.csv",
        "--left",
        "left=enc.py:letters",
        "--right",
        "right=enc.py:letters",
        "--engine",
        "ray",
        "-o",
        "out",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusemix", "extract", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=environment() | {"CALLS": str(tmp_path / "calls"), "SLOW": "60"},
    )  # fmt: skip
    while not (tmp_path / "calls").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143, error
    assert "to go on: fusemix extract t.csv" in error


RANKS = """
import sys
from fusemix.data.pairs import read_pairs
from fusemix.extraction import extract

table, code, out = sys.argv[1:]
pairs = read_pairs(table, left="left", right="right")
retry = out.endswith("again")
spec = f"{code}:letters"
latents = extract(pairs, out=out, shard_items=10, max_failed=1, left=spec, right=spec, retry_failed=retry)
assert len(latents) == 52, len(latents)
"""


@pytest.mark.parametrize("name", ["new", "killed", "again"])
def test_two_ranks_of_torchrun_give_the_bytes_of_a_local_run(tmp_path, name):
    pairs, spec = world_of(tmp_path), f"{tmp_path / 'enc.py'}:letters"
    options = {"shard_items": 10, "max_failed": 1, "left": spec, "right": spec}
    extract(pairs, out=tmp_path / "local", **options)
    if name != "new":  # some of it is there already
        extract(pairs, out=tmp_path / name, **options)
    if name == "killed":
        for shard in (0, 3, 4):
            next((tmp_path / name / "left").glob(f"*/shard-0000{shard}*")).unlink()
    (tmp_path / "driver.py").write_text(RANKS)
    words = "driver.py", "t.csv", tmp_path / "enc.py", name
    if name == "new":
        done = torchrun(tmp_path, *words, CALLS=str(tmp_path / "calls"))
        assert done.returncode == 0, done.stderr
        # The ranks share the work: no item is encoded by both.
        assert len((tmp_path / "calls").read_text()) == 60 + 25
    else:
        done = warm.ranks("python", words, tmp_path, environment())
        assert [rank.returncode for rank in done] == [0, 0], done
    assert tree(tmp_path / name) == tree(tmp_path / "local")


def test_failures_of_all_ranks_count_together(tmp_path):
    world_of(tmp_path)
    (tmp_path / "driver.py").write_text(RANKS.replace("max_failed=1", "max_failed=0.07"))
    done = warm.ranks("python", ("driver.py", "t.csv", "enc.py", "out"), tmp_path, environment())
    assert all(rank.returncode for rank in done)
    said = "".join(rank.stderr for rank in done)
    assert "left: 6 of the first 60 items failed, more than 7%" in said  # no rank has more than 4 of them


def test_of_the_ranks_one_speaks(tmp_path):
    world_of(tmp_path)
    words = ["--left", "left=enc.py:letters", "--right", "right=enc.py:letters", "--max-failed", "1", "--json"]
    done = warm.ranks("fusemix", ("extract", "t.csv", "-o", "out", *words), tmp_path, environment())
    assert [rank.returncode for rank in done] == [0, 0], done
    assert [rank.stdout.count('"rows": 60') for rank in done] == [1, 0]


def torchrun(folder, *words, **variables):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "localhost:0", *words,
    ]  # fmt: skip
    return subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, timeout=240, cwd=folder
    )
