"""Exact search over embeddings, in blocks. Always right, and fast enough to a million items."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fusemix import durable
from fusemix.data.items import located
from fusemix.data.media import Span, is_file
from fusemix.errors import DataError, StoreError

FORMAT = "fusemix-index-1"
_ROWS_PER_BLOCK, _QUERIES_PER_BLOCK = 1 << 16, 1 << 8  # 64 MB of scores at a time


class QueryModel(Protocol):
    """What an index needs of a model: to embed queries, and to go along when the index is saved."""

    def embed(self, items: Sequence[Any], modality: str | None = None) -> Any:
        """Embed raw items, (n, S) unit norm."""
        ...

    def use_encoder(self, modality: str, encoder: Any = None, *, decode: Any = None) -> Any:
        """Encode raw items of a modality with this encoder and this decoder."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the model."""
        ...


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        id: of the item.
        score: cosine, higher is better.
        modality: of the item.
        path: its file, if it is one, or its part of a tar as "000.tar#512+1034".
        text: the text itself, if it is one.
    """

    id: str
    score: float
    modality: str
    path: str | None
    text: str | None


class Index:
    """Embeddings of the items of one modality, and the model that embeds queries into the same space.

    Attributes:
        embeddings: (N, S), unit norm, float32.
        items: columns id and value (file name or text), N rows.
        modality: of the items.
        kind: what the items are.
        root: folder of the files.
        model: embeds queries.
    """

    def __init__(self, embeddings: Tensor, items: pa.Table, facts: dict[str, str], model: QueryModel) -> None:
        self.embeddings = embeddings
        self.items = items
        self.modality, self.kind, self.root = facts["modality"], facts["kind"], Path(facts["root"])
        self.model = model

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, query: Any, k: int = 10, modality: str | None = None) -> list[Hit]:
        """Find the items nearest to one query.

        Args:
            query: a string is text, a Path is a file, a PIL image is an image.
            k: how many hits, at most N.
            modality: what the query is, where its type does not tell.

        Raises:
            DataError: a query that no modality of the model takes, or k below 1.
        """
        embedded = torch.as_tensor(self.model.embed([query], modality))
        return self.hits(*self.search_embeddings(embedded, k))[0]

    def hits(self, scores: Tensor, rows: Tensor) -> list[list[Hit]]:
        """Turn what `search_embeddings` returns, (Q, k) each, into a list of hits per query."""
        return [
            [self._hit(row, score) for row, score in zip(*columns, strict=True)]
            for columns in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def search_embeddings(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the nearest rows for many queries at once.

        Args:
            queries: (Q, S), unit norm.
            k: hits per query.

        Returns:
            Scores (Q, k), falling, and rows (Q, k); k is at most N. Equal scores come in order of their rows.
        """
        if k < 1:
            raise DataError(f"k must be at least 1, got {k}")
        parts = [self._search(part, k) for part in torch.split(queries, _QUERIES_PER_BLOCK)]
        scores, rows = zip(*parts, strict=True)
        return torch.cat(scores), torch.cat(rows)

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Keep the best k of each block of rows, then of what was kept."""
        best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self), _ROWS_PER_BLOCK):
            scores = queries @ self.embeddings[start : start + _ROWS_PER_BLOCK].T
            order = _best(scores, k)
            best = torch.cat([best, scores.gather(1, order)], dim=1)
            rows = torch.cat([rows, order + start], dim=1)
            order = _best(best, k)
            best, rows = best.gather(1, order), rows.gather(1, order)
        return best, rows

    def save(self, folder: str | Path) -> None:
        """Write a folder that needs nothing else: embeddings, items, facts and the model.

        Raises:
            StoreError: the folder holds something else.
        """
        folder = Path(folder)
        durable.claim(folder, FORMAT, "index")
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(self.items, sink)
        (folder / "facts.json").unlink(missing_ok=True)  # a half-written index is no index
        self.model.save(folder / "model")
        durable.write(folder / "embeddings.safetensors", save({"embeddings": self.embeddings.contiguous()}))
        durable.write(folder / "items.parquet", sink.getvalue().to_pybytes())
        facts = {"format": FORMAT, "modality": self.modality, "kind": self.kind, "root": str(self.root)}
        durable.write(folder / "facts.json", (json.dumps(facts, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path, model: QueryModel) -> "Index":
        """Open what `save` wrote.

        Raises:
            StoreError: no index there, or a damaged one.
        """
        try:
            facts = json.loads((folder / "facts.json").read_bytes())
            if facts.get("format") != FORMAT:
                raise StoreError(f"{folder} is no index of format {FORMAT}; make one with `fusemix index`")
            embeddings = load_file(folder / "embeddings.safetensors")["embeddings"]
            items = pa.parquet.read_table(folder / "items.parquet")
            if len(embeddings) != len(items):
                raise StoreError(f"{folder}: {len(embeddings)} embeddings for {len(items)} items; make the index again")
            return cls(embeddings, items, facts, model)
        except FileNotFoundError as error:
            raise StoreError(
                f"{folder} holds no index ({error.filename} is missing); make one with `fusemix index`"
            ) from error
        except (SafetensorError, pa.ArrowException, ValueError, KeyError) as error:
            raise StoreError(f"{folder}: the index is damaged ({error}); make it again with `fusemix index`") from error

    def _hit(self, row: int, score: float) -> Hit:
        id_, value = self.items["id"][row].as_py(), self.items["value"][row].as_py()
        if self.kind == "text":
            return Hit(id_, score, self.modality, None, value)
        return Hit(id_, score, self.modality, self._path(value), None)

    def _path(self, value: str | None) -> str | None:
        """Return where an item lies; the name of a file that a table embeds is no file here."""
        if value is None:
            return None
        place = located(self.root / value)
        return str(self.root / value) if is_file(place.path if isinstance(place, Span) else place) else None


def _best(scores: Tensor, k: int) -> Tensor:
    """Columns of the k highest scores, falling; equal scores in order of their columns. (q, n) -> (q, min(k, n))."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
