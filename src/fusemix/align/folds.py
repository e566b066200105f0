"""Closed forms with what they cannot know by themselves, chosen on held-out training groups.

Groups are dealt to folds whole. The sums of a fold are added up once, so that to leave one out costs nothing but the
algebra. Small sets are judged on every fold: a fifth of 200 pictures alone tells little apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial, reduce

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.align.closed_form import CLOSED_FORMS, ClosedForm, cca, procrustes, ridge, ridge_onto
from fusemix.align.hubness import corrected_recall, hub_bias, spaced
from fusemix.align.metrics import mean_recall
from fusemix.align.moments import Latents, Moments, Rows, Sums, some_mean

SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CAREFUL = 10.0  # the shrinkage where nobody can judge
POWER = 0.75  # of the correlations, where hubs are corrected: from 200 to 6,000 pictures no other gained more
RANK = 512  # directions at most, where latents are wider: the others find nothing, and make an index larger
FOLDS = 5
ENOUGH = 500  # items that tell settings apart: where the folds have so many of either side, one fold is looked at
WIDE = 1536  # numbers in the narrower latent, above which a decomposition takes too long to be done for every fold
JUDGED, BANKED = 5000, 2048  # pairs of a fold that are looked at, and known queries for their bias
STRENGTH = 0.5  # of the bias
Maker = Callable[..., ClosedForm]
"""Fits a form to moments with a shrinkage."""


@dataclass(frozen=True)
class Folds:
    """Pairs in folds.

    Attributes:
        x: (N, Dx) latents of distinct items.
        y: (M, Dy) latents of distinct items.
        pairs: rows of x and of y that belong together, (P,) each.
        held: the pairs of each fold, as numbers of 0..P-1, ascending.
        sums: of each fold.
    """

    x: Latents
    y: Latents
    pairs: Rows
    held: list[NDArray[np.int64]]
    sums: list[Sums]

    @classmethod
    def of(
        cls, x: Latents, y: Latents, pairs: Rows, groups: NDArray[np.int64], seed: int, folds: int = FOLDS
    ) -> "Folds":
        """Deal groups (P,) to at most so many folds, at random by the seed."""
        distinct, member = np.unique(groups, return_inverse=True)
        folds = min(folds, len(distinct))
        fold = (np.random.default_rng(seed).permutation(len(distinct)) % folds)[member]
        about = some_mean(x), some_mean(y)
        held = [np.flatnonzero(fold == i) for i in range(folds)]
        sums = [Sums.of(x, y, (pairs[0][rows], pairs[1][rows]), *about) for rows in held]
        return cls(x, y, pairs, held, sums)

    @cached_property
    def whole(self) -> Moments:
        """Moments of all pairs."""
        return reduce(Sums.__add__, self.sums).moments()

    def without(self, fold: int) -> Moments:
        """Return the moments of all pairs but those of a fold."""
        return reduce(Sums.__add__, [sums for i, sums in enumerate(self.sums) if i != fold]).moments()

    @cached_property
    def judges(self) -> list["Judge"]:
        """Who judges forms that are fitted without a fold: one for every fold, or for one of large or wide ones.

        Nobody where a fold has fewer than two pairs.
        """
        if len(self.held) < 2 or min(map(len, self.held)) < 2:
            return []
        fewest = min(len(np.unique(rows[held])) for rows in self.pairs for held in self.held)
        narrowest = min(self.x.shape[1], self.y.shape[1])
        count = 1 if fewest >= ENOUGH or narrowest > WIDE else len(self.held)
        return [Judge.of(self, fold) for fold in range(count)]


@dataclass(frozen=True)
class Judge:
    """Held-out pairs, and the moments and some items of the others.

    Attributes:
        moments: of the others.
        x, y: latents of the distinct items that are held out.
        rows: which of them belong together.
        bank_x, bank_y: latents of some of the others.
    """

    moments: Moments
    x: torch.Tensor
    y: torch.Tensor
    rows: Rows
    bank_x: torch.Tensor
    bank_y: torch.Tensor

    @classmethod
    def of(cls, folds: Folds, fold: int) -> "Judge":
        """Hold a fold out; of a large one, pairs spread over it."""
        held = folds.held[fold]
        held = held[spaced(len(held), JUDGED)]
        others = np.concatenate([rows for i, rows in enumerate(folds.held) if i != fold])
        sides, numbers, banks = [], [], []
        for latents, rows in zip((folds.x, folds.y), folds.pairs, strict=True):
            keep, index = np.unique(rows[held], return_inverse=True)
            known = np.unique(rows[others])
            sides.append(latents[torch.from_numpy(keep)])
            numbers.append(index)
            banks.append(latents[torch.from_numpy(known[spaced(len(known), BANKED)])])
        return cls(folds.without(fold), sides[0], sides[1], (numbers[0], numbers[1]), banks[0], banks[1])

    def plain(self, form: ClosedForm) -> float:
        """Return the mean recall of a form on the held-out pairs."""
        return mean_recall(form.embed_x(self.x), form.embed_y(self.y), self.rows)

    def corrected(self, form: ClosedForm) -> float:
        """Return the mean recall of a form whose hubs are corrected."""
        x, y = form.embed_x(self.x), form.embed_y(self.y)
        bias_x = STRENGTH * hub_bias(x, form.embed_y(self.bank_y))
        bias_y = STRENGTH * hub_bias(y, form.embed_x(self.bank_x))
        return corrected_recall(x, y, self.rows, bias_x, bias_y)


def fit_closed_forms(folds: Folds) -> dict[str, ClosedForm]:
    """Fit ridge and CCA on all pairs, each with the shrinkage that has the best mean recall on held-out folds.

    Returns:
        A map for each name of CLOSED_FORMS.
    """
    judges = folds.judges
    chosen = {name: _shrinkage(form, judges, Judge.plain) for name, form in CLOSED_FORMS.items()}
    return {name: form(folds.whole, chosen[name]) for name, form in CLOSED_FORMS.items()}


cca_for_search = partial(cca, power=POWER, rank=RANK)
"""Regularised CCA whose hubs are corrected: with that, less has to be whitened."""


def settings_for_search(folds: Folds, form: str) -> Callable[[Moments], ClosedForm]:
    """Return a closed form with the settings whose search, hubs corrected, does best on held-out folds.

    Args:
        folds: the pairs.
        form: "cca", "ridge" or "onto" (see `ridge_onto`), whose shrinkage is chosen; or "procrustes".
    """
    if form == "procrustes":
        return procrustes
    makers: dict[str, Maker] = {"cca": cca_for_search, "ridge": ridge, "onto": ridge_onto}
    make = makers[form]
    return partial(make, shrinkage=_shrinkage(make, folds.judges, Judge.corrected))


def _shrinkage(make: Maker, judges: list[Judge], score: Callable[[Judge, ClosedForm], float]) -> float:
    """Return the shrinkage that judges like best, the first of equals; a careful one where nobody can judge."""
    if not judges:
        return CAREFUL
    scores = np.mean([[score(judge, make(judge.moments, s)) for s in SHRINKAGES] for judge in judges], axis=0)
    return SHRINKAGES[int(scores.argmax())]


def cross_fit(folds: Folds, form: str = "cca") -> list[tuple[NDArray[np.int64], ClosedForm]]:
    """Fit a closed form on all folds but one, for each of them, with the shrinkage of `fit_closed_forms`.

    Returns:
        For each fold its pairs (as numbers of 0..P-1, ascending) and the form that was fitted without them.
    """
    shrinkage = _shrinkage(CLOSED_FORMS[form], folds.judges, Judge.plain)
    return [(held, CLOSED_FORMS[form](folds.without(i), shrinkage)) for i, held in enumerate(folds.held)]
