"""What latents tell of their items: near duplicates, leaks, outliers, mislabelled pairs, diversity, coverage.

Neighbours are told by plain cosine. Measured on photographs (docs/inspecting.md), it separates altered copies from
others as well as the cosine of centred latents does, and finds foreign pictures where that one is blind: away from
the common mean, what is like nothing has no direction of its own. Spectra are those of centred latents, where the
common mean would be most of the first eigenvalue.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.align.diversity import NEIGHBOURS, coverage, effective_rank, expected_coverage, mean, vendi
from fusemix.align.neighbours import nearest
from fusemix.align.quality import agreement_beside_strangers
from fusemix.data.health import Health, examine
from fusemix.data.items import Rows
from fusemix.data.latents import ItemLatents
from fusemix.inspection.findings import Concern, Finding, Kind, Severity
from fusemix.inspection.rows import MANY, first_rows, listed, share
from fusemix.inspection.sources import Kept
from fusemix.progress import Progress, silent

MOST = 50_000  # items that are compared with one another; of more, so many, spread evenly
K = 10  # neighbours of an item
NEAR = 1 / 3  # of the usual distance to the nearest neighbour: what is nearer is a near duplicate, see `near_limit`
LEAST, MOST_DISTANCE = 0.02, 0.1
FAR = 3.5  # robust z of an outlier (Iglewicz & Hoaglin, 1993)
TELLS = 0.8  # of the pairs must agree more than strangers do, else the alignment is no judge
FEWEST = 5 * K  # items or groups below which neighbours and alignments mean nothing


def look_at_latents(kept: Kept, progress: Progress = silent) -> Iterator[Finding]:
    """Look at the latents of every modality, and at their pairs."""
    names = kept.latents.modalities
    steps = [*names, *(f"{a}+{b}" for a, b in combinations(names, 2))]
    for done, step in enumerate(steps):
        progress("latents", done, len(steps), step)
        if step in names:
            yield from _look_at_items(_Looked.of(kept, step))
        else:
            yield from _mislabelled(kept, *step.split("+"))
    progress("latents", len(steps), len(steps))


class _Looked:
    """The items of one modality that are looked at, with what is known of them.

    Attributes:
        items: latents of all that occur in pairs.
        numbers: (n,) of each, its number in `Pairs.items`.
        first: (n,) first row that it occurs in.
        groups: (n,) of that row.
        trained: (n,) whether it occurs in the split train.
        splits: (n,) of the first row.
        is_text: whether they are texts.
    """

    def __init__(self, kept: Kept, name: str) -> None:
        latents, pairs = kept.latents, kept.pairs
        self.name, self.items = name, latents[name]
        used = np.unique(latents.rows[name])
        self.numbers: Rows = kept.places[name][used]
        self.first: Rows = first_rows(pairs, name)[self.numbers]
        self.groups: Rows = pairs.groups[self.first]
        self.splits = pairs.splits[self.first]
        self.trained: NDArray[np.bool_] = np.isin(self.numbers, pairs.rows[name][pairs.splits == "train"])
        self.is_text = pairs.items[name].kind == "text"

    @classmethod
    def of(cls, kept: Kept, name: str) -> "_Looked":
        return cls(kept, name)

    def __len__(self) -> int:
        return len(self.numbers)

    def concern(self, i: int, j: int | None = None, score: float | None = None, message: str = "") -> Concern:
        """Point at an item, and at another that it is compared with."""
        other = None if j is None else (self.name, int(self.numbers[j]))
        other_row = None if j is None else int(self.first[j])
        return Concern(int(self.first[i]), (self.name, int(self.numbers[i])), other_row, other, score, message)


def _look_at_items(looked: _Looked) -> Iterator[Finding]:
    yield from _health(looked, examine(looked.items))
    if len(looked) >= FEWEST:
        rows = _spread(np.arange(len(looked)))
        cosines, neighbours = _neighbours(looked.items, rows)
        near = 1 - near_limit(cosines.numpy())
        yield from _near_duplicates(looked, rows, cosines.numpy(), rows[neighbours.numpy()], near)
        yield from _outliers(looked, rows, cosines.numpy())
        yield from _leaks(looked, near)
    yield from _diversity(looked)
    yield from _coverage(looked)


def _spread(numbers: Rows, most: int | None = None) -> Rows:
    """Return at most MOST of some numbers, evenly spread."""
    most = MOST if most is None else most
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), most)).astype(np.int64))]


def _neighbours(items: ItemLatents, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    some = items.rows.select(rows)
    return nearest(some, some, K, same=True)


def near_limit(cosines: NDArray[np.float32]) -> float:
    """Return the cosine distance below which two items are near duplicates.

    A third of the median distance to the nearest neighbour, because encoders differ in how near all latents lie; at
    most 0.1, as in a small set all are far. Where most items have a copy that median is nothing: so the limit is at
    least 0.02, or a third of the median distance to the K-th neighbour, if that is less.
    """
    nearest_one, last = (float(np.median(1 - cosines[:, k])) for k in (0, -1))
    return float(np.clip(NEAR * nearest_one, min(LEAST, NEAR * last), MOST_DISTANCE))


def _of(looked: _Looked, rows: Rows) -> str:
    """Say how many items were compared, where it is not all of them."""
    return "" if len(rows) == len(looked) else f", {len(rows):,} of {len(looked):,} items looked at"


def _health(looked: _Looked, health: Health) -> Iterator[Finding]:
    name, total = looked.name, len(looked)
    bad = [
        (rows, word) for rows, word in ((health.zero, "all zero"), (health.not_finite, "NaN or infinite")) if len(rows)
    ]
    if bad:
        concerns = [looked.concern(i, message=word) for rows, word in bad for i in rows.tolist()]
        sentence = f"{share(len(concerns), total)} latents are " + listed([f"{word} ({len(r):,})" for r, word in bad])
        yield Finding("bad latent", "problem", name, len(concerns), sentence, concerns)
    if len(health.shared):
        concerns = [looked.concern(i) for i in health.shared.tolist()]
        few: Severity = "warning" if len(concerns) > MANY * total else "note"
        severity = few if looked.is_text else "warning"
        sentence = f"{share(len(concerns), total)} items have a latent that another item has too"
        yield Finding("shared latent", severity, name, len(concerns), sentence, concerns)
    if len(health.constant):
        dead, dims = int((health.mean[torch.from_numpy(health.constant)] == 0).sum()), len(health.mean)
        concerns = [Concern(score=float(health.mean[d]), message=f"dimension {d}") for d in health.constant.tolist()]
        severity = "warning" if len(concerns) > MANY * dims else "note"
        sentence = f"{share(len(concerns), dims)} dimensions are constant, {dead:,} of them dead (always 0)"
        yield Finding("constant dimension", severity, name, len(concerns), sentence, concerns)


def _near_duplicates(
    looked: _Looked, rows: Rows, cosines: NDArray[np.float32], neighbours: Rows, near: float
) -> Iterator[Finding]:
    """Join items nearer than `near` to clusters; each is told once, beside the one that it is nearest to."""
    i, k = np.nonzero(cosines >= near)
    if not len(i):
        return
    a, b, cosine = rows[i], neighbours[i, k], cosines[i, k]
    cluster = _clusters(len(looked), a, b)
    members = np.unique(a)
    sizes = np.bincount(cluster)
    concerns, seen = [], set()
    for e in np.lexsort((k, -cosine)).tolist():
        one, two = sorted((int(a[e]), int(b[e])))
        if k[e] == 0 and (one, two) not in seen:
            seen.add((one, two))
            words = [f"one of {sizes[cluster[one]]}"]
            words += ["same group"] if looked.groups[one] == looked.groups[two] else []
            words += [listed(sorted({str(looked.splits[one]), str(looked.splits[two])}))]
            concerns.append(looked.concern(one, two, float(cosine[e]), ", ".join(words)))
    clusters = len(np.unique(cluster[members]))
    severity: Severity = "note" if looked.is_text else "warning"
    sentence = (
        f"{share(len(members), len(rows))} items in {clusters:,} clusters, at cosines of {near:.3f} or more"
        f"{_of(looked, rows)}"
    )
    figures: dict[str, float] = {"threshold": near, "clusters": clusters, "largest": int(sizes[cluster[members]].max())}
    yield Finding("near duplicate", severity, looked.name, len(members), sentence, concerns, figures)


def _clusters(count: int, a: Rows, b: Rows) -> Rows:
    """Number the connected parts of a graph of n items with the edges a-b: (n,) the least item of each part."""
    label = np.arange(count)
    while True:
        least = np.minimum(label[a], label[b])
        new = label.copy()
        np.minimum.at(new, a, least)
        np.minimum.at(new, b, least)
        new = new[new]  # a label that has a smaller one itself
        if np.array_equal(new, label):
            return label
        label = new


def far_from_all(cosines: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the robust z of the logarithm of the mean distance to the K nearest, and that distance, (n,) each.

    Distances are skewed, their logarithms hardly; and where an encoder gives latents with a large common part, what is
    like nothing has a distance of several times the usual one, not of several deviations more.

    Args:
        cosines: (n, K) with the nearest of each.
    """
    distance = (1 - cosines.mean(axis=1, dtype=np.float64)).clip(min=1e-6)
    log = np.log(distance)
    beside = log - np.median(log)
    spread = 1.4826 * np.median(np.abs(beside))  # a standard deviation, were it normal
    return beside / spread if spread > 0 else np.zeros_like(beside), distance


