"""How a fit went, drawn: loss, validation recall and learning rate over the epochs. And how every figure is made."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from fusemix import durable
from fusemix.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, RECALL, RATE, SOFT = "#5b78ad", "#d9480f", "#667085", "#b8bec9"
FEW = 12  # up to so many points each is marked: a line through one or two would show nothing


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, that belongs to no window.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plot", "a figure") from error
    return Figure(figsize=(width, height), layout="constrained")


def rendered(figure: "Figure", form: str) -> bytes:
    """Return a figure as a file of the form "png" or "svg"; the same figure gives the same bytes."""
    from matplotlib import rc_context

    out = BytesIO()
    # What is random or dated in a file is left out: the names that SVG makes up, and the time.
    with rc_context({"svg.hashsalt": "fusemix"}):
        figure.savefig(out, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def draw_curves(records: Sequence[Mapping[str, float]], best_epoch: float) -> "Figure":
    """Draw the records of a fit.

    Args:
        records: at least one, in order: epoch, loss and lr by name, and val (in percent) where it was measured.
        best_epoch: the epoch whose weights were kept; marked where recall was measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(6.4, 4.2)
    axes, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    _line(axes, records, "loss", LOSS)
    axes.set_ylabel("training loss", color=LOSS)
    axes.set_ylim(bottom=0)
    _line(rates, records, "lr", RATE)
    rates.set_ylabel("learning rate", color=RATE, fontsize=8)
    rates.margins(y=0.15)
    rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.yaxis.get_offset_text().set_fontsize(8)
    rates.tick_params(axis="y", labelsize=8)
    rates.locator_params(axis="y", nbins=2)
    rates.locator_params(axis="x", integer=True)
    rates.set_xlabel("epoch")
    if len(records) == 1:  # one point has no range of its own
        rates.set_xlim(records[0]["epoch"] - 1, records[0]["epoch"] + 1)
    for ax in (axes, rates):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e2e6ed", linewidth=0.6)
        ax.set_axisbelow(True)
    measured = [record for record in records if "val" in record]
    if measured:
        _recall(axes, measured, best_epoch)
        rates.axvline(_kept(measured, best_epoch)["epoch"], color=SOFT, linewidth=0.9, linestyle=":")
    return figure


def write_curves(records: Sequence[Mapping[str, float]], best_epoch: float, folder: Path) -> None:
    """Write the figure of `draw_curves` as curves.png and curves.svg; the same records give the same bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    figure = draw_curves(records, best_epoch)
    for form in ("png", "svg"):
        durable.write(folder / f"curves.{form}", rendered(figure, form))


def _recall(axes: "Axes", measured: Sequence[Mapping[str, float]], best_epoch: float) -> None:
    """Draw validation recall on an axis of its own, with the epoch that was kept."""
    right = axes.twinx()
    _line(right, measured, "val", RECALL)
    right.set_ylabel("validation recall, %\nmean of R@1, 5, 10 both ways", color=RECALL)
    right.set_ylim(0, 100)
    right.spines[["top", "left"]].set_visible(False)
    kept = _kept(measured, best_epoch)
    right.axvline(kept["epoch"], color=SOFT, linewidth=0.9, linestyle=":")
    right.plot(kept["epoch"], kept["val"], "o", color=RECALL, markersize=7, markeredgecolor="white")
    first, last = right.get_xlim()
    late = kept["epoch"] > (first + last) / 2  # the words stand where there is room
    right.annotate(
        f"kept: epoch {kept['epoch']:g}, {kept['val']:.1f} %", (kept["epoch"], kept["val"]), (-8 if late else 8, 9),
        textcoords="offset points", ha="right" if late else "left", color=RECALL, fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _line(axes: "Axes", records: Sequence[Mapping[str, float]], name: str, colour: str) -> None:
    mark = "o" if len(records) <= FEW else ""
    epochs, values = [record["epoch"] for record in records], [record[name] for record in records]
    axes.plot(epochs, values, marker=mark, markersize=3.5, color=colour, linewidth=1.6)


def _kept(measured: Sequence[Mapping[str, float]], best_epoch: float) -> Mapping[str, float]:
    return min(measured, key=lambda record: abs(record["epoch"] - best_epoch))
