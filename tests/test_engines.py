"""Shards by Ray tasks or by the ranks of torchrun: the same bytes as by one process."""

import os
import subprocess
import sys

import pytest

from fusemix.data.pairs import read_pairs
from fusemix.errors import DataError
from fusemix.extraction import extract

ENCODERS = """
from hashlib import blake2b
import numpy as np

def letters(texts):
    scale = 1 + 1e-4 * len(texts)  # the last bits of a latent depend on the batch
    rows = [np.frombuffer(blake2b(t.encode(), digest_size=8).digest(), np.uint8) / 255 * scale for t in texts]
    return [None if t.endswith("7") else row for t, row in zip(texts, rows)]

letters.batch_size = 4

def broken(texts):
    raise RuntimeError("the service is down")
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
import sys
import ray
from fusemix.data.pairs import read_pairs
from fusemix.errors import EncoderError
from fusemix.extraction import extract

table, code, out = sys.argv[1:]
ray.init(num_cpus=2, logging_level="error", log_to_driver=False, include_dashboard=False)
pairs = read_pairs(table, left="left", right="right")
options = {"out": out, "shard_items": 10, "max_failed": 1, "engine": "ray"}
extract(pairs, left=f"{code}:letters", right=f"{code}:letters", **options)
try:
    extract(pairs, **{**options, "out": out + "-broken"}, left=f"{code}:letters", right=f"{code}:broken")
except EncoderError as error:
    print(error)
"""


def test_ray_tasks_give_the_bytes_of_a_local_run(tmp_path):
    pytest.importorskip("ray")
    pairs, spec = world_of(tmp_path), f"{tmp_path / 'enc.py'}:letters"
    extract(pairs, out=tmp_path / "local", shard_items=10, max_failed=1, left=spec, right=spec)
    (tmp_path / "driver.py").write_text(RAY)
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py", tmp_path / "t.csv", tmp_path / "enc.py", tmp_path / "ray"],
        env=environment(), capture_output=True, text=True, timeout=240, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    assert "RuntimeError: the service is down" in done.stdout


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
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "localhost:0", "driver.py", "t.csv", tmp_path / "enc.py", name,
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / name) == tree(tmp_path / "local")


def test_of_the_ranks_one_speaks(tmp_path):
    world_of(tmp_path)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "localhost:0", "-m", "fusemix", "extract", "t.csv", "--left", "left=enc.py:letters",
        "--right", "right=enc.py:letters", "--max-failed", "1", "-o", "out", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"rows": 60') == 1
