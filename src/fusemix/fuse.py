"""Join two latent spaces by whatever validation likes best: a closed form, trained adapters, or both.

Closed forms take seconds and win on little data; trained adapters win on much; their scores added up are better than
either in between, and search that corrects hubs is better than search that does not (`docs/recall.md`). Which of them
it is, and how strongly, is looked up on held-out pairs and not decided here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusemix.align.closed_form import ClosedForm, in_deviations
from fusemix.align.folds import RANK, STRENGTH, Folds, cca_for_search, settings_for_search
from fusemix.align.hubness import BANK, spaced
from fusemix.align.moments import Moments
from fusemix.align.transport import PLAN_NUMBERS, Unpaired, learn_unpaired
from fusemix.config import FitConfig
from fusemix.contest import SHARES, Sided, Way, Winner, calibrate, contest, lead, linear
from fusemix.data.latents import ItemLatents, Latents
from fusemix.errors import DataError
from fusemix.fit import WIDEST, Fitted, foresee, too_wide, widest
from fusemix.networks import Networks, alone, beginning
from fusemix.progress import Progress
from fusemix.ranks import least
from fusemix.training.checks import check_pairs, check_validation
from fusemix.training.forecast import Forecast
from fusemix.training.journal import Track
from fusemix.training.validation import embed

FEWEST_JUDGES = 20  # groups that can choose: ten recordings of sounds chose networks that found less than CCA
HELD_SHARE, MOST_HELD = 0.1, 1000  # of the training groups, where no validation pairs are given
UNPAIRED_SHARE, UNPAIRED_SHRINKAGE = 0.8, 1.0  # what items without partners count, and how CCA is then shrunk
TRAINED, REFINED = "trained adapters", "refined cca"
LEAD = 8.0  # points of recall by which a network leaves CCA behind: one that began as CCA added 8 to it at most
START = 10.0  # times the shrinkage of the search, for the CCA that a network begins as
MOST_UNPAIRED = 8192  # items without partners of the first modality; of the second as many as a plan has room for
MOST_LATENTS = 2**17  # of items without partners of a modality, in memory
ENOUGH_PAIRS = 100_000  # above, items without partners teach nothing (arXiv 2602.23353)
LEARN = "learn from items without partners"


@dataclass(frozen=True)
class Fused:
    """What joining two latent spaces came to.

    Attributes:
        adapters: of each modality, on the CPU, in evaluation mode.
        config: the settings, of which `adapter` says what they are: "mlp", "cca", "ridge", "procrustes" or "both".
        folds: the pairs, as closed forms see them; None where latents are too wide.
        banks: (M, S) embeddings of known items of each modality, for the bias of hubs; none where it is not corrected.
        strength: of the bias, 0 for none.
        trained: what the training left, kept or not; None where nothing was trained.
        notes: what is odd, in words.
        learned: items without partners were looked at.
        won: what won, where several ways competed.
        onto: the modality that stays as another model embeds it; None where both are fitted.
    """

    adapters: Sided
    config: FitConfig
    folds: Folds | None
    banks: dict[str, Tensor]
    strength: float
    trained: Fitted | None
    notes: list[str]
    learned: bool = False
    won: Winner | None = None
    onto: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what is worth keeping, for JSON; of what was not trained, None."""
        trained, won = self.trained, self.won
        learned = trained.temperature if trained is not None else None
        return {
            "batch_size": trained.batch_size if trained else None,
            "best_epoch": trained.best_epoch if trained and self.config.adapter in ("mlp", "both") else None,
            "temperature": won.temperature if won and won.way.kind != "mlp" else learned,
            "chosen": won.way.what if won else TRAINED,
            "tried": won.tried if won else {},
            "judged": won.judged if won else 0,
            "judges": won.judges if won else "",
            "hubs": {
                "strength": self.strength,
                "uncorrected": None if not won or math.isnan(won.uncorrected) else round(won.uncorrected, 2),
            },
            "onto": self.onto,
            "notes": self.notes,
        }


