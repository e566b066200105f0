"""Ways to embed the same held-out pairs, side by side: each by itself, and scores added up; hubs corrected or not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusemix.align.adapters import AnyAdapter, Joined, Linear
from fusemix.align.closed_form import ClosedForm
from fusemix.align.folds import STRENGTH
from fusemix.align.hubness import STRENGTHS, corrected_ranks, hub_bias, spaced
from fusemix.align.metrics import CUTOFFS, recall_of
from fusemix.align.moments import Rows
from fusemix.data.latents import Latents
from fusemix.training.validation import Sides, embed

SHARES = (0.3, 0.5, 0.7)  # of the trained adapters in a score; the rest is the closed form's
_SPREAD_OF = 1000  # known items of either side
MOST_JUDGED = 10_000  # held-out pairs: more tell no more, and every way is scored on all against all
MANY_JUDGES, FEW_JUDGES_ERRORS = 100, 2.0  # groups below which one standard error is not enough to be ahead by
UNKNOWN_TEMPERATURE = 0.07  # where nobody judges
_TEMPERATURES = tuple(0.005 * 1.2**i for i in range(26))  # to 0.48
_JUDGED = 2000

Sided = dict[str, AnyAdapter]
"""An adapter for each modality, x first."""

Ranks = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Best ranks of every x (N,) as a query, and of every y (M,)."""


@dataclass(frozen=True)
class Way:
    """One way to embed.

    Attributes:
        what: in words.
        kind: "mlp", "both", or the closed form.
        adapters: of each modality.
        unpaired: a closed form in it learned from items without partners.
    """

    what: str
    kind: str
    adapters: Sided
    unpaired: bool = False

    def joined(self, other: "Way", weights: Tensor, share: str = "") -> "Way":
        """Return the way whose cosines are the sum of both, with weights (2,); `share` is that of the other, to say."""
        parts = {name: [self.adapters[name], other.adapters[name]] for name in self.adapters}
        sides: Sided = {name: Joined(each, weights).eval() for name, each in parts.items()}
        return Way(f"{self.what} + {share}{other.what}", "both", sides, self.unpaired)

    def with_closed(self, form: ClosedForm) -> Sided:
        """Return these adapters with another closed form in them."""
        sides: Sided = linear(form, tuple(self.adapters))
        for name, side in self.adapters.items():
            if isinstance(side, Joined):
                sides[name] = Joined([sides[name], side.each[1]], side.shares).eval()
        return sides


@dataclass(frozen=True)
class Entry:
    """What a way makes of held-out items x (N, S) and y (M, S), and of known ones; unit norm."""

    way: Way
    x: Tensor
    y: Tensor
    bank_x: Tensor
    bank_y: Tensor

    @classmethod
    def of(cls, way: Way, held: Sides, known: Sequence[Tensor]) -> "Entry":
        """Embed held-out items, and known latents of x and of y."""
        x, y = way.adapters.values()
        return cls(way, embed(x, held.x), embed(y, held.y), embed(x, known[0]), embed(y, known[1]))

    def spread(self) -> float:
        """Return the deviation of the cosines of known items: what a score of this way is measured in."""
        x, y = (bank[spaced(len(bank), _SPREAD_OF)] for bank in (self.bank_x, self.bank_y))
        return max(1e-6, float((x @ y.T).std()))

    def joined(self, other: "Entry", share: float) -> "Entry":
        """Add up scores, of which the other's count `share`, each in units of its spread."""
        weights = torch.tensor([(1 - share) / self.spread(), share / other.spread()])
        weights /= weights.sum()
        a, b = weights.sqrt()
        way = self.way.joined(other.way, weights, f"{share:g} ")
        mine, theirs = ((e.x, e.y, e.bank_x, e.bank_y) for e in (self, other))
        return Entry(way, *(torch.cat([a * one, b * two], dim=1) for one, two in zip(mine, theirs, strict=True)))

    def ranks(self, rows: Rows) -> list[Ranks]:
        """Return the best ranks of every x and of every y for each strength of the correction; `rows` pair x and y."""
        bias_x, bias_y = hub_bias(self.x, self.bank_y), hub_bias(self.y, self.bank_x)
        return [corrected_ranks(self.x, self.y, rows, s * bias_x, s * bias_y) for s in STRENGTHS]


@dataclass(frozen=True)
class Winner:
    """What did best.

    Attributes:
        way: how to embed.
        strength: of the correction of hubs, 0 for none.
        tried: mean R@1, 5, 10 of both ways, in [0, 100], of each way with the strength that suits it; the best first.
        uncorrected: that of the winner without correction; NaN where nobody judged.
        judged: pairs that judged, of the split `judges`.
        temperature: by which its cosines say most about who belongs to whom, see `calibrate`.
        notes: why it is not the first of `tried`, where it is not.
    """

    way: Way
    strength: float
    tried: dict[str, float]
    uncorrected: float
    judged: int
    judges: str
    temperature: float
    notes: tuple[str, ...] = ()


def linear(form: ClosedForm, modalities: Sequence[str]) -> Sided:
    """Return a closed form as adapters."""
    x, y = modalities
    return {x: Linear(form.shift_x, form.map_x).eval(), y: Linear(form.shift_y, form.map_y).eval()}


