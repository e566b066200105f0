"""How well the two sides of a pair agree, judged by an alignment that has not seen the pair."""

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.align.closed_form import Latents, Rows, cross_fit
from fusemix.align.metrics import CUTOFFS, Relevance, best_ranks, chance_rank_distribution


def agreement(
    x: Latents, y: Latents, pairs: Rows, groups: NDArray[np.int64], seed: int = 0, folds: int = 5
) -> NDArray[np.float64]:
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
        folds: see `closed_form.cross_fit`.
    """
    agreed = np.empty(len(pairs[0]))
    for held, form in cross_fit(x, y, pairs, groups, seed, folds=folds):
        (keep_x, ix), (keep_y, iy) = (np.unique(rows[held], return_inverse=True) for rows in pairs)
        a, b = form.embed_x(x[torch.from_numpy(keep_x)]), form.embed_y(y[torch.from_numpy(keep_y)])
        agreed[held] = (a[ix].double() * b[iy].double()).sum(dim=1).numpy()
    return agreed


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
        folds: see `closed_form.cross_fit`.

    Returns:
        For every query, of both directions, the mean of "found among the first 1, 5, 10", (Q,) in [0, 1]; what a random
        order would give, (Q,); and its group, (Q,).
    """
    values, chance, owners = [], [], []
    for held, form in cross_fit(x, y, pairs, groups, seed, folds=folds):
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
