"""Kill, interrupt and starve a fit wherever it stands, and compare what it ends with to an undisturbed one.

    python benchmarks/torture_training.py [--small]

A fit with dropout, mixing and validation saves a checkpoint after every step, in forked children. It is killed
(SIGKILL) before or after every touch of the disk, and at random times, once or again and again inside one epoch; or the
disk fails at a touch; or SIGTERM or SIGINT comes at a random time. After each of them the newest checkpoint must load,
and the same call, made again, must end with the same weights, optimiser, history and metrics, bit for bit. At last,
batches that make the loss NaN, and a learning rate a hundred times too high for 10,000 steps.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first step of an optimiser would, for a second and in every child

from faults import Touches, in_child
from fusemix import fit
from fusemix.config import FitConfig, paper, scaled
from fusemix.data.latents import Latents
from fusemix.errors import DivergedError, FusemixError
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training import checkpoint, journal
from fusemix.training.step import Trainer
from goals import leave, result

CPU = torch.device("cpu")
TIMED = {"seconds", "pairs_per_second", "share_of_limit"}
EPOCHS = 3


def pairs(count: int, split: str, seed: int, dim: int = 12) -> Latents:
    """Pairs that have something in common."""
    rng, maps = np.random.default_rng(seed), np.random.default_rng(99)
    z = rng.normal(size=(count, 5))
    return Latents.from_arrays(split, x=z @ maps.normal(size=(5, dim)), y=z @ maps.normal(size=(5, dim + 2)))


TRAIN, VAL = pairs(160, "train", 0), pairs(30, "val", 1)


def settings(precision: str = "float32") -> FitConfig:
    """Four steps an epoch, three epochs."""
    small = {"dim": 8, "batch_size": 20, "epochs": EPOCHS, "warmup_steps": 2, "precision": precision}
    return replace(scaled(1000, 0), **small)


def train(out: Path, precision: str = "float32") -> None:
    """Run what is tortured, or go on with it, and note what it ended with."""
    ends: list[dict[str, str]] = []
    real = fit._train

    def traced(run: fit.Run, *rest: object) -> None:
        real(run, *rest)  # type: ignore[arg-type]
        optimizer = run.trainer.optimizer.state_dict()["state"]
        tensors = {f"{i}/{name}": value for i, state in optimizer.items() for name, value in state.items()}
        tensors |= dict(run.adapters.state_dict())
        digests = {name: sha256(value.numpy().tobytes()).hexdigest() for name, value in sorted(tensors.items())}
        ends.append(digests)

    fit._train = traced
    fitted = fit_adapters(TRAIN, VAL, settings(precision), CPU, silent, out=out)
    fit._train = real
    kept = b"".join(p.detach().numpy().tobytes() for a in fitted.adapters.values() for p in a.parameters())
    lines = [{k: v for k, v in line.items() if k not in TIMED} for line in journal.read(out / journal.NAME)]
    state = {"end": ends[0], "kept": sha256(kept).hexdigest(), "history": fitted.history, "metrics": lines}
    (out / "state.json").write_text(json.dumps(state))


class World:
    """An undisturbed fit, and what it did to the disk."""

    def __init__(self, folder: Path, precision: str) -> None:
        self.folder, self.precision = folder, precision
        assert in_child(lambda: train(folder / "whole", precision)) == 0
        self.whole = (folder / "whole" / "state.json").read_text()
        counter = Touches(-1, lambda what: None)

        def counted() -> None:
            counter.install()
            train(folder / "counted", precision)
            (folder / "count").write_text(str(counter.count))

        began = time.monotonic()
        assert in_child(counted) == 0
        self.seconds = time.monotonic() - began
        self.touches = int((folder / "count").read_text())

    def run(self, out: Path, touches: Touches | None = None) -> None:
        """Fit with faults."""
        if touches is not None:
            touches.install()
        train(out, self.precision)

    def loadable(self, out: Path) -> list[str]:
        """Say whether what lies there can be gone on with."""
        try:
            checkpoint.read(out)
        except FusemixError as error:
            return [f"not loadable: {error}"]
        return []

    def check(self, out: Path) -> list[str]:
        """Go on, and say what is wrong."""
        wrong = self.loadable(out)
        code = in_child(lambda: self.run(out))
        wrong += [f"going on ended with {code}"] if code else []
        state = out / "state.json"
        if not state.exists() or state.read_text() != self.whole:
            wrong.append("ends with another state")
        left = [path.name for path in (out / checkpoint.FOLDER).glob(".*")]
        wrong += [f"left over: {left}"] if left else []
        shutil.rmtree(out, ignore_errors=True)
        return wrong


def kills(world: World, points: list[tuple[int, bool]], times: list[float]) -> tuple[int, list[str]]:
    """Kill at each of these touches (before or after it) and at each of these times."""
    wrong: list[str] = []
    out = world.folder / "out"
    for at, after in points:
        touches = Touches(at, lambda what: os.kill(os.getpid(), signal.SIGKILL), after)
        code = in_child(lambda touches=touches: world.run(out, touches))  # type: ignore[misc]
        wrong += [f"touch {at}: ended with {code} instead of being killed"] if code != -signal.SIGKILL else []
        wrong += [f"touch {at}: {problem}" for problem in world.check(out)]
    for seconds in times:
        in_child(lambda: world.run(out), seconds)
        wrong += [f"{seconds:.3f} s: {problem}" for problem in world.check(out)]
    return len(points) + len(times), wrong


def chains(world: World, count: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kill three times or more inside one epoch: the second resume is where bugs live."""
    wrong: list[str] = []
    out = world.folder / "out"
    a_step = world.touches // (4 * EPOCHS)
    for number in range(count):
        for _ in range(rng.randint(3, 6)):
            touches = Touches(
                rng.randint(1, 2 * a_step), lambda what: os.kill(os.getpid(), signal.SIGKILL), rng.random() < 0.5
            )
            in_child(lambda touches=touches: world.run(out, touches))  # type: ignore[misc]
            wrong += [f"chain {number}: {problem}" for problem in world.loadable(out)]
        wrong += [f"chain {number}: {problem}" for problem in world.check(out)]
    return count, wrong


