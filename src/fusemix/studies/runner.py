"""Doing trials: in several processes, each result on the disk as it comes, so that the same command goes on."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch

from fusemix.data.latents import Latents, open_latents
from fusemix.errors import DataError, FusemixError
from fusemix.fit import foresee
from fusemix.studies.trials import Numbers, Pool, Trial, run_trial
from fusemix.training.device import find_device
from fusemix.training.journal import read
from fusemix.training.order import Order
from fusemix.training.validation import validations

NAME = "trials.jsonl"
Told = Callable[[Trial, dict[str, Any]], None]
"""Called with each trial that is done and its figures; figures of a trial that failed are {"error": why}."""


def run_all(
    trials: Sequence[Trial], folders: Sequence[Path], picks: dict[str, Numbers], out: Path, jobs: int,
    device: str | None, told: Told,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Do all trials that are not done yet.

    Args:
        trials: what to do, in this order.
        folders: of latents; a trial names one by its place.
        picks: see `run_trial`.
        out: folder of trials.jsonl, one line per trial.
        jobs: processes.
        device: of the fits; None takes CUDA where there is one.
        told: called after each trial.

    Returns:
        Figures by key of the trial. A trial that failed has "error", and is tried again by the next run.
    """
    path = out / NAME
    done = {line["key"]: line["figures"] for line in read(path) if "error" not in line["figures"]}
    _cut_torn_line(path)
    todo = [trial for trial in dict.fromkeys(trials) if trial.key not in done]
    for trial in dict.fromkeys(trials):
        if trial.key in done:
            told(trial, done[trial.key])
    threads = threads_of(jobs)
    spawn, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, spawn, _begin, (threads,)) as processes, path.open("a") as file:
        futures = {processes.submit(_work, trial, tuple(folders), picks, device): trial for trial in todo}
        try:
            for future in as_completed(futures):
                trial, figures = futures[future], future.result()
                line = {"key": trial.key, "trial": trial.__dict__, "figures": figures}
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
                done[trial.key] = figures
                told(trial, figures)
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:  # their fits are lost, and done again later
                process.terminate()
            processes.shutdown(wait=False, cancel_futures=True)
            raise
    return {trial.key: done[trial.key] for trial in trials}


def foresee_all(trials: Sequence[Trial], folders: Sequence[Path], jobs: int, device: str | None) -> float:
    """Return about how many seconds all fits take, so many at a time; a closed form and the measuring count as nothing.

    A few steps and a validation are tried, once for every shape of a step, with the threads that a fit will have.
    """
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    total, threads = 0.0, torch.get_num_threads()
    torch.set_num_threads(threads_of(jobs))
    try:
        for trial in trials:
            if trial.method != "adapters":
                continue
            config = trial.config()
            shape = (trial.latents, config.depth, config.width, config.expansion, config.dim, config.batch_size)
            if shape not in found:
                pool = open_pool(tuple(folders), trial.latents)
                few = pool.train.take(np.arange(trial.pairs))
                once = replace(config, epochs=1)
                cost = foresee(few, once, find_device(device), pool.choose)
                found[shape] = (cost.seconds / cost.steps, cost.validating)
            step, validation = found[shape]
            total += step * Order.of(trial.pairs, config).steps * config.epochs + validation * validations(
                config.epochs
            )
    finally:
        torch.set_num_threads(threads)
    return total / jobs


def threads_of(jobs: int) -> int:
    """Return the threads of each of so many fits at a time."""
    return max(1, (os.cpu_count() or 1) // jobs)


def _cut_torn_line(path: Path) -> None:
    """Remove what a kill left of a last line, so that the next one is not glued to it."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _begin(threads: int) -> None:
    """Prepare a process: Ctrl-C is for the one that gives the work, and none outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(trial: Trial, folders: tuple[Path, ...], picks: dict[str, Numbers], device: str | None) -> dict[str, Any]:
    """Do one trial in a process of its own; an error of ours is a result, anything else is a bug and ends the study."""
    try:
        return run_trial(trial, open_pool(folders, trial.latents), picks, find_device(device))
    except FusemixError as error:
        return {"error": str(error).splitlines()[0]}


@lru_cache(maxsize=4)
def open_pool(folders: tuple[Path, ...], place: int) -> Pool:
    """Open the pool of one of the folders: the pairs of the first folder, with its own latents.

    Raises:
        DataError: a folder that does not hold these pairs.
    """
    latents = open_latents(folders[0])
    if len(latents.modalities) != 2:
        raise DataError(f"a study joins two modalities, {folders[0]} has {' and '.join(latents.modalities)}")
    pool = Pool.of(latents)
    if place == 0:
        return pool
    other = open_latents(folders[place])
    parts = [matched(part, other, folders[place]) for part in (pool.train, pool.choose, pool.measured)]
    return Pool(*parts)


def matched(pairs: Latents, other: Latents, folder: Path) -> Latents:
    """Return the pairs of `other` that have the same items as `pairs`, in the same order.

    Raises:
        FusemixError: some are missing.
    """
    wanted, there = _pair_ids(pairs), {ids: row for row, ids in enumerate(_pair_ids(other))}
    missing = sum(ids not in there for ids in wanted)
    if missing or set(pairs.modalities) != set(other.modalities):
        raise FusemixError(
            f"{folder} lacks {missing:,} of {len(wanted):,} pairs: the folders must be of the same pairs and "
            "modalities, extracted from the same table"
        )
    return other.take(np.array([there[ids] for ids in wanted]))


def _pair_ids(latents: Latents) -> list[tuple[str, ...]]:
    sides = [np.array(latents.items[name].ids, dtype=object)[latents.rows[name]] for name in sorted(latents.modalities)]
    return list(zip(*sides, strict=True))
