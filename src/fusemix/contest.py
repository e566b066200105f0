"""Ways to embed the same held-out pairs, side by side: each by itself, and scores added up; hubs corrected or not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusemix.align.adapters import AnyAdapter, Joined, Linear
from fusemix.align.closed_form import ClosedForm
from fusemix.align.hubness import STRENGTHS, corrected_ranks, corrected_recall, hub_bias, spaced
from fusemix.align.metrics import CUTOFFS
from fusemix.align.moments import Rows
from fusemix.data.latents import Latents
from fusemix.training.validation import Sides, embed

SHARES = (0.3, 0.5, 0.7)  # of the trained adapters in a score; the rest is the closed form's
_SPREAD_OF = 1000  # known items of either side
MOST_JUDGED = 10_000  # held-out pairs: more tell no more, and every way is scored on all against all
ERRORS = 2.0  # standard errors by which a way must be ahead of the simplest
UNKNOWN_TEMPERATURE = 0.07  # where nobody judges
_TEMPERATURES = tuple(0.005 * 1.2**i for i in range(26))  # to 0.48
_JUDGED = 2000

Sided = dict[str, AnyAdapter]
"""An adapter for each modality, x first."""


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

    def joined(self, other: "Way", weights: Tensor) -> "Way":
        """Return the way whose cosines are the sum of both, with weights (2,)."""
        parts = {name: [self.adapters[name], other.adapters[name]] for name in self.adapters}
        sides: Sided = {name: Joined(each, weights).eval() for name, each in parts.items()}
        return Way(f"{self.what} + {other.what}", "both", sides, self.unpaired)

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
        return max(1e-6, float((self.bank_x[:_SPREAD_OF] @ self.bank_y[:_SPREAD_OF].T).std()))

    def joined(self, other: "Entry", share: float) -> "Entry":
        """Add up scores, of which the other's count `share`, each in units of its spread."""
        weights = torch.tensor([(1 - share) / self.spread(), share / other.spread()])
        weights /= weights.sum()
        a, b = weights.sqrt()
        way = self.way.joined(other.way, weights)
        way = replace(way, what=f"{self.way.what} + {share:g} {other.way.what}")
        mine, theirs = ((e.x, e.y, e.bank_x, e.bank_y) for e in (self, other))
        return Entry(way, *(torch.cat([a * one, b * two], dim=1) for one, two in zip(mine, theirs, strict=True)))

    def recalls(self, rows: Rows) -> list[float]:
        """Return the mean recall, in [0, 100], for each strength of the correction; `rows` pair x and y."""
        bias_x, bias_y = hub_bias(self.x, self.bank_y), hub_bias(self.y, self.bank_x)
        return [corrected_recall(self.x, self.y, rows, s * bias_x, s * bias_y) for s in STRENGTHS]

    def hits(self, rows: Rows, strength: float) -> NDArray[np.float64]:
        """Return for each x (N,), in [0, 100], how well it and its partners are found: the mean of both ways."""
        bias_x, bias_y = hub_bias(self.x, self.bank_y), hub_bias(self.y, self.bank_x)
        ranks = corrected_ranks(self.x, self.y, rows, strength * bias_x, strength * bias_y)
        forth, back = (100 * np.mean([each <= k for k in CUTOFFS], axis=0) for each in ranks)
        partners = np.bincount(rows[0], back[rows[1]]) / np.bincount(rows[0])
        found: NDArray[np.float64] = (forth + partners) / 2
        return found


@dataclass(frozen=True)
class Winner:
    """What did best.

    Attributes:
        way: how to embed.
        strength: of the correction of hubs, 0 for none.
        tried: mean R@1, 5, 10 of both ways, in [0, 100], of each way with the strength that suits it; the best first.
        uncorrected: that of the winner without correction; NaN where nobody judged.
        temperature: by which its cosines say most about who belongs to whom, see `calibrate`.
        notes: why it is not the first of `tried`, where it is not.
    """

    way: Way
    strength: float
    tried: dict[str, float]
    uncorrected: float
    temperature: float
    notes: tuple[str, ...] = ()


def linear(form: ClosedForm, modalities: Sequence[str]) -> Sided:
    """Return a closed form as adapters."""
    x, y = modalities
    return {x: Linear(form.shift_x, form.map_x).eval(), y: Linear(form.shift_y, form.map_y).eval()}


def contest(
    closed: Sequence[Way], trained: Sequence[Way], known: Sequence[Tensor], held: Latents | None,
    *, only: bool = False, shares: Sequence[float] = SHARES,
) -> Winner:  # fmt: skip
    """Let ways compete on held-out pairs.

    The simplest closed form is kept unless another way is ahead of it by more than two standard errors of the
    difference: of a dozen ways the best on 34 held-out sounds was best by chance, and found less among others.

    Args:
        closed: closed forms, the simplest first; the first is kept unless another is clearly ahead.
        trained: trained adapters, of which the first is taken where nobody judges.
        known: latents of known items of x and of y, for the bias of hubs.
        held: the pairs; with None nobody judges, and it is the first closed form, with what was trained.
        only: trained adapters only beside a closed form, and no closed form alone.
        shares: of the trained adapters in sums of scores; none where a space that is there cannot be widened.
    """
    if held is None:
        way = closed[0] if not trained else closed[0].joined(trained[0], torch.tensor([0.5, 0.5]))
        return Winner(way, 0.0, {}, math.nan, UNKNOWN_TEMPERATURE)
    cpu = torch.device("cpu")
    some = held.take(spaced(len(held), MOST_JUDGED))
    sides = Sides.of(some, tuple(closed[0].adapters), cpu)
    rows = sides.rows[0].numpy(), sides.rows[1].numpy()
    entries = [Entry.of(way, sides, known) for way in closed]
    networks = [Entry.of(way, sides, known) for way in trained]
    both = [entry.joined(other, share) for other in networks for entry in entries for share in shares]
    entries = both if only else [*entries, *both, *networks]
    recalls = [entry.recalls(rows) for entry in entries]
    order = sorted(range(len(entries)), key=lambda i: -max(recalls[i]))  # stable
    best = order[0]
    notes: tuple[str, ...] = ()
    strengths = [STRENGTHS[int(np.argmax(each))] for each in recalls]
    if not only and best != 0:
        ahead = max(recalls[best]) - max(recalls[0])
        noise = _error(entries[best].hits(rows, strengths[best]) - entries[0].hits(rows, strengths[0]))
        if ahead < ERRORS * noise:
            more = f"{entries[best].way.what} found {ahead:.1f} more in held-out pairs than {entries[0].way.what}"
            notes = (f"{more}, which is less than {ERRORS:g} standard errors of {noise:.1f}, and was not kept",)
            best = 0
    tried = {entries[i].way.what: round(max(recalls[i]), 2) for i in order}
    temperature = calibrate(entries[best].x, entries[best].y, rows)
    return Winner(entries[best].way, strengths[best], tried, recalls[best][0], temperature, notes)


def _error(differences: NDArray[np.float64]) -> float:
    """Return the standard error of the mean of differences (N,)."""
    return float(differences.std(ddof=1) / len(differences) ** 0.5) if len(differences) > 1 else math.inf


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
