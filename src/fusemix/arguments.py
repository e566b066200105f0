"""What several verbs of the command line are told: shared options, and the words that name modalities."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusemix.errors import DataError, choices

if TYPE_CHECKING:
    from fusemix.data.pairs import Pairs

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Device = Annotated[str | None, typer.Option(help="A torch device; by default CUDA where there is one.")]
Source = Annotated[
    str,
    typer.Argument(
        help="CSV, TSV, JSONL or Parquet table, folder of media, WebDataset tars, or hf://datasets/ORG/NAME.",
    ),
]
Column = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN=ENCODER", help="Column of the items, and what encodes them.")
]
Group = Annotated[
    str | None, typer.Option(help="Column of what must stay in one split (default: the items that are not text).")
]
Split = Annotated[
    str | None, typer.Option(help="Column that says train, val or test (default: 'split', else 80/10/10).")
]
Root = Annotated[Path | None, typer.Option(help="Folder that file names are relative to (default: the table's).")]
Pooling = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODALITY=POOLING",
        help="cls, mean, last or pooler, perhaps of a layer, as mean@-2; several side by side, as mean+mean@0.",
    ),
]
Decode = Annotated[
    list[str] | None,
    typer.Option(metavar="MODALITY=FUNCTION", help="Your own decoder of a file: module:function or file.py:function."),
]
OwnEncoder = Annotated[
    list[str] | None, typer.Option(metavar="MODALITY=ENCODER", help="What encodes it, if it is your own code.")
]
Precision = Annotated[
    str | None, typer.Option(help="Of the encoders' arithmetic (default: what the device does best).")
]
Dtype = Annotated[str, typer.Option(help="Precision on disk: float16 or float32.")]
MaxFailed = Annotated[
    float, typer.Option(help="Stop with exit code 3 when more of the first 1,000 items of a modality fail.")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try the failed items again.")]
Engine = Annotated[str, typer.Option(help="local, or ray; under torchrun the processes share the work.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Write nothing; try a few items, and say what all would cost: disk and time.")
]


def modalities(context: typer.Context, image: list[str] | None, text: list[str] | None) -> dict[str, str]:
    """Collect --image, --text and every --NAME VALUE that is no option of the command."""
    words = list(context.args)
    others: list[tuple[str, str]] = []
    while words:
        word = words.pop(0)
        name, joined, value = word.removeprefix("--").partition("=") if word.startswith("--") else ("", "", "")
        if not joined and words:
            value = words.pop(0)
        known = [option.lstrip("-") for p in context.command.params for option in p.opts]
        if not name:
            raise DataError(f"{word!r} is one word too many: what belongs together goes in quotes")
        if not value or value.startswith("--"):
            raise DataError(f"{word!r} is no option of this command; {choices(word.lstrip('-'), known)}")
        others.append((name, value))
    given = [*(("image", value) for value in image or ()), *others, *(("text", value) for value in text or ())]
    return _once(given, "--{0} {1}")


def read_given(context: typer.Context, source: str, given: Mapping[str, str], **options: Any) -> "Pairs":
    """Read the pairs of --NAME COLUMN=ENCODER words, see `data.pairs.read_pairs`.

    Raises:
        DataError: as `read_pairs`; where the column was forgotten, or an option misspelt, it says so.
    """
    import fusemix as fm

    for name, value in given.items():
        known = [option.lstrip("-") for p in context.command.params for option in p.opts if option.startswith("--")]
        if "=" not in value and name not in ("image", "text") and get_close_matches(name, known, cutoff=0.75):
            raise DataError(
                f"--{name} {value}: no such option; {choices(name, known)} (a modality is --NAME COLUMN=ENCODER)"
            )
    columns: dict[str, Any] = {name: value.partition("=")[0] for name, value in given.items()}
    try:
        return fm.read_pairs(source, **options, **columns)
    except DataError as error:
        bare = [name for name, value in given.items() if "=" not in value and f"no column {value!r}" in str(error)]
        raise (DataError(f"{error} (wanted --{bare[0]} COLUMN=ENCODER)") if bare else error) from None


def named(option: str, words: list[str] | None) -> dict[str, str]:
    """Read the NAME=VALUE words of an option."""
    for word in words or ():
        if "=" not in word:
            raise DataError(f"--{option} {word}: wanted NAME=VALUE, NAME being a modality")
    return _once(
        [(name, value) for name, _, value in (word.partition("=") for word in words or ())], f"--{option} {{0}}={{1}}"
    )


def _once(given: list[tuple[str, str]], form: str) -> dict[str, str]:
    """Refuse a name that is given twice: one of the two would be lost."""
    found: dict[str, str] = {}
    for name, value in given:
        if name in found:
            twice = " and ".join(form.format(name, each) for each in (found[name], value))
            raise DataError(f"{twice}: {name!r} is given twice; give each modality a word of its own")
        found[name] = value
    return found
