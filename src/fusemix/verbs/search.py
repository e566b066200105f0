"""`fusemix search`."""

import json
import math
from dataclasses import asdict
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from fusemix.arguments import Decode, Json, modalities, named
from fusemix.errors import DataError
from fusemix.verbs.index import IndexFolder, Where


def search(
    context: typer.Context,
    folder: IndexFolder,
    query: Annotated[str, typer.Argument(help="""Words, a file, id:ITEM, or several: "a.jpg - 'day' + 'night'".""")],
    k: Annotated[int, typer.Option("-k", help="Number of hits.", min=1)] = 10,
    modality: Annotated[str | None, typer.Option("--from", help="What the query is (default: by its type).")] = None,
    where: Where = None,
    exact: Annotated[bool, typer.Option("--exact", help="Look at all items of an approximate index.")] = False,
    image: Annotated[
        list[str] | None, typer.Option(metavar="ENCODER", help="What encodes pictures, if it is your own code.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="ENCODER", help="What encodes texts, if it is your own code.")
    ] = None,
    decode: Decode = None,
    as_json: Json = False,
) -> None:
    """Find the items nearest to words, a file, an item, a vector (.npy), or sums and differences of them.

    An index never runs code by itself: a modality that your own function encoded needs --NAME module:function here, and
    one that your own function decoded needs --decode.
    """
    import fusemix as fm
    from fusemix.search.query import parse
    from fusemix.terminal import show_hits

    terms = parse(query, modality)
    opened = fm.open_index(folder)
    encoders, decoders = modalities(context, image, text), named("decode", decode)
    for name in encoders:
        if name not in opened.space.sides_:
            options = [option.lstrip("-") for p in context.command.params for option in p.opts]
            near = get_close_matches(name, [*opened.space.modalities_, *options], n=1)
            raise DataError(
                f"--{name} is no option, nor a modality of this index ({', '.join(opened.space.modalities_)})"
                + (f"; did you mean --{near[0]}?" if near else "")
            )
    for name in {**encoders, **decoders}:
        opened.space.use_encoder(name, encoders.get(name), decode=decoders.get(name))
    hits = opened.search(terms, k, where=where or (), exact=exact)
    if as_json:
        found = [{**asdict(hit), "columns": {name: _plain(cell) for name, cell in hit.columns.items()}} for hit in hits]
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False, default=str))
        return
    show_hits(hits)


def _plain(cell: Any) -> Any:
    """Return a cell as JSON has it: no NaN and no infinity."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
