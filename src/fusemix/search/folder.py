"""An index on disk: a folder that needs nothing else, and that can be written again while it is served.

    index/
      facts.json        format, the generation that counts, what the items are, fingerprints, checksums
      generation-3/     embeddings.safetensors  items.parquet  previews.arrow  cells.faiss  model/  model-2/ ...

A generation is written whole under a new name; the rename of facts.json commits it, and then those before go.
"""

import json
import re
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

FORMAT = "fusemix-index-3"
EMBEDDINGS, ITEMS, PREVIEWS, CELLS = "embeddings.safetensors", "items.parquet", "previews.arrow", "cells.faiss"
_OWN = "fusemix."  # before the names of our columns: the user may have an id too
_OURS = re.compile(rf"{EMBEDDINGS}|{ITEMS}|{PREVIEWS}|{CELLS}|model(-\d+)?|\..+\.tmp")  # in a generation


class Content(NamedTuple):
    """What an index holds beside its models, see `Index`.

    Attributes:
        vectors: (N, S + M), see `Index`.
        items: columns modality, id and value, N rows.
        columns: the user's, N rows.
        previews: N, or None.
        cells: of approximate search, as bytes, or None.
    """

    vectors: Tensor
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
        StoreError: the folder holds something else, or another process wrote a later generation meanwhile.
    """
    claim(folder)
    generation, home = _new_home(folder)
    try:
        for place, model in enumerate(models, 1):
            model.save(home / _model_name(place))
        sums = {name: _sum(path) for name, path in _parts(home).items()}
        for name, part in _files(content).items():
            durable.write(home / name, b"", part)
            sums[name] = sha256(part).hexdigest()
        if (now := _committed(folder)) > generation or not sums.keys() <= _parts(home).keys():
            raise StoreError(f"another process wrote {folder} meanwhile (generation {now}); run the same command again")
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)  # a disk that is full needs no half of an index
        raise
    whole = {"format": FORMAT, "generation": generation, "models": len(models), **facts, "sha256": sums}
    durable.write(folder / "facts.json", (json.dumps(whole, indent=2) + "\n").encode())
    for number, path in _generations(folder):
        if number < generation and _is_ours(path):  # a higher one is being written by another process
            shutil.rmtree(path, ignore_errors=True)  # what somebody reads on Windows goes the next time
    return generation


def claim(folder: Path) -> None:
    """Make sure that an index can be written into a folder.

    Raises:
        StoreError: it holds something else, or is a file.
    """
    durable.claim(folder, FORMAT, "index")
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} cannot be the output folder: it is a file")
    names = [path.name for path in folder.glob("[!.]*")]
    if names and "facts.json" not in names and not all(name.startswith("generation-") for name in names):
        raise StoreError(f"{folder} holds other files ({', '.join(sorted(names)[:3])}, ...); give a new folder")


def read_facts(folder: Path) -> dict[str, Any]:
    """Read facts.json.

    Raises:
        StoreError: no index there, a damaged one, or one of another version.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_bytes())
        if facts.get("format") != FORMAT:
            raise StoreError(f"{folder} is no index of format {FORMAT}; make one with `fusemix index`")
        facts["generation"], facts["models"] = int(facts["generation"]), int(facts["models"])
        return facts
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{folder} holds no index; make one with `fusemix index`") from error
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
        raise StoreError(f"{folder}: the index is damaged ({error}); make it again with `fusemix index`") from error


def model_folders(folder: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Return where the models of an index lie."""
    return [_home(folder, facts) / _model_name(place) for place in range(1, facts["models"] + 1)]


def read(folder: Path, facts: Mapping[str, Any]) -> Content:
    """Read the generation that `facts` name; every file is held to its checksum.

    Raises:
        OSError, ValueError, KeyError, pyarrow.ArrowException, safetensors.SafetensorError: a damaged index.
    """
    home, sums = _home(folder, facts), facts["sha256"]
    parts = _parts(home)
    for name, wanted in sums.items():
        if name not in parts:
            raise ValueError(f"{name} is missing")
        if _sum(parts[name]) != wanted:
            raise ValueError(f"{name} has not the content that was written")
    vectors = load_file(home / EMBEDDINGS)["embeddings"]
    table = pa.parquet.read_table(home / ITEMS)
    if len(vectors) != len(table):
        raise ValueError(f"{len(vectors)} embeddings for {len(table)} items")
    own = [f"{_OWN}{name}" for name in ("modality", "id", "value")]
    items = table.select(own).rename_columns([name.removeprefix(_OWN) for name in own])
    # Mapped: of a million previews only those that are looked at are read.
    previews = pa.ipc.open_file(pa.memory_map(str(home / PREVIEWS))).read_all()["preview"] if PREVIEWS in sums else None
    if previews is not None and len(previews) != len(table):
        raise ValueError(f"{len(previews)} previews for {len(table)} items")
    cells = (home / CELLS).read_bytes() if CELLS in sums else None
    return Content(vectors, items, table.drop_columns(own), previews, cells)


def _files(content: Content) -> dict[str, memoryview]:
    table = content.items.rename_columns([_OWN + name for name in content.items.column_names])
    for name in content.columns.column_names:
        table = table.append_column(name, content.columns[name])
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    embeddings = memoryview(save({"embeddings": content.vectors.contiguous()}))
    files = {EMBEDDINGS: embeddings, ITEMS: memoryview(sink.getvalue())}
    if content.previews is not None:
        files[PREVIEWS] = _arrow_file(pa.table({"preview": content.previews}))
    if content.cells is not None:
        files[CELLS] = memoryview(content.cells)
    return files


def _arrow_file(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _home(folder: Path, facts: Mapping[str, Any]) -> Path:
    return folder / f"generation-{facts['generation']}"


def _new_home(folder: Path) -> tuple[int, Path]:
    """Make the folder of a new generation, which no other process can make, too."""
    while True:
        generation = 1 + max(_committed(folder), *(number for number, _ in _generations(folder)), 0)
        home = folder / f"generation-{generation}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            home.mkdir()
            return generation, home
        except FileExistsError:
            if not folder.is_dir():
                raise


def _generations(folder: Path) -> list[tuple[int, Path]]:
    found = [(path.name.partition("-")[2], path) for path in folder.glob("generation-*")]
    return [(int(number), path) for number, path in found if number.isdecimal()]


def _is_ours(home: Path) -> bool:
    """Tell a generation from a folder of the user's that has such a name."""
    return home.is_dir() and all(_OURS.fullmatch(part.name) for part in home.iterdir())


def _committed(folder: Path) -> int:
    """Return the generation that counts now; 0 where none does."""
    try:
        return int(read_facts(folder)["generation"])
    except StoreError:
        return 0


def _parts(home: Path) -> dict[str, Path]:
    """Return the files of a generation by their names in it, those of its models as "model/facts.json"."""
    return {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.is_file()}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _model_name(place: int) -> str:
    return "model" if place == 1 else f"model-{place}"
