"""What a study found, in words. Nothing is called better that the intervals do not tell apart."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from fusemix.studies.plan import FUSEMIX, PLAIN
from fusemix.studies.points import METRIC, Difference, Point, difference

MORE = 1000  # pairs whose worth is told


def findings(points: Sequence[Point], measured: str) -> list[str]:
    """Say what was found, one sentence or two for each study that is done.

    Args:
        points: all of them.
        measured: what was measured on, such as "1,000 pairs of the split test".
    """
    said = [f"{METRIC} is the mean of both directions in percent, on {measured}; ± is a 95 % interval over seeds."]
    for study, say in SAYERS.items():
        own = [point for point in points if point.study == study and point.values]
        if own:
            said += say(own, points)
    failed = [point for point in points if point.failed]
    if failed:
        first = failed[0]
        count = sum(len(point.failed) for point in failed)
        said.append(
            f"{count} fits failed, the first of {first.study} ({first.variant}, {first.x}): "
            f"{next(iter(first.failed.values()))}"
        )
    if all(len(point.values) < 2 for point in points):
        said.append("One seed alone tells nothing apart: give --seeds 3 or more.")
    return said


def _quantity(own: Sequence[Point], _: Sequence[Point]) -> list[str]:
    curve = _curve(own, FUSEMIX)
    said = []
    if len(curve) > 1:
        slope = (curve[-1].mean - curve[-2].mean) / math.log2(curve[-1].x / curve[-2].x)  # type: ignore[operator]
        last = float(curve[-1].x)
        worth = slope * math.log2((last + MORE) / last)
        said.append(
            f"Quantity: {FUSEMIX} goes from {curve[0].mean:.1f} with {curve[0].x:,} pairs to {curve[-1].mean:.1f} with "
            f"{curve[-1].x:,}. Of late a doubling brings {slope:+.1f}, so {MORE:,} more pairs are worth about "
            f"{worth:+.2f} {METRIC}, if the curve goes on as it does."
        )
    for other in (PLAIN, "CCA"):
        said += _crossing(curve, _curve(own, other), other)
    return said


def _crossing(curve: Sequence[Point], other: Sequence[Point], name: str) -> list[str]:
    """Say from how many pairs on one curve is ahead of another."""
    ways = {point.x: difference(point, _at(other, point.x)) for point in curve if any(o.x == point.x for o in other)}
    if not ways:
        return []
    table = ", ".join(f"{diff} at {x:,}" for x, diff in ways.items())
    ahead = [x for x, diff in ways.items() if diff.sure and diff.mean > 0]
    behind = [x for x, diff in ways.items() if diff.sure and diff.mean < 0]
    sizes = list(ways)
    from_on = next((x for i, x in enumerate(sizes) if all(later in ahead for later in sizes[i:])), None)
    if from_on is not None:
        verdict = f"is ahead of {name} from {from_on:,} pairs on"
    elif ahead:
        verdict = f"is ahead of {name} at {_list(ahead)} pairs"
    else:
        verdict = f"is nowhere ahead of {name} beyond doubt"
    if behind:
        verdict += f" and behind it at {_list(behind)}"
    return [f"{FUSEMIX} {verdict} ({table})."]


def _quality(own: Sequence[Point], _: Sequence[Point]) -> list[str]:
    said = []
    for variant in dict.fromkeys(point.variant for point in own):
        curve = _curve(own, variant)
        lost = [f"{difference(point, curve[0])} at {point.x:g} %" for point in curve[1:]]
        if lost:
            said.append(f"{variant}, with wrong partners: {', '.join(lost)}.")
    return [f"Quality: {' '.join(said)}"] if said else []


def _source(own: Sequence[Point], _: Sequence[Point]) -> list[str]:
    ranked = sorted(own, key=lambda point: -point.mean)
    told = ", ".join(f"{point.variant} {point.mean:.1f}" for point in ranked)
    verdict = _told_apart(ranked[0], ranked[-1])
    return [f"Source, at {ranked[0].x:,} pairs each: {told}. {verdict}"]


def _diversity(own: Sequence[Point], points: Sequence[Point]) -> list[str]:
    uniform = {point.x: point for point in own if point.variant == "uniform"}
    curve = _curve([point for point in points if point.study == "quantity"], FUSEMIX)
    said = []
    for how in dict.fromkeys(point.variant for point in own if point.variant != "uniform"):
        for point in _curve(own, how):
            diff = difference(point, uniform[point.x])
            words = f"{how} at {point.x:,} pairs: {diff} against uniform"
            if diff.sure:
                words += f", worth as much as {_as_many_more(point, uniform[point.x], curve)} pairs chosen at random"
            said.append(words)
    return [f"Diversity: {'; '.join(said)}."] if said else []


def _as_many_more(point: Point, uniform: Point, curve: Sequence[Point]) -> str:
    """Say how many more uniform pairs would reach the same, along the curve of quantity (linear in log pairs)."""
    if len(curve) < 2:
        return "an unknown number of (there is no curve of quantity)"
    sizes = np.log([float(each.x) for each in curve])
    heights = np.array([each.mean for each in curve])
    target = point.mean - uniform.mean + np.interp(math.log(float(uniform.x)), sizes, heights)
    if not heights[0] <= target <= heights[-1] or (np.diff(heights) <= 0).any():
        return f"{'more' if target > heights[-1] else 'fewer'} than the curve of quantity tells of"
    more = math.exp(np.interp(target, heights, sizes)) - float(uniform.x)
    return f"{round(more, -1 if abs(more) < 1000 else -2):,.0f} {'more' if more >= 0 else 'fewer'}"


def _best(title: str) -> Callable[[Sequence[Point], Sequence[Point]], list[str]]:
    def say(own: Sequence[Point], _: Sequence[Point]) -> list[str]:
        best = max(own, key=lambda point: point.mean)
        as_good = [point for point in own if point is not best and not difference(best, point).sure]
        told = ", ".join(f"{point.x} {point.mean:.1f}" for point in own)
        rest = f"; {_list([point.x for point in as_good])} cannot be told from it" if as_good else ", beyond doubt"
        return [f"{title}: {told}. Best at {best.x}{rest}."]

    return say


def _augmentation(own: Sequence[Point], _: Sequence[Point]) -> list[str]:
    by_name = {point.variant: point for point in own}
    none, fusemix = by_name.get("none"), by_name.get(FUSEMIX)
    if none is None or fusemix is None:
        return []
    alone = [f"{name} {difference(point, none)}" for name, point in by_name.items() if point is not none]
    said = [f"Augmentation, against none ({none.mean:.1f}): {', '.join(alone)}."]
    others = [name for name in by_name if " + " not in name and name not in ("none", FUSEMIX)]
    sure = {name: difference(fusemix, by_name[name]) for name in others}
    said.append(f"{FUSEMIX} against the others: {', '.join(f'{diff} {name}' for name, diff in sure.items())}.")
    stacks: list[str] = []
    doubtful: list[str] = []
    for name, point in by_name.items():
        parts = [by_name[part] for part in name.split(" + ") if part in by_name]
        if " + " not in name or len(parts) < 2:
            continue
        gain = min((difference(point, part) for part in parts), key=lambda diff: diff.mean)
        (stacks if gain.sure and gain.mean > 0 else doubtful).append(f"{name} ({gain} over the better part)")
    said.append(
        f"These stack: {'; '.join(stacks) or 'none'}. These do not, beyond doubt: {'; '.join(doubtful) or 'none'}."
    )
    return said


def _encoders(own: Sequence[Point], _: Sequence[Point]) -> list[str]:
    ranked = sorted((point for point in own if point.variant == FUSEMIX), key=lambda point: -point.mean)
    if len(ranked) < 2:
        return []
    told = ", ".join(f"{point.x} {point.mean:.1f}" for point in ranked)
    return [f"Encoders: {told}. {_told_apart(ranked[0], ranked[-1])}"]


def _told_apart(best: Point, worst: Point) -> str:
    diff: Difference = difference(best, worst)
    names = [str(point.variant if point.study == "source" else point.x) for point in (best, worst)]
    if not diff.sure:
        return f"The best and the worst cannot be told apart ({diff})."
    return f"{names[0]} is ahead of {names[1]} by {diff}."


def _curve(points: Sequence[Point], variant: str) -> list[Point]:
    return [point for point in points if point.variant == variant]


def _at(points: Sequence[Point], x: float | str) -> Point:
    return next(point for point in points if point.x == x)


def _list(values: Sequence[float | str]) -> str:
    return ", ".join(f"{value:,}" if isinstance(value, int | float) else value for value in values)


SAYERS: dict[str, Callable[[Sequence[Point], Sequence[Point]], list[str]]] = {
    "quantity": _quantity,
    "quality": _quality,
    "source": _source,
    "diversity": _diversity,
    "batch": _best("Batch size"),
    "depth": _best("Depth of the adapters"),
    "dim": _best("Width of the shared space"),
    "dropout": _best("Dropout"),
    "augmentation": _augmentation,
    "encoders": _encoders,
}
