"""`fusemix index`, `fusemix add` and `fusemix remove`: make an index, and change it while it is served."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusemix.arguments import Json, Out, Quiet
from fusemix.errors import DataError, FusemixError, MissingExtraError, StoreError, choices

if TYPE_CHECKING:
    from torch import Tensor

    from fusemix.data.latents import ItemLatents
    from fusemix.search.index import Index
    from fusemix.search.space import Space

LatentFolder = Annotated[Path, typer.Argument(help="Folder that `fusemix extract` wrote.")]
IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that `fusemix index` wrote.")]
Modality = Annotated[
    list[str] | None, typer.Option(help="Items to search among; repeat it for several (default: the first modality).")
]
Split = Annotated[str | None, typer.Option(help="Only the items of this split (default: all).")]
Previews = Annotated[bool, typer.Option(help="Keep small pictures and sounds, for the page that `serve` shows.")]
Where = Annotated[
    list[str] | None, typer.Option(help='Condition on a column, such as "price < 20"; repeat it: all must hold.')
]


def index(
    model: Annotated[Path, typer.Argument(help="Folder that `fusemix fit` wrote.")],
    latents: LatentFolder,
    out: Out,
    modality: Modality = None,
    split: Split = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Another model, locked to the same encoder: what it embeds is searched with, too."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the rows: float32, or float16 in half the memory.")] = "float32",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Look at a part of the rows only (FAISS); recall is measured.")
    ] = False,
    previews: Previews = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Embed items for search. An index that is there, and may be served, is replaced in one step."""
    import fusemix as fm
    from fusemix.search.folder import claim
    from fusemix.search.index import Index
    from fusemix.search.space import Space

    claim(out)
    space = Space([fm.FuseMix.load(model), *(fm.FuseMix.load(each) for each in also or ())])
    made = Index.of(space, *_items(latents, modality, split), dtype=dtype)
    if approximate:
        made = made.approximately(_questions(space, latents, made))
    _finish(made, out, previews, as_json, quiet)


def add(
    folder: IndexFolder,
    latents: LatentFolder,
    modality: Modality = None,
    split: Split = None,
    previews: Previews = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add items to an index, or put new ones in the place of those with the same id."""
    import fusemix as fm

    opened, known = fm.open_index(folder), fm.open_latents(latents).modalities
    made = opened.add(*_items(latents, modality or [name for name in opened.found if name in known], split))
    if opened.approximate is not None:
        made = made.approximately(_questions(opened.space, latents, made), opened.approximate.facts["goal"])
    _finish(made, folder, previews, as_json, quiet)


def remove(
    folder: IndexFolder,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of items, as `search --json` prints them.")] = None,
    where: Where = None,
    modality: Annotated[str | None, typer.Option(help="Only items of this modality.")] = None,
    as_json: Json = False,
) -> None:
    """Remove items from an index: those named, and those that fulfil all conditions."""
    import fusemix as fm
    from fusemix.search.query import ItemId

    if not ids and not where:
        raise DataError("nothing to remove: name ids, or give conditions with --where")
    opened = fm.open_index(folder)
    gone = [ItemId(each, modality) for each in ids or ()]
    if where:
        rows = opened.rows(where, modality)
        assert rows is not None
        names, keys = (opened.items[column].to_pylist() for column in ("modality", "id"))
        gone += [ItemId(keys[row], names[row]) for row in rows.tolist()]
    made = opened.remove(gone)
    exact = "; search looks at all items again, until the index is made anew" if opened.approximate is not None else ""
    _finish(made, folder, False, as_json, True, f"{len(opened) - len(made):,} removed{exact}")


def _items(latents: Path, modality: Sequence[str] | None, split: str | None) -> "list[ItemLatents]":
    """Open the items of some modalities, with partners or without."""
    import fusemix as fm

    known = fm.open_latents(latents).modalities
    if modality is not None and not modality:
        raise DataError(f"the latents hold nothing of what the index holds; found: {', '.join(known)}")
    for name in modality or ():
        if name not in known:
            raise DataError(f"--modality: no {name!r} in these latents; {choices(name, known)}")
    found = []
    for name in modality or known[:1]:
        items = fm.open_latents(latents, [name])
        found.append((items.only(split) if split else items)[name])
    return found


def _questions(space: "Space", latents: Path, made: "Index") -> "Tensor | None":
    """Return embeddings of what one will ask with: a modality of the latents that is not in the index."""
    import numpy as np
    import torch

    import fusemix as fm

    known = fm.open_latents(latents).modalities
    other = next((name for name in known if name not in made.found and name in space.sides_), None)
    if other is None:
        return None
    items = fm.open_latents(latents, [other])[other]
    rows = np.random.default_rng(0).permutation(len(items))[:1000]
    return torch.from_numpy(space.as_queries(other, space.embed_latents(other, items.rows.take(rows))))


def _finish(made: "Index", out: Path, previews: bool, as_json: bool, quiet: bool, note: str = "") -> None:
    """Make the previews, write, and tell what there is."""
    import json

    from fusemix.search.folder import read_facts
    from fusemix.search.previews import with_previews
    from fusemix.terminal import Bars, say

    if previews:
        try:
            with Bars(quiet) as bars:
                made = with_previews(made, bars)
        except MissingExtraError as error:
            raise FusemixError(f"{error}; or make the index without previews: --no-previews") from error
    if made.generation and read_facts(out)["generation"] != made.generation:  # what it added would be lost
        raise StoreError(f"another process changed {out} meanwhile; run the same command again")
    made = made.save(out)
    shown = len(made) - made.previews.null_count if made.previews is not None else 0
    near = made.approximate.facts if made.approximate is not None else None
    counts = {name: made.items["modality"].to_pylist().count(name) for name in made.found}
    if as_json:
        dtype = str(made.vectors.dtype).removeprefix("torch.")
        facts = {"generation": made.generation, "items": counts, "previews": shown, "dtype": dtype, "approximate": near}
        say(json.dumps({"out": str(out), **facts}, indent=2))
        return
    if note:
        say(note)
    parts = " and ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"{parts} items of {made.dim} numbers each, {shown:,} with a preview")
    if near is not None:
        say(
            f"approximate: recall@10 {near['recall']:.3f} beside exact search (goal {near['goal']:g}), on "
            f"{near['queries']:,} {near['of']}; each looks into {near['probed']} of {near['cells']} cells"
        )
    say(f'next: fusemix search {out} "your words", or fusemix serve {out}')
