"""The k highest cosines, exact, in blocks: fast to a million rows, and the oracle of everything approximate.

Rows that are equal get equal scores, so that their order is that of the index: a product gives them the same bits only
where it has the same shape, and where it is one of two matrices. So all blocks are of one length, and one query is
asked twice; both are free, as it is the memory that limits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS_PER_BLOCK, _QUERIES_PER_BLOCK = 1 << 13, 1 << 8  # 16 MB of 512 numbers, 8 MB of scores: what a cache holds
_CAST_ROWS = 1 << 10  # float16 is widened so many rows at a time, and multiplied before it leaves the cache


def nearest(embeddings: Tensor, queries: Tensor, k: int, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows for each of many queries.

    Args:
        embeddings: (N, S), unit norm, float32 or float16.
        queries: (Q, S) float32, unit norm.
        k: rows per query, at least 1.
        among: (M,) int64, rising: only these rows are looked at; None looks at all.

    Returns:
        Scores (Q, min(k, M)) float32, falling, and rows int64. Equal scores come in order of their rows.
    """
    parts = [_nearest(embeddings, part, k, among) for part in torch.split(queries, _QUERIES_PER_BLOCK)]
    scores, rows = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(rows)


def _nearest(embeddings: Tensor, queries: Tensor, k: int, among: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keep the best k of each block of rows, then of what was kept."""
    kept, rows = [torch.empty(len(queries), 0)], [torch.empty(len(queries), 0, dtype=torch.int64)]
    for first, start, stop in _blocks(len(embeddings) if among is None else len(among), _ROWS_PER_BLOCK):
        chosen = None if among is None else among[first:stop]
        scores = _scores(queries, embeddings[first:stop] if chosen is None else embeddings[chosen])
        scores[:, : start - first] = -torch.inf  # the block before has had these
        columns = best(scores, min(k, stop - start))
        kept.append(scores.gather(1, columns))
        rows.append(columns + first if chosen is None else chosen[columns])
    scores, found = torch.cat(kept, dim=1), torch.cat(rows, dim=1)
    columns = best(scores, k)
    return scores.gather(1, columns), found.gather(1, columns)


def _blocks(count: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, start, stop): rows [start, stop) are new, and those from `first` on make up the length."""
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield max(0, stop - size), start, stop


def _scores(queries: Tensor, rows: Tensor) -> Tensor:
    """Multiply (Q, S) and (n, S) to (Q, n)."""
    if len(queries) == 1:
        return _scores(queries.expand(2, -1), rows)[:1]
    if rows.dtype == queries.dtype:
        return queries @ rows.T
    pieces = _blocks(len(rows), _CAST_ROWS)
    return torch.cat([(queries @ rows[i:k].to(queries.dtype).T)[:, j - i :] for i, j, k in pieces], dim=1)


def best(scores: Tensor, k: int) -> Tensor:
    """Columns of the k highest scores, falling; equal scores in order of their columns. (Q, n) -> (Q, min(k, n)).

    A full stable sort does this too, at ten times the cost: here only queries whose k-th score has an equal that was
    left out are sorted whole.
    """
    k = min(k, scores.shape[1])
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    cut = (values[:, k - 1] == values[:, -1]) if values.shape[1] > k else torch.zeros(len(values), dtype=torch.bool)
    columns = columns[:, :k].sort(dim=1).values
    columns = columns.gather(1, scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices)
    if cut.any():
        columns[cut] = scores[cut].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns
