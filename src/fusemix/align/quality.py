"""How well the two sides of a pair agree, judged by an alignment that has not seen the pair."""

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.align.closed_form import ClosedForm
from fusemix.align.folds import Folds, cross_fit
from fusemix.align.metrics import CUTOFFS, Relevance, best_ranks, chance_rank_distribution
from fusemix.align.moments import Latents, Rows

_BLOCK = 4096  # pairs that are embedded at once

Agreements = NDArray[np.float64]


def agreement(
    x: Latents, y: Latents, pairs: Rows, groups: NDArray[np.int64], seed: int = 0, folds: int = 5
) -> Agreements:
    """Return the cosine of both sides of every pair, (P,), in [-1, 1], under a CCA fitted without its group.

    A pair whose caption was swapped agrees no better than chance, while one that the alignment was fitted on would
    agree whatever it says: so each pair is judged by the folds it is not in. (CSA, arXiv 2410.07610, finds mislabelled
    pairs by such a similarity.)

    Args:
        x: (N, Dx) latents of distinct items.
        y: (M, Dy) latents of distinct items.
        pairs: rows of x and of y that belong together, (P,) each.
        groups: (P,) group of each pair.
        seed: deals the groups.
        folds: see `folds.Folds`.
    """
    return agreement_beside_strangers(x, y, pairs, groups, seed, folds)[0]


def agreement_beside_strangers(
    x: Latents, y: Latents, pairs: Rows, groups: NDArray[np.int64], seed: int = 0, folds: int = 5
) -> tuple[Agreements, Agreements]:
    """Return what `agreement` does, and beside it how well each x agrees with the y of a pair drawn at random.

    Args:
        x: see `agreement`.
        y: see `agreement`.
        pairs: see `agreement`.
        groups: see `agreement`.
        seed: deals the groups, and draws the strangers within each fold.
        folds: see `agreement`.

    Returns:
        Cosines of the pairs (P,) and of the strangers (P,); NaN where the drawn pair is of the same group.
    """
    agreed, strange, rng = np.empty(len(groups)), np.empty(len(groups)), np.random.default_rng(seed)
    for held, form in cross_fit(Folds.of(x, y, pairs, groups, seed, folds)):
        drawn = rng.permutation(held)
        agreed[held] = _cosines(form, x, y, pairs[0][held], pairs[1][held])
        strange[held] = _cosines(form, x, y, pairs[0][held], pairs[1][drawn])
        strange[held[groups[held] == groups[drawn]]] = np.nan
    return agreed, strange


def _cosines(
    form: ClosedForm, x: Latents, y: Latents, rows_x: NDArray[np.int64], rows_y: NDArray[np.int64]
) -> Agreements:
    """Return the cosine of each row of x with its row of y; an item of several pairs of a block is embedded once."""
    found = []
    for start in range(0, len(rows_x), _BLOCK):
        block = slice(start, start + _BLOCK)
        (keep_x, ix), (keep_y, iy) = (np.unique(rows[block], return_inverse=True) for rows in (rows_x, rows_y))
        a, b = form.embed_x(x[torch.from_numpy(keep_x)]), form.embed_y(y[torch.from_numpy(keep_y)])
        found.append((a[ix].double() * b[iy].double()).sum(dim=1).numpy())
    return np.concatenate(found) if found else np.empty(0)


def held_out_recall(
    x: Latents, y: Latents, pairs: Rows, groups: NDArray[np.int64], seed: int = 0, folds: int = 5
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Look for the partner of every item among the pairs of its fold, under a CCA fitted on the other folds.

    Args:
        x: (N, Dx) latents of distinct items.
        y: (M, Dy) latents of distinct items.
        pairs: rows of x and of y that belong together, (P,) each.
        groups: (P,) group of each pair.
        seed: deals the groups.
        folds: see `folds.Folds`.

    Returns:
        For every query, of both directions, the mean of "found among the first 1, 5, 10", (Q,) in [0, 1]; what a random
        order would give, (Q,); and its group, (Q,).
    """
    values, chance, owners = [], [], []
    for held, form in cross_fit(Folds.of(x, y, pairs, groups, seed, folds)):
        sides = [np.unique(rows[held], return_index=True, return_inverse=True) for rows in pairs]
        (keep_x, first_x, ix), (keep_y, first_y, iy) = sides
        a, b = form.embed_x(x[torch.from_numpy(keep_x)]), form.embed_y(y[torch.from_numpy(keep_y)])
        for queries, gallery, forth, back, first in ((a, b, ix, iy, first_x), (b, a, iy, ix, first_y)):
            relevance = Relevance.from_pairs(forth, back)
            ranks, random = best_ranks(queries, gallery, relevance), chance_rank_distribution(relevance)
            chance.append(np.full(len(ranks), np.mean([random[min(k, len(random)) - 1] for k in CUTOFFS])))
            values.append(np.mean([ranks <= k for k in CUTOFFS], axis=0))
            owners.append(groups[held][first])
    return np.concatenate(values), np.concatenate(chance), np.concatenate(owners)
