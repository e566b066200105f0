"""Points: the seeds of an arm brought together, and what two of them differ by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusemix.studies.plan import Arm

METRIC = "R@1"
# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond them its expansion about the normal.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        study, variant, x: as of the arm.
        values: the figure of each seed that is done.
        failed: seeds whose trial failed.
        seconds: of a fit, the mean.
    """

    study: str
    variant: str
    x: float | str
    values: Mapping[int, float]
    failed: Mapping[int, str]
    seconds: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval of the mean; NaN with fewer than two seeds."""
        return half_width(list(self.values.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; what is not known is None."""
        numbers = {"mean": self.mean, "half": self.half, "seconds": self.seconds}
        known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        return {
            "study": self.study,
            "variant": self.variant,
            "x": self.x,
            "values": list(self.values.values()),
            **known,
        }


@dataclass(frozen=True)
class Difference:
    """How far one point lies above another, over the seeds that both have.

    Each seed draws the same pairs for both, so the difference is taken seed by seed: what the draw brings to both of
    them falls out.
    """

    mean: float
    half: float

    @property
    def sure(self) -> bool:
        """The 95 % interval leaves out zero."""
        return abs(self.mean) > self.half  # never, where half is NaN

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + ("" if math.isnan(self.half) else f" ± {self.half:.1f}")


def gather(arms: Sequence[Arm], done: Mapping[str, Mapping[str, Any]], metric: str = METRIC) -> list[Point]:
    """Bring together what is done so far, in the order of the plan.

    Args:
        arms: of a plan.
        done: figures by key of the trial.
        metric: which figure.
    """
    found: dict[tuple[str, str, float | str], list[Arm]] = {}
    for arm in arms:
        if arm.trial.key in done:
            found.setdefault((arm.study, arm.variant, arm.x), []).append(arm)
    points = []
    for (study, variant, x), several in found.items():
        figures = {arm.trial.seed: done[arm.trial.key] for arm in several}
        values = {seed: each[metric] for seed, each in figures.items() if metric in each}
        failed = {seed: each["error"] for seed, each in figures.items() if "error" in each}
        seconds = [each["seconds"] for each in figures.values() if "seconds" in each]
        points.append(Point(study, variant, x, values, failed, float(np.mean(seconds)) if seconds else math.nan))
    return points


def difference(one: Point, other: Point) -> Difference:
    """Return how far `one` lies above `other`; NaN where they share no seed."""
    shared = [one.values[seed] - other.values[seed] for seed in one.values if seed in other.values]
    return Difference(float(np.mean(shared)) if shared else math.nan, half_width(shared))


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean by Student's t; NaN for fewer than two values."""
    count = len(values)
    if count < 2:
        return math.nan
    degrees = count - 1
    t = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.37 / degrees + 2.82 / degrees**2
    return t * float(np.std(values, ddof=1)) / math.sqrt(count)
