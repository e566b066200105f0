"""What is inspected: a table of raw items, or a folder of latents as rows and items again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fusemix.data.items import Items, Problem, Rows
from fusemix.data.latents import Latents, open_latents, store_folder
from fusemix.data.pairs import Pairs
from fusemix.data.store import LatentStore
from fusemix.errors import StoreError


class Failed(NamedTuple):
    """Why an item cannot be used: one of `data.media.Reason`, and words."""

    reason: str
    message: str


@dataclass(frozen=True)
class Kept:
    """Rows and items of a folder of latents.

    Attributes:
        pairs: all rows and items that were extracted, with a latent or without.
        failed: for each modality, what became of the items without a latent.
        latents: rows with every latent.
        rows: (P,) int64 number in `pairs` of each row of `latents`.
        places: for each modality (n,) int64, the number in `pairs` of each latent.
    """

    pairs: Pairs
    failed: dict[str, dict[int, Failed]]
    latents: Latents
    rows: Rows
    places: dict[str, Rows] = field(default_factory=dict)


def is_latents(source: str | Path) -> bool:
    """Tell whether `extract` wrote this folder."""
    try:
        return (Path(source) / "pairs.parquet").is_file()
    except (OSError, ValueError):  # a name that no disk can hold; the reader of tables says so
        return False


def open_kept(folder: Path) -> Kept:
    """Open what `extract` wrote, with what it had to leave out.

    Raises:
        StoreError: as `open_latents`.
    """
    latents = open_latents(folder)
    try:
        table = pa.parquet.read_table(folder / "pairs.parquet")
        failed = pa.parquet.read_table(folder / "failed.parquet").to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{folder} is damaged ({error}); extract again") from error
    items, failures, rows, places = {}, {}, {}, {}
    for modality in latents:
        store = LatentStore.open(store_folder(folder, modality))
        listed, root = store.items, latents.items[modality].root
        items[modality] = Items(modality, latents.items[modality].kind, *_listed(listed), root)  # type: ignore[arg-type]
        failures[modality] = {f.item: Failed(f.reason, f.message) for f in store.failures}
        rows[modality] = table[f"fusemix.item.{modality}"].to_numpy()
        places[modality] = store.encoded
    plain = table.select([name for name in table.column_names if not name.startswith("fusemix.")])
    splits = np.array(table["fusemix.split"].to_pylist(), dtype=str)
    problems = [Problem(row["id"], row["reason"], row["message"]) for row in failed if row["modality"] == ""]
    pairs = Pairs(items, rows, table["fusemix.group"].to_numpy(), splits, plain, problems)
    whole = [np.isin(rows[name], places[name]) for name in latents]
    return Kept(pairs, failures, latents, np.flatnonzero(np.all(whole, axis=0)), places)


def _listed(table: pa.Table) -> tuple[list[str], list[str | None]]:
    return table["id"].to_pylist(), table["value"].to_pylist()
