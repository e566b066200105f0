"""Studies: the paper's analyses of quantity, quality and diversity on any latents, with seeds and intervals."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusemix import durable
from fusemix.data.latents import Latents
from fusemix.data.store import difference as named_difference
from fusemix.errors import DataError, MismatchError, StoreError
from fusemix.progress import Progress, silent
from fusemix.studies.findings import Finding, caption, findings
from fusemix.studies.page import write_study
from fusemix.studies.plan import Arm, Plan, make_plan
from fusemix.studies.points import Point, gather
from fusemix.studies.runner import foresee_all, open_pool, run_all, threads_of
from fusemix.studies.trials import Numbers, Pool, Trial
from fusemix.subsets import select
from fusemix.training.device import find_device

FACTS = "study.json"
FORMAT = "fusemix-study-2"


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        arms: what was planned.
        done: figures by key of the trial; of a trial that failed, "error".
        points: the arms with their seeds brought together.
        facts: what was measured on, sizes of the pool, modalities, folders.
    """

    arms: Sequence[Arm]
    done: dict[str, dict[str, Any]]
    points: Sequence[Point]
    facts: dict[str, Any]

    @property
    def findings(self) -> list[Finding]:
        """What was found, in words."""
        return findings(self.points)

    def __str__(self) -> str:
        said = [line for found in self.findings for line in (found.verdict, f"    {found.detail}")]
        return "\n".join([caption(self.facts["measured"]), *said])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        points = [point.to_dict() for point in self.points]
        return {"facts": self.facts, "points": points, "findings": [found._asdict() for found in self.findings]}


@dataclass(frozen=True)
class Planned:
    """A study before it is done: what `run` does."""

    plan: Plan
    pool: Pool
    folders: tuple[Path, ...]
    facts: dict[str, Any]

    @property
    def trials(self) -> list[Trial]:
        """Every fit once, in order."""
        return list(dict.fromkeys(arm.trial for arm in self.plan.arms()))

    def counts(self) -> dict[str, int]:
        """Return how many fits each study has; some serve several."""
        arms = self.plan.arms()
        names = dict.fromkeys(arm.study for arm in arms)
        return {name: len({arm.trial for arm in arms if arm.study == name}) for name in names}

    def seconds(self, jobs: int = 1, device: str | None = None) -> float:
        """Foresee how long all fits take, with so many at a time, from a few steps that are tried."""
        return foresee_all(self.trials, self.folders, jobs, device)


def plan_study(
    latents: Sequence[str | Path],
    *,
    only: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    pairs: int | None = None,
    seeds: int = 3,
    steps: int | None = None,
    source: str | None = None,
) -> Planned:
    """Say what a study would do; reads the pairs and no latents. Arguments and errors as of `study`."""
    folders = tuple(Path(folder) for folder in latents)
    if not folders:
        raise DataError("a study needs a folder of latents, as `fusemix extract` writes it")
    pools = [open_pool(folders, place) for place in range(len(folders))]
    pool = pools[0]
    swaps = _names(pools, folders)
    plan = make_plan(pool.train, only, sizes, pairs, seeds, steps, source, swaps if len(folders) > 1 else [])
    measured = pool.measured
    x, y = measured.modalities
    queries = " and ".join(f"{len(np.unique(measured.rows[name])):,} {name} items" for name in (x, y))
    facts = {
        "format": FORMAT,
        "measured": f"the {len(measured):,} pairs ({queries}) of the split {measured.split_name!r}",
        "measured pairs": _hash(measured),
        "pool": len(pool.train),
        "pool pairs": _hash(pool.train),
        "epochs chosen on": f"{len(pool.choose):,} pairs of {pool.choose.split_name!r} that nothing is trained on",
        "encoders": {
            name: {key: str(side.items[key].encoder.get("name", "")) for key in side.items}
            for name, side in zip(swaps, (each.train for each in pools), strict=True)
        },
    }  # fmt: skip
    return Planned(plan, pool, folders, facts)


