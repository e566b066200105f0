"""Probe: which frozen encoders fit these data, by a sample of the pairs, before paying for a full extraction.

Every candidate encodes the sample once. Every pair of candidates is then judged without training: by the recall of a
closed-form alignment on pairs that it was not fitted on, and by what the two spaces share of their neighbourhoods.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.align.closed_form import principal
from fusemix.align.metrics import resample
from fusemix.align.mutual import mutual_neighbours
from fusemix.align.quality import held_out_recall
from fusemix.data.pairs import Pairs, Rows, require_files
from fusemix.data.sampling import draw, unrelated
from fusemix.encoders import takes_pooling
from fusemix.errors import DataError, EncoderError, FusemixError
from fusemix.extraction import EncoderSpec, Given, check_names, plan_job
from fusemix.matches import FOLDS, SPLIT, Candidate, Match, Probe
from fusemix.pipeline import Pipeline, run
from fusemix.progress import Progress, silent
from fusemix.shards import deal, histogram
from fusemix.survey import BYTES

WIDTH = 256  # principal components of a wider space that the alignment gets
LEAST = 50  # pairs
MAX_FAILED = 0.05  # of the sampled items


Spaces = dict[str, list[tuple[Candidate, NDArray[np.float32]]]]
"""Of each modality its encoders, with the latents (n, D) of the n items of the sample; NaN where an item failed."""


def probe(
    pairs: Pairs,
    *,
    sample: int = 2000,
    seed: int = 0,
    pooling: Mapping[str, str | Sequence[str]] | None = None,
    decode: Mapping[str, str | Callable[..., Any]] | None = None,
    precision: str | None = None,
    progress: Progress = silent,
    **encoders: EncoderSpec | Sequence[EncoderSpec],
) -> Probe:
    """Rank pairs of encoders by how well they could be aligned, on a sample of the pairs of the split train.

    The ranking is by the recall on held-out pairs, which on small samples agrees better with whole fits than mutual
    neighbours do (docs/probing.md). A candidate that does not load, or of which more than 5 % of the sampled items
    fail, is left out and says why. All others are judged on the pairs that all of them could encode.

    Args:
        pairs: from `read_pairs`, of two modalities.
        sample: pairs to draw: of every group one, and more of each only where there are fewer groups than that.
        seed: of the sample, the folds and the intervals.
        pooling: modality=poolings, each of which is tried with every encoder that has a choice, as "mean+mean@0".
        decode: see `extract`.
        precision: see `extract`.
        progress: called after every batch.
        **encoders: modality=candidates, each as in `extract`; nothing for a column of vectors.

    Raises:
        DataError: not two modalities, too few pairs or groups in the split train, or a modality without candidates.
        EncoderError: no candidate of a modality could be judged; it says why of each.
    """
    if len(pairs.items) != 2:
        raise DataError(f"probe compares two modalities, got {', '.join(pairs.items)}; name two columns")
    poolings = {name: [each] if isinstance(each, str) else list(each) for name, each in (pooling or {}).items()}
    check_names(pairs, encoders, poolings, decode or {})
    candidates = [each for name in pairs.items for each in _candidates(pairs, name, encoders.get(name), poolings)]
    drawn = _draw(pairs, sample, seed)
    rows = {name: pairs.rows[name][drawn] for name in pairs.items}
    given = Given({}, {}, decode or {}, precision)
    encoded = [_encode(pairs, each, given, np.unique(rows[each.modality]), progress) for each in candidates]
    tried = _named_apart([candidate for candidate, _ in encoded])
    found: Spaces = {name: [] for name in pairs.items}
    for candidate, (_, latents) in zip(tried, encoded, strict=True):
        if not candidate.why:
            found[candidate.modality].append((candidate, latents))
    for name, kept in found.items():
        if not kept:
            whys = "; ".join(f"{each.name}: {each.why}" for each in tried if each.modality == name)
            raise EncoderError(f"no encoder of {name!r} could be judged: {whys}")
    return _judge(found, tuple(tried), rows, pairs.groups[drawn], seed, progress)


def _draw(pairs: Pairs, sample: int, seed: int) -> Rows:
    """Draw the sample, if it is enough to say anything."""
    drawn = draw(pairs, SPLIT, sample, seed)
    groups = len(np.unique(pairs.groups[drawn]))
    if len(drawn) < LEAST or groups < FOLDS:
        raise DataError(
            f"{len(drawn):,} pairs of {groups:,} groups could be drawn from the split {SPLIT!r}; wanted at least "
            f"{LEAST} pairs of {FOLDS} groups, of which none share an item within a group (a sample of {sample:,} was "
            f"asked for; found the splits {', '.join(np.unique(pairs.splits).tolist())})"
        )
    return drawn


def _candidates(pairs: Pairs, name: str, specs: Any, poolings: Mapping[str, list[str]]) -> list[Candidate]:
    """List the encoders of one modality, each with every pooling that it may have."""
    listed = list(specs) if isinstance(specs, list | tuple) else [specs] if specs is not None else []
    if pairs.items[name].vectors is not None:
        listed = listed or [None]
    if not listed:
        kind = pairs.items[name].kind
        raise DataError(f"no candidates for {name!r} ({kind} items); give {name}=ENCODER, or several")
    if any(not str(spec).endswith(".npy") for spec in listed):
        require_files(pairs.items[name])
    own: list[str | None] = [None]
    each = [(spec, word) for spec in listed for word in (poolings.get(name, own) if takes_pooling(spec) else own)]
    return [Candidate(name, spec, word, _label(spec, word)) for spec, word in dict.fromkeys(each)]


def _label(name: Any, pooling: str | None) -> str:
    name = name if isinstance(name, str | Path) else getattr(name, "__qualname__", type(name).__qualname__)
    return f"{name} ({pooling})" if pooling else str(name)


def _named_apart(tried: Sequence[Candidate]) -> list[Candidate]:
    """Give candidates of one name, such as a/latents.npy and b/latents.npy, what the user wrote."""
    names = [(each.modality, each.name) for each in tried]
    return [
        replace(each, name=_label(each.spec, each.pooling)) if names.count((each.modality, each.name)) > 1 else each
        for each in tried
    ]


def _encode(
    pairs: Pairs, candidate: Candidate, given: Given, places: Rows, progress: Progress
) -> tuple[Candidate, NDArray[np.float32]]:
    """Encode some items with one candidate: (n, D) float32, NaN where an item failed; what it costs is written down."""
    name = candidate.modality
    given = replace(
        given,
        encoders={} if candidate.spec is None else {name: candidate.spec},
        pooling={} if candidate.pooling is None else {name: candidate.pooling},
    )
    try:
        with warnings.catch_warnings():  # whether another pooling is worse is what is asked here
            warnings.filterwarnings("ignore", ".* was made for pooling", UserWarning)
            job = plan_job(pairs, name, Path(), given)
            encoder = job.load()
            candidate = replace(candidate, name=_label(encoder.fingerprint["name"], candidate.pooling))
            pipeline = job.pipeline(encoder)
            latents, seconds, reasons = _latents(pipeline, places, progress, f"probe {name} {candidate.name}")
    except FusemixError as error:
        return replace(candidate, why=str(error)), np.empty((0, 0), np.float32)
    cost = replace(
        candidate,
        dim=latents.shape[1],
        seconds=1000 * seconds if job.given is None else 0.0,  # what is at hand costs nothing any more
        disk_bytes=1000 * latents.shape[1] * BYTES["float16"],
        failed=len(reasons),
    )
    if len(reasons) > MAX_FAILED * len(places):
        counted = f"{len(reasons):,} of {len(places):,} items failed: {histogram(reasons)}"
        return replace(cost, why=counted), latents
    return cost, latents


def _latents(
    pipeline: Pipeline, places: Rows, progress: Progress, stage: str
) -> tuple[NDArray[np.float32], float, list[str]]:
    """Return latents (n, D), seconds per item and the reasons of the failures."""
    batches = deal(pipeline, places.tolist(), pipeline.encoder.batch_size)
    done, marks, reasons = [], [time.perf_counter()], []
    for result in run(pipeline, batches):
        done.append(result)
        marks.append(time.perf_counter())
        reasons += [str(failure.reason) for failure in result.failures]
        progress(stage, sum(len(each.batch.places) for each in done), len(places))
    latents = np.full((len(places), max(each.latents.shape[1] for each in done)), np.nan, np.float32)
    for each in done:
        if len(each.places):
            latents[np.searchsorted(places, each.places)] = each.latents
    skipped = 1 if len(done) > 1 else 0  # the first batch pays for warming up
    timed = sum(len(each.batch.places) for each in done[skipped:])
    return latents, (marks[-1] - marks[skipped]) / timed, reasons


def _judge(
    found: Spaces, tried: tuple[Candidate, ...], rows: Mapping[str, Rows], groups: Rows, seed: int, progress: Progress
) -> Probe:
    """Compare every pair of encoders on the pairs that all of them could encode."""
    numbers = {name: np.unique(each, return_inverse=True)[1] for name, each in rows.items()}
    keep = np.ones(len(groups), dtype=np.bool_)
    for name, encoded in found.items():
        for _, latents in encoded:
            finite: NDArray[np.bool_] = np.isfinite(latents.sum(axis=1))
            keep &= finite[numbers[name]]
    if keep.sum() < LEAST:
        raise DataError(
            f"{keep.sum():,} of {len(keep):,} pairs could be encoded by every candidate; wanted at least {LEAST}"
        )
    groups = groups[keep]
    (kept_x, x_of), (kept_y, y_of) = (np.unique(each[keep], return_inverse=True) for each in numbers.values())
    xs, ys = (
        [(candidate, torch.from_numpy(latents[kept])) for candidate, latents in encoded]
        for kept, encoded in zip((kept_x, kept_y), found.values(), strict=True)
    )
    cut = {id(z): principal(z, WIDTH) if z.shape[1] > WIDTH else z for _, z in [*xs, *ys]}
    apart = unrelated(x_of, y_of, groups)
    matches, draws = [], []
    for done, ((one, x), (other, y)) in enumerate(product(xs, ys), start=1):
        values, random, owners = held_out_recall(cut[id(x)], cut[id(y)], (x_of, y_of), groups, seed, FOLDS)
        draws.append(100 * resample(values[:, None], owners, np.random.default_rng(seed))[:, 0])
        mutual = None
        if len(apart) >= LEAST:
            mutual = mutual_neighbours(x[x_of[apart]], y[y_of[apart]], seed=seed)
        matches.append(Match((one, other), 100 * float(values.mean()), _ends(draws[-1]), (0.0, 0.0), mutual))
        progress("probe pairs of encoders", done, len(xs) * len(ys))
    order = sorted(range(len(matches)), key=lambda i: -matches[i].recall)
    ranking = tuple(replace(matches[i], behind=_ends(draws[order[0]] - draws[i])) for i in order)
    gallery, chance = round(len(groups) / FOLDS), 100 * float(random.mean())
    return Probe(len(groups), len(np.unique(groups)), gallery, chance, ranking, tried)


def _ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
