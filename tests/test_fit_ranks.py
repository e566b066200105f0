"""A fit under torchrun: two processes on one machine make the fit of one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import warm
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training import checkpoint
from test_fit import CPU, pairs, small, weights

SCRIPT = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_fit import CPU, pairs, small, weights
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.ranks import join_ranks, ranks

join_ranks()
settings = json.loads(sys.argv[2])
out = Path(sys.argv[1])
fitted = fit_adapters(pairs({pairs}), pairs(40, "val", seed=1), small(**settings), CPU, silent, out=out / "run")
torch.distributed.barrier()
rank = ranks()[0]
content = {{"weights": weights(fitted).tolist(), "history": fitted.history, "temperature": fitted.temperature}}
(out / f"rank-{{rank}}.json").write_text(json.dumps(content))
torch.distributed.destroy_process_group()
"""


def words(folder: Path, settings: dict, count: int) -> list[str]:
    script = folder / "ranks.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), pairs=count))
    return [str(script), str(folder), json.dumps(settings)]


def torchrun(folder: Path, settings: dict, count: int) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*command, *words(folder, settings, count)]


def both_ranks(folder: Path, settings: dict, count: int) -> list[dict]:
    """Fit in two processes that torchrun could have started: it does so below and in test_cli_fit."""
    done = warm.ranks("python", words(folder, settings, count), folder, dict(os.environ))
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr[-3000:] + done[1].stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("count", "settings"),
    [(240, {}), (150, {"alpha": 0.0, "batch_size": 25, "epochs": 3})],
    ids=["even", "uneven shares, no mixing"],
)
def test_two_processes_make_the_fit_of_one(tmp_path, count, settings):
    """Every step's gradients are those of the global batch, so the whole trajectory is the same up to rounding."""
    settings = {"dropout": 0.0, "input_dropout": 0.0, "precision": "float32", **settings}
    both = both_ranks(tmp_path, settings, count)
    assert both[0] == both[1]
    single = fit_adapters(pairs(count), pairs(40, "val", seed=1), small(**settings), CPU, silent)
    np.testing.assert_allclose(both[0]["weights"], weights(single).detach(), rtol=2e-3, atol=2e-4)
    for one, other in zip(both[0]["history"], single.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["temperature"] == pytest.approx(other["temperature"], rel=1e-4)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [record["epoch"] for record in single.history]


def test_the_dropout_of_two_processes_differs():
    """Each rank drops other units: the same masks on both halves of a batch would be half as much noise."""
    from fusemix.training.order import dropout_seed

    seeds = {dropout_seed(0, step, rank, side, 0) for step in range(5) for rank in range(4) for side in range(2)}
    assert len(seeds) == 40
    torch.manual_seed(dropout_seed(0, 1, 0, 0, 0))
    assert not torch.equal(torch.rand(9), torch.rand(9))


def test_ranks_that_are_told_to_stop_stop_together_and_go_on(tmp_path):
    settings = {"dropout": 0.2, "epochs": 12, "precision": "float32"}
    (tmp_path / "stopped").mkdir()
    (tmp_path / "whole").mkdir()
    process = subprocess.Popen(torchrun(tmp_path / "stopped", settings, 240), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped" / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 1:
            break
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (tmp_path / "stopped" / "rank-0.json").exists()
    step = checkpoint.read(tmp_path / "stopped" / "run")[1]["step"]
    assert 8 <= step < 12 * 8
    assert both_ranks(tmp_path / "stopped", settings, 240) == both_ranks(tmp_path / "whole", settings, 240)
