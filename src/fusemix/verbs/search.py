"""`fusemix search`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from fusemix.arguments import Decode, Json, modalities, named
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
    for name in {**encoders, **decoders}:
        opened.space.use_encoder(name, encoders.get(name), decode=decoders.get(name))
    hits = opened.search(terms, k, where=where or (), exact=exact)
    if as_json:
        typer.echo(json.dumps([asdict(hit) for hit in hits], indent=2, ensure_ascii=False, default=str))
        return
    show_hits(hits)
