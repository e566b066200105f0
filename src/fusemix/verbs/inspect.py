"""The verb inspect: what is wrong with data."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusemix.arguments import Column, Decode, Group, Json, Quiet, Root, Seed, Split, modalities, named
from fusemix.errors import DataError

if TYPE_CHECKING:
    from fusemix.inspection import Inspection

STYLES = {"problem": "bold red", "warning": "yellow", "note": "dim"}


def inspect(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What `fusemix extract` takes, or a folder that it wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report.html and inspect.parquet (default: none).")
    ] = None,
    image: Column = None,
    text: Column = None,
    group: Group = None,
    split: Split = None,
    root: Root = None,
    decode: Decode = None,
    sample: Annotated[
        int | None, typer.Option(help="Decode only so many items of each modality, spread evenly.", min=1)
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column to count by (default: those of few values).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find missing and broken files, duplicates, leaks between splits and wrong pairs.

    No model is loaded. Of a folder of latents, the latents are looked at too. The modalities are named as for
    `fusemix extract`: --image COLUMN, --text COLUMN or --NAME COLUMN; an =ENCODER behind a column changes nothing here.
    """
    import fusemix as fm
    from fusemix.data.pairs import RESERVED
    from fusemix.terminal import Bars, say

    given = modalities(context, image, text)
    for name in RESERVED & set(given):
        raise DataError(f"--{name}: inspect runs no encoder and has no such option; leave it out")
    columns = {name: value.partition("=")[0] for name, value in given.items()}
    with Bars(quiet) as bars:
        found = fm.inspect(
            source, group=group, split=split, root=root, seed=seed, decode=named("decode", decode) or None,
            sample=sample, by=by or (), out=out, progress=bars, **columns,
        )  # fmt: skip
    if as_json:
        say(json.dumps({**found.to_dict(), "out": str(out) if out else None}, indent=2, ensure_ascii=False))
        return
    show_inspection(found, out)


def show_inspection(found: "Inspection", out: Path | None) -> None:
    """Print the findings, worst first, and what to type next."""
    from fusemix.terminal import say

    for name, account in found.accounts.items():
        skipped = f" + {account.skipped:,} not looked at" if account.skipped else ""
        say(f"{name}: {account.items:,} distinct items = {account.ok:,} ok + {account.failed:,} failed{skipped}")
    for severity, style in STYLES.items():
        for finding in found.findings:
            if finding.severity == severity:
                what = f"{finding.modality}: {finding.kind}" if finding.modality else finding.kind
                _line(severity, style, what, finding.sentence)
    counts = [f"{sum(f.severity == s for f in found.findings):,} {s}s" for s in ("problem", "warning")]
    say(" and ".join(counts) + f"; pictures and players: {out / 'report.html' if out else 'add -o report/'}")
    if out:
        say(f"every row concerned: {out / 'inspect.parquet'}")
    if found.has_latents:
        say(f"next: fusemix fit {found.source} -o model")
    else:
        say("next: fusemix extract with the same words, each column with =ENCODER, and -o latents")


def _line(severity: str, style: str, what: str, sentence: str) -> None:
    """Print one finding; on a screen in colour, with its lines below one another."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sys.stdout.isatty():
        from fusemix.terminal import say

        say(f"{severity:<8} {what}: {sentence}")
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8)
    table.add_column(width=24, overflow="fold")
    table.add_column()
    table.add_row(Text(severity, style), Text(what), Text(sentence))
    Console().print(table)