def fuse(
    train: Latents, val: Latents | None, config: FitConfig, device: torch.device, progress: Progress,
    *, unpaired: Mapping[str, Sequence[ItemLatents]], out: Path | None = None, track: Track | None = None,
) -> Fused:  # fmt: skip
    """Join two latent spaces by what `config.adapter` says; "auto" tries closed forms, trained adapters and both.

    Args:
        train: pairs to train on; two modalities.
        val: pairs to choose by; None, or fewer than 20 groups, holds out a tenth of the training groups where there is
            something to choose, and where even those are fewer nobody chooses.
        config: all settings.
        device: where to train.
        progress: called as it goes.
        unpaired: items without partners, by modality; those that one chooses by are left out.
        out: see `fit.fit_adapters`.
        track: see `fit.fit_adapters`.

    Raises:
        DataError, DivergedError, MismatchError, StoreError: see `fit.fit_adapters`.
    """
    wide, network = too_wide(train), Networks(config, device, progress, out, track)
    if config.adapter == "mlp" or (config.adapter == "auto" and wide):
        trained, trainer = network.train(train, val, least=1)
        assert trained is not None, "an epoch at least"
        ignored = ["items without partners teach closed forms alone, and were left out"] if unpaired else []
        folds = None if wide else folds_of(train, config.seed)
        return Fused(trained.adapters, trainer, folds, {}, 0.0, trained, [*trained.notes, *ignored])
    _check_width(train, config)
    part, held, notes = _judges(train, val, config)
    notes += [note for found in check_pairs(part).values() for note in found.notes()]
    if held is not None:
        check_validation(part, held)
    others = latents_of(unpaired, held)
    closed = _Closed.of(part, others, config, progress)
    known = [_known(part, others if closed.pool else {}, name) for name in part.modalities]
    made = _Trained([], [None], config, [])
    if config.adapter == "both" or (config.adapter == "auto" and held is not None):
        made = _Trained.of(network, closed, part, held, known)
    progress("choose", 0, 1)
    if held is None and not made.ways:
        won = closed.unjudged()
    else:
        shares = SHARES if config.lock == "none" else ()
        only = config.adapter == "both"
        won = contest(closed.ways, made.ways, known, held, only=only, shares=shares, usual=closed.strength)
    progress("choose", 1, 1)
    trained = made.fitted[-1 if REFINED in won.way.what else 0]
    adapters, folds = won.way.adapters, closed.folds
    if part is not train and won.way.kind != "mlp":  # what was held out is taken in again, where that costs nothing
        folds = folds_of(train, config.seed)
        known = [_known(train, others if closed.pool else {}, name) for name in train.modalities]
        adapters = won.way.with_closed(closed.again(folds, won.way.unpaired))
    sides = zip(adapters.items(), known, strict=True)
    # In the precision in which they are kept, so that a model that was saved corrects as it did.
    banks = {name: embed(side, some).half().float() for (name, side), some in sides} if won.strength else {}
    # The bias of hubs looks at items without partners, too, whoever learned from them.
    learned = won.way.unpaired or (closed.pool is not None and won.strength > 0)
    settings = made.config.changed({"adapter": won.way.kind, "refine": config.refine})
    notes = list(dict.fromkeys([*notes, *made.notes, *closed.notes, *won.notes]))
    return Fused(adapters, settings, folds, banks, won.strength, trained, notes, learned, won)


@dataclass(frozen=True)
class _Trained:
    """Networks beside closed forms.

    Attributes:
        ways: what came out, the one that begins at random first; none where there was no time.
        fitted: the same, as they were trained.
        config: all settings, with the epochs there was time for.
        notes: in words.
    """

    ways: list[Way]
    fitted: list[Fitted | None]
    config: FitConfig
    notes: list[str]

    @classmethod
    def of(
        cls, network: Networks, closed: "_Closed", part: Latents, held: Latents | None, known: Sequence[Tensor]
    ) -> "_Trained":
        """Train a network that begins at random, and, where somebody judges and it may win, one that begins as CCA."""
        config = network.config
        start = closed.start() if config.refine and held is not None else None
        first, trainer = network.train(part, held, least=int(config.adapter == "both"), start=start)
        if first is None:
            return cls([], [None], trainer, ["no time was left to train a network"])
        one = Way(TRAINED, "mlp", first.adapters)
        if start is None or held is None:
            return cls([one], [first], trainer, first.notes)
        if least(lead(closed.ways[0], one, known, held)) > LEAD:
            left_out = "no network that begins as CCA was trained, as the other one is far ahead of CCA"
            return cls([one], [first], trainer, [*first.notes, left_out])
        second = replace(network.refine(part, held, start, trainer), earlier=first.earlier)
        return cls([one, Way(REFINED, "mlp", second.adapters)], [first, second], trainer, first.notes)


