"""One trial of a study: which pairs, what is done to them, one fit, and what it reaches on pairs it never saw."""

import json
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.align.folds import Folds, fit_closed_forms
from fusemix.align.metrics import CUTOFFS
from fusemix.config import FitConfig, scaled
from fusemix.data.latents import Latents
from fusemix.errors import DataError
from fusemix.evaluate import Embed, Scores, score
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training.forecast import step_flops
from fusemix.training.order import Order
from fusemix.training.validation import embed

CHOOSERS = 1000  # groups at most that choose the epoch where the table has no split for it
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """Everything that decides one fit.

    Attributes:
        pairs: how many to train on.
        seed: of the pairs, the wrong partners, and the fit.
        method: "adapters", or a closed form: "cca" or "ridge".
        pick: how the pairs are chosen: "uniform", "diversity on image", or "source=value" of a column.
        wrong: share of the pairs whose partners are swapped among them, in [0, 1).
        latents: which of the folders of latents, from 0.
        steps: of the fit; 0 is what the recipe takes.
        settings: changes to the recipe, by name of `FitConfig`.
    """

    pairs: int
    seed: int
    method: str = "adapters"
    pick: str = "uniform"
    wrong: float = 0.0
    latents: int = 0
    steps: int = 0
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """The same for the same trial, also in another run."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def config(self) -> FitConfig:
        """Return the recipe's settings for so many pairs, with the changes, and as many epochs as take `steps`.

        Every variant takes the same number of steps, so that none wins by being trained longer.
        """
        changes = dict(self.settings)
        config = scaled(self.pairs, self.seed, changes.get("batch_size"), changes.get("alpha", 1.0))
        config = replace(config, **changes)
        if not self.steps:
            return config
        return replace(config, epochs=max(1, round(self.steps / Order.of(self.pairs, config).steps)))


@dataclass(frozen=True)
class Pool:
    """The three parts of a study, apart from one another: no group is in two of them.

    Attributes:
        train: pairs to choose from.
        choose: pairs that choose the epoch of each fit.
        measured: pairs that every trial is judged on.
    """

    train: Latents
    choose: Latents
    measured: Latents

    @classmethod
    def of(cls, latents: Latents) -> "Pool":
        """Split latents: measured on "test" if there is one, else on "val", which then chooses nothing.

        Where no split is left to choose the epoch, a tenth of the training groups (1,000 at most) does, and is not
        trained on.

        Raises:
            DataError: no split "train", or none to measure on.
        """
        train = latents.only("train")
        measured = latents.only("test" if "test" in latents.splits else "val")
        if measured.split_name == "test" and "val" in latents.splits:
            return cls(train, latents.only("val"), measured)
        groups = np.random.default_rng(0).permutation(np.unique(train.groups))
        if len(groups) < 20:
            raise DataError(f"a study needs at least 20 groups of training pairs, got {len(groups)}")
        chosen = np.isin(train.groups, groups[: min(CHOOSERS, len(groups) // 10)])
        return cls(train.take(~chosen), train.take(chosen), measured)


def run_trial(trial: Trial, pool: Pool, picks: dict[str, Numbers], device: torch.device) -> dict[str, Any]:
    """Do a trial.

    Args:
        trial: what to do.
        pool: pairs to do it on.
        picks: for every pick but "uniform" and sources: pairs of the pool in the order they were picked.
        device: of the fit.

    Returns:
        Plain numbers: R@k of either direction and their mean, in percent; pairs and distinct items; validation recall
        and epoch that was kept; parameters, FLOPs and seconds of the fit.

    Raises:
        DataError: fewer pairs than the trial asks for.
        DivergedError: the fit broke down.
    """
    rows = pick(trial, pool.train, picks)
    train = swap_partners(pool.train.take(rows), trial.wrong, trial.seed)
    started = time.perf_counter()
    embedding, facts = (_adapters if trial.method == "adapters" else _closed_form)(trial, train, pool.choose, device)
    facts["seconds"] = round(time.perf_counter() - started, 2)
    items = {f"{name} items": len(np.unique(train.rows[name])) for name in train.modalities}
    return {**_figures(score(embedding, pool.measured)), "pairs": len(train), **items, **facts}


def pick(trial: Trial, pool: Latents, picks: dict[str, Numbers]) -> Numbers:
    """Return the pairs of a trial, as row numbers of the pool: nested, a larger trial of a seed has all of a smaller.

    Raises:
        DataError: fewer pairs than the trial asks for.
    """
    if trial.pick in picks:
        order = picks[trial.pick]
    else:
        order = np.random.default_rng([trial.seed, 2]).permutation(len(pool))
        if "=" in trial.pick:
            column, _, value = trial.pick.partition("=")
            order = order[np.array([str(each) == value for each in pool.table[column].to_pylist()])[order]]
    if len(order) < trial.pairs:
        raise DataError(f"{trial.pick}: wanted {trial.pairs:,} pairs, there are {len(order):,}")
    return order[: trial.pairs]


def swap_partners(latents: Latents, share: float, seed: int) -> Latents:
    """Give a share of the pairs, chosen at random, the second item of another of them: none of these keeps its own."""
    count = round(share * len(latents))
    if count < 2:
        return latents
    chosen = np.random.default_rng([seed, 3]).choice(len(latents), count, replace=False)
    second = latents.modalities[1]
    rows = latents.rows[second].copy()
    rows[chosen] = np.roll(rows[chosen], 1)
    return replace(latents, rows={**latents.rows, second: rows})


def _adapters(trial: Trial, train: Latents, choose: Latents, device: torch.device) -> tuple[Embed, dict[str, Any]]:
    config = trial.config()
    fitted = fit_adapters(train, choose, config, device, silent)
    dims = [train.items[name].rows.shape[1] for name in train.modalities]
    steps = int(fitted.history[-1]["step"])
    kept = max(fitted.history, key=lambda record: record.get("val", 0.0))
    facts = {
        "val": kept.get("val"), "kept epoch": fitted.best_epoch, "epochs": len(fitted.history), "steps": steps,
        "batch": fitted.batch_size, "flops": steps * step_flops(config, dims, fitted.batch_size),
        "parameters": sum(p.numel() for side in fitted.adapters.values() for p in side.parameters()),
    }  # fmt: skip
    return lambda modality, rows: embed(fitted.adapters[modality], rows), facts


def _closed_form(trial: Trial, train: Latents, choose: Latents, device: torch.device) -> tuple[Embed, dict[str, Any]]:
    x, y = train.modalities
    rows = train.rows[x], train.rows[y]
    forms = fit_closed_forms(Folds.of(train.items[x].rows, train.items[y].rows, rows, train.groups, trial.seed))
    form = forms[trial.method]
    facts = {"shrinkage": form.shrinkage, "parameters": form.map_x.numel() + form.map_y.numel()}
    return lambda modality, rows: (form.embed_x if modality == x else form.embed_y)(rows.whole()), facts


def _figures(scores: dict[str, Scores]) -> dict[str, float]:
    """Return R@k of every direction, and the mean of both."""
    found = {f"R@{k} {way}": each.recall[k] for way, each in scores.items() for k in CUTOFFS}
    means = {f"R@{k}": float(np.mean([each.recall[k] for each in scores.values()])) for k in CUTOFFS}
    return {name: round(value, 4) for name, value in {**means, **found}.items()}
