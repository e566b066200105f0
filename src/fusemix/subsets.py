"""Subsets: which k pairs are worth keeping, chosen on latents before anything is trained.

`select` chooses, `Subset.save` writes one Parquet row per picked pair, `Subset.pairs` takes them from the latents
again.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix import durable
from fusemix.align.coverage import facility, farthest
from fusemix.align.dpp import diverse, log_det
from fusemix.align.quality import agreement
from fusemix.align.selection import Plan, Selection, best, pick_pairs, uniform, weights
from fusemix.data.latents import Latents, LateTable
from fusemix.errors import DataError, MismatchError, StoreError, choices
from fusemix.progress import Progress, silent

METHODS = ("diversity", "coverage", "facility", "quality", "uniform", "mix")
FORMAT = "fusemix.subset/1"
_COMPARED = 4000  # picks at most whose determinant is looked at: 130 MB
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Subset:
    """Picked pairs, in order of picking: the first m of them are the answer for m.

    Attributes:
        rows: (k,) int64 numbers of pairs in the latents that `select` was given.
        gains: (k,) float64, what each added: diversity and mix, the factor on the determinant; coverage, the distance
            to the nearest pick before it, in [0, 1]; facility, the rise of the summed similarity; quality, its
            agreement; uniform, 0.
        facts: what was asked and done: by, on, k, n, split, seed, weight, precision, parts, passes, seconds.
        marks: what tells the latents from others.
        late: the ids of the items as "fusemix.id.MODALITY" and the user's plain columns, k rows, read when looked at.
    """

    rows: Rows
    gains: NDArray[np.float64]
    facts: dict[str, Any]
    marks: dict[str, str]
    late: LateTable

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def table(self) -> pa.Table:
        """The picked pairs in order: order (from 0), gain and row under "fusemix.", ids, and the user's columns."""
        own = {"order": np.arange(len(self)), "gain": self.gains, "row": self.rows}
        table = pa.table({f"fusemix.{name}": values for name, values in own.items()})
        for name in self.late.table.column_names:
            table = table.append_column(name, self.late.table[name])
        return table

    def first(self, m: int) -> "Subset":
        """Return the first m picks.

        Raises:
            DataError: there are fewer.
        """
        if not 1 <= m <= len(self):
            raise DataError(f"wanted the first {m:,} picks; the subset has {len(self):,}: give 1 to {len(self):,}")
        late = self.late.take(np.arange(m))
        return replace(self, rows=self.rows[:m], gains=self.gains[:m], facts={**self.facts, "k": m}, late=late)

    def pairs(self, latents: Latents) -> Latents:
        """Take the picked pairs, in order, from the latents that they were picked from.

        Raises:
            MismatchError: other latents; it says what differs.
        """
        found = _marks(latents)
        for what in [*self.marks, *found]:
            if self.marks.get(what) != found.get(what):
                raise MismatchError(
                    f"the subset is of other latents: {what} is {found.get(what, 'missing')}, where it was picked "
                    f"{self.marks.get(what, 'missing')}; select again on these latents"
                )
        taken = latents.take(self.rows)
        for name in latents.modalities:
            if not _ids(taken, name).equals(self.late.table[f"fusemix.id.{name}"]):
                raise MismatchError(f"the subset is of other latents: its {name} items differ; select again on these")
        return taken

    def save(self, path: str | Path) -> None:
        """Write `table` to a Parquet file, with facts and marks in its schema."""
        meta = {"fusemix.format": FORMAT, "fusemix.facts": json.dumps(self.facts), "fusemix.of": json.dumps(self.marks)}
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(self.table.replace_schema_metadata(meta), sink)
        durable.write(Path(path), sink.getvalue().to_pybytes())

    @classmethod
    def load(cls, path: str | Path) -> "Subset":
        """Read what `save` wrote.

        Raises:
            StoreError: there is no such file, or it is no subset.
        """
        if not Path(path).is_file():
            raise StoreError(f"{path}: no such file; make a subset with `fusemix select LATENTS --keep K -o {path}`")
        try:
            table = pa.parquet.read_table(path)
            meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            rows, gains = (table[f"fusemix.{name}"].to_numpy() for name in ("row", "gain"))
            rest = table.drop_columns(["fusemix.order", "fusemix.gain", "fusemix.row"]).replace_schema_metadata(None)
            facts, marks = json.loads(meta["fusemix.facts"]), json.loads(meta["fusemix.of"])
            return cls(rows.astype(np.int64), gains.astype(np.float64), facts, marks, LateTable(lambda: rest))
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{path} is damaged or no subset of fusemix ({error}); select again") from error

    @classmethod
    def train(cls, latents: Latents, path: str | Path | None, keep: int | None = None) -> Latents:
        """Return the pairs to train on: those of a saved subset or its first `keep`, or the split train without one.

        Raises:
            DataError: it has fewer, or is not of the split train.
        """
        if path is None:
            if keep is not None:
                raise DataError(f"keep {keep:,} of which subset? give the file that `fusemix select` wrote too")
            return latents.only("train")
        subset = cls.load(path)
        if subset.facts["split"] != "train":
            raise DataError(f"{path} was picked from split {subset.facts['split']!r}; to train, select from train")
        return (subset if keep is None else subset.first(keep)).pairs(latents)


