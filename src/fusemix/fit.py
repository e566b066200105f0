"""Train two adapters on latents: FuseMix as published (arXiv 2312.10144, Algorithm 1). No encoder in sight."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

import numpy as np
import torch
from torch import Tensor

from fusemix import durable
from fusemix.align.adapters import AnyAdapter, Landing
from fusemix.align.closed_form import ClosedForm
from fusemix.align.hubness import spaced
from fusemix.config import FitConfig
from fusemix.data.latents import Latents
from fusemix.errors import DataError, DivergedError, choices
from fusemix.progress import Progress
from fusemix.ranks import least, most
from fusemix.training import checkpoint
from fusemix.training.checks import check_pairs, check_validation
from fusemix.training.feed import fits
from fusemix.training.forecast import Forecast, forecast, kept_on, matmul_rate, step_flops
from fusemix.training.interrupt import Interrupted, Interrupts
from fusemix.training.journal import Journal, Meter, Track
from fusemix.training.order import Order
from fusemix.training.run import Run
from fusemix.training.step import Adapters, Trainer, compiling_pays
from fusemix.training.validation import Sides, in_blocks, validate, validations

SAVE_SECONDS = 60.0  # between checkpoints at least
SAVE_COST = 20.0  # and at least so many times what one takes
LOG_STEPS = 100
DIVERGED = "diverged.json"  # ids of the batch after which nothing was a number, by modality
TRIAL_FLOPS = 2e11  # of the largest step that is tried before a forecast: a few seconds
SETTLED, SETTLED_NUMBERS = 20_000, 2**26  # training items, and numbers in them, at most that say where a landing lies
WIDEST = 10_000  # numbers in a latent that closed forms are fitted to: a covariance takes 0.8 GB, and it takes several
KNOWN_NUMBERS = 2**25  # in the real latents that a model keeps of a locked space: 128 MiB
TRIAL_PAIRS = 10_000  # of the largest validation that is tried: a few seconds, too
LOOK_STEPS = 20  # steps whose mean loss is shown; a GPU is not stopped more often than that to ask for it


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves.

    Attributes:
        adapters: of each modality, on the CPU, in evaluation mode.
        temperature: the learned one.
        history: one record per epoch: epoch, step, loss, lr, temperature, and val where it was measured.
        best_epoch: the epoch whose weights were kept, from 1.
        notes: what is odd about the latents, in words.
        batch_size: pairs in the loss of a step.
        earlier: seconds of the steps that were done before an interruption.
    """

    adapters: dict[str, AnyAdapter]
    temperature: float
    history: list[dict[str, float]]
    best_epoch: int
    notes: list[str]
    batch_size: int
    earlier: float


def fit_adapters(
    train: Latents, val: Latents | None, config: FitConfig, device: torch.device, progress: Progress,
    *, start: ClosedForm | None = None, out: Path | None = None, track: Track | None = None,
) -> Fitted:  # fmt: skip
    """Train one adapter per modality with the contrastive loss on mixed latents.

    Args:
        train: pairs to train on; two modalities.
        val: pairs that choose the epoch by mean recall both ways; None keeps the last epoch.
        config: all settings.
        device: where to train.
        progress: called after every step.
        start: the closed form that adapters begin as; its width is that of `config`.
        out: folder of metrics.jsonl and of checkpoints, from which an interrupted fit goes on; None keeps nothing.
        track: called with every record of metrics.jsonl.

    Raises:
        DataError: pairs that cannot be fitted, or validation on a test split.
        DivergedError: the loss is no number any more; `out` / diverged.json lists the batch.
        MismatchError: `out` holds the checkpoint of another fit.
        StoreError: `out` holds a damaged one.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after the state was written to `out`.
    """
    health = check_pairs(train)
    notes = [note for found in health.values() for note in found.notes()]
    if too_wide(train):
        notes.append(f"no ridge and CCA to compare with: latents of {widest(train):,} numbers are too wide for them")
    if val is not None:
        health |= {f"val {name}": found for name, found in check_validation(train, val).items()}
    with Interrupts(out is not None) as interrupts:
        try:
            # The caller's random state is not ours to move.
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
                run = Run(train, val, config, device, health, interrupts, start)
                _train_or_save(run, out, notes, progress, track)
        except Interrupted as interrupted:
            raise interrupted.leave() from None
    kept = run.keep_best()
    sides = [side.cpu().eval() for side in run.adapters.sides]
    adapters = dict(zip(train.modalities, sides, strict=True))
    if run.adapters.landing is not None:
        _settle(run.adapters.landing, train, config, kept["temperature"])
    return Fitted(
        adapters, kept["temperature"], run.history, int(kept["epoch"]), notes, run.order.batch_size, run.earlier
    )


