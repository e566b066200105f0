"""`fusemix migrate`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fusemix.arguments import Json, Out, Quiet, Seed
from fusemix.errors import DataError, choices


def migrate(
    model: Annotated[Path, typer.Argument(help="Folder that `fusemix fit` wrote on latents of the new encoder.")],
    old: Annotated[Path, typer.Argument(help="Latents of the whole gallery, by the old encoder.")],
    new: Annotated[Path, typer.Argument(help="Latents by the new encoder; some of the gallery's items are in them.")],
    out: Out,
    modality: Annotated[str, typer.Option(help="Whose encoder changed.")] = "image",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Index a gallery for a new encoder without encoding it again: old latents are turned into the new space.

    The turn is learned from the items that both encoders have encoded; it says how much recall it keeps on items that
    it has not seen.
    """
    import fusemix as fm
    from fusemix.migration import kept
    from fusemix.search.folder import claim
    from fusemix.terminal import say

    claim(out)
    fitted, before, after = fm.FuseMix.load(model), fm.open_latents(old), fm.open_latents(new)
    for pairs, folder in ((before, old), (after, new)):
        if modality not in pairs.modalities:
            raise DataError(f"{folder} holds no {modality!r}; {choices(modality, pairs.modalities)}")
    if modality not in fitted.sides_:
        raise DataError(f"{model} does not join {modality!r}; {choices(modality, fitted.sides_)}")
    fitted.sides_[modality].check(after.items[modality])
    found = fm.migrate(before.items[modality], after.items[modality], seed)
    unseen = after.take(after.splits != "train")  # what the model was fitted on says little
    recall = kept(fitted, found, unseen) if set(after.modalities) == set(fitted.modalities_) else {}
    moved = replace(before, items={**before.items, modality: found.items()})
    index = fitted.index(moved[modality], after[modality]).save(out)
    facts = {
        "out": str(out), "items": len(index), "encoded": len(after[modality]), "shared": found.shared,
        "found": round(found.found, 4), "held_out": len(found.held[0]),
        "R@1": {way: {"encoded": a, "migrated": b} for way, (a, b) in recall.items()},
    }  # fmt: skip
    if as_json:
        say(json.dumps(facts, indent=2))
        return
    if not quiet:
        say(f"{len(index):,} {modality} items, {len(after[modality]):,} of them encoded by the new encoder")
        say(
            f"learned from {found.shared:,} items that both encoders have; of {len(found.held[0]):,} held out, "
            f"{found.found:.0%} are nearest to themselves"
        )
        for way, (encoded, turned) in recall.items():
            say(f"{way} among these: R@1 {turned:.1f} migrated, {encoded:.1f} encoded")
        say(f'next: fusemix search {out} "your words"')