def contest(
    closed: Sequence[Way], trained: Sequence[Way], known: Sequence[Tensor], held: Latents | None,
    *, only: bool = False, shares: Sequence[float] = SHARES, usual: float = STRENGTH,
) -> Winner:  # fmt: skip
    """Let ways compete on held-out pairs.

    It is the best where that is ahead of the simplest closed form by more than one standard error of the difference
    (Breiman et al., 1984), or two where fewer than 100 groups judge, and else that form, corrected as it was when its
    shrinkage was chosen: of a dozen ways, and of three strengths, the best on 34 held-out sounds was best by chance,
    and found less among others.

    Args:
        closed: closed forms, the simplest first.
        trained: trained adapters, of which the first is taken where nobody judges.
        known: latents of known items of x and of y, for the bias of hubs.
        held: the pairs; with None nobody judges, and it is the first closed form, with what was trained.
        only: trained adapters only beside a closed form, and no closed form alone.
        usual: strength of the correction of hubs that the first closed form was fitted for.
        shares: of the trained adapters in sums of scores; none where a space that is there cannot be widened.
    """
    if held is None:
        way = closed[0] if not trained else closed[0].joined(trained[0], torch.tensor([0.5, 0.5]))
        return Winner(way, 0.0, {}, math.nan, 0, "", UNKNOWN_TEMPERATURE)
    some, sides, rows = _judges(held, tuple(closed[0].adapters))
    entries = [Entry.of(way, sides, known) for way in closed]
    networks = [Entry.of(way, sides, known) for way in trained]
    both = [entry.joined(other, share) for other in networks for entry in entries for share in shares]
    entries = both if only else [*entries, *both, *networks]
    ranks = [entry.ranks(rows) for entry in entries]
    recalls = [[recall_of(*each) for each in of_way] for of_way in ranks]
    at = [int(np.argmax(each)) for each in recalls]  # the strength that suits it
    order = sorted(range(len(entries)), key=lambda i: -recalls[i][at[i]])  # stable
    best = order[0]
    notes: tuple[str, ...] = ()
    if not only:
        first = STRENGTHS.index(usual)
        groups = tuple(_groups(side, some.groups) for side in rows)
        ahead = recalls[best][at[best]] - recalls[0][first]
        noise = _error(ranks[best][at[best]], ranks[0][first], groups)
        errors = 1.0 if len(np.unique(some.groups)) >= MANY_JUDGES else FEW_JUDGES_ERRORS
        if ahead <= errors * noise:
            notes = (_unclear(entries[best], ahead, errors, noise, entries[0]),) if best else ()
            best, at[0] = 0, first
    tried = sorted(((entries[i].way.what, round(recalls[i][at[i]], 2)) for i in order), key=lambda each: -each[1])
    temperature = calibrate(entries[best].x, entries[best].y, rows)
    return Winner(
        entries[best].way, STRENGTHS[at[best]], dict(tried), recalls[best][0], len(some), some.split_name, temperature,
        notes,
    )  # fmt: skip


def lead(form: Way, network: Way, known: Sequence[Tensor], held: Latents) -> float:
    """Return how many points of recall a network finds more than a closed form on held-out pairs; see `contest`."""
    _, sides, rows = _judges(held, tuple(form.adapters))
    entries = [Entry.of(way, sides, known) for way in (form, network)]
    mine, theirs = (max(recall_of(*each) for each in entry.ranks(rows)) for entry in entries)
    return theirs - mine


def _judges(held: Latents, modalities: tuple[str, ...]) -> tuple[Latents, Sides, Rows]:
    """Return the held-out pairs that are looked at, their items, and which of these belong together."""
    some = held.take(spaced(len(held), MOST_JUDGED))
    sides = Sides.of(some, modalities, torch.device("cpu"))
    return some, sides, (sides.rows[0].numpy(), sides.rows[1].numpy())


def _groups(rows: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group of each item, from the item and the group of each pair."""
    found = np.empty(rows.max() + 1, np.int64)
    found[rows] = groups
    return found


def _error(ranks: Ranks, others: Ranks, groups: tuple[NDArray[np.int64], ...]) -> float:
    """Return the standard error, in points, of the difference of two mean recalls; whole groups stand or fall together.

    Args:
        ranks: of one way.
        others: of the other, for the same queries.
        groups: of every x and of every y.
    """
    distinct = np.unique(np.concatenate(groups))
    if len(distinct) < 2:
        return math.inf
    shares = np.zeros(len(distinct))  # what each group adds to the difference, beside what it would in the mean
    for mine, theirs, of in zip(ranks, others, groups, strict=True):
        gains = 100 * np.mean([(mine <= k) * 1.0 - (theirs <= k) for k in CUTOFFS], axis=0)
        places = np.searchsorted(distinct, of)
        shares += np.bincount(places, gains - gains.mean(), len(distinct)) / len(gains) / 2
    return float(np.sqrt(np.square(shares).sum() * len(distinct) / (len(distinct) - 1)))


def _unclear(first: Entry, ahead: float, errors: float, noise: float, simplest: Entry) -> str:
    """Say why the best way was not kept."""
    more = f"{first.way.what} found {ahead:.1f} more in held-out pairs than {simplest.way.what}"
    needed = f"{errors:g} standard error{'s' if errors > 1 else ''}"
    return f"{more}, which is less than {needed} of {noise:.1f}, and was not kept"


def calibrate(x: Tensor, y: Tensor, rows: Rows) -> float:
    """Return the temperature at which softmax(cosine / temperature) gives the partners of x the highest likelihood.

    Args:
        x: (N, S) embeddings, unit norm.
        y: (M, S).
        rows: which of them belong together; 2,000 pairs at most are looked at.
    """
    some = spaced(len(rows[0]), _JUDGED)
    cosines, partners = x[torch.from_numpy(rows[0][some])] @ y.T, torch.from_numpy(rows[1][some])
    costs = [float(cross_entropy(cosines / temperature, partners)) for temperature in _TEMPERATURES]
    return _TEMPERATURES[int(np.argmin(costs))]
