"""`fusemix fit`."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusemix.arguments import Device, Json, Out, Quiet, Seed, named
from fusemix.errors import DataError, choices

if TYPE_CHECKING:
    from fusemix.data.latents import Latents
    from fusemix.model import FuseMix

Recipe = Annotated[
    str, typer.Option(help="'auto' tries closed forms, a network and both; 'scaled' and 'paper' train a network.")
]
AdapterKind = Annotated[
    str | None, typer.Option(help="Only this: mlp (a network), cca, ridge, procrustes, or both (mlp and cca).")
]
Unpaired = Annotated[
    list[Path] | None, typer.Option(metavar="FOLDER", help="Also learn from latents of items without partners.")
]
Onto = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="A model that has one of the modalities: the new one lands in its space."),
]
Joins = Annotated[
    list[str] | None, typer.Option("--modality", help="Join these two, where the latents are of more; repeat it.")
]
Precision = Annotated[
    str | None, typer.Option(help="float32, bfloat16, or auto: what the device multiplies fastest natively.")
]
Lock = Annotated[str | None, typer.Option(help="A modality that stays as it is; the other one learns to land in it.")]
Minutes = Annotated[
    float | None, typer.Option(help="Time that the fit may take: fewer epochs where all would take longer.")
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Stop after so many validations without a gain, of 50 at most (default: 8 with auto, else never)."
    ),
]


def fit(
    latents: Annotated[Path, typer.Argument(help="Folder that `fusemix extract` wrote.")],
    out: Out,
    val: Annotated[
        str, typer.Option(help="Split to choose by, or 'none': a part of train, or the last epoch; never test.")
    ] = "val",
    recipe: Recipe = "auto",
    adapter: AdapterKind = None,
    unpaired: Unpaired = None,
    onto: Onto = None,
    modality: Joins = None,
    dim: Annotated[int | None, typer.Option(help="Width of the shared space.")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks per adapter.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Inside the blocks.")] = None,
    alpha: Annotated[float | None, typer.Option(help="lam ~ Beta(alpha, alpha); 0 turns mixing off.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in the loss.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    patience: Patience = None,
    minutes: Minutes = None,
    precision: Precision = None,
    lock: Lock = None,
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
    """Join two latent spaces on the split train, and fit ridge and CCA beside.

    Run it again to go on after an interruption. Under torchrun the processes share every batch.
    """
    import fusemix as fm
    from fusemix.ranks import ranks
    from fusemix.state import claim
    from fusemix.terminal import Bars, say, show_forecast
    from fusemix.tracking import tracker

    space = _space(onto, out)
    model = fm.FuseMix(
        dim, adapter=adapter, depth=depth, dropout=dropout, alpha=alpha, batch_size=batch_size, epochs=epochs, lr=lr,
        patience=patience, minutes=minutes, precision=precision, lock=lock, recipe=recipe, seed=seed, device=device,
        settings=settings(setting),
    )  # fmt: skip
    pairs = _two(latents, modality)
    # A table without a val split is fine; a name that the user typed must be there.
    if val == "train":
        raise DataError("--val train: pairs that are trained on cannot choose the epoch; give another split, or none")
    held = pairs.only(val) if val in pairs.splits or val not in ("val", "none") else None
    train = fm.Subset.train(pairs, subset, keep)
    others = _alone(unpaired or (), train)
    if dry_run:
        show_forecast(model.forecast(train, val=held, onto=space), minutes, as_json)
        return
    first = ranks()[0] == 0  # of several processes one speaks
    claim(out)  # before a tracker begins a run
    listener = tracker(track, str(out), model.config(len(train)).to_dict(), out) if track and first else nullcontext()
    with Bars(quiet or not first) as bars, listener as told:
        model.fit(train, val=held, unpaired=others, onto=space, out=out, track=told, progress=bars)
    if not first:
        return
    if subset is not None:
        model.facts_["subset"] = fm.Subset.load(subset).facts
    model.save(out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **model.facts_, "config": model.config_.to_dict()}, indent=2))
        return
    _show(model)
    # A split to measure on may be missing, or have another name.
    measured = {"test", "val"} & set(pairs.splits)
    say(f"next: fusemix evaluate {out} {latents}" if measured else f"next: fusemix index {out} {latents} -o index")


def _space(onto: Path | None, out: Path) -> "FuseMix | None":
    """Open the model whose space it is, if there is one."""
    import fusemix as fm

    if onto is None:
        return None
    if onto.resolve() == out.resolve():
        raise DataError(f"-o {out} is the model that --onto names, and would be lost: write into another folder")
    return fm.FuseMix.load(onto)


def _two(latents: Path, modality: list[str] | None) -> "Latents":
    """Open the pairs of two modalities."""
    import fusemix as fm

    pairs = fm.open_latents(latents, modality)
    if len(pairs.modalities) != 2:
        found = fm.open_latents(latents).modalities
        if len(found) == 1:
            raise DataError(
                f"a fit joins two modalities, and {latents} has {found[0]} alone: learn from it beside pairs, with "
                f"--unpaired {latents}"
            )
        raise DataError(f"a fit joins two modalities; name two of them with --modality, of: {', '.join(found)}")
    return pairs


def _alone(folders: Sequence[Path], train: "Latents") -> "list[Latents]":
    """Open what may lack partners: each modality by itself, so that a row may lack any other."""
    import fusemix as fm

    found = []
    for folder in folders:
        whole = fm.open_latents(folder)
        known = [name for name in whole.modalities if name in train.modalities]
        found += [fm.open_latents(folder, [name]) for name in known] or [whole]  # of which `fit` says what it lacks
    return found


def _show(model: "FuseMix") -> None:
    """Say what a fit came to."""
    from fusemix.terminal import say

    facts = model.facts_
    say(f"{facts['pairs']:,} pairs, {facts['parameters']:,} numbers learned, {facts['seconds']:g} s")
    if model.history_:
        steps, epochs = int(model.history_[-1]["step"]), len(model.history_)
        kept = _kept(model, epochs) if facts["best_epoch"] is not None else "not kept"
        say(f"trained {steps:,} steps of {facts['batch_size']:,}; {kept}")
    where = f"{facts['judged']:,} pairs of {facts['judges']}"
    for what, recall in sorted(facts["tried"].items(), key=lambda each: each[0] != facts["chosen"]):
        mark = "chose" if what == facts["chosen"] else "  not"
        say(f"{mark} {what}: mean R@1, 5, 10 both ways of {recall:.1f} on {where}")
    if facts["hubs"]["strength"]:
        without = facts["hubs"]["uncorrected"]
        beside = "" if without is None else f"; without, {without:.1f}"
        say(f"hubs corrected by {facts['hubs']['strength']:g}{beside}")
    if not facts["tried"] and facts["best_epoch"] is None:
        say(f"{facts['chosen']}: fewer than 20 groups could choose, so it was compared with nothing")
    for note in facts["notes"]:
        say(f"note: {note}")


def _kept(model: "FuseMix", epochs: int) -> str:
    """Say which epoch of the training stayed, and why."""
    recall = max((record.get("val", 0.0) for record in model.history_), default=0.0)
    gone = model.config_.epochs - epochs
    early = f", {gone} epochs early: {model.config_.patience} validations brought no gain" if gone else ""
    how = f"the best with {recall:.1f}" if recall else "the last one; no validation split"
    return f"kept epoch {model.facts_['best_epoch']} of {epochs}, {how}{early}"


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
