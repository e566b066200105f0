"""What a study found, in words. Nothing is called better that the intervals do not tell apart."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fusemix.studies.plan import FUSEMIX, PLAIN
from fusemix.studies.points import METRIC, Point, difference

MORE = 1000  # pairs whose worth is told, where there are as many; else a hundred, or ten


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        verdict: a sentence that stands alone.
        detail: the figures behind it.
    """

    verdict: str
    detail: str


def caption(measured: str) -> str:
    """Say what every figure is."""
    return f"{METRIC} is the mean of both directions in percent, on {measured}; ± is a 95 % interval over seeds."


def findings(points: Sequence[Point]) -> list[Finding]:
    """Say what was found, study by study."""
    said = []
    for study, say in SAYERS.items():
        own = [point for point in points if point.study == study and point.values]
        if own:
            said += say(own, points)
    failed = [point for point in points if point.failed]
    if failed:
        count = sum(len(point.failed) for point in failed)
        which = f"{failed[0].study}, {failed[0].variant}, {failed[0].x}"
        said.append(Finding(f"{count} fits failed.", f"The first ({which}): {next(iter(failed[0].failed.values()))}"))
    if points and all(len(point.values) < 2 for point in points):
        said.append(Finding("One seed alone tells nothing apart.", "Give --seeds 3 or more."))
    return said


def _quantity(own: Sequence[Point], _: Sequence[Point]) -> list[Finding]:
    curve = _curve(own, FUSEMIX)
    said = []
    if len(curve) > 1:
        first, before, last = curve[0], curve[-2], curve[-1]
        slope = (last.mean - before.mean) / math.log2(float(last.x) / float(before.x))
        more = min(MORE, 10 ** int(math.log10(float(last.x))))
        worth = slope * math.log2((float(last.x) + more) / float(last.x))
        said.append(
            Finding(
                f"{more:,} more pairs are worth about {worth:+.2f} {METRIC}, if the curve goes on as it does.",
                f"{FUSEMIX} goes from {first.mean:.1f} with {first.x:,} pairs to {last.mean:.1f} with {last.x:,}; "
                f"of late a doubling brings {slope:+.1f}.",
            )
        )
    return said + [each for other in (PLAIN, "CCA") for each in _crossing(curve, _curve(own, other), other)]


def _crossing(curve: Sequence[Point], other: Sequence[Point], name: str) -> list[Finding]:
    """Say from how many pairs on one curve is ahead of another."""
    there = {point.x: point for point in other}
    ways = {point.x: difference(point, there[point.x]) for point in curve if point.x in there}
    if not ways:
        return []
    sizes = list(ways)
    ahead = [x for x, diff in ways.items() if diff.sure and diff.mean > 0]
    behind = [x for x, diff in ways.items() if diff.sure and diff.mean < 0]
    from_on = next((x for i, x in enumerate(sizes) if set(sizes[i:]) <= set(ahead)), None)
    if from_on is not None:
        verdict = f"{FUSEMIX} is ahead of {name} from {from_on:,} pairs on"
    elif ahead:
        verdict = f"{FUSEMIX} is ahead of {name} at {_listed(ahead)} pairs"
    else:
        verdict = f"{FUSEMIX} is nowhere ahead of {name} beyond doubt"
    verdict += f", and behind it at {_listed(behind)}." if behind else "."
    return [Finding(verdict, ", ".join(f"{diff} at {x:,}" for x, diff in ways.items()) + ".")]


def _quality(own: Sequence[Point], _: Sequence[Point]) -> list[Finding]:
    lost = {}
    for variant in dict.fromkeys(point.variant for point in own):
        clean, *rest = _curve(own, variant)
        lost[variant] = {point.x: difference(point, clean) for point in rest}
    if not lost.get(FUSEMIX):
        return []
    share, cost = next(iter(lost[FUSEMIX].items()))
    detail = "; ".join(
        f"{variant}: {', '.join(f'{diff} at {x:g} %' for x, diff in each.items())}" for variant, each in lost.items()
    )
    return [Finding(f"Wrong partners for {share:g} % of the pairs change {FUSEMIX} by {cost}.", f"{detail}.")]


def _source(own: Sequence[Point], _: Sequence[Point]) -> list[Finding]:
    verdict = _best_and_worst(own, lambda point: point.variant)
    return [Finding(verdict, f"At {own[0].x:,} pairs each: {_heights((p.variant, p) for p in own)}.")]


def _diversity(own: Sequence[Point], points: Sequence[Point]) -> list[Finding]:
    uniform = {point.x: point for point in own if point.variant == "uniform"}
    quantity = _curve([point for point in points if point.study == "quantity"], FUSEMIX)
    said = []
    for how in dict.fromkeys(point.variant for point in own if point.variant != "uniform"):
        curve = [point for point in _curve(own, how) if point.x in uniform]
        ways = {point.x: difference(point, uniform[point.x]) for point in curve}
        better = [point for point in curve if ways[point.x].sure and ways[point.x].mean > 0]
        worse = [point.x for point in curve if ways[point.x].sure and ways[point.x].mean < 0]
        if better:
            point = better[-1]
            more = _as_many_more(point, uniform[point.x], quantity)
            verdict = f"Choosing {point.x:,} pairs by {how} is worth as much as {more} chosen at random"
        else:
            verdict = f"Choosing by {how} is nowhere better than at random beyond doubt"
        verdict += f", and worse at {_listed(worse)} pairs." if worse else "."
        detail = ", ".join(f"{diff} at {x:,} pairs" for x, diff in ways.items())
        said.append(Finding(verdict, f"Against uniform: {detail}."))
    return said


