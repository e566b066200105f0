"""`fusemix select`: a subset of k pairs, what it holds beside a uniform one, and what to type next."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusemix.arguments import Json, Quiet, Seed

if TYPE_CHECKING:
    from fusemix.subsets import Forecast, Subset


def select(
    latents: Annotated[Path, typer.Argument(help="Folder that `fusemix extract` wrote.")],
    keep: Annotated[int, typer.Option(help="Pairs to pick.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.")] = Path("subset.parquet"),
    by: Annotated[
        str, typer.Option(help="diversity, coverage, facility, quality, mix (diversity and quality) or uniform.")
    ] = "diversity",
    on: Annotated[str | None, typer.Option(help="Modality whose latents are looked at (default: both).")] = None,
    split: Annotated[str, typer.Option(help="Split to pick from; never test.")] = "train",
    weight: Annotated[float, typer.Option(help="For mix: how much quality counts.")] = 1.0,
    parts: Annotated[
        int | None, typer.Option(help="Pick in so many parts, then among the picks (default: 1 while that fits 4 GB).")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float64 or float32 (default: float64 while that fits 4 GB).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what it would cost.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pick the pairs that are worth keeping, in order: the first m of them are the answer for m."""
    import fusemix as fm
    from fusemix import subsets
    from fusemix.terminal import Bars, say

    pairs = fm.open_latents(latents)
    if dry_run:
        cost = subsets.forecast(pairs, keep, by, on, split=split, parts=parts, precision=precision)
        result = {**asdict(cost), "plan": {**asdict(cost.plan), "dtype": str(cost.plan.dtype).removeprefix("torch.")}}
        say(json.dumps(result, indent=2)) if as_json else _foresee(cost, keep)
        return
    with Bars(quiet) as bars:
        options: dict[str, Any] = {"seed": seed, "split": split, "weight": weight, "parts": parts}
        subset = fm.select(pairs, keep, by, on, precision=precision, progress=bars, **options)
    subset.save(out)
    beside = subsets.compared(pairs, subset)
    if as_json:
        say(json.dumps({"out": str(out), **subset.facts, **beside}, indent=2))
    else:
        _show(subset, beside, latents, out)


def _foresee(cost: "Forecast", keep: int) -> None:
    """Print what a selection would cost."""
    from fusemix.terminal import duration, say, size

    say(f"{keep:,} of {cost.pairs:,} pairs, {cost.items:,} of which differ in what is looked at; nothing was picked")
    dtype = str(cost.plan.dtype).removeprefix("torch.")
    how = "exact" if cost.plan.parts == 1 else f"in {cost.plan.parts:,} parts of {cost.plan.quota:,} picks each"
    how += ", then among the picks" if cost.plan.final else ""
    say(f"{how}, {dtype}: {size(cost.memory_bytes)} of memory, about {duration(cost.seconds)}")


def _show(subset: "Subset", beside: dict[str, Any], latents: Path, out: Path) -> None:
    """Print what was picked, and what to type next."""
    from fusemix.terminal import say

    facts = subset.facts
    say(f"{facts['k']:,} of {facts['n']:,} {facts['split']} pairs by {facts['by']}, {facts['seconds']:g} s")
    if facts.get("passes", 1) > 1:
        say(f"{facts['passes']} passes: what was left repeated what was picked, so each began anew among the rest")
    if facts.get("parts", 1) > 1:
        how = "near the answer and not exact" if facts["final"] else "hardly above chance: too many for a final"
        say(f"in {facts['parts']:,} parts, so {how}; a smaller --keep has an answer of its own")
    names = " and ".join(facts["on"])
    for name, found in beside.items():
        items = ", ".join(f"{count:,} {modality}" for modality, count in found["items"].items())
        say(f"  {name:<8} {items} items, log-determinant {found['log_det']:,.1f} (by {names})")
    if len(subset) > 4000:
        say("  log-determinants are those of the first 4,000")
    say(f"next: fusemix fit {latents} --subset {out} -o model")