def select(
    latents: Latents,
    k: int,
    by: str = "diversity",
    on: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
    split: str = "train",
    weight: float = 1.0,
    parts: int | None = None,
    precision: str | None = None,
    progress: Progress = silent,
) -> Subset:
    """Choose k pairs of a split.

    Args:
        latents: the pairs to choose from.
        k: how many, at most as many as the split has.
        by: "diversity" (greedy k-DPP), "coverage" (k-centre), "facility" (facility location), "quality" (agreement of
            the two sides under a CCA that has not seen the pair), "mix" (k-DPP weighted by quality) or "uniform".
        on: the modality whose latents are looked at, or several of them; all of them for None or "both". Quality always
            looks at all.
        seed: of the uniform pick, the folds of quality and the dealing into parts.
        split: that is chosen from, and nothing else is looked at; never "test".
        weight: for "mix", how much quality counts: one standard deviation more multiplies a gain by e^weight.
        parts: deal the items into so many parts, pick in each, then among the picks. By default 1, which is exact,
            for as long as n k numbers fit 4 GB, see `align.selection.Plan`.
        precision: "float64" or "float32"; by default float64 for as long as that fits.
        progress: told of the picks.

    Returns:
        The subset, whose rows are numbers of pairs of `latents` in order of picking.

    Raises:
        DataError: no such method, modality or split, the split test, or a k that is not in 1..n.
    """
    began = time.perf_counter()
    pool, names = candidates(latents, k, by, on, split)
    if parts is not None and parts < 1:
        raise DataError(f"parts {parts}: wanted at least 1")
    if precision not in (None, "float64", "float32"):
        raise DataError(f"precision {precision!r}: wanted float64 or float32")
    if not 0 <= weight < np.inf:
        raise DataError(f"weight {weight}: wanted 0 (quality does not count) or more")
    inside = latents.take(pool)
    facts: dict[str, Any] = {"by": by, "on": names, "k": k, "n": len(pool), "split": split, "seed": seed}
    if by == "uniform":
        chosen = uniform(len(pool), k, seed)
    elif by == "quality":
        chosen = best(qualities(inside, seed), k)
    else:
        chosen, plan = _by_items(inside, k, by, names, seed, weight, parts, precision, progress)
        facts |= {
            "precision": str(plan.dtype).removeprefix("torch."),
            "parts": plan.parts,
            "final": plan.final,
            "passes": chosen.passes,
        }
        facts |= {"weight": weight} if by == "mix" else {}
    facts["seconds"] = round(time.perf_counter() - began, 2)
    rows = pool[chosen.rows]
    return Subset(rows, chosen.gains, facts, _marks(latents), LateTable(lambda: _described(latents.take(rows))))


