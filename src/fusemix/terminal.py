"""What the command line draws: progress bars on stderr, tables and hits on stdout."""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import ProgressColumn as Column
from rich.table import Column as Cells
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fusemix.evaluate import Evaluation
    from fusemix.search.hit import Hit
    from fusemix.survey import Forecast
    from fusemix.training.forecast import Forecast as FitForecast


SECONDS_PER_LINE = 60


class _Rate(Column):
    """Rows or steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.{0 if speed >= 10 else 1}f}/s" if speed else "", style="cyan")


class Bars:
    """A `Progress` that draws one bar per stage with rate and time left.

    Where stderr is no terminal, as in the log of a long run, it is a line a minute and one at the end of each stage.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        # Of a narrow screen the note gets the rest, on several lines; the count and the time left stay.
        whole = [Cells(no_wrap=True) for _ in range(4)]
        columns = (
            TextColumn("{task.description}", table_column=whole[0]), BarColumn(24 if self.console.width > 120 else 8),
            MofNCompleteColumn(table_column=whole[1]), _Rate(table_column=whole[2]),
            TimeRemainingColumn(compact=True, table_column=whole[3]),
            TextColumn("{task.fields[note]}", style="dim", table_column=Cells(no_wrap=False, overflow="fold")),
        )  # fmt: skip
        self.progress = Progress(*columns, console=self.console, disable=quiet or not self.console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.began: dict[str, tuple[float, int]] = {}  # when, and how much was done then
        self.told = 0.0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Draw the state of a stage."""
        now = time.monotonic()
        if stage not in self.tasks and done == total and not self.progress.disable:
            if note:  # a stage that is over at once leaves its note and no bar
                self.progress.console.print(f"{stage}: {note}", style="dim", highlight=False)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, completed=done, note=note)
            self.began[stage] = self.told, _ = now, done
        self.progress.update(self.tasks[stage], completed=done, total=total, note=note)
        if not self.progress.disable or self.quiet:
            return
        seconds, new = now - self.began[stage][0], done - self.began[stage][1]
        rest = f", {note}" if note else ""
        if done == total:
            self.console.print(f"{stage}: {total:,} done in {duration(seconds)}{rest}", highlight=False, soft_wrap=True)
        elif new and now - self.told >= SECONDS_PER_LINE:
            self.told = now
            left = duration((total - done) * seconds / new)
            line = f"{stage}: {done:,} of {total:,}, {new / seconds:,.1f}/s, {left} left{rest}"
            self.console.print(line, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line on stdout as it is."""
    Console(soft_wrap=True, highlight=False, markup=False).print(text)


def complain(text: str) -> None:
    """Print an error on stderr."""
    console = Console(stderr=True, highlight=False)
    # On a screen lines break between words; in a log, or in what another program reads, they do not break.
    console.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=not console.is_terminal)


def show_extraction(result: Mapping[str, Any]) -> None:
    """Print what became of every row and item, and what to type next."""
    out = result["out"]
    for name, count in result["modalities"].items():
        say(f"{name}: {count['items']:,} distinct items = {count['encoded']:,} encoded + {count['failed']:,} failed")
        most = max(count["reasons"].values(), default=1)
        for reason, number in count["reasons"].items():
            say(f"  {reason:<16} {'█' * max(1, round(24 * number / most))} {number:,}")
        if count["empty_cells"]:
            say(f"  skipped {_number(count['empty_cells'], 'empty cell')}")
    for reason, number in result["unread"].items():
        say(f"not read: {number:,} {reason}")
    parts = ", ".join(f"{name} {count:,}" for name, count in result["splits"].items())
    say(f"pairs: {result['rows']:,} rows, {result['pairs']:,} with every latent ({parts})")
    if result["pairs"] < result["rows"] or result["unread"]:
        say(f"what failed and why: {Path(out) / 'failed.parquet'}; once mended, try them again with --retry-failed")
    for names, count in result["partners"].items():  # of more than two modalities, of which a fit joins two
        say(f"  {names}: {_number(count, 'row')}")
    if len(result["modalities"]) == 1:
        say(f"next: fusemix fit LATENTS --unpaired {out} -o model, or fusemix index MODEL {out} -o index")
        return
    most = max(result["partners"], key=lambda names: result["partners"][names], default="")
    which = "".join(f" --modality {name}" for name in most.split(" and ")) if most else ""
    say(f"next: fusemix fit {out} -o model{which}")