def foresee_networks(train: Latents, val: Latents | None, config: FitConfig, device: torch.device) -> list[Forecast]:
    """Say what each network that `fuse` would train costs at most; none for closed forms, which are not foreseen.

    Raises:
        DataError, MismatchError: see `fit.foresee`.
    """
    if config.adapter == "mlp" or (config.adapter == "auto" and too_wide(train)):
        return [foresee(train, config, device, val)]
    _check_width(train, config)
    part, held, _ = _judges(train, val, config)
    if config.adapter not in ("auto", "both") or (config.adapter == "auto" and held is None):
        check_pairs(train)
        return []
    costs = [foresee(part, alone(config), device, held)]
    if config.refine and held is not None:
        dims = [part.items[name].rows.shape[1] for name in part.modalities]
        width = min(RANK, *dims)
        shifts, maps = [torch.zeros(dim) for dim in dims], [torch.eye(dim, width) for dim in dims]
        start = ClosedForm(shifts[0], shifts[1], maps[0], maps[1], START)  # as good as any to try a step with
        costs.append(foresee(part, beginning(config, start), device, held, start))
    return costs


def _check_width(train: Latents, config: FitConfig) -> None:
    """Refuse latents that closed forms would take too much memory for."""
    if too_wide(train):
        raise DataError(
            f"adapter={config.adapter!r} takes latents of at most {WIDEST:,} numbers, got {widest(train):,}; use 'mlp'"
        )


def _judges(train: Latents, val: Latents | None, config: FitConfig) -> tuple[Latents, Latents | None, list[str]]:
    """Return the pairs to train on, those to choose by, and what is odd about that."""
    if val is not None and len(np.unique(val.groups)) >= FEWEST_JUDGES:
        return train, val, []
    part, held = hold_out(train, config.seed)
    if val is None:
        return part, held, []
    instead = "nobody chose" if held is None else "a tenth of the training groups chose instead"
    return part, held, [f"{len(val):,} validation pairs are too few groups to choose by: {instead}"]


def hold_out(train: Latents, seed: int) -> tuple[Latents, Latents | None]:
    """Return the pairs without a tenth of their groups, and those; None where that is too few groups."""
    groups = np.random.default_rng(seed).permutation(np.unique(train.groups))
    count = min(MOST_HELD, round(HELD_SHARE * len(groups)))
    if count < FEWEST_JUDGES:
        return train, None
    held = np.isin(train.groups, groups[:count])
    # Whoever trains on a split may also choose on it, whatever its name.
    judges = replace(train.take(held), splits=np.full(held.sum(), "train, held out"))
    return train.take(~held), judges


