"""An index on disk: a folder that needs nothing else, and that can be written again while it is served.

    index/
      facts.json        format, the generation that counts, what the items are, fingerprints, checksums
      generation-3/     embeddings.safetensors  items.parquet  previews.arrow  cells.faiss  model/  model-2/ ...

A generation is written whole under a new name; the rename of facts.json commits it, and then the one before goes.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
from safetensors.torch import load_file, save
from torch import Tensor

from fusemix import durable
from fusemix.errors import StoreError
from fusemix.search.space import Model

FORMAT = "fusemix-index-2"
EMBEDDINGS, ITEMS, PREVIEWS, CELLS = "embeddings.safetensors", "items.parquet", "previews.arrow", "cells.faiss"
_OWN = "fusemix."  # before the names of our columns: the user may have an id too


class Content(NamedTuple):
    """What an index holds beside its models, see `Index`.

    Attributes:
        embeddings: (N, S).
        items: columns modality, id and value, N rows.
        columns: the user's, N rows.
        previews: N, or None.
        cells: of approximate search, as bytes, or None.
    """

    embeddings: Tensor
    items: pa.Table
    columns: pa.Table
    previews: pa.ChunkedArray | None
    cells: bytes | None


def write(folder: Path, content: Content, models: Sequence[Model], facts: Mapping[str, Any]) -> int:
    """Write a generation, in the place of the one that the folder holds; who reads that one goes on undisturbed.

    Args:
        folder: of the index.
        content: what it holds.
        models: that embed queries.
        facts: to keep beside those of this module.

    Returns:
        The number of the generation.

    Raises:
        StoreError: the folder holds something else.
    """
    durable.claim(folder, FORMAT, "index")
    generation = 1 + max((int(path.name.partition("-")[2]) for path in _generations(folder)), default=0)
    home = folder / f"generation-{generation}"
    for place, model in enumerate(models, 1):
        model.save(home / _model_name(place))
    sums = {}
    for name, part in _files(content).items():
        durable.write(home / name, part)
        sums[name] = sha256(part).hexdigest()
    whole = {"format": FORMAT, "generation": generation, "models": len(models), **facts, "sha256": sums}
    durable.write(folder / "facts.json", (json.dumps(whole, indent=2) + "\n").encode())
    for path in _generations(folder):
        if path != home:
            shutil.rmtree(path, ignore_errors=True)  # what somebody reads on Windows goes the next time
    return generation


def read_facts(folder: Path) -> dict[str, Any]:
    """Read facts.json.

    Raises:
        StoreError: no index there, a damaged one, or one of another version.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_bytes())
        if facts.get("format") != FORMAT:
            raise StoreError(f"{folder} is no index of format {FORMAT}; make one with `fusemix index`")
        return facts
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{folder} holds no index; make one with `fusemix index`") from error
    except (ValueError, AttributeError) as error:
        raise StoreError(f"{folder}: the index is damaged ({error}); make it again with `fusemix index`") from error


def model_folders(folder: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Return where the models of an index lie."""
    return [_home(folder, facts) / _model_name(place) for place in range(1, int(facts["models"]) + 1)]


def read(folder: Path, facts: Mapping[str, Any]) -> Content:
    """Read the generation that `facts` name; every file is held to its checksum.

    Raises:
        OSError, ValueError, KeyError, pyarrow.ArrowException, safetensors.SafetensorError: a damaged index.
    """
    home, sums = _home(folder, facts), facts["sha256"]
    for name, wanted in sums.items():
        with (home / name).open("rb") as file:
            if file_digest(file, "sha256").hexdigest() != wanted:
                raise ValueError(f"{name} has not the content that was written")
    embeddings = load_file(home / EMBEDDINGS)["embeddings"]
    table = pa.parquet.read_table(home / ITEMS)
    if len(embeddings) != len(table):
        raise ValueError(f"{len(embeddings)} embeddings for {len(table)} items")
    own = [f"{_OWN}{name}" for name in ("modality", "id", "value")]
    items = table.select(own).rename_columns([name.removeprefix(_OWN) for name in own])
    # Mapped: of a million previews only those that are looked at are read.
    previews = pa.ipc.open_file(pa.memory_map(str(home / PREVIEWS))).read_all()["preview"] if PREVIEWS in sums else None
    cells = (home / CELLS).read_bytes() if CELLS in sums else None
    return Content(embeddings, items, table.drop_columns(own), previews, cells)


def _files(content: Content) -> dict[str, bytes]:
    table = content.items.rename_columns([_OWN + name for name in content.items.column_names])
    for name in content.columns.column_names:
        table = table.append_column(name, content.columns[name])
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    files = {EMBEDDINGS: save({"embeddings": content.embeddings.contiguous()}), ITEMS: sink.getvalue().to_pybytes()}
    if content.previews is not None:
        files[PREVIEWS] = _arrow_file(pa.table({"preview": content.previews}))
    if content.cells is not None:
        files[CELLS] = content.cells
    return files


def _arrow_file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _home(folder: Path, facts: Mapping[str, Any]) -> Path:
    return folder / f"generation-{int(facts['generation'])}"


def _generations(folder: Path) -> list[Path]:
    return [path for path in folder.glob("generation-*") if path.name.partition("-")[2].isdigit()]


def _model_name(place: int) -> str:
    return "model" if place == 1 else f"model-{place}"