def study(
    latents: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    pairs: int | None = None,
    seeds: int = 3,
    steps: int | None = None,
    source: str | None = None,
    jobs: int = 1,
    device: str | None = None,
    told: Callable[[Sequence[Point], int, int], None] = lambda points, done, total: None,
    progress: Progress = silent,
) -> Study:
    """Fit many adapters on parts of the data, and say what quantity, quality, diversity and settings are worth.

    Everything is measured on the split "test" (or "val"), which nothing is trained or chosen on. The same call goes on
    after an interruption; every fit that is done is kept in `out`.

    Args:
        latents: folder that `extract` wrote; further ones are of the same pairs by other encoders.
        out: folder to write: trials.jsonl, study.csv, curves as PNG and SVG, and report.html.
        only: names of studies; None is all: quantity, quality, diversity, batch, adapter, augmentation, encoders.
        sizes: numbers of pairs of the quantity and diversity studies; None is all pairs, a quarter, a sixteenth, ...
        pairs: that the other studies train on; None is 5,000, or all.
        seeds: fits of every point; each draws its own pairs.
        steps: of every fit; None is the recipe's, about 1,000.
        source: column whose values are compared at equal numbers of pairs.
        jobs: fits at a time, each in a process of its own.
        device: of the fits; None takes CUDA where there is one.
        told: called with what is known after each fit: points, fits done, fits in all.
        progress: called while pairs are picked for diversity.

    Raises:
        DataError: a study, size or column that there is not.
        MismatchError: `out` holds a study of other pairs.
        StoreError: no latents there.
    """
    folders = [latents] if isinstance(latents, str | Path) else list(latents)
    planned = plan_study(folders, only=only, sizes=sizes, pairs=pairs, seeds=seeds, steps=steps, source=source)
    folder = Path(out)
    _claim(folder, planned.facts)
    arms = planned.plan.arms()
    picks = _picks(planned, folder, progress)
    done: dict[str, dict[str, Any]] = {}

    def tell(trial: Trial, figures: dict[str, Any]) -> None:
        done[trial.key] = figures
        told(gather(arms, done), len(done), len(planned.trials))

    run_all(planned.trials, planned.folders, picks, folder, jobs, device, tell)
    facts = {**planned.facts, "device": _device_name(find_device(device), jobs)}
    found = Study(arms, done, gather(arms, done), facts)
    write_study(found.points, found.facts, done, folder)
    return found


def _device_name(device: torch.device, jobs: int) -> str:
    """Say whose seconds are told."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = threads_of(jobs)
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def _picks(planned: Planned, out: Path, progress: Progress) -> dict[str, Numbers]:
    """Choose pairs for diversity, once: a smaller subset is the beginning of a larger one. Kept in `out`."""
    found = {}
    ways = planned.plan.picks()
    most = planned.plan.picked_sizes()[-1] if ways else 0
    for place, how in enumerate(ways):
        progress("choose for diversity", place, len(ways), how)
        path = out / f"{how.replace(' ', '-')}.npy"
        rows = np.load(path, allow_pickle=False) if path.exists() else np.empty(0, dtype=np.int64)
        if len(rows) < most:
            rows = select(planned.pool.train, most, by="diversity", on=how.removeprefix("diversity on ")).rows
            _save_array(path, rows)
        found[how] = rows
    if ways:
        progress("choose for diversity", len(ways), len(ways))
    return found


def _save_array(path: Path, rows: Numbers) -> None:
    from io import BytesIO

    content = BytesIO()
    np.save(content, rows, allow_pickle=False)
    durable.write(path, content.getvalue())


def _claim(out: Path, facts: dict[str, Any]) -> None:
    """Go on with a study of the same pairs, or begin one in an empty folder.

    Raises:
        MismatchError: it holds one of other pairs.
        StoreError: it holds something else.
    """
    path = out / FACTS
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); give another output folder") from error
        same = ("format", "measured pairs", "pool pairs")
        differs = named_difference({key: old.get(key) for key in same}, {key: facts[key] for key in same})
        if differs:
            raise MismatchError(f"{out} holds a study of other pairs: {differs}; give another output folder")
    elif out.exists() and any(out.iterdir()):
        raise StoreError(f"{out} holds something else; give an empty or a new folder")
    out.mkdir(parents=True, exist_ok=True)
    durable.write(path, json.dumps(facts, indent=1).encode())


def _names(pools: Sequence[Pool], folders: Sequence[Path]) -> list[str]:
    """Name the folders by the encoders in which they differ, else by themselves."""
    encoders = [{k: str(v.encoder.get("name", "")) for k, v in pool.train.items.items()} for pool in pools]
    differ = [name for name in pools[0].train.modalities if len({each[name] for each in encoders}) > 1]
    names = [" + ".join(Path(each[name]).stem for name in differ) for each in encoders]
    return names if differ and len(set(names)) == len(names) else [folder.name for folder in folders]


def _hash(latents: Latents) -> str:
    """Tell pairs, and the encoders of their latents, from any others."""
    found = sha256()
    for name in latents.modalities:
        items = latents.items[name]
        found.update(json.dumps([name, items.encoder], sort_keys=True, default=str).encode())
        found.update("\n".join(items.ids).encode())
        found.update(latents.rows[name].tobytes())
    return found.hexdigest()[:16]


__all__ = ["Arm", "Planned", "Point", "Study", "plan_study", "study"]
