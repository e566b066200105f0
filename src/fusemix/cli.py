"""The command line, one command per verb: parse, call, print. Heavy imports wait for the call."""

import json
import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fusemix
from fusemix.arguments import (
    Column,
    Decode,
    DryRun,
    Dtype,
    Engine,
    Group,
    Json,
    MaxFailed,
    Out,
    Pooling,
    Precision,
    Quiet,
    RetryFailed,
    Root,
    Seed,
    Source,
    Split,
    modalities,
    named,
    read_given,
)
from fusemix.errors import FusemixError, TooManyFailuresError
from fusemix.verbs.classify import classify
from fusemix.verbs.fit import fit
from fusemix.verbs.generate import generate
from fusemix.verbs.index import add, index, remove
from fusemix.verbs.inspect import inspect
from fusemix.verbs.migrate import migrate
from fusemix.verbs.probe import probe
from fusemix.verbs.search import search
from fusemix.verbs.select import select
from fusemix.verbs.serve import serve
from fusemix.verbs.study import study

if TYPE_CHECKING:
    from fusemix.terminal import Bars

# Before torch is loaded: threads that spin while they wait make a fit ten times slower as soon as another program wants
# one of the cores, and are hardly faster when none does (docs/performance.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Make your own CLIP from any frozen encoders you trust, with the pairs you have, on one machine, in minutes.",
    epilog="Start with: fusemix demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
EXTRA: Any = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Hold the options that stand before a verb."""
    if version:
        typer.echo(f"fusemix {fusemix.__version__}")
        raise typer.Exit


@app.command(epilog="Example: fusemix demo")
def demo(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write (default: fusemix-demo).")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many symbols, for a quicker look.", min=20)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs; by default the recipe's.")] = None,
    show: Annotated[bool, typer.Option("--serve", help="Then open the symbols as a page to search in.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job on symbols and their names: no download, a minute or two."""
    from fusemix.demo import run_demo
    from fusemix.terminal import say, show_evaluation

    # Other symbols are other pairs, and pairs that were extracted are never overwritten.
    out = out or Path("fusemix-demo" if limit is None else f"fusemix-demo-{limit}")
    with _bars(quiet) as bars:
        done = run_demo(out, limit=limit, epochs=epochs, seed=seed, progress=bars)
    if as_json:
        typer.echo(json.dumps(done.evaluation.to_dict(), indent=2))
        return
    show_evaluation(done.evaluation)
    say("\nFive questions, answered among the symbols that were never trained on:")
    for example in done.examples:
        say(f"  {example.query:<28} {'  '.join(label.split()[0] for label in example.labels)}    ({example.labels[0]})")
    say(f"\n{sum(done.seconds.values()):.0f} s in all. Pictures and curves: {done.folder / 'report.html'}\n\nNext:")
    for command in done.commands:
        say(f"  {command}")
    if show:
        serve(done.folder / "index", port=0, quiet=quiet)


app.command(
    context_settings=EXTRA,
    epilog="Example: fusemix inspect products.csv --image photo --text title -o report/",
)(inspect)


app.command(
    context_settings=EXTRA,
    epilog="Example: fusemix probe products.csv --image photo=facebook/dinov2-base,hog --text title=minilm",
)(probe)


