"""A fit that is interrupted, at any place and any number of times, ends with the bits of one that is not."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusemix import fit
from fusemix.errors import DivergedError, MismatchError, StoreError
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training import checkpoint, journal
from fusemix.training.step import Trainer
from test_fit import CPU, pairs, small, weights

DROPOUT = {"dropout": 0.3, "input_dropout": 0.2, "epochs": 4}
TRAIN, VAL = pairs(200), pairs(40, "val", seed=1)  # 6 steps an epoch
TIMED = {"seconds", "pairs_per_second", "share_of_limit"}


def run(folder, config=None, progress=silent, val=VAL, train=TRAIN):
    return fit_adapters(train, val, config or small(**DROPOUT), CPU, progress, out=folder)


def metrics(folder):
    return [{k: v for k, v in line.items() if k not in TIMED} for line in journal.read(folder / "metrics.jsonl")]


def send(signum, *steps):
    """Return a progress that sends this process a signal after each of these steps."""
    left = list(steps)

    def progress(stage, done, total, note=""):
        if stage == "fit" and done in left:
            left.remove(done)
            os.kill(os.getpid(), signum)

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), metrics(folder)


@pytest.mark.parametrize(
    "stops", [(1,), (6,), (7, 8, 9, 10), (3, 6, 12, 13, 23), (24,), (5, 11, 17)], ids=lambda stops: f"after {stops}"
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_ends_with_the_same_bits(tmp_path, whole, stops, signum):
    for stop in stops:
        with pytest.raises(KeyboardInterrupt if signum == signal.SIGINT else SystemExit) as left:
            run(tmp_path, progress=send(signum, stop))
        assert signum == signal.SIGINT or left.value.code == 143
        _, record = checkpoint.read(tmp_path)
        assert record["step"] == stop
    fitted = run(tmp_path)
    expected, lines = whole
    assert torch.equal(weights(fitted), weights(expected))
    assert fitted.history == expected.history and fitted.best_epoch == expected.best_epoch
    assert metrics(tmp_path) == lines


def test_a_signal_in_the_middle_of_a_step_loses_only_that_step(tmp_path, whole, monkeypatch):
    real, calls = Trainer.gradients, []

    def gradients(self, step, batch):
        loss = real(self, step, batch)
        calls.append(step)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(Trainer, "gradients", gradients)
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert checkpoint.read(tmp_path)[1]["step"] == 8
    assert torch.equal(weights(run(tmp_path)), weights(whole[0]))


def test_a_signal_during_the_update_waits_for_its_end(tmp_path, whole, monkeypatch):
    real = Trainer.update

    def update(self, lr):
        os.kill(os.getpid(), signal.SIGTERM)
        real(self, lr)

    monkeypatch.setattr(Trainer, "update", update)
    for step in (1, 2, 3):
        with pytest.raises(SystemExit):
            run(tmp_path)
        assert checkpoint.read(tmp_path)[1]["step"] == step
    monkeypatch.undo()
    assert torch.equal(weights(run(tmp_path)), weights(whole[0]))


def test_a_signal_during_validation_validates_again(tmp_path, whole, monkeypatch):
    from fusemix.training import run as module

    real = module.validate

    def validate(adapters, held):
        os.kill(os.getpid(), signal.SIGINT)
        return real(adapters, held)

    monkeypatch.setattr(module, "validate", validate)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    fitted = run(tmp_path)
    assert torch.equal(weights(fitted), weights(whole[0])) and metrics(tmp_path) == whole[1]


def test_checkpoints_on_the_way_change_nothing_and_only_the_last_two_stay(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit, "SAVE_COST", 0.0)
    fitted = run(tmp_path)
    assert torch.equal(weights(fitted), weights(whole[0]))
    assert [path.name for path in sorted((tmp_path / "checkpoint").iterdir())] == [
        "step-000000023.safetensors",
        "step-000000024.safetensors",
    ]


def test_the_handlers_of_the_caller_come_back(tmp_path):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit):
        run(tmp_path, progress=send(signal.SIGTERM, 2))
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_folder_signals_are_left_alone():
    # A shell tells what it starts in the background to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        fit_adapters(TRAIN, None, small(), CPU, send(signal.SIGINT, 3))
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("changes", "train", "named"),
    [
        ({"lr": 0.5}, TRAIN, r"lr \(was 0.002, is 0.5\)"),
        ({"epochs": 9}, TRAIN, r"epochs \(was 4, is 9\)"),
        ({}, pairs(200, seed=5), "latents.x"),
        ({}, pairs(201), "pairs"),
    ],
)
def test_another_fit_does_not_go_on_from_here(tmp_path, changes, train, named):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=send(signal.SIGINT, 3))
    with pytest.raises(MismatchError, match=f"{named}.*delete .*checkpoint"):
        run(tmp_path, replace(small(**DROPOUT), **changes), train=train)


def test_a_spoilt_checkpoint_costs_steps_not_the_fit(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit, "SAVE_COST", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=send(signal.SIGINT, 9))
    older, newest = sorted((tmp_path / "checkpoint").iterdir())
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    assert checkpoint.read(tmp_path)[1]["step"] == 8
    assert torch.equal(weights(run(tmp_path)), weights(whole[0]))
    for path in (tmp_path / "checkpoint").iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StoreError, match="no whole checkpoint.*delete"):
        run(tmp_path)
    assert older.suffix == ".safetensors"


def poison(gradients, losses, at):
    """Return `Trainer._backward` that spoils one step, after which nothing is a number."""
    real = Trainer._backward

    def backward(self, step, batch, parts):
        loss = real(self, step, batch, parts)
        if step == at and gradients:
            next(self.adapters.parameters()).grad.flatten()[0] = float("inf")
        return loss * float("nan") if step == at and losses else loss

    return backward


@pytest.mark.parametrize(("gradients", "losses"), [(True, False), (False, True)], ids=["gradients", "losses"])
@pytest.mark.parametrize("at", [7, 11, 23])
def test_a_diverged_fit_names_the_batch_and_keeps_finite_checkpoints_only(tmp_path, monkeypatch, gradients, losses, at):
    """Also in the last step of an epoch, and in the last of all."""
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit, "SAVE_COST", 0.0)
    monkeypatch.setattr(Trainer, "_backward", poison(gradients, losses, at))
    named = rf"became nan at step {at + 1} \(epoch {at // 6 + 1}\) on a batch of 34 pairs"
    with pytest.raises(DivergedError, match=named) as stopped:
        run(tmp_path, val=None)
    tensors, record = checkpoint.read(tmp_path)
    assert record["step"] == at and all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert {name: len(ids) for name, ids in stopped.value.ids.items()} == {"x": 34, "y": 34}
    assert json.loads((tmp_path / "diverged.json").read_text()) == stopped.value.ids
    assert f"all of them are in {tmp_path / 'diverged.json'}" in str(stopped.value)
    known = [set(TRAIN.items[name].ids) for name in ("x", "y")]
    assert set(stopped.value.ids["x"]) <= known[0] and set(stopped.value.ids["y"]) <= known[1]


def test_patience_may_change_between_interruption_and_going_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=send(signal.SIGINT, 3))
    said = []
    config = replace(small(**DROPOUT), patience=1)
    run(tmp_path, config, progress=lambda stage, done, total, note="": said.append((stage, note)))
    assert ("check latents", "going on after step 3 (epoch 1)") in said


def test_other_validation_pairs_are_another_fit(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=send(signal.SIGINT, 3))
    with pytest.raises(MismatchError, match="latents.val x"):
        run(tmp_path, val=pairs(40, "val", seed=2))


def test_a_signal_before_the_first_step_or_after_the_last_is_heard_as_well(tmp_path, whole, monkeypatch):
    def stop(stage, done, total, note=""):
        if stage == "check latents":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        run(tmp_path, progress=stop)
    assert left.value.code == 143
    real = fit.Run.save

    def save(self, folder):
        real(self, folder)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fit.Run, "save", save)  # the last checkpoint, after the last step
    with pytest.raises(SystemExit) as left:
        run(tmp_path)
    monkeypatch.undo()
    assert left.value.code == 143 and checkpoint.read(tmp_path)[1]["step"] == 24
    assert torch.equal(weights(run(tmp_path)), weights(whole[0]))


def test_a_fit_that_is_done_is_not_done_again(tmp_path, whole):
    run(tmp_path)
    steps = []
    again = run(tmp_path, progress=lambda stage, done, *_: steps.append(done) if stage == "fit" else None)
    assert steps == [] and torch.equal(weights(again), weights(whole[0]))


def test_the_journal_drops_a_torn_line_and_lines_of_lost_steps(tmp_path):
    lines = [{"step": 1, "loss": 1.0}, {"step": 5, "loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    assert journal.read(tmp_path / "metrics.jsonl") == lines
    opened = journal.Journal(tmp_path, 4, [], None)
    opened.write({"step": 6, "loss": 0.4})
    assert journal.read(tmp_path / "metrics.jsonl") == [lines[0], {"step": 6, "loss": 0.4}]
    assert Path(tmp_path / "metrics.jsonl").read_text().endswith("\n")


def test_the_journal_adds_the_epochs_whose_lines_were_lost(tmp_path):
    journal.Journal(tmp_path, 8, [{"step": 4, "loss": 1.0}, {"step": 8, "loss": 0.5}], None)
    assert [line["step"] for line in journal.read(tmp_path / "metrics.jsonl")] == [4, 8]


def test_the_state_of_the_order_is_a_few_integers(tmp_path):
    """No buffer, no generator: what a checkpoint says of the sampler is the step (reliability: E2)."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=send(signal.SIGINT, 3))
    tensors, record = checkpoint.read(tmp_path)
    assert {name.split("/")[0] for name in tensors} == {"weights", "optimizer", "losses"}
    assert record["step"] == 3 and record["block"] == 1


def test_killed_starved_and_poisoned_fits_end_with_the_bits_of_an_undisturbed_one():
    """The small form of the torture, in a process of its own, since it forks."""
    script = Path(__file__).parents[1] / "benchmarks" / "torture_training.py"
    done = subprocess.run([sys.executable, script, "--small"], capture_output=True, text=True, timeout=300)
    lines = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 7 and all(line["holds"] for line in lines), done.stdout
