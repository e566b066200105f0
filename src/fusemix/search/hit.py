"""What a search answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fusemix.data.items import path_of


class Found(NamedTuple):
    """What the items of one modality are.

    Attributes:
        kind: see `data.items.Kind`.
        root: folder that file names are relative to.
    """

    kind: str
    root: Path


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        id: of the item.
        score: higher is better: the cosine, less what the item has as a hub where the query is of another modality.
        modality: of the item.
        path: its file, if it is one, or its part of a tar as "000.tar#512+1034".
        text: the text itself, if it is one.
        columns: the user's own columns of the item.
    """

    id: str
    score: float
    modality: str
    path: str | None
    text: str | None
    columns: dict[str, Any]


def hit(found: Found, item: dict[str, Any], columns: dict[str, Any], score: float) -> Hit:
    """Describe an item: its row of the index with columns modality, id and value, and the user's own columns."""
    is_text = found.kind == "text"
    path = None if is_text else path_of(found.root, item["value"])
    return Hit(item["id"], score, item["modality"], path, item["value"] if is_text else None, columns)