def faults(world: World, places: list[int]) -> tuple[int, list[str]]:
    """Let each of these touches fail as a disk does: the fit must say so, and lose nothing that was there."""
    wrong: list[str] = []
    kinds = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES)
    out = world.folder / "out"
    for number, at in enumerate(places):
        code = kinds[number % len(kinds)]

        def fail(what: str, code: int = code) -> None:
            if what != "remove":  # a file that stays costs a little room and nothing else
                raise OSError(code, os.strerror(code))

        ended = in_child(lambda fail=fail, at=at: world.run(out, Touches(at, fail)))  # type: ignore[misc]
        silent_wrong = ended == 0 and (out / "state.json").read_text() != world.whole
        wrong += [f"fault {at} ({errno.errorcode[code]}): ended with {ended}"] if silent_wrong or ended == 70 else []
        wrong += [f"fault {at}: {problem}" for problem in world.check(out)]
    return len(places), wrong


def signals(world: World, count: int, rng: random.Random) -> tuple[int, list[str], list[float]]:
    """Send SIGTERM or SIGINT at a random time; return how many seconds each exit took, too."""
    wrong: list[str] = []
    took: list[float] = []
    out = world.folder / "out"
    for number in range(count):
        signum = (signal.SIGTERM, signal.SIGINT)[number % 2]
        child = os.fork()
        if child == 0:
            sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
            try:
                world.run(out)
            except KeyboardInterrupt:
                os._exit(130)
            except SystemExit as left:
                os._exit(int(left.code or 0))
            os._exit(0)
        # Not before the fit listens: until then nothing was learned, and the process just ends.
        while not (out / journal.NAME).exists() and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(rng.random() * world.seconds * 0.4)
        began = time.monotonic()
        try:
            os.kill(child, signum)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            code = 0
        took += [time.monotonic() - began] if code else []  # else it was done before
        wrong += [f"{signum.name} {number}: ended with {code}"] if code not in (0, 128 + signum) else []
        wrong += [f"{signum.name} {number}: {problem}" for problem in world.check(out)]
    return count, wrong, took or [0.0]


def large_step(folder: Path) -> float:
    """Send SIGTERM in the middle of a step of the paper's adapters (110 M parameters); return the seconds it takes."""
    rng = np.random.default_rng(0)
    latents, val = (
        Latents.from_arrays(split, x=rng.normal(size=(count, 1536)), y=rng.normal(size=(count, 1024)))
        for split, count in (("train", 4096), ("val", 64))
    )
    config = replace(paper(0), batch_size=2048, epochs=2, precision="float32")
    child = os.fork()
    if child == 0:
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        done = folder / "done"
        try:
            fit_adapters(
                latents, val, config, CPU, lambda stage, n, *_: done.touch() if stage == "fit" else None, out=folder
            )
        except SystemExit as left:
            os._exit(int(left.code or 0))
        os._exit(70)
    while not (folder / "done").exists():
        time.sleep(0.1)
    time.sleep(15)  # in the second step; the first epoch was validated, so that there are best weights, too
    began = time.monotonic()
    os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - began
    found = checkpoint.read(folder)
    assert code == 143 and found is not None, code
    assert found[1]["step"] == 1 and any(name.startswith("best/") for name in found[0]), found[1]
    return seconds


