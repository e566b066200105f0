"""How often labels are right, where the truth is known: beside chance and the most frequent class, and as a picture."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusemix.curves import LOSS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST = 5  # of top-5 accuracy
SHOWN = 5  # confusions that are told
READABLE, NUMBERED = 60, 12  # classes up to which a picture has names, and figures in its cells
LONGEST = 28  # letters of a name in a picture
_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class Judgement:
    """How often the labels are right, over the items whose truth is known. All shares are in percent.

    Attributes:
        names: C classes.
        right: (M,) int64, the place of the truth of each judged item in `names`; one item at least.
        said: (M,) int64, the place of its label.
        in_five: items whose truth is among the five best labels; None for five classes or fewer.
        unlabelled: items without a truth, which are not judged.
    """

    names: list[str]
    right: NDArray[np.int64]
    said: NDArray[np.int64]
    in_five: int | None
    unlabelled: int

    @property
    def judged(self) -> int:
        """M, items with a truth."""
        return len(self.right)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(C,) judged items of each class."""
        return np.bincount(self.right, minlength=len(self.names)).astype(np.int64)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C) items by truth (rows) and label (columns)."""
        size = len(self.names)
        return np.bincount(self.right * size + self.said, minlength=size**2).reshape(size, size).astype(np.int64)

    @property
    def accuracy(self) -> float:
        """Share of the judged items whose label is their truth."""
        return 100 * float(np.mean(self.right == self.said))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson), as if the items were drawn one by one."""
        share, n = self.accuracy / 100, self.judged
        middle, half = share + _Z**2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        scale = 100 / (1 + _Z**2 / n)
        return max(0.0, scale * (middle - half)), min(100.0, scale * (middle + half))

    @cached_property
    def per_class(self) -> NDArray[np.float64]:
        """(C,) accuracy on the items of each class; NaN for a class that has none."""
        hits = np.bincount(self.right[self.right == self.said], minlength=len(self.names))
        return np.where(self.counts > 0, 100 * hits / np.maximum(self.counts, 1), np.nan)

    @property
    def mean_per_class(self) -> float:
        """Mean accuracy of the classes that have items: each counts the same, however many these are."""
        return float(np.nanmean(self.per_class))

    @property
    def top5(self) -> float | None:
        """Share of the judged items whose truth is among the five best labels; None for five classes or fewer."""
        return None if self.in_five is None else 100 * self.in_five / self.judged

    @property
    def most_frequent(self) -> str:
        """The class that most judged items have; of several the first."""
        return self.names[int(self.counts.argmax())]

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """What labels drawn by lot, and always the most frequent class, reach: accuracy, mean_per_class and top5."""
        size, five = len(self.names), self.in_five is not None
        common = np.sort(self.counts)[::-1] * 100 / self.judged
        lot = {"accuracy": 100 / size, "mean_per_class": 100 / size}
        always = {"accuracy": float(common[0]), "mean_per_class": 100 / int((self.counts > 0).sum())}
        return {
            "chance": {**lot, **({"top5": 100 * FIRST / size} if five else {})},
            "most frequent": {**always, **({"top5": float(common[:FIRST].sum())} if five else {})},
        }

    def confused(self, most: int = SHOWN) -> list[tuple[int, str, str]]:
        """Return the most frequent confusions as (items, truth, label); equal ones in the order of the names."""
        wrong = self.right != self.said
        codes, counts = np.unique(self.right[wrong] * len(self.names) + self.said[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        pairs = (divmod(code, len(self.names)) for code in codes[order].tolist())
        return [(n, self.names[a], self.names[b]) for n, (a, b) in zip(counts[order].tolist(), pairs, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; shares in percent."""
        shares = zip(self.names, self.counts.tolist(), self.per_class.tolist(), strict=True)
        return {
            "judged": self.judged,
            "unlabelled": self.unlabelled,
            "accuracy": self.accuracy,
            "accuracy_ci95": list(self.interval),
            "mean_per_class": self.mean_per_class,
            **({} if self.top5 is None else {"top5": self.top5}),
            "most_frequent": self.most_frequent,
            "baselines": self.baselines,
            "per_class": {name: {"items": n, "accuracy": share if n else None} for name, n, share in shares},
            "confused": [{"items": n, "truth": truth, "label": label} for n, truth, label in self.confused()],
        }

    def table(self) -> list[list[str]]:
        """Return the rows of a table: method, accuracy with its interval, mean per class, top-5 where there is one."""
        own = {"accuracy": self.accuracy, "mean_per_class": self.mean_per_class, "top5": self.top5 or 0.0}
        methods = dict(zip(("chance", f"always {self.most_frequent}"), self.baselines.values(), strict=True))
        low, high = self.interval
        rows = [["method", "accuracy", "95 %", "mean per class", "top-5"]]
        for name, found in {**methods, "zero-shot": own}.items():
            interval = f"{low:.1f}-{high:.1f}" if found is own else ""
            figures = (f"{found[key]:.1f}" for key in ("mean_per_class", "top5") if key in found)
            rows.append([name, f"{found['accuracy']:.1f}", interval, *figures])
        return rows if self.in_five is not None else [row[:4] for row in rows]

    def __str__(self) -> str:
        cells = self.table()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        present, wrong = int((self.counts > 0).sum()), int((self.right != self.said).sum())
        if present < len(self.names):
            lines.append(f"the mean is over the {present:,} of {len(self.names):,} classes that have items")
        lines.append(f"{wrong:,} of {self.judged:,} are named wrongly" + (", most often" if wrong else ""))
        for n, truth, label in self.confused():
            lines.append(f"{n:>6,} x {truth} named {label} (of {self.counts[self.names.index(truth)]:,})")
        return "\n".join(lines)


def draw_confusion(judged: Judgement) -> "Figure":
    """Draw the confusions: a row for each true class, in the order of the names, as shares of its items.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    size = len(judged.names)
    names = [_short(name) for name in judged.names] if size <= READABLE else []
    side, room = min(max(0.17 * size, 2.6), 9.0), 0.07 * max(map(len, names), default=0)
    figure = new_figure(side + room + 1.2, side + room + 0.5)
    axes = figure.subplots()
    _draw_shares(axes, 100 * judged.confusion / np.where(judged.counts > 0, judged.counts, np.nan)[:, None])
    axes.set_xlabel("label", fontsize=8)
    axes.set_ylabel("true class", fontsize=8)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(places, names, fontsize=7, parse_math=False)
    low, high = judged.interval
    always = f"always {_short(judged.most_frequent)} {judged.baselines['most frequent']['accuracy']:.1f} %"
    empty = "" if judged.counts.all() else "; sand: no items"
    figure.suptitle(
        f"{judged.accuracy:.1f} % of {judged.judged:,} items are named rightly ({low:.1f}-{high:.1f})\n"
        f"chance {100 / size:.1f} %, {always}{empty}",
        fontsize=9, parse_math=False,
    )  # fmt: skip
    return figure


def _draw_shares(axes: "Axes", shares: NDArray[np.float64]) -> None:
    """Draw shares (C, C) in percent as cells; a row of NaN, a class without items, has the colour of sand."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("confusion", ["#ffffff", "#a9b9d6", LOSS, "#22365c"])
    image = axes.imshow(shares, cmap=colours.with_extremes(bad="#f3ead7"), vmin=0, vmax=100)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("% of the items of the true class", fontsize=8)
    axes.tick_params(length=0)
    for row, column in np.argwhere(shares > 0).tolist() if len(shares) <= NUMBERED else ():
        colour = "white" if shares[row, column] > 50 else "#1c2330"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
