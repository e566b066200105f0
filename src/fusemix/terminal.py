"""What the command line draws: progress bars on stderr, tables and hits on stdout."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import ProgressColumn as Column
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fusemix.evaluate import Evaluation
    from fusemix.index import Hit


class _Rate(Column):
    """Rows or steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")


class Bars:
    """A `Progress` that draws one bar per stage with rate and time left; plain lines where stderr is no terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<14}"), BarColumn(24), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )  # fmt: skip
        self.progress = Progress(*columns, console=self.console, disable=quiet or not self.console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Draw the state of a stage."""
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, completed=done, note=note)
            self.started[stage] = time.perf_counter()
        self.progress.update(self.tasks[stage], completed=done, total=total, note=note)
        if done == total and self.progress.disable and not self.quiet:
            seconds = time.perf_counter() - self.started[stage]
            self.console.print(
                f"{stage}: {total:,} done in {seconds:.1f} s{f', {note}' if note else ''}", highlight=False
            )


def say(text: str) -> None:
    """Print a line on stdout as it is."""
    Console(soft_wrap=True, highlight=False, markup=False).print(text)


def complain(text: str) -> None:
    """Print an error on stderr."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red"), Text(text), sep="")


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
    for place, hit in enumerate(hits, 1):
        say(f"{place:>3}  {hit.score:6.3f}  {hit.text if hit.text is not None else hit.path or hit.id}")
