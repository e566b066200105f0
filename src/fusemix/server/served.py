"""The index that is served: loaded when the server starts, and swapped when its folder is written again."""

import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fusemix.errors import FusemixError, MismatchError
from fusemix.search.folder import read_facts
from fusemix.search.index import Index
from fusemix.search.opening import open_index
from fusemix.search.space import Space

LOOK_SECONDS = 1.0  # between two looks at the folder
FEW = 50  # values of a column that a page lists
FORMS = ("text", "image", "audio", "video")  # that a client can send


class Opened:
    """An index that is ready to answer.

    Args:
        index: with encoders that are loaded.
        forms: for each modality that one can ask with, what its encoder takes.
        why: for each modality that cannot be asked with, the reason.
    """

    def __init__(self, index: Index, forms: Mapping[str, str], why: Mapping[str, str]) -> None:
        self.index, self.forms, self.why = index, forms, why

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of items of each modality."""
        counted = pc.value_counts(self.index.items["modality"]).to_pylist()
        return {each["values"]: each["counts"] for each in counted}

    @cached_property
    def columns(self) -> list[tuple[str, str, list[str] | None]]:
        """Name, type and values (where they are few) of each of the user's columns."""
        return [(name, *_described(self.index.telling[name])) for name in self.index.telling.column_names]


class Served:
    """What is served now.

    Args:
        folder: of the index.
        own: encoders that the user named, by modality.
    """

    def __init__(self, folder: Path, own: Mapping[str, Any]) -> None:
        self.folder, self._own = folder, own
        self._now: Opened | None = None
        self._facts: dict[str, Any] = {}
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="fusemix-watch", daemon=True)

    @property
    def now(self) -> Opened | None:
        """The index that is served; None while the first one is loaded."""
        return self._now

    def open(self) -> None:
        """Open the index with its encoders, then watch the folder.

        Raises:
            StoreError: no index there, or a damaged one.
        """
        self._facts = read_facts(self.folder)
        self._now = self._open()
        self._watcher.start()

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def _open(self) -> Opened:
        index = open_index(self.folder)
        forms, why = {}, {}
        for name in index.space.sides_:
            try:
                forms[name] = self._ready(index.space, name)
            except FusemixError as error:
                why[name] = str(error)
        return Opened(index, forms, why)

    def _ready(self, space: Space, name: str) -> str:
        """Load the encoder of a modality; return what it takes."""
        side, own = space.sides_[name], self._own.get(name)
        if side.decode is not None:
            raise FusemixError("its files are decoded by code of yours, which the server does not run")
        if self._now is not None and name in self._now.forms and own is None:
            with suppress(MismatchError):  # the one that is loaded still fits: a new one would make a query wait
                space.use_encoder(name, self._now.index.space.encoder(name))
                return self._now.forms[name]
        takes = space.use_encoder(name, own).encoder(name).takes
        form = side.kind if takes == "any" else takes
        if form not in FORMS:
            raise FusemixError(f"its encoder takes {form}s, which cannot be sent to a server")
        return form

    def _watch(self) -> None:
        """Swap the index when its folder is written again; a damaged one is told, and the old one stays."""
        told = ""
        while not self._stop.wait(LOOK_SECONDS):
            assert self._now is not None
            try:
                facts = read_facts(self.folder)
                if facts != self._facts:  # not the generation alone: one may be made anew, and count from 1 again
                    self._now, self._facts, told = self._open(), facts, ""
            except (FusemixError, OSError) as error:
                if str(error) != told:  # once, not every second
                    told = str(error)
                    print(f"the index of generation {self._now.index.generation} stays: {error}", file=sys.stderr)  # noqa: T201


def _described(column: pa.ChunkedArray) -> tuple[str, list[str] | None]:
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number", None
    if pa.types.is_boolean(kind):
        return "text", ["true", "false"]
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return "other", None
    values = pc.unique(column).drop_null()
    return "text", sorted(values.to_pylist()) if len(values) <= FEW else None
