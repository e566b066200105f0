"""Evaluation that says what it measured: recall both ways with intervals and counts, beside chance, ridge and CCA."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fusemix.align.hubness import Hubs, as_query, with_bias
from fusemix.align.landing import Closeness, closeness
from fusemix.align.metrics import (
    CUTOFFS,
    Relevance,
    average_precisions,
    best_ranks,
    bootstrap,
    chance_average_precision,
    chance_rank_distribution,
    recall_at,
)
from fusemix.data.latents import Latents

Embed = Callable[[str, Any], Tensor]
"""Maps (modality, latents (N, D), LatentRows or a tensor) to embeddings (N, S), unit norm."""

FEW_QUERIES = 20  # below, a figure is one or two items' luck
LANDINGS = 2000


@dataclass(frozen=True)
class Scores:
    """Retrieval in one direction.

    Attributes:
        queries, gallery: distinct items on either side.
        recall: for each cut-off k the percentage of queries with a relevant item among the first k.
        interval: 95 % bootstrap interval of each, over groups of queries; empty for chance.
        median_rank: of the best relevant item, from 1.
        mean_ap: mean average precision over all relevant items, in [0, 1].
    """

    queries: int
    gallery: int
    recall: dict[int, float]
    interval: dict[int, tuple[float, float]]
    median_rank: float
    mean_ap: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: R@k and its interval in percent, median_rank, mAP, queries, gallery."""
        recalls = {f"R@{k}": round(value, 3) for k, value in self.recall.items()}
        intervals = {f"R@{k}_ci95": [round(low, 3), round(high, 3)] for k, (low, high) in self.interval.items()}
        counts = {"queries": self.queries, "gallery": self.gallery}
        return {**recalls, "median_rank": self.median_rank, "mAP": round(self.mean_ap, 5), **intervals, **counts}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; prints as a table.

    Attributes:
        split: the split that was measured.
        rows: number of pairs in it.
        retrieval: scores of a search by the model, by direction such as "text->image".
        baselines: the same for "chance", "ridge" and "cca".
        notes: what a reader must know before believing the numbers.
        closeness: of what lands in a locked space; None where none is locked.
        uncorrected: scores of the same search without the correction of hubs; None where it has none.
    """

    split: str
    rows: int
    retrieval: dict[str, Scores]
    baselines: dict[str, dict[str, Scores]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    closeness: Closeness | None = None
    uncorrected: dict[str, Scores] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        plain = None if self.uncorrected is None else _plain(self.uncorrected)
        return {
            "split": self.split,
            "rows": self.rows,
            "retrieval": _plain(self.retrieval),
            **({} if plain is None else {"uncorrected": plain}),
            "baselines": {name: _plain(ways) for name, ways in self.baselines.items()},
            "notes": self.notes,
            **({} if self.closeness is None else {"closeness": asdict(self.closeness)}),
        }

    @property
    def methods(self) -> dict[str, dict[str, Scores]]:
        """All that was measured, by name, the model last."""
        uncorrected = {} if self.uncorrected is None else {"fusemix, hubs uncorrected": self.uncorrected}
        return {**self.baselines, **uncorrected, "fusemix": self.retrieval}

    def table(self) -> list[list[str]]:
        """Return the rows of a table: direction, method, R@1 with its interval, R@5, R@10, median rank, mAP."""
        methods = self.methods
        rows = [["", "method", "R@1", "95 %", "R@5", "R@10", "median rank", "mAP"]]
        for way in self.retrieval:
            for name, ways in methods.items():
                s = ways[way]
                low, high = s.interval.get(1, (None, None))
                interval = "" if low is None else f"{low:.1f}-{high:.1f}"
                recalls = [f"{s.recall[k]:.1f}" for k in CUTOFFS]
                rows.append([way, name, recalls[0], interval, *recalls[1:], f"{s.median_rank:g}", f"{s.mean_ap:.3f}"])
        return rows

    def __str__(self) -> str:
        cells = self.table()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        return "\n".join([self.caption(), *lines, *(f"note: {note}" for note in self.notes)])

    def caption(self) -> str:
        """Say what was measured, in one line."""
        sizes = ", ".join(f"{way}: {s.queries:,} queries over {s.gallery:,} items" for way, s in self.retrieval.items())
        return f"split {self.split!r}, {self.rows:,} pairs; {sizes}"


def _plain(ways: dict[str, Scores]) -> dict[str, Any]:
    return {way: scores.to_dict() for way, scores in ways.items()}


def score(embed: Embed, latents: Latents, seed: int = 0, hubs: Hubs | None = None) -> dict[str, Scores]:
    """Measure retrieval both ways.

    Distinct items are queries and gallery. An item is relevant to a query when some row of the table pairs them.

    Args:
        embed: the model or a baseline.
        latents: the pairs to measure on; two modalities x and y.
        seed: of the bootstrap.
        hubs: what corrects hubs in the gallery.

    Returns:
        Scores of "y->x" and "x->y", in the user's words.
    """
    x, y = latents.modalities
    rows = {name: np.unique(latents.rows[name], return_inverse=True)[1] for name in (x, y)}
    embedded = {name: embed(name, latents[name].rows) for name in (x, y)}
    galleries, queries = embedded, embedded
    if hubs is not None:
        galleries = {name: with_bias(each, hubs.bias(name, each)) for name, each in embedded.items()}
        queries = {name: as_query(each) for name, each in embedded.items()}
    return {
        f"{query}->{gallery}": _score_one_way(
            queries[query], galleries[gallery], rows[query], rows[gallery], latents.groups, seed
        )
        for query, gallery in ((y, x), (x, y))
    }


def _score_one_way(
    queries: Tensor, gallery: Tensor, query_rows: np.ndarray[Any, Any], gallery_rows: np.ndarray[Any, Any],
    groups: np.ndarray[Any, Any], seed: int,
) -> Scores:  # fmt: skip
    relevance = Relevance.from_pairs(query_rows, gallery_rows)
    ranks = best_ranks(queries, gallery, relevance)
    first = np.unique(query_rows, return_index=True)[1]
    return Scores(
        queries=len(queries),
        gallery=len(gallery),
        recall={k: recall_at(ranks, k) for k in CUTOFFS},
        interval=bootstrap(ranks, groups[first], np.random.default_rng(seed)),
        median_rank=float(np.median(ranks)),
        mean_ap=float(average_precisions(queries, gallery, relevance).mean()),
    )


def few(retrieval: dict[str, Scores]) -> list[str]:
    """Say how coarse the figures are, where few queries made them."""
    queries = min(scores.queries for scores in retrieval.values())
    if queries >= FEW_QUERIES:
        return []
    return [f"{queries} queries tell little: one more that is right is {100 / queries:.1f} points"]


def score_landing(land: Embed, latents: Latents, locked: str) -> Closeness | None:
    """Compare conditions with the latents of the locked space that they are paired with, on 2,000 of these at most.

    Args:
        land: maps (modality, latents (N, D)) into the locked space.
        latents: the pairs to measure on; of fewer than four items of the locked space nothing can be said.
        locked: the modality whose latents the space is made of.
    """
    first = np.unique(latents.rows[locked], return_index=True)[1]  # each item once: halves of it are compared
    if len(first) < 4:
        return None
    free = next(name for name in latents.modalities if name != locked)
    some = first[np.unique(np.linspace(0, len(first) - 1, LANDINGS).round().astype(np.int64))]
    landed, real = (land(name, latents.items[name].rows.take(latents.rows[name][some])) for name in (free, locked))
    return closeness(landed, real)


def chance(latents: Latents) -> dict[str, Scores]:
    """Return what a random order is expected to score, by formula."""
    x, y = latents.modalities
    rows = {name: np.unique(latents.rows[name], return_inverse=True)[1] for name in (x, y)}
    scores = {}
    for query, gallery in ((y, x), (x, y)):
        relevance = Relevance.from_pairs(rows[query], rows[gallery])
        found = chance_rank_distribution(relevance)
        scores[f"{query}->{gallery}"] = Scores(
            queries=len(relevance.counts),
            gallery=relevance.items,
            recall={k: 100 * float(found[min(k, len(found)) - 1]) for k in CUTOFFS},
            interval={},
            median_rank=float(np.searchsorted(found, 0.5) + 1),
            mean_ap=chance_average_precision(relevance),
        )
    return scores