def _outliers(looked: _Looked, rows: Rows, cosines: NDArray[np.float32]) -> Iterator[Finding]:
    z, distance = far_from_all(cosines)
    far = np.flatnonzero(z > FAR)
    if len(far):
        order = far[np.argsort(-z[far])].tolist()
        concerns = [
            looked.concern(int(rows[i]), score=float(z[i]), message=f"mean distance {distance[i]:.3f}") for i in order
        ]
        sentence = (
            f"{share(len(far), len(rows))} items are far from their {K} nearest neighbours: mean distance "
            f"{distance[far].min():.2f} or more, where {np.median(distance):.2f} is usual (robust z above {FAR:g})"
            f"{_of(looked, rows)}"
        )
        yield Finding("outlier", "warning", looked.name, len(far), sentence, concerns)


def _held_and_trained(looked: _Looked) -> tuple[Rows, Rows]:
    return _spread(np.flatnonzero(~looked.trained)), _spread(np.flatnonzero(looked.trained))


def _leaks(looked: _Looked, near: float) -> Iterator[Finding]:
    """Find for each held-out item the nearest trained-on one of another group."""
    held, trained = _held_and_trained(looked)
    if not len(held) or not len(trained):
        return
    cosines, neighbours = nearest(
        looked.items.rows.select(held), looked.items.rows.select(trained), min(K, len(trained))
    )
    other = trained[neighbours.numpy()]
    close = np.where(looked.groups[other] != looked.groups[held][:, None], cosines.numpy(), -np.inf)
    best = close.argmax(axis=1)
    score = close[np.arange(len(held)), best]
    found = np.flatnonzero(score >= near)
    if len(found):
        order = found[np.argsort(-score[found], kind="stable")].tolist()
        concerns = [
            looked.concern(
                int(held[i]), int(other[i, best[i]]), float(score[i]), f"in {looked.splits[held[i]]}, like one of train"
            )
            for i in order
        ]
        severity: Severity = "note" if looked.is_text else "warning"
        sentence = (
            f"{share(len(found), len(held))} held-out items have a near duplicate in train (cosine {near:.3f} or more)"
            f"{_of(looked, np.concatenate([held, trained]))}"
        )
        yield Finding("leak", severity, looked.name, len(found), sentence, concerns, {"threshold": near})