def candidates(latents: Latents, k: int, by: str, on: str | Sequence[str] | None, split: str) -> tuple[Rows, list[str]]:
    """Check what is asked of `select`; return the pairs to choose from, and the modalities to look at."""
    if by not in METHODS:
        raise DataError(f"no method {by!r} to select by; {choices(by, METHODS)}")
    if split == "test":
        raise DataError(
            "selection never looks at the split test: what is measured there must stay unseen; give another"
        )
    all_ = on is None or (on == "both" and "both" not in latents.modalities)
    names = list(latents.modalities) if all_ else [on] if isinstance(on, str) else list(on or ())
    for name in names:
        if name not in latents.modalities:
            raise DataError(f"no modality {name!r} to look at; {choices(name, [*latents.modalities, 'both'])}")
    if not names or len(set(names)) < len(names):
        raise DataError(f"on {names}: wanted one or several of {', '.join(latents.modalities)}, each once")
    pool = np.flatnonzero(latents.splits == split)
    if not len(pool):
        raise DataError(f"there is no split {split!r}; {choices(split, np.unique(latents.splits).tolist())}")
    if not 1 <= k <= len(pool):
        raise DataError(f"cannot keep {k:,} of the {len(pool):,} pairs of split {split!r}: give 1 to {len(pool):,}")
    if by in ("quality", "mix") and len(latents.modalities) < 2:
        raise DataError(f"by {by}: quality is the agreement of two modalities, and these latents have one")
    return pool, names


def qualities(latents: Latents, seed: int = 0) -> NDArray[np.float64]:
    """Return how well the sides of each pair agree, (N,) in [-1, 1], see `align.quality`; of three or more the mean."""
    found = [
        agreement(
            latents.items[a].rows, latents.items[b].rows, (latents.rows[a], latents.rows[b]), latents.groups, seed
        )
        for a, b in combinations(latents.modalities, 2)
    ]
    return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def compared(latents: Latents, subset: Subset) -> dict[str, Any]:
    """Return log-determinant and distinct items of a subset ("picked"), and of a uniform pick of as many ("uniform").

    The log-determinant is that of the paper's kernel over the first 4,000 pairs at most, see `log_det`.
    """
    pool = np.flatnonzero(latents.splits == subset.facts["split"])
    other = pool[uniform(len(pool), len(subset), subset.facts["seed"] + 1).rows]
    return {
        name: {
            "log_det": log_det(_sides(latents, subset.facts["on"], rows[:_COMPARED])),
            "items": {m: len(np.unique(latents.rows[m][rows])) for m in latents.modalities},
        }
        for name, rows in (("picked", subset.rows), ("uniform", other))
    }


@dataclass(frozen=True)
class Forecast:
    """What a selection would cost.

    Attributes:
        pairs, items: to choose from; what the method looks at.
        plan: how it would go about them.
        memory_bytes: beside the latents' own files.
        seconds: by the rate of a matrix product here.
    """

    pairs: int
    items: int
    plan: Plan
    memory_bytes: int
    seconds: float


