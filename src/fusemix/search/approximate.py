"""Search that looks at a part of the rows: FAISS proposes, the exact scores decide, and recall is measured.

An inverted file (IVF) sorts the rows into cells and looks into the cells that are nearest to a query. Queries of
another modality lie apart from the rows, so how many cells it takes is measured on such queries, not assumed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusemix.errors import DataError, MissingExtraError
from fusemix.search.exact import best, nearest

FEWEST = 10_000  # items: below, exact search is as fast
K = 10  # of recall@10
PROPOSED = 4  # times k, so that the 8 bits of a proposal cost no hit
QUERIES = 1_000  # to measure on
_TRAINED = 64  # rows a cell from which its centre is learned


@dataclass(frozen=True)
class Approximate:
    """An inverted file over the rows of an index.

    Attributes:
        cells: the FAISS index; rows with 8 bits a number.
        facts: cells, probed (cells that a query looks into), recall (measured recall@10), queries (how many it was
            measured on) and goal.
    """

    cells: Any
    facts: dict[str, Any]

    @classmethod
    def build(cls, embeddings: Tensor, queries: Tensor | None, recall: float) -> "Approximate":
        """Sort rows into cells, and find the fewest cells to look into that reach a recall@10.

        Args:
            embeddings: (N, S), unit norm.
            queries: (Q, S) float32, unit norm; None, as well as none at all, is for rows of the index.
            recall: to reach, in (0, 1].

        Raises:
            DataError: fewer than 10,000 rows, or no such recall.
            MissingExtraError: faiss is not installed.
        """
        if len(embeddings) < FEWEST:
            raise DataError(
                f"{len(embeddings):,} items: exact search is as fast below {FEWEST:,}; leave --approximate out"
            )
        if not 0 < recall <= 1:
            raise DataError(f"recall must be in (0, 1], got {recall}")
        faiss = _faiss()
        count = max(1, round(4 * len(embeddings) ** 0.5))
        cells = faiss.index_factory(embeddings.shape[1], f"IVF{count},SQ8", faiss.METRIC_INNER_PRODUCT)
        cells.cp.min_points_per_centroid = 1  # of 24,000 rows and fewer FAISS wants more, and prints so
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(embeddings), generator=generator)
        cells.train(embeddings[order[: _TRAINED * count]].float().numpy())
        for block in torch.split(embeddings, 1 << 16):
            cells.add(block.float().numpy())
        queries = queries if queries is not None and len(queries) else None
        asked = embeddings[order[:QUERIES]].float() if queries is None else queries[:QUERIES]
        truth = nearest(embeddings, asked, K)[1]
        built = cls(cells, {})
        probed, reached = 1, built._recall(embeddings, asked, truth, 1)
        while reached < recall and probed < count:
            probed = min(2 * probed, count)
            reached = built._recall(embeddings, asked, truth, probed)
        facts = {"cells": count, "probed": probed, "recall": reached, "queries": len(asked), "goal": recall}
        return cls(cells, {**facts, "of": "items of the index" if queries is None else "queries"})

    def search(self, embeddings: Tensor, queries: Tensor, k: int, probed: int | None = None) -> tuple[Tensor, Tensor]:
        """Find near rows, as `exact.nearest`; a query that finds too few of them is searched exactly."""
        faiss = _faiss()
        parameters = faiss.SearchParametersIVF(nprobe=probed or self.facts["probed"])
        _, proposed = self.cells.search(queries.numpy(), min(PROPOSED * k, len(embeddings)), params=parameters)
        rows = torch.from_numpy(proposed).sort(dim=1).values
        scores = (embeddings[rows.clamp(min=0)].float() * queries[:, None]).sum(dim=2)  # equal rows, equal scores
        scores[rows < 0] = -torch.inf  # FAISS fills up with -1
        columns = best(scores, k)
        scores, rows = scores.gather(1, columns), rows.gather(1, columns)
        short = (rows < 0).any(dim=1)
        if short.any():
            scores[short], rows[short] = nearest(embeddings, queries[short], k)
        return scores, rows

    def _recall(self, embeddings: Tensor, queries: Tensor, truth: Tensor, probed: int) -> float:
        found = self.search(embeddings, queries, truth.shape[1], probed)[1]
        return float((found[:, :, None] == truth[:, None, :]).any(dim=1).float().mean())

    def to_bytes(self) -> bytes:
        """Return the cells as a file."""
        content: bytes = _faiss().serialize_index(self.cells).tobytes()
        return content

    @classmethod
    def of(cls, content: bytes, facts: dict[str, Any], embeddings: Tensor) -> "Approximate":
        """Read what `to_bytes` gave.

        Raises:
            ValueError, RuntimeError: the bytes are no such file, or one of other rows.
        """
        cells = _faiss().deserialize_index(np.frombuffer(content, dtype=np.uint8))
        if (cells.ntotal, cells.d) != tuple(embeddings.shape):
            raise ValueError(f"the cells hold {cells.ntotal} rows of {cells.d} numbers")
        return cls(cells, facts)


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtraError("faiss", "index", "approximate search") from error
    return faiss