def show_survey(forecast: "Mapping[str, Forecast]", rows: int, out: Path, max_failed: float) -> None:
    """Print what an extraction would cost, beside the free disk."""
    say(f"{rows:,} rows; nothing was written")
    for name, cost in forecast.items():
        say(
            f"{name}: {cost.items:,} distinct items x {cost.dim:,} numbers by {cost.encoder}, "
            f"{_number(cost.shards, 'shard')}, {size(cost.disk_bytes)}, about {duration(cost.seconds)}"
        )
        if cost.failed:
            say(f"  {cost.failed:,} of {_number(cost.tried, 'tried item')} failed: {cost.reasons}")
        if cost.failed > max_failed * cost.tried:
            say(f"  more than {max_failed:.0%}: extraction would stop; mend them, or allow more with --max-failed")
    there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    need, free = sum(cost.disk_bytes for cost in forecast.values()), shutil.disk_usage(there).free
    enough = "" if need < free else ": NOT ENOUGH"
    say(f"in all {size(need)} of {size(free)} free{enough}, {duration(sum(c.seconds for c in forecast.values()))}")


def show_forecast(networks: "Sequence[FitForecast]", minutes: float | None = None, as_json: bool = False) -> None:
    """Print what each network of a fit would cost, and what that rests on."""
    if as_json:
        say(json.dumps({"networks": [each.to_dict() for each in networks]}, indent=2))
        return
    if not networks:
        say("closed forms alone, which take seconds to minutes; nothing was fitted")
        return
    first = networks[0]
    widths = " and ".join(f"{name} ({width:,} numbers)" for name, width in first.modalities.items())
    say(f"{first.pairs:,} pairs of {widths}; nothing was trained")
    where = "in memory" if first.resident else "more than fits: read from the disk in blocks, step by step"
    say(f"latents: {size(first.latent_bytes)}, {where}")
    for network in networks:
        _show_network(network)
    if len(networks) > 1:
        say(f"together about {duration(sum(each.seconds + each.validating for each in networks))} at most")
    if minutes:
        say(f"--minutes {minutes:g}: fewer epochs where closed forms and these would take longer")


def _show_network(network: "FitForecast") -> None:
    """Print what one network would cost."""
    mixed = f" ({network.loaded:,} are loaded and mixed)" if network.loaded > network.batch else ""
    epochs = f"{_number(network.epochs, 'epoch')} x {_number(network.steps_per_epoch, 'step')}"
    say(f"a network that {network.network}:")
    say(f"  {epochs} = {_number(network.steps, 'step')} of {network.batch:,} pairs{mixed}")
    say(
        f"  {network.parameters:,} parameters, {_scaled(network.flops_per_step, 'FLOP')} a step, "
        f"{_scaled(network.flops, 'FLOP')} in all"
    )
    parts = " + ".join(f"{size(count)} {part}" for part, count in network.memory.items())
    say(f"  memory beside the latents: {parts} = {size(sum(network.memory.values()))}")
    reached = network.flops / network.seconds / network.rate
    say(
        f"  about {duration(network.seconds)} at {100 * reached:.0f} % of the {_scaled(network.rate, 'FLOP/s')} "
        f"that a {network.precision} product reaches here"
        + (f", and {duration(network.validating)} of validation" if network.validating else "")
    )


def _number(count: int, what: str) -> str:
    """Say a number of things."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def size(count: float) -> str:
    """Say a number of bytes."""
    return _scaled(count, "B")


def _scaled(count: float, unit: str) -> str:
    """Say a number of units that can be large."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} E{unit}"


def duration(seconds: float) -> str:
    """Say a time."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def show_evaluation(evaluation: "Evaluation") -> None:
    """Print the table of an evaluation."""
    if not sys.stdout.isatty():
        say(str(evaluation))
        return
    head, *rows = evaluation.table()
    table = Table(title=evaluation.caption(), title_justify="left", title_style="dim")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < 2 else "right")
    for row in rows:
        table.add_row(*row, style="bold" if row[1] == "fusemix" else "", end_section=row[1] == "fusemix")
    console = Console()
    console.print(table)
    for note in evaluation.notes:
        console.print(f"note: {note}", style="dim")


def show_hits(hits: "Sequence[Hit]") -> None:
    """Print hits, best first."""
    if not hits:
        say("nothing: no item fulfils the conditions, or the index has none")
    for place, hit in enumerate(hits, 1):
        say(f"{place:>3}  {hit.score:6.3f}  {hit.text if hit.text is not None else _place(hit)}")


def _place(hit: "Hit") -> str:
    """Name the file of a hit; of what lies in a tar or in a table, the name that it has there."""
    return hit.path if hit.path is not None and Path(hit.path).is_file() else hit.id