def forecast(
    latents: Latents, k: int, by: str = "diversity", on: str | Sequence[str] | None = None, *, split: str = "train",
    parts: int | None = None, precision: str | None = None,
) -> Forecast:  # fmt: skip
    """Return what `select` with the same arguments would cost; times a small matrix product, and picks nothing.

    Raises:
        DataError: as `select`.
    """
    pool, names = candidates(latents, k, by, on, split)
    n = len(np.unique(_codes(latents.take(pool), names)))
    square = by == "facility"
    plan = Plan.of(n, k, square=square, parts=parts, precision=precision)
    dim = sum(latents.items[name].rows.shape[1] for name in names)
    size, quota = -(-n // plan.parts), min(plan.quota, n)
    stages = [(plan.parts, size, quota), *([(1, quota * plan.parts, min(k, quota * plan.parts))] if plan.final else [])]
    # Facility location looks at each item several times: seven on Flickr8k.
    spans = by in ("diversity", "mix")
    flops = sum(t * (14.0 * m * m * dim if square else spans * q * q * m + 2.5 * q * m * dim) for t, m, q in stages)
    whole = sum(latents.items[name].rows.shape[1] ** 2 for name in latents.modalities)
    flops = 0.0 if by in ("quality", "uniform") else flops
    flops += 6.0 * len(pool) * whole if by in ("quality", "mix") else 0.0
    held = max(m * (q if spans else 256) for _, m, q in stages) * plan.dtype.itemsize
    held += max(m for _, m, _ in stages) * dim * 4
    return Forecast(len(pool), n, plan, 0 if by in ("uniform", "quality") else held, flops / _rate(plan.dtype) * 2)


def _rate(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a matrix product here."""
    a = torch.ones(128, 2048, dtype=dtype)
    spent = []
    for _ in range(4):
        began = time.perf_counter()
        a @ a.T
        spent.append(time.perf_counter() - began)
    return 2 * prod((128, 128, 2048)) / min(spent)


def _by_items(
    pool: Latents, k: int, by: str, names: Sequence[str], seed: int, weight: float, parts: int | None,
    precision: str | None, progress: Progress,
) -> tuple[Selection, Plan]:  # fmt: skip
    quality = weights(qualities(pool, seed), weight) if by == "mix" else None
    codes = _codes(pool, names)
    plan = Plan.of(len(np.unique(codes)), k, square=by == "facility", parts=parts, precision=precision)

    def pick(pairs: Rows, k: int, dtype: torch.dtype) -> tuple[Rows, NDArray[np.float64]]:
        sides = _sides(pool, names, pairs)
        told = lambda done: progress("select", done, max(k, done))  # noqa: E731
        if by == "coverage":
            places, gains = farthest(sides, k, dtype=dtype, told=told)
        elif by == "facility":
            places, gains = facility(sides, k, dtype=dtype, told=told)
        else:
            own = None if quality is None else quality[torch.from_numpy(pairs)]
            places, gains = diverse(sides, k, quality=own, dtype=dtype, told=told)
        return places.numpy(), gains.double().numpy()

    return pick_pairs(pick, codes, k, plan, quality, seed), plan


def _codes(latents: Latents, names: Sequence[str]) -> Rows:
    """Return a number for each pair, (N,); pairs of the same items have the same."""
    codes = latents.rows[names[0]]
    for name in names[1:]:
        # Numbered anew, so that no product overflows.
        codes = np.unique(codes, return_inverse=True)[1] * len(latents.items[name]) + latents.rows[name]
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _sides(latents: Latents, names: Sequence[str], rows: Rows) -> list[Tensor]:
    return [latents.items[name].rows.take(latents.rows[name][rows]) for name in names]


def _ids(latents: Latents, name: str) -> pa.ChunkedArray:
    return latents.items[name].items["id"].take(pa.array(latents.rows[name]))


def _described(latents: Latents) -> pa.Table:
    """Return the ids of the items of each pair, and the user's columns."""
    ids = pa.table({f"fusemix.id.{name}": _ids(latents, name) for name in latents.modalities})
    for name in latents.table.column_names:
        ids = ids.append_column(name, latents.table[name])
    return ids


def _marks(latents: Latents) -> dict[str, str]:
    """Return what tells latents from others, each in a few letters."""
    marks = {"the number of pairs": f"{len(latents):,}", "the split of the pairs": _hash(latents.splits.tobytes())}
    for name in latents.modalities:
        encoder = latents.items[name].encoder
        marks[f"the encoder of {name}"] = f"{encoder.get('name', '')} {_hash(json.dumps(encoder).encode())}".strip()
        marks[f"which {name} each pair has"] = _hash(np.ascontiguousarray(latents.rows[name]).tobytes())
    return marks


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]
