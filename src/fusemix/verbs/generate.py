"""`fusemix generate`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusemix.arguments import Decode, Json, OwnEncoder, Quiet, named
from fusemix.errors import DataError, choices

if TYPE_CHECKING:
    from PIL.Image import Image

    from fusemix.generation import Draw, Generator
    from fusemix.model import FuseMix
    from fusemix.progress import Progress

WORDS = "words"  # what a pipeline that images condition is told by itself


def generate(
    model: Annotated[Path, typer.Argument(help="Folder that `fusemix fit --lock` wrote.")],
    items: Annotated[list[str], typer.Argument(help="Files to draw from; words, where --from says so.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write; of several pictures a sheet of all.")],
    pipeline: Annotated[
        str,
        typer.Option(help="Folder or hub id of a diffusers pipeline, or a function of yours: file.py:function."),
    ],
    n: Annotated[int, typer.Option("-n", help="Pictures of each item.", min=1)] = 1,
    compare: Annotated[list[str] | None, typer.Option(help="Words (or a file) to draw with the same seeds.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler (default: the pipeline's).", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (default: the pipeline's).")] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture of each item; the others follow.")] = 0,
    modality: Annotated[
        str | None, typer.Option("--from", help="What the items are (default: what is not locked).")
    ] = None,
    encoder: OwnEncoder = None,
    decode: Decode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures from sounds, or from whatever a model lets land in the space that conditions a generator."""
    import fusemix as fm
    from fusemix.contact_sheet import contact_sheet, save_png
    from fusemix.terminal import Bars, say

    if out.suffix.lower() != ".png":
        raise DataError(f"-o {out}: wanted the name of a .png file")
    fitted = fm.FuseMix.load(model)
    locked = fitted.locked
    if modality not in (None, *fitted.modalities_):
        raise DataError(f"--from: the model has no modality {modality!r}; {choices(str(modality), fitted.modalities_)}")
    encoders, decoders = named("encoder", encoder), named("decode", decode)
    for name in {**encoders, **decoders}:
        fitted.use_encoder(name, encoders.get(name), decode=decoders.get(name))
    free = next(name for name in fitted.modalities_ if name != locked)
    asked = [(item, modality or free) for item in items]
    reads = fitted.sides_[locked].kind == "text"
    asked += [(item, locked if reads or Path(item).exists() else WORDS) for item in compare or ()]
    generator = _open(pipeline, fitted.sides_[locked].encoder.get("dtype"))
    draw = _drawing(fitted, generator, n, seed, steps, guidance)
    facts = {"fusemix": fm.__version__, "model": str(model), **_facts(pipeline, generator, steps, guidance)}
    rows, files = [], list[dict[str, Any]]()
    with Bars(quiet) as bars:
        for item, kind in asked:
            pictures = draw(item, kind, bars)
            rows.append((Path(item).name if Path(item).exists() else item, pictures))
            for place, picture in enumerate(pictures):  # kept at once: a later item may be one that cannot be used
                path = out if n * len(asked) == 1 else out.with_stem(f"{out.stem}-{len(files) + 1:02d}")
                about = {"item": item, "modality": kind, "seed": seed + place}
                save_png(picture, path, {**facts, **about})
                files.append({"file": str(path), **about})
    if len(files) > 1:
        save_png(contact_sheet(rows), out, {**facts, "pictures": files})
    if as_json:
        typer.echo(json.dumps({"out": str(out), "pictures": files}, indent=2, ensure_ascii=False))
        return
    say(f"{out}: {len(files)} pictures on one sheet, each also in a file of its own" if len(files) > 1 else f"{out}")


def _drawing(
    fitted: "FuseMix", generator: "Generator | Draw", n: int, seed: int, steps: int | None, guidance: float | None
) -> Callable[[str, str, "Progress"], "list[Image]"]:
    """Return what draws n pictures from an item of a modality, or from words as the pipeline itself does."""
    from fusemix.generation import Generator, check_seeds

    def draw(item: str, kind: str, progress: "Progress") -> "list[Image]":
        if kind != WORDS:
            raw = item if fitted.sides_[kind].kind == "text" else Path(item)
            how = {"n": n, "seed": seed}
            return fitted.generate([raw], generator, kind, **how, steps=steps, guidance=guidance, progress=progress)[0]
        if not isinstance(generator, Generator):
            raise DataError(f"--compare {item!r}: no such file, and a function of yours draws from conditions only")
        check_seeds(seed, n)
        return generator.prompt(item, range(seed, seed + n), steps, guidance, progress)

    return draw


def _facts(pipeline: str, generator: "Generator | Draw", steps: int | None, guidance: float | None) -> dict[str, Any]:
    """Return what draws a picture again, beside the item and the seed."""
    from fusemix.generation import Generator

    if not isinstance(generator, Generator):
        return {"pipeline": pipeline}
    import diffusers

    return {"pipeline": generator.source, "diffusers": diffusers.__version__, **generator.sampler(steps, guidance)}


def _open(pipeline: str, precision: str | None) -> "Generator | Draw":
    """Load a pipeline, in the precision of the latents that a model was fitted for, or a function."""
    from fusemix.encoders import runs_code
    from fusemix.encoders.function import find_function
    from fusemix.generation import Generator

    if runs_code(pipeline):
        return find_function(pipeline)
    return Generator(pipeline, precision=precision)
