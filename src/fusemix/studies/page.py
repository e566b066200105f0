"""A study on paper: curves as PNG and SVG, every point as CSV, and one HTML page that says what was found."""

import csv
import math
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusemix import durable
from fusemix.curves import new_figure, rendered
from fusemix.page import inline, write_page
from fusemix.studies.efficiency import own_cost, table
from fusemix.studies.findings import caption, findings
from fusemix.studies.points import METRIC, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#d9480f", "#5b78ad", "#2b8a3e", "#9c36b5", "#667085", "#e0a800")
AXES = {
    "quantity": "training pairs",
    "quality": "pairs with a wrong partner, %",
    "source": "",
    "diversity": "training pairs",
    "batch": "pairs in the loss",
    "depth": "residual blocks per adapter",
    "expansion": "inner width of a block, in widths of the block",
    "dim": "width of the shared space",
    "dropout": "dropout inside the blocks",
    "augmentation": "",
    "encoders": "",
}
LOGARITHMIC = ("quantity", "diversity", "batch", "expansion", "dim")


def write_study(points: Sequence[Point], facts: dict[str, Any], done: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write study.csv, a PNG and an SVG for each study, and report.html.

    Args:
        points: of all studies.
        facts: what was measured, see `Study`.
        done: figures by key of the trial.
        folder: to write in.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    durable.write(folder / "study.csv", _csv(points).encode())
    figures = {}
    for study in dict.fromkeys(point.study for point in points):
        own = [point for point in points if point.study == study and point.values]
        if own:
            figures[study] = draw(study, own)
            for form in ("png", "svg"):
                durable.write(folder / f"{study}.{form}", rendered(figures[study], form))
    words = "".join(
        f'<p><b>{escape(found.verdict)}</b></p><p class="note">{escape(found.detail)}</p>' for found in findings(points)
    )
    plots = "".join(
        f"<figure>{inline(figure)}<figcaption>{escape(study)}</figcaption></figure>"
        for study, figure in figures.items()
    )
    cost = own_cost(done.values(), facts.get("device", ""))
    chosen = f"Every fit keeps the epoch that is best on {facts['epochs chosen on']}."
    body = (
        f"<h2>What was found</h2>{words}"
        f'<h2>Curves</h2><div class="plots">{plots}</div>'
        f"<h2>Every point</h2>{_table(_rows(points))}"
        f'<h2>What it costs</h2>{_table(table(cost))}<p class="note">{escape(chosen)}</p>'
    )
    write_page(folder / "report.html", "A study of these data", caption(facts["measured"]), body)


def draw(study: str, points: Sequence[Point]) -> "Figure":
    """Draw a study: lines with intervals over numbers, dots over words."""
    words = AXES[study] == ""
    figure = new_figure(6.4, max(2.4, 0.7 + 0.32 * len(points)) if words else 4.2)
    axes = figure.subplots()
    (_draw_dots if words else _draw_lines)(axes, study, points)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if words else "y", color="#e2e6ed", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _draw_lines(axes: "Axes", study: str, points: Sequence[Point]) -> None:
    for place, variant in enumerate(dict.fromkeys(point.variant for point in points)):
        own = [point for point in points if point.variant == variant]
        colour = COLOURS[place % len(COLOURS)]
        xs, means = [float(point.x) for point in own], [point.mean for point in own]
        halves = [0.0 if math.isnan(point.half) else point.half for point in own]
        axes.errorbar(xs, means, yerr=halves, color=colour, marker="o", markersize=4, capsize=2, label=variant)
    axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
    if study in LOGARITHMIC:
        axes.set_xscale("log", base=2)
        ticks = sorted({float(point.x) for point in points})
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(AXES[study])
    axes.set_ylabel(f"{METRIC}, %, mean of both directions")
    axes.legend(frameon=False, fontsize=8)


def _draw_dots(axes: "Axes", study: str, points: Sequence[Point]) -> None:
    """Draw the points one below the other; their names are variants, or words on the axis."""
    labels = [str(p.x) if study == "encoders" else p.variant for p in points]
    variants = list(dict.fromkeys(p.variant for p in points)) if study == "encoders" else []
    colours = [COLOURS[variants.index(p.variant)] if variants else COLOURS[1] for p in points]
    labels = [f"{label}, {p.variant}" if variants else label for label, p in zip(labels, points, strict=True)]
    places = range(len(points))
    halves = [0.0 if math.isnan(p.half) else p.half for p in points]
    # Dots, not bars: an axis that does not begin at 0 would make bars lie, and the differences are what is looked at.
    for place, point, half, colour in zip(places, points, halves, colours, strict=True):
        axes.errorbar(point.mean, place, xerr=half, color=colour, marker="o", markersize=5, capsize=2)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel(f"{METRIC}, %, mean of both directions")


def _rows(points: Sequence[Point]) -> list[list[str]]:
    rows = [["study", "variant", "at", METRIC, "± 95 %", "seeds", "seconds a fit"]]
    for point in points:
        x = f"{point.x:,g}" if isinstance(point.x, float) else f"{point.x:,}" if isinstance(point.x, int) else point.x
        half = "" if math.isnan(point.half) else f"{point.half:.2f}"
        seeds = str(len(point.values)) + (f" ({len(point.failed)} failed)" if point.failed else "")
        rows.append([point.study, point.variant, x, f"{point.mean:.2f}", half, seeds, f"{point.seconds:.0f}"])
    return rows


def _csv(points: Sequence[Point]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["study", "variant", "x", "seed", METRIC])
    for point in points:
        writer.writerows([point.study, point.variant, point.x, seed, value] for seed, value in point.values.items())
    return out.getvalue()


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rest]
    return f"<table>{''.join(lines)}</table>"