def _diversity(looked: _Looked) -> Iterator[Finding]:
    rows, (count, dim) = looked.items.rows, looked.items.rows.shape
    if count < 2:
        return
    centre = mean(rows)
    centred, plain, rank = vendi(rows, centre), vendi(rows), effective_rank(rows, centre)
    sentence = (
        f"{count:,} items are worth {centred:,.0f} wholly different ones (Vendi score; {plain:,.1f} with the common "
        f"mean in), and use {rank:,.0f} of {min(count, dim):,} directions (effective rank)"
    )
    figures = {"vendi": centred, "vendi_uncentred": plain, "effective_rank": rank}
    yield Finding("diversity", "note", looked.name, count, sentence, figures=figures)


def _coverage(looked: _Looked) -> Iterator[Finding]:
    held, trained = _held_and_trained(looked)
    if len(held) < FEWEST or not len(trained):
        return
    reached = coverage(looked.items.rows.select(held), looked.items.rows.select(trained))
    expected = expected_coverage(len(held), len(trained))
    low = reached < expected - max(MANY, 4 * (expected * (1 - expected) / len(held)) ** 0.5)
    sentence = (
        f"{100 * reached:.1f} % of {len(held):,} held-out items have a training item as near as their "
        f"{NEIGHBOURS}th held-out neighbour ({100 * expected:.1f} % if both were drawn alike)"
    )
    figures = {"coverage": reached, "expected": expected}
    yield Finding("coverage", "warning" if low else "note", looked.name, len(held), sentence, figures=figures)


def _mislabelled(kept: Kept, a: str, b: str) -> Iterator[Finding]:
    """Rank the pairs that agree no better than strangers."""
    latents, pairs = kept.latents, kept.pairs
    if len(np.unique(latents.groups)) < FEWEST:
        return
    rows = latents.rows[a], latents.rows[b]
    agreed, strange = agreement_beside_strangers(latents.items[a].rows, latents.items[b].rows, rows, latents.groups)
    known = ~np.isnan(strange)
    tells, limit = float((agreed > strange)[known].mean()), float(np.median(strange[known]))
    figures = {"tells": tells, "threshold": limit, "median": float(np.median(agreed))}
    judge = f"{100 * tells:.1f} % of all pairs agree more than the same {a} does with a {b} drawn at random"
    kind: Kind = "mislabelled"
    if tells < TELLS:
        sentence = f"no verdict: only {judge}, so this alignment is no judge of a single pair"
        yield Finding(kind, "note", f"{a}+{b}", 0, sentence, figures=figures)
        return
    low = np.flatnonzero(agreed < limit)
    if not len(low):
        return
    order = low[np.argsort(agreed[low], kind="stable")]
    ranks = 100 * (np.argsort(np.argsort(agreed, kind="stable"), kind="stable")[order] + 0.5) / len(agreed)
    concerns = [
        Concern(
            int(row), (a, int(pairs.rows[a][row])), int(row), (b, int(pairs.rows[b][row])), float(score),
            f"percentile {rank:.2f}",
        )
        for row, score, rank in zip(kept.rows[order], agreed[order], ranks, strict=True)
    ]  # fmt: skip
    sentence = f"{share(len(low), len(agreed))} pairs agree less than half of all strangers do ({limit:.3f}); {judge}"
    yield Finding(kind, "warning", f"{a}+{b}", len(low), sentence, concerns, figures)
