"""`fusemix study`."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusemix.arguments import Device, Json, Out, Quiet
from fusemix.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from fusemix.studies import Planned, Point


def study(
    latents: Annotated[
        list[Path],
        typer.Argument(help="Folder that `fusemix extract` wrote; more of them, of the same pairs, compare encoders."),
    ],
    out: Out,
    only: Annotated[
        str | None,
        typer.Option(
            help="Of quantity, quality, diversity, batch, adapter, augmentation, encoders, with commas (default: all)."
        ),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Numbers of pairs, with commas (default: all, a quarter, a sixteenth, ...).")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(help="Pairs of the studies that do not vary them (default: 5,000, or all).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each point; intervals need two, and are wide with few.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Of every fit (default: the recipe's, about 1,000).")] = None,
    source: Annotated[
        str | None, typer.Option(help="Column whose values are compared, such as who wrote the text.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Fits at a time (default: one per core, or one on a GPU).", min=1)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; list the fits and say what they cost.")
    ] = False,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find out what more, cleaner or more diverse pairs, and other settings, are worth on these data.

    Run it again to go on after an interruption, or to add studies, seeds and sizes.
    """
    from fusemix.studies import plan_study
    from fusemix.studies import study as run_study
    from fusemix.terminal import Bars, say
    from fusemix.training.device import find_device

    asked: dict[str, Any] = {
        "only": only.split(",") if only else None, "sizes": _numbers(sizes), "pairs": pairs, "seeds": seeds,
        "steps": steps, "source": source,
    }  # fmt: skip
    jobs = jobs or (1 if find_device(device).type == "cuda" else os.cpu_count() or 1)
    if dry_run:
        say(_forecast(plan_study(latents, **asked), jobs, device, as_json))
        return
    with Bars(quiet) as bars, _Live(quiet) as live:
        found = run_study(latents, out, jobs=jobs, device=device, told=live, progress=bars, **asked)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    say(str(found))
    say(f"report: {out / 'report.html'}; every point: {out / 'study.csv'}")


def _numbers(words: str | None) -> list[int] | None:
    try:
        return [int(word.replace("_", "")) for word in words.split(",")] if words else None
    except ValueError:
        raise DataError(f"--sizes {words}: wanted whole numbers with commas between, such as 1000,4000") from None


def _forecast(planned: "Planned", jobs: int, device: str | None, as_json: bool) -> str:
    """Say how many fits there are, and about how long they take."""
    from fusemix.terminal import duration

    counts, fits, seconds = planned.counts(), len(planned.trials), planned.seconds(jobs, device)
    if as_json:
        return json.dumps({"fits": fits, "by_study": counts, "jobs": jobs, "seconds": round(seconds)})
    return "\n".join(
        [
            f"{len(planned.pool.train):,} pairs to choose from; measured on {planned.facts['measured']}",
            *(f"  {name}: {count} fits" for name, count in counts.items()),
            f"{fits} fits in all (some serve several studies), about {duration(seconds)} with {jobs} at a time; "
            "nothing was written",
        ]
    )


class _Live:
    """A table that fills while the fits run; where stderr is no terminal, a line per fit."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(stderr=True, quiet=quiet)
        self.live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal and not quiet else None

    def __enter__(self) -> "_Live":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, points: Sequence["Point"], done: int, total: int) -> None:
        if self.live is not None:
            self.live.update(_table(points, done, total))
        else:
            self.console.print(f"study: {done} of {total} fits", highlight=False)


def _table(points: Sequence["Point"], done: int, total: int) -> "Table":
    from rich.table import Table

    table = Table(title=f"{done} of {total} fits", title_justify="left")
    for name in ("study", "variant", "at", "R@1", "± 95 %", "seeds"):
        table.add_column(name, justify="left" if name in ("study", "variant") else "right")
    for point in points[-40:]:
        half = "" if math.isnan(point.half) else f"{point.half:.1f}"
        at = point.x if isinstance(point.x, str) else f"{point.x:,g}"
        table.add_row(point.study, point.variant, at, f"{point.mean:.1f}", half, str(len(point.values)))
    return table