def _as_many_more(point: Point, uniform: Point, curve: Sequence[Point]) -> str:
    """Say how many more uniform pairs would reach the same, along the curve of quantity (linear in log pairs)."""
    heights = np.array([each.mean for each in curve])
    if len(curve) < 2 or (np.diff(heights) <= 0).any():
        return "more pairs than there is a rising curve of quantity to tell"
    sizes = np.log([float(each.x) for each in curve])
    target = point.mean - uniform.mean + float(np.interp(math.log(float(uniform.x)), sizes, heights))
    if target > heights[-1]:
        return f"more than {float(curve[-1].x) - float(uniform.x):,.0f} more pairs"
    more = math.exp(float(np.interp(target, heights, sizes))) - float(uniform.x)
    return f"{round(more, -1 if more < 1000 else -2):,.0f} more pairs"


def _setting(name: str) -> Callable[[Sequence[Point], Sequence[Point]], list[Finding]]:
    def say(own: Sequence[Point], _: Sequence[Point]) -> list[Finding]:
        best = max(own, key=lambda point: point.mean)
        rest = [point.x for point in own if point is not best and not difference(best, point).sure]
        alike = f"; {_listed(rest)} cannot be told from it" if rest else ", beyond doubt"
        return [Finding(f"{name}: best at {best.x:,}{alike}.", f"{_heights((f'{p.x:,}', p) for p in own)}.")]

    return say


def _augmentation(own: Sequence[Point], _: Sequence[Point]) -> list[Finding]:
    named = {point.variant: point for point in own}
    none, fusemix = named.get("none"), named.get(FUSEMIX)
    if none is None or fusemix is None:
        return []
    gains = {name: difference(point, none) for name, point in named.items() if point is not none}
    said = [
        Finding(
            f"{FUSEMIX} alone changes {METRIC} by {gains[FUSEMIX]} against no augmentation.",
            f"Against none ({none.mean:.1f}): {', '.join(f'{name} {gain}' for name, gain in gains.items())}.",
        )
    ]
    alone = {name: difference(fusemix, named[name]) for name in gains if " + " not in name and name != FUSEMIX}
    beaten = [name for name, diff in alone.items() if diff.sure and diff.mean > 0]
    better = [name for name, diff in alone.items() if diff.sure and diff.mean < 0]
    verdict = f"Of the single augmentations {FUSEMIX} is ahead of {_listed(beaten) or 'no other'} beyond doubt"
    verdict += f", and behind {_listed(better)}." if better else "."
    said.append(
        Finding(verdict, f"{FUSEMIX} lies {', '.join(f'{diff} above {name}' for name, diff in alone.items())}.")
    )
    stacked = {}
    for name, point in named.items():
        parts = [named[part] for part in name.split(" + ") if part in named]
        if len(parts) > 1:
            stacked[name] = min((difference(point, part) for part in parts), key=lambda diff: diff.mean)
    sure = [name for name, gain in stacked.items() if gain.sure and gain.mean > 0]
    detail = ", ".join(f"{name} {gain}" for name, gain in stacked.items())
    said.append(Finding(f"What stacks beyond doubt: {_listed(sure) or 'nothing'}.", f"Over the better part: {detail}."))
    return said


def _encoders(own: Sequence[Point], _: Sequence[Point]) -> list[Finding]:
    fits = [point for point in own if point.variant == FUSEMIX]
    return [Finding(_best_and_worst(fits, lambda point: str(point.x)), f"{_heights((str(p.x), p) for p in fits)}.")]


def _best_and_worst(points: Sequence[Point], name: Callable[[Point], str]) -> str:
    best, worst = max(points, key=lambda p: p.mean), min(points, key=lambda p: p.mean)
    gap = difference(best, worst)
    if gap.sure:
        return f"{name(best)} is ahead of {name(worst)} by {gap}."
    return f"{name(best)} and {name(worst)} cannot be told apart ({gap})."


def _heights(points: Iterable[tuple[str, Point]]) -> str:
    return ", ".join(f"{name} {point.mean:.1f}" for name, point in points)


def _curve(points: Sequence[Point], variant: str) -> list[Point]:
    return [point for point in points if point.variant == variant]


def _listed(values: Sequence[float | str]) -> str:
    return ", ".join(value if isinstance(value, str) else f"{value:,}" for value in values)


SAYERS: dict[str, Callable[[Sequence[Point], Sequence[Point]], list[Finding]]] = {
    "quantity": _quantity,
    "quality": _quality,
    "source": _source,
    "diversity": _diversity,
    "batch": _setting("Batch size"),
    "depth": _setting("Blocks per adapter"),
    "expansion": _setting("Inner width of a block, in widths of the block"),
    "dim": _setting("Width of the shared space"),
    "dropout": _setting("Dropout"),
    "augmentation": _augmentation,
    "encoders": _encoders,
}