def _settle(landing: Landing, train: Latents, config: FitConfig, temperature: float) -> None:
    """Give what lands in a locked space the mean and spread of it, and real latents to be drawn towards."""
    free, locked = train.modalities if config.lock == "y" else train.modalities[::-1]
    rows, cpu = train[free].rows, torch.device("cpu")
    items = rows.take(spaced(len(rows), min(SETTLED, SETTLED_NUMBERS // config.dim)))
    landing.settle(in_blocks(landing.land, items, cpu))
    known = min(config.prior, KNOWN_NUMBERS // config.dim)
    if known:
        some = train.rows[locked][spaced(len(train), known)]
        landing.remember(train.items[locked].rows.take(some), torch.tensor(temperature))
        landing.settle_conditions(in_blocks(landing.condition, items, cpu))


def _train_or_save(run: Run, out: Path | None, notes: list[str], progress: Progress, track: Track | None) -> None:
    """Train to the end; whatever comes between, what was learned is written to `out`."""
    with run.interrupts.held():  # half a state must not be written over a whole one
        if out is not None:
            run.restore(out)
    if not run.resident:
        notes.append(f"latents do not fit the memory and are read from the disk, in blocks of {run.order.block} pairs")
    epoch = f"going on after step {run.step:,} (epoch {len(run.history) + 1})"
    progress("check latents", len(run.pairs), len(run.pairs), "; ".join([epoch, *notes] if run.step else notes))
    try:
        # Several processes stop at the same step, or some would wait for the others for ever.
        with run.interrupts.held() if run.world > 1 else nullcontext():
            _train(run, out, progress, track)
    except DivergedError as error:
        if out is not None and run.rank == 0:
            durable.write(out / DIVERGED, json.dumps(error.ids, indent=1).encode())
            raise DivergedError(f"{error}; all of them are in {out / DIVERGED}", error.ids) from None
        raise
    except (Interrupted, RuntimeError) as stopped:  # under torchrun the death of another process is a RuntimeError
        if out is not None and (isinstance(stopped, Interrupted) or run.world > 1):
            run.save(out)
        raise
    finally:
        run.feed.close()
        run.trainer.close()
    if out is not None:
        with run.interrupts.held():
            run.save(out)  # what comes after the training can be interrupted, too


def foresee(
    train: Latents, config: FitConfig, device: torch.device, val: Latents | None = None,
    start: ClosedForm | None = None,
) -> Forecast:  # fmt: skip
    """Say what training would cost, from the rate of the device, a few steps on random numbers and a validation.

    Writes nothing. Arguments as of `fit_adapters`.

    Raises:
        DataError, MismatchError: pairs that cannot be fitted, or validation pairs that do not go with them.
    """
    check_pairs(train)
    if val is not None:
        check_validation(train, val)
    order = Order.of(len(train), config)
    dims = [train.items[name].rows.shape[1] for name in train.modalities]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        kept = kept_on(device)
        adapters = Adapters(dims, config, start)
        flops = step_flops(config, adapters.dims, order.batch_size, kept)
        compiled = compiling_pays(flops * order.steps * config.epochs, device)
        trainer = Trainer(adapters.to(device), config, device, compiled=compiled)
        small = 1.0 if device.type == "cuda" else TRIAL_FLOPS / flops  # a GPU would idle on few pairs
        rows = max(2, min(order.batch_size, int(order.batch_size * small)))
        batch = [torch.randn(rows, dim, device=device) for dim in dims]
        times = [_time_step(trainer, batch) for _ in range(4)][1:]  # the first pays for warming up
        once = _time_validation(trainer, val, train.modalities) if val is not None else 0.0
    gradients, update = (min(each) for each in zip(*times, strict=True))
    seconds = gradients * flops / step_flops(config, adapters.dims, rows, kept) + update
    precision = str(trainer.precision).removeprefix("torch.")
    rate = matmul_rate(device, trainer.precision)
    return forecast(
        train, config, device, precision, rate, seconds, fits(train, device), once * validations(config.epochs),
        adapters.dims if start is not None else (),
    )  # fmt: skip


def within(
    seconds: float, train: Latents, val: Latents | None, config: FitConfig, device: torch.device, out: Path | None
) -> int:
    """Return how many epochs are foreseen to end in so many seconds: at most those of `config`, and perhaps none.

    An interrupted fit in `out` keeps the number that it began with, and all processes take the same.

    Raises:
        DataError, StoreError: see `fit_adapters`.
    """
    found = checkpoint.read(out) if out is not None else None
    epochs = int(found[1]["identity"]["epochs"]) if found is not None else config.epochs
    if found is None:
        cost = foresee(train, config, device, val)
        step, look = cost.seconds / config.epochs, cost.validating / validations(config.epochs)
        while epochs and epochs * step + validations(epochs) * look > seconds:
            epochs -= 1
    return int(least(epochs))


def locked(config: FitConfig, train: Latents, modality: str | None, dim: int | None) -> FitConfig:
    """Return the settings of a fit into the latents of one modality, whose width the shared space then has.

    Args:
        config: all other settings.
        train: the pairs.
        modality: what to lock; None leaves the settings as they are.
        dim: width of the shared space that was asked for, if any.

    Raises:
        DataError: no such modality, or another width.
    """
    if modality is None:
        if config.lock != "none":
            raise DataError(
                f"the setting lock={config.lock!r} follows from the modality: give that, by lock= or --lock"
            )
        return config
    if modality not in train.modalities:
        raise DataError(f"lock={modality!r}: no such modality; {choices(modality, train.modalities)}")
    if config.adapter not in ("auto", "mlp"):
        raise DataError(f"lock={modality!r} takes a network that learns to land there, not adapter={config.adapter!r}")
    width = train.items[modality].rows.shape[1]
    if dim not in (None, width):
        raise DataError(f"lock={modality!r} makes the shared space {width} wide, dim={dim} contradicts: leave dim out")
    side = "xy"[train.modalities.index(modality)]
    return config.changed({"adapter": "mlp", "lock": side, "dim": width, "refine": False})


def too_wide(train: Latents) -> bool:
    """Tell whether closed forms would take too much memory."""
    return widest(train) > WIDEST


def widest(train: Latents) -> int:
    """Return how many numbers a latent has, of the wider modality."""
    return max(train.items[name].rows.shape[1] for name in train.modalities)


def _time_step(trainer: Trainer, batch: list[Tensor]) -> tuple[float, float]:
    """Return the seconds of the gradients and of the update."""
    marks = [time.perf_counter()]
    for part in (lambda: trainer.gradients(0, batch), lambda: trainer.update(0.0)):
        part()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        marks.append(time.perf_counter())
    return marks[1] - marks[0], marks[2] - marks[1]


def _time_validation(trainer: Trainer, val: Latents, modalities: tuple[str, ...]) -> float:
    """Return the seconds of one validation; of a large one, from a part: its cost grows with the square."""
    share = min(1.0, TRIAL_PAIRS / len(val))
    held = Sides.of(val.take(np.arange(round(share * len(val)))), modalities, trainer.device)
    started = time.perf_counter()
    validate(trainer.adapters, held)
    return (time.perf_counter() - started) / share**2


def _train(run: Run, out: Path | None, progress: Progress, track: Track | None) -> None:
    """Take all steps that are left; tell and save along the way."""
    first = run.rank == 0  # of several processes one tells
    journal = Journal(out if first else None, run.step, run.history, track if first else None)
    trainer, steps = run.trainer, run.order.steps
    limit = matmul_rate(trainer.device, trainer.precision) * run.world if out is not None else 0.0
    flops = step_flops(run.config, trainer.adapters.dims, run.order.batch_size, kept_on(trainer.device))
    meter = Meter(run.order.size, flops, limit)
    every = 1 if trainer.device.type == "cpu" else LOOK_STEPS
    saved, cost, note = time.monotonic(), 0.0, ""
    run.adapters.train()
    meter.start(run.step)
    while not run.finished:
        if run.place == steps:
            record = run.end_epoch()
            journal.write({**record, "seconds": round(run.seconds, 2), **meter.speed()})
            meter.start(run.step)
            continue
        if run.step % LOG_STEPS == 0 and run.step > journal.step:
            loss = {"loss": run.recent_loss(LOG_STEPS)}
            journal.write({"step": run.step, "epoch": run.step / steps, **loss, **run.rates(), **meter.speed()})
        if run.world > 1 and run.step % every == 0 and most(run.interrupts.came is not None):
            raise Interrupted(run.interrupts.came or SIGTERM)
        run.take_step()
        if run.step % every == 0 or run.place == steps:
            note = _note(run, meter.speed())
            run.seconds += meter.look(run.step)
        progress("fit", run.step, steps * run.config.epochs, note)
        if out is not None and time.monotonic() - saved > max(SAVE_SECONDS, SAVE_COST * cost):
            began = time.monotonic()
            with run.interrupts.held():
                run.save(out)
            saved = time.monotonic()
            cost = saved - began
            meter.start(run.step)
    if run.step < steps * run.config.epochs:  # it stopped early, and is done all the same
        progress("fit", steps * run.config.epochs, steps * run.config.epochs, note)


def _note(run: Run, speed: dict[str, float]) -> str:
    """Say how it goes, for the live line."""
    words = [f"loss {run.recent_loss(LOOK_STEPS):.3f}"]
    measured = [record["val"] for record in run.history if "val" in record]
    if measured:
        words.append(f"val recall {measured[-1]:.1f}")
    if speed:
        words.append(f"{speed['pairs_per_second']:,.0f} pairs/s")
    if "share_of_limit" in speed:
        words.append(f"{speed['share_of_limit']:.0%} of the device")
    return "  ".join(words)