@dataclass(frozen=True)
class _Closed:
    """Closed forms of the same pairs, without and with items that have no partner.

    Attributes:
        folds: the pairs.
        make: fits the form, with the settings that were chosen.
        form: of all pairs.
        pool: items without partners; None where there are none.
        ways: what came out.
        notes: in words.
    """

    folds: Folds
    make: Callable[[Moments], ClosedForm]
    form: ClosedForm
    pool: Unpaired | None
    ways: list[Way]
    notes: list[str]

    @classmethod
    def of(cls, part: Latents, unpaired: Mapping[str, Tensor], config: FitConfig, progress: Progress) -> "_Closed":
        """Fit CCA, or the closed form that `config.adapter` names; and again with items without partners.

        In a space that stays as it is, it is ridge.
        """
        form = config.adapter if config.adapter in ("ridge", "procrustes") else "cca"
        form = form if config.lock == "none" else "ridge"
        progress(f"fit {form}", 0, 1)
        folds = folds_of(part, config.seed)
        make = settings_for_search(folds, form if config.lock == "none" else "onto")
        first = make(folds.whole)
        closed = cls(folds, make, first, None, [Way(form, form, linear(first, part.modalities))], [])
        progress(f"fit {form}", 1, 1)
        if unpaired and form != "cca":
            closed.notes.append(f"items without partners teach CCA alone, and were left out beside {form}")
        elif unpaired and len(part) > ENOUGH_PAIRS:
            closed.notes.append(f"items without partners are left out: they teach nothing beside {len(part):,} pairs")
        elif unpaired:
            progress(LEARN, 0, 1)
            closed = replace(closed, pool=_pool(part, unpaired))
            sides = linear(closed.taught(folds, first), part.modalities)
            closed.ways.append(Way(f"{form} that learned from items without partners", form, sides, unpaired=True))
            progress(LEARN, 1, 1)
        return closed

    @property
    def strength(self) -> float:
        """The correction of hubs that the shrinkage was chosen for; 0 where nobody chose it, or there is none."""
        return STRENGTH if self.folds.judges and self.form.shrinkage else 0.0

    def unjudged(self) -> Winner:
        """Return the last form, where nobody can choose: what learned from items without partners was asked for."""
        if not self.folds.judges:
            return contest(self.ways[-1:], [], [], None)
        judge = self.folds.judges[0]
        form = self.make(judge.moments)
        temperature = calibrate(form.embed_x(judge.x), form.embed_y(judge.y), judge.rows)
        return Winner(self.ways[-1], self.strength, {}, math.nan, 0, "", temperature)

    def start(self) -> ClosedForm:
        """Return what a network begins as: CCA of the same pairs, with more shrinkage.

        Coordinates that these very pairs made fit them too well to learn from: with the shrinkage that suits a search a
        network lost recall before it gained, and stopped (figures in docs/results.md, "Recall per pair").
        """
        return in_deviations(self.folds.whole, cca_for_search(self.folds.whole, START * self.form.shrinkage))

    def again(self, folds: Folds, unpaired: bool) -> ClosedForm:
        """Fit more pairs, and then items without partners, if so."""
        form = self.make(folds.whole)
        return self.taught(folds, form) if unpaired else form

    def taught(self, folds: Folds, form: ClosedForm) -> ClosedForm:
        """Fit pairs and items without partners, of which a form of the pairs guesses the partners."""
        assert self.pool is not None, "there are none"
        again = partial(cca_for_search, shrinkage=UNPAIRED_SHRINKAGE)
        few = min(len(np.unique(rows)) for rows in folds.pairs)
        many = min(len(self.pool.x), len(self.pool.y))
        return learn_unpaired(folds.whole, self.pool, form, again, min(UNPAIRED_SHARE, many / (many + few)))


def latents_of(items: Mapping[str, Sequence[ItemLatents]], held: Latents | None) -> dict[str, Tensor]:
    """Return latents (n, D) of items of each modality, float32, spread over all but those that one chooses by."""
    found = {}
    for name, parts in items.items():
        judges = set() if held is None else set(held[name].ids)
        most = MOST_LATENTS // len(parts)
        some = [each.select(spaced(len(each), most)) for each in parts if len(each)]
        keep = [np.array([row for row, id_ in enumerate(each.ids) if id_ not in judges], np.int64) for each in some]
        rows = [each.rows.take(chosen).cpu().float() for each, chosen in zip(some, keep, strict=True)]
        if sum(map(len, rows)):
            found[name] = torch.cat(rows)
    return found


def _pool(part: Latents, unpaired: Mapping[str, Tensor]) -> Unpaired:
    """Gather items without partners; where a modality has none, those of the pairs are who they may belong to."""
    first, second = (unpaired[name] if name in unpaired else part[name].rows.whole().cpu() for name in part.modalities)
    x = first[spaced(len(first), MOST_UNPAIRED)]
    return Unpaired.of(x, second[spaced(len(second), PLAN_NUMBERS // len(x))])


def folds_of(train: Latents, seed: int) -> Folds:
    """Deal the pairs to folds, for closed forms."""
    x, y = train.modalities
    return Folds.of(train.items[x].rows, train.items[y].rows, (train.rows[x], train.rows[y]), train.groups, seed)


def _known(train: Latents, unpaired: Mapping[str, Tensor], modality: str) -> Tensor:
    """Return latents (M, D), float32, of some items of a modality that may be looked at, paired or not."""
    rows = train[modality].rows
    some = rows.take(spaced(len(rows), BANK)).float()
    if modality in unpaired:
        others = unpaired[modality]
        some = torch.cat([some, others[spaced(len(others), BANK)].float()])
    return some[spaced(len(some), BANK)]
