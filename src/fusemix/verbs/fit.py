"""`fusemix fit`."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusemix.arguments import Device, Json, Out, Quiet, Seed, named
from fusemix.errors import DataError, choices

if TYPE_CHECKING:
    from fusemix.model import FuseMix


def fit(
    latents: Annotated[Path, typer.Argument(help="Folder that `fusemix extract` wrote.")],
    out: Out,
    val: Annotated[
        str, typer.Option(help="Split that chooses the epoch, or 'none' to keep the last; never test.")
    ] = "val",
    recipe: Annotated[str, typer.Option(help="'scaled' to the number of pairs, or 'paper'.")] = "scaled",
    dim: Annotated[int | None, typer.Option(help="Width of the shared space.")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks per adapter.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Inside the blocks.")] = None,
    alpha: Annotated[float | None, typer.Option(help="lam ~ Beta(alpha, alpha); 0 turns mixing off.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in the loss.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many validations without a gain, of 50 at most (default: never).")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16, or auto: what the device multiplies fastest natively.")
    ] = None,
    lock: Annotated[
        str | None, typer.Option(help="A modality that stays as it is; the other one learns to land in it.")
    ] = None,
    subset: Annotated[Path | None, typer.Option(help="Train on what `fusemix select` picked.")] = None,
    keep: Annotated[int | None, typer.Option(help="Only the first so many of the subset's pairs.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of a fit, such as noise=0.5."),
    ] = None,
    track: Annotated[str | None, typer.Option(help="Also tell trackio, wandb or tensorboard.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; say what it would cost: time, memory and FLOPs.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the adapters on the split train, and ridge and CCA beside them.

    Run it again to go on after an interruption. Under torchrun the processes share every batch.
    """
    import fusemix as fm
    from fusemix.ranks import ranks
    from fusemix.state import claim
    from fusemix.terminal import Bars, say, show_forecast
    from fusemix.tracking import tracker

    model = fm.FuseMix(
        dim, depth=depth, dropout=dropout, alpha=alpha, batch_size=batch_size, epochs=epochs, lr=lr,
        patience=patience, precision=precision, lock=lock, recipe=recipe, seed=seed, device=device,
        settings=settings(setting),
    )  # fmt: skip
    pairs = fm.open_latents(latents)
    # A table without a val split is fine; a name that the user typed must be there.
    if val == "train":
        raise DataError("--val train: pairs that are trained on cannot choose the epoch; give another split, or none")
    held = pairs.only(val) if val in pairs.splits or val not in ("val", "none") else None
    train = fm.Subset.train(pairs, subset, keep)
    if dry_run:
        cost = model.forecast(train, val=held)
        say(json.dumps(cost.to_dict(), indent=2)) if as_json else show_forecast(cost)
        return
    first = ranks()[0] == 0  # of several processes one speaks
    claim(out)  # before a tracker begins a run
    listener = tracker(track, str(out), model.config(len(train)).to_dict(), out) if track and first else nullcontext()
    with Bars(quiet or not first) as bars, listener as told:
        model.fit(train, val=held, out=out, track=told, progress=bars)
    if not first:
        return
    if subset is not None:
        model.facts_["subset"] = fm.Subset.load(subset).facts
    model.save(out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **model.facts_, "config": model.config_.to_dict()}, indent=2))
        return
    _show(model, val if held is not None else None)
    say(f"next: fusemix evaluate {out} {latents}")


def _show(model: "FuseMix", val: str | None) -> None:
    """Say what a fit came to."""
    from fusemix.terminal import say

    facts = model.facts_
    steps, epochs = int(model.history_[-1]["step"]), len(model.history_)
    say(
        f"{facts['pairs']:,} pairs, {steps:,} steps of {facts['batch_size']:,}, {facts['parameters']:,} parameters, "
        f"{facts['seconds']:g} s"
    )
    if epochs < model.config_.epochs:
        gone = model.config_.epochs - epochs
        say(f"stopped {gone} epochs early: {model.config_.patience} validations brought no gain")
    recall = max((record.get("val", 0.0) for record in model.history_), default=0.0)
    how = f"best on {facts['val_pairs']:,} {val} pairs, with a mean R@1, 5, 10 both ways of {recall:.1f}"
    how = how if val is not None else "the last one; no validation split"
    say(f"kept epoch {facts['best_epoch']} of {epochs}: {how}")


def settings(words: list[str] | None) -> dict[str, Any] | None:
    """Read the NAME=VALUE words of --set: each value is of the kind that the recipe has there.

    Raises:
        DataError: no setting of that name, or a value of another kind.
    """
    from fusemix.config import scaled

    usual = scaled(1000, 0).to_dict()
    found: dict[str, Any] = {}
    for name, word in named("set", words).items():
        if name not in usual:
            raise DataError(f"--set {name}={word}: a fit has no setting {name!r}; {choices(name, usual)}")
        kind = type(usual[name])
        try:
            found[name] = {"true": True, "false": False}[word] if kind is bool else kind(word)
        except (ValueError, KeyError):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise DataError(f"--set {name}={word}: wanted {wanted}") from None
    return found or None
