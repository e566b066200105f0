"""The verb probe: which encoders fit the data."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusemix.arguments import (
    Decode,
    Group,
    Json,
    Precision,
    Quiet,
    Root,
    Seed,
    Source,
    Split,
    modalities,
    named,
    read_given,
)
from fusemix.errors import DataError

if TYPE_CHECKING:
    from fusemix.matches import Probe

Candidates = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN=A,B", help="Column of the items, and the encoders to compare.")
]


def probe(
    context: typer.Context,
    source: Source,
    image: Candidates = None,
    text: Candidates = None,
    group: Group = None,
    split: Split = None,
    root: Root = None,
    sample: Annotated[int, typer.Option(help="Pairs of the split train to draw, one of each group.", min=50)] = 2000,
    pooling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=P,Q",
            help="Poolings to try with each encoder that has a choice: cls, mean, mean+mean@0, ...",
        ),
    ] = None,
    decode: Decode = None,
    precision: Precision = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank encoders by how well they would fit together, on a sample of the pairs, before a full extraction.

    The candidates are written as for `fusemix extract`, with commas between them. Nothing is written.
    """
    import fusemix as fm
    from fusemix.terminal import Bars, say

    given = modalities(context, image, text)
    pairs = read_given(context, source, given, group=group, split=split, root=root, seed=seed)
    columns = {name: value.partition("=")[0] for name, value in given.items()}
    candidates = {name: _listed(value.partition("=")[2]) for name, value in given.items() if "=" in value}
    poolings = {name: _listed(words) for name, words in named("pooling", pooling).items()}
    decoders = named("decode", decode)
    with Bars(quiet) as bars:
        found = fm.probe(
            pairs, sample=sample, seed=seed, pooling=poolings, decode=decoders, precision=precision, progress=bars,
            **candidates,
        )  # fmt: skip
    same = {"--group": group, "--split": split, "--root": root, "--precision": precision, "--seed": seed or None}
    command = _extract(found, source, columns, decoders, same)
    if as_json:
        say(json.dumps({**found.to_dict(), "next": command}, indent=2))
    else:
        say(f"{found}\nnext: {command}")


def _listed(words: str) -> list[str]:
    """Split "A,B"; a path that contains a comma and exists is one."""
    parts = [words] if Path(words).exists() else [part.strip() for part in words.split(",")]
    if not all(parts):
        raise DataError(f"{words!r}: wanted names with a comma between them")
    return parts


def _extract(
    found: "Probe", source: str, columns: Mapping[str, str], decoders: Mapping[str, str], same: Mapping[str, object]
) -> str:
    """Write the command that extracts with the first of the ranking."""
    words = ["fusemix", "extract", source]
    for name, encoder in found.best.items():
        words += [f"--{name}", f"{columns[name]}={encoder.spec}" if encoder.spec is not None else columns[name]]
    for option, value in same.items():
        words += [option, str(value)] if value is not None else []
    words += [word for name, e in found.best.items() if e.pooling for word in ("--pooling", f"{name}={e.pooling}")]
    words += [word for name, decoder in decoders.items() for word in ("--decode", f"{name}={decoder}")]
    return shlex.join([*words, "-o", "latents/"])
