"""`fusemix fit` in real processes: what it writes, foresees and tells, and how it goes on after a signal."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fusemix as fm
from fusemix.data.pairs import read_pairs
from fusemix.extraction import extract
from test_cli import fusemix, hear_ctrl_c

FAST = "import fusemix.fit as f; f.SAVE_SECONDS = f.SAVE_COST = 0.0; from fusemix.cli import main; main()"


class Noisy:
    """Numbers that both sides of a pair share, and a dimension that is always the same."""

    takes, batch_size = "any", 256

    def __init__(self, dim):
        self.dim, self.source, self.fingerprint = dim, f"noisy {dim}", {"name": f"noisy {dim}"}

    def encode(self, items):
        maps = np.random.default_rng(self.dim).normal(size=(6, self.dim))
        z = np.stack([np.random.default_rng(int(item.split()[0])).normal(size=6) for item in items])
        latents = z @ maps
        latents[:, 0] = 1
        return latents


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    lines = [f"{i} x,{i} y,{'val' if i % 8 == 7 else 'train'}" for i in range(800)]
    (folder / "t.csv").write_text("\n".join(["x,y,split", *lines]) + "\n")
    extract(read_pairs(folder / "t.csv", x="x", y="y"), out=folder / "l", x=Noisy(24), y=Noisy(16))
    return folder


def test_a_fit_leaves_metrics_and_curves_and_no_checkpoint(place):
    done = fusemix("fit", "l", "-o", "whole", "--epochs", "5", "--dim", "8", cwd=place)
    assert "x: 1 of 24 dimensions is constant; y: 1 of 16 dimensions is constant" in done.stderr
    assert "val recall" in done.stderr and "pairs/s" in done.stderr and "of the device" in done.stderr
    names = sorted(path.name for path in (place / "whole").iterdir())
    assert {"metrics.jsonl", "curves.png", "curves.svg", "facts.json"} <= set(names) and "checkpoint" not in names
    records = [json.loads(line) for line in (place / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    expected = {"step", "epoch", "loss", "lr", "temperature", "val", "seconds", "pairs_per_second", "share_of_limit"}
    assert set(records[-1]) == expected
    assert (place / "whole" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_stopping_early_is_said(place):
    shown = fusemix(
        "fit",
        "l",
        "-o",
        "early",
        "--epochs",
        "200",
        "--dim",
        "8",
        "--patience",
        "2",
        "-q",
        "--adapter",
        "mlp",
        cwd=place,
    ).stdout
    assert "epochs early: 2 validations brought no gain" in shown and "steps of" in shown


def test_what_was_chosen_and_what_was_not_are_said(place):
    words = ["fit", "l", "-o", "chosen", "--epochs", "2", "--dim", "8", "-q"]
    lines = fusemix(*words, cwd=place).stdout.splitlines()
    facts = fm.FuseMix.load(place / "chosen").facts_
    of = lambda what: f"{what}: mean R@1, 5, 10 both ways of {facts['tried'][what]:.1f} on 100 pairs of val"  # noqa: E731
    assert [line for line in lines if line.startswith("chose ")] == [f"chose {of(facts['chosen'])}"]
    assert [line for line in lines if line.startswith("  not ")] == [
        f"  not {of(what)}" for what in facts["tried"] if what != facts["chosen"]
    ]
    # A closed form has no epoch, and what is not kept is not told of as if it were.
    assert (
        facts["chosen"] == "cca"
        and "; not kept" in lines[1]
        and "epoch" not in (place / "chosen/README.md").read_text().split("##")[0]
    )


def test_a_dry_run_foresees_and_writes_nothing(place):
    shown = fusemix("fit", "l", "-o", "dry", "--dry-run", cwd=place).stdout
    assert "nothing was trained" in shown and "parameters" in shown and "memory" in shown and "FLOP" in shown
    found = json.loads(fusemix("fit", "l", "-o", "dry", "--dry-run", "--json", cwd=place).stdout)
    assert [cost["network"] for cost in found["networks"]] == ["begins at random", "begins as a closed form"]
    for cost in found["networks"]:
        assert cost["pairs"] == 700 and cost["seconds"] > 0 and cost["flops"] == cost["steps"] * cost["flops_per_step"]
    assert not (place / "dry").exists()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(place, signum, code):
    out = f"stopped-{code}"
    words = ["fit", "l", "-o", out, "--epochs", "200", "--dim", "8", "--recipe", "scaled", "--seed", "3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusemix", *words], cwd=place, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    metrics = place / out / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and time.monotonic() - began < 10
    assert f"interrupted; to go on: fusemix {' '.join(words)}" in said
    stopped = len(metrics.read_text().splitlines())
    saved = list((place / out / "checkpoint").iterdir())
    assert len(saved) == 1 and not (place / out / "facts.json").exists()
    # Another fit must not take its place, nor go on from it.
    other = fusemix(*words[:-1], "4", cwd=place, code=2)
    assert "holds a fit that was interrupted, and it is another: seed (was 3, is 4)" in other.stderr
    fusemix(*words, cwd=place)
    assert not (place / out / "checkpoint").exists()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 201)) and stopped < 200
    assert json.loads((place / out / "facts.json").read_text())["history"][-1]["epoch"] == 200


def test_a_kill_costs_only_what_came_after_the_last_checkpoint(place):
    words = ["fit", "l", "-o", "killed", "--epochs", "60", "--dim", "8"]
    process = subprocess.Popen([sys.executable, "-c", FAST, *words], cwd=place, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if len(list((place / "killed").glob("checkpoint/step-*"))) == 2:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    fusemix(*words, cwd=place)
    fusemix(*words[:3], "not-killed", *words[4:], cwd=place)
    weights = [(place / name / "adapters.safetensors").read_bytes() for name in ("killed", "not-killed")]
    assert weights[0] == weights[1]


def test_two_ranks_write_one_model(place):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fusemix", "fit",
        "l", "-o", "ranks", "--epochs", "4", "--dim", "8",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("next: fusemix evaluate") == 1
    shown = json.loads(fusemix("evaluate", "ranks", "l", "--split", "val", "--json", cwd=place).stdout)
    assert shown["retrieval"]["x->y"]["R@10"] > 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--track", "mlflow"), "no tracker 'mlflow'; found: trackio, wandb, tensorboard"),
        (("--precision", "float8"), "no precision 'float8' for a fit; found: auto, float32, bfloat16"),
        (("--patience", "-1"), "patience must not be negative, got -1"),
        (("--val", "train"), "pairs that are trained on cannot choose the epoch"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(place, words, message):
    done = fusemix("fit", "l", "-o", "mistake", *words, cwd=place, code=2)
    assert message in done.stderr and not (place / "mistake" / "checkpoint").exists()


def test_any_setting_can_be_given_by_name(place):
    words = ("--epochs", "1", "--dim", "8", "-q", "--json")
    done = fusemix("fit", "l", "-o", "set", *words, "--set", "noise=0.5", "--set", "standardize=false", cwd=place)
    config = json.loads(done.stdout)["config"]
    assert config["noise"] == 0.5 and config["standardize"] is False
    for word, said in (
        ("nois=1", "--set nois=1: a fit has no setting 'nois'; found: "),
        ("noise=much", "--set noise=much: wanted a number"),
        ("standardize=yes", "--set standardize=yes: wanted true or false"),
        ("quantize=1.5", "--set quantize=1.5: wanted a whole number"),
        ("mixing=both", "no mixing 'both' for a fit; found: shared, separate, sample, spherical"),
    ):
        assert said in fusemix("fit", "l", "-o", "set", "--set", word, cwd=place, code=2).stderr
