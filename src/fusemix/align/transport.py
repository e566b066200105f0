"""Closed forms that also learn from items without partners, by optimal transport.

A form that was fitted on few pairs guesses which unpaired x belongs to which unpaired y: not one by one, but as a
whole, by an entropic transport plan (Sinkhorn) that leaves no item out and takes none twice. The plan is an expected
pairing, so it has an expected cross-covariance; with that of the pairs, and with the covariances of all items, it gives
the next form. The idea of a closed-form teacher and a plan is SOTAlign's (arXiv 2602.23353), which goes on by gradient
steps; here the student has a closed form too. What it gains is in `docs/recall.md`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fusemix.align.closed_form import ClosedForm
from fusemix.align.moments import Moments

EPSILON = 0.01  # of the plan: in cosines; 0.005 did as well, 0.02 and more blurred it
ROUNDS = 4  # of plan and fit
_ITERATIONS = 10  # of Sinkhorn's scalings
PLAN_NUMBERS = 2**27  # in a plan, at most: 512 MiB, and as much again while it is made


@dataclass(frozen=True)
class Unpaired:
    """Items without partners, and what does not change while a form learns from them.

    Attributes:
        x: (N, Dx) latents, float32.
        y: (M, Dy).
        mean_x, mean_y: float64.
        xx, yy: covariances, float64.
    """

    x: Tensor
    y: Tensor
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Unpaired":
        """Take latents of any precision; either side may be long, but not both, see PLAN_NUMBERS."""
        x, y = x.float(), y.float()
        (mean_x, xx), (mean_y, yy) = (_moments(side) for side in (x, y))
        return cls(x, y, mean_x, mean_y, xx, yy)

    def expected(self, pairing: Tensor) -> Tensor:
        """Return the cross-covariance (Dx, Dy), float64, under an expected pairing (N, M)."""
        x, y = self.x - self.mean_x.float(), self.y - self.mean_y.float()
        return (x.T @ (pairing @ y) / pairing.sum()).double()


def _moments(side: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and covariance (D, D), float64."""
    mean = side.double().mean(dim=0)
    covariance = torch.zeros(side.shape[1], side.shape[1], dtype=torch.float64)
    for block in torch.split(side, 4096):
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred)
    return mean, covariance / len(side)


def plan(x: Tensor, y: Tensor, epsilon: float = EPSILON, iterations: int = _ITERATIONS) -> Tensor:
    """Return the entropic optimal transport plan between embeddings x (N, S) and y (M, S): (N, M), rows sum to about 1.

    Sinkhorn's scalings of exp(cosine / epsilon): the first one among logarithms, where nothing vanishes, the others by
    products of a matrix and a vector.

    Args:
        x: unit norm.
        y: unit norm.
        epsilon: how blurred the plan is, in cosines.
        iterations: of the scalings.
    """
    rows, columns = len(x), len(y)
    logits = (x @ y.T).div_(epsilon)
    logits.sub_(logits.logsumexp(dim=1, keepdim=True))
    logits.sub_(logits.logsumexp(dim=0) - math.log(rows / columns))
    kernel = logits.exp_()
    scale_y = torch.ones(columns)
    for _ in range(iterations):
        scale_x = 1 / (kernel @ scale_y).clamp(min=1e-30)
        scale_y = rows / columns / (scale_x @ kernel).clamp(min=1e-30)
    return kernel.mul_(scale_x[:, None]).mul_(scale_y)


def learn_unpaired(
    paired: Moments, unpaired: Unpaired, first: ClosedForm, make: Callable[[Moments], ClosedForm], share: float,
    rounds: int = ROUNDS,
) -> ClosedForm:  # fmt: skip
    """Fit a form on pairs and on unpaired items, round after round.

    Args:
        paired: moments of the pairs.
        unpaired: the items.
        first: the form that makes the first plan.
        make: fits a form to moments.
        share: what the unpaired items count beside the pairs, in [0, 1].
        rounds: of plan and fit.
    """
    own, others = ((m.mean_x, m.mean_y, m.xx, m.yy) for m in (paired, unpaired))
    mean_x, mean_y, xx, yy = ((1 - share) * one + share * other for one, other in zip(own, others, strict=True))
    whole = Moments(mean_x, mean_y, xx, yy, paired.xy)
    form = first
    for _ in range(rounds):
        expected = unpaired.expected(plan(form.embed_x(unpaired.x), form.embed_y(unpaired.y)))
        form = make(whole.paired_as((1 - share) * paired.xy + share * expected))
    return form