def poisoned(count: int, folder: Path) -> tuple[int, list[str]]:
    """Let the loss of one step become NaN: the fit stops and names the batch, and no checkpoint holds a NaN."""
    wrong: list[str] = []
    real = Trainer.gradients
    for number in range(count):
        at, out = number % (4 * EPOCHS), folder / f"nan-{number}"

        def gradients(self: Trainer, step: int, batch: list[torch.Tensor], at: int = at) -> torch.Tensor:
            loss = real(self, step, batch)
            if step == at:
                for parameter in self.adapters.parameters():
                    parameter.grad = torch.full_like(parameter, float("nan"))
                return loss * float("nan")
            return loss

        Trainer.gradients = gradients  # type: ignore[method-assign,assignment]
        try:
            train(out)
            wrong.append(f"step {at}: went on")
        except DivergedError as error:
            wrong += [f"step {at}: {error}"] if f"at step {at + 1} " not in str(error) or not error.ids["x"] else []
        finally:
            Trainer.gradients = real  # type: ignore[method-assign]
        found = checkpoint.read(out)
        if found is not None and not all(bool(tensor.isfinite().all()) for tensor in found[0].values()):
            wrong.append(f"step {at}: a checkpoint holds a NaN")
    return count, wrong


def hot(steps: int) -> tuple[int, list[str]]:
    """Train at a hundred times the learning rate: the temperature stays in its bounds, everything stays finite."""
    config = replace(settings(), epochs=-(-steps // 4), lr=0.2, warmup_steps=0)
    fitted = fit_adapters(TRAIN, None, config, CPU, silent)
    wrong = [f"{r}" for r in fitted.history if not 0.001 <= r["temperature"] <= 0.5 or not np.isfinite(r["loss"])]
    weights = [p for adapter in fitted.adapters.values() for p in adapter.parameters()]
    wrong += [] if all(bool(p.isfinite().all()) for p in weights) else ["weights that are not finite"]
    return 4 * config.epochs, wrong


def report(name: str, done: int, wrong: list[str], target: Callable[[int], bool] = lambda v: v == 0) -> None:
    """Print what went wrong, and a RESULT line."""
    for problem in wrong[:10]:
        print(f"# {problem}")
    result(f"training: {name}, wrong of {done}", len(wrong), "0", target)


def _count(small: bool, share: float, whole: int, few: int) -> int:
    return few if small else round(share * whole)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="A few of each, in seconds.")
    small = parser.parse_args().small
    torch.set_num_threads(1)  # threads do not survive a fork
    fit.SAVE_SECONDS = fit.SAVE_COST = 0.0
    fit.matmul_rate = lambda *_: 1e11  # only shown, and a fifth of a second
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for precision in ("float32",) if small else ("float32", "bfloat16"):
            share = 1.0 if precision == "float32" else 0.25
            many = partial(_count, small, share)
            (folder / precision).mkdir()
            world = World(folder / precision, precision)
            points = [(at, after) for at in range(1, world.touches + 1) for after in (False, True)]
            picked = rng.sample(points, min(len(points), many(200, 4)))
            times = [rng.random() * world.seconds for _ in range(many(40, 1))]
            report(f"SIGKILL, {precision}", *kills(world, picked, times))
            report(f"three kills or more in an epoch, {precision}", *chains(world, many(50, 1), rng))
            places = rng.sample(range(1, world.touches + 1), min(world.touches, many(80, 3)))
            report(f"failing disk, {precision}", *faults(world, sorted(places)))
            done, wrong, took = signals(world, many(80, 2), rng)
            report(f"SIGTERM and SIGINT, {precision}", done, wrong)
            print(f"# {len(took)} of {done} came in time; seconds to the exit: median {statistics.median(took):.2f}")
            slowest = round(max(took), 2)
            result(f"training: slowest exit after a signal, s, {precision}", slowest, "<= 10", lambda v: v <= 10)
        report("NaN batches", *poisoned(2 if small else 20, folder))
        report("steps at 100 times the learning rate", *hot(100 if small else 10_000))
        if not small:
            (folder / "large").mkdir()
            seconds = large_step(folder / "large")
            result(
                "training: exit after SIGTERM within a step of 110 M parameters, s",
                round(seconds, 1),
                "<= 10",
                lambda v: v <= 10,
            )


if __name__ == "__main__":
    main()
    leave()