@app.command(
    context_settings=EXTRA,
    epilog="Example: fusemix extract products.csv --image photo=facebook/dinov2-base --text title=minilm -o latents/",
)
def extract(
    context: typer.Context,
    source: Source,
    out: Out,
    image: Column = None,
    text: Column = None,
    group: Group = None,
    split: Split = None,
    root: Root = None,
    pooling: Pooling = None,
    decode: Decode = None,
    precision: Precision = None,
    dtype: Dtype = "float16",
    max_failed: MaxFailed = 0.05,
    retry_failed: RetryFailed = False,
    engine: Engine = "local",
    dry_run: DryRun = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the frozen encoders once and keep the latents. Run it again to go on after an interruption.

    ENCODER is a transformers or sentence-transformers folder or hub id, an ONNX file, timm:NAME,
    open_clip:MODEL/PRETRAINED, hog, minilm, module:function, file.py:function, a .npy file, or several of them as A+B;
    a column of vectors needs none. Any other modality is written --NAME COLUMN=ENCODER, in your own word.
    """
    import fusemix as fm
    from fusemix.extraction import Given
    from fusemix.ranks import ranks
    from fusemix.survey import survey
    from fusemix.terminal import say, show_extraction, show_survey

    given = modalities(context, image, text)
    pairs = read_given(context, source, given, group=group, split=split, root=root, seed=seed)
    encoders: dict[str, Any] = {name: value.partition("=")[2] for name, value in given.items() if "=" in value}
    chosen: dict[str, Any] = {
        "pooling": named("pooling", pooling),
        "decode": named("decode", decode),
        "precision": precision,
        "max_failed": max_failed,
    }
    with _bars(quiet) as bars:
        if dry_run:
            forecast = survey(pairs, Given(encoders, **chosen), dtype=dtype, progress=bars)
        else:
            options = {"retry_failed": retry_failed, "engine": engine, **chosen}
            latents = fm.extract(pairs, out=out, dtype=dtype, progress=bars, **options, **encoders)
    if dry_run:
        result = {"rows": len(pairs), "modalities": {name: asdict(cost) for name, cost in forecast.items()}}
        say(json.dumps(result, indent=2)) if as_json else show_survey(forecast, len(pairs), out, max_failed)
        return
    if ranks()[0] != 0:  # of several processes one speaks
        return
    result = fm.extraction.summary(pairs, latents, out)
    say(json.dumps(result, indent=2)) if as_json else show_extraction(result)


app.command(epilog="Example: fusemix fit latents/ -o model/")(fit)


app.command(epilog="Example: fusemix select latents/ --keep 10000 --by diversity -o subset.parquet")(select)


app.command(epilog="Example: fusemix migrate model/ old-latents/ new-latents/ --modality image -o index/")(migrate)


@app.command(epilog="Example: fusemix evaluate model/ latents/ --split test")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder that `fusemix fit` wrote.")],
    latents: Annotated[Path, typer.Argument(help="Folder that `fusemix extract` wrote.")],
    split: Annotated[
        str | None, typer.Option(help="Split to measure on (default: test, or val where there is no test).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML report with pictures and curves here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure retrieval both ways, beside chance, ridge and CCA."""
    import fusemix as fm
    from fusemix.terminal import say, show_evaluation

    fitted = fm.FuseMix.load(model)
    pairs = fm.open_latents(latents, fitted.modalities_)
    measured = pairs.only(split or ("test" if "test" in pairs.splits else "val"))
    evaluation = fitted.evaluate(measured)
    if as_json:
        typer.echo(json.dumps(evaluation.to_dict(), indent=2))
    else:
        show_evaluation(evaluation)
    if report is not None:
        from fusemix.report import split_examples, write_report

        examples = split_examples(fitted, measured)
        write_report(report, f"{model} on {latents}", fitted, evaluation, examples, {"fit": fitted.facts_["seconds"]})
        if not as_json:
            say(f"report: {report}")


app.command(epilog="Example: fusemix index model/ latents/ -o index/")(index)
app.command(epilog="Example: fusemix add index/ new-latents/")(add)
app.command(epilog='Example: fusemix remove index/ --where "split = test"')(remove)
app.command(epilog="Example: fusemix serve index/")(serve)
app.command(epilog='Example: fusemix classify index/ --classes dog,cat --template "a photo of a {}"')(classify)
app.command(context_settings=EXTRA, epilog='Example: fusemix search index/ "red running shoe" -k 5')(search)
app.command(epilog="Example: fusemix generate model/ siren.wav -o siren.png --pipeline sd/ -n 4")(generate)
app.command(epilog="Example: fusemix study latents/ -o study/ --only quantity,diversity")(study)


def _bars(quiet: bool) -> "Bars":
    from fusemix.terminal import Bars

    return Bars(quiet)


def main() -> None:
    """Run the command line; exit 2 for a user's mistake, 1 for a disk that failed, 3 for too many failed items.

    130 on Ctrl-C and 143 on SIGTERM, with the command that goes on.
    """
    from fusemix.terminal import complain

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except TooManyFailuresError as error:
        complain(str(error))
        sys.exit(3)
    except FusemixError as error:
        complain(str(error))
        sys.exit(2)
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)
    except SystemExit as stop:
        if stop.code in (130, 143):
            # Of all verbs these go on where they were; under torchrun nobody knows here how it was started.
            goes_on = sys.argv[1:2] in (["extract"], ["fit"], ["study"]) and "TORCHELASTIC_RUN_ID" not in os.environ
            complain("interrupted" + (f"; to go on: {shlex.join(['fusemix', *sys.argv[1:]])}" if goes_on else ""))
        raise
