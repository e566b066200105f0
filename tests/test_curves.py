"""The curves: what is drawn for one record, two and many, and that the same records give the same bytes."""

import math
import sys

import pytest
from PIL import Image

from fusemix.curves import draw_curves, write_curves
from fusemix.errors import MissingExtraError


def records(count, every=1):
    """A fit of `count` epochs, validated every so many."""
    found = []
    for epoch in range(1, count + 1):
        record = {"epoch": float(epoch), "loss": 6 * math.exp(-epoch / count), "lr": 1e-3 * (1 - epoch / count)}
        found.append(record | ({"val": 50.0 * epoch / count} if every and epoch % every == 0 else {}))
    return found


def lines(axes):
    """The curves of an axis, without the line that marks an epoch."""
    return [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"]


@pytest.mark.parametrize(("count", "every"), [(1, 1), (2, 1), (500, 10)])
def test_loss_recall_and_rate_are_drawn_over_the_epochs(count, every):
    history = records(count, every)
    loss, rate, recall = draw_curves(history, best_epoch=count).axes
    assert lines(loss) == [[[r["epoch"], r["loss"]] for r in history]]
    assert lines(rate) == [[[r["epoch"], r["lr"]] for r in history]]
    assert lines(recall)[0] == [[r["epoch"], r["val"]] for r in history if "val" in r]
    assert recall.texts[0].get_text() == f"kept: epoch {count}, 50.0 %"
    assert loss.get_ylim()[0] == 0 and recall.get_ylim() == (0, 100)


def test_the_epoch_that_was_kept_is_marked_where_it_was_measured():
    recall = draw_curves(records(30), best_epoch=12).axes[2]
    assert recall.lines[-1].get_xydata().tolist() == [[12.0, 20.0]]


def test_a_fit_without_validation_has_no_axis_of_recall():
    assert len(draw_curves(records(5, every=0), best_epoch=5).axes) == 2


def test_few_points_are_marked_so_that_one_alone_can_be_seen():
    assert draw_curves(records(1), 1).axes[0].lines[0].get_marker() == "o"
    assert draw_curves(records(500), 1).axes[0].lines[0].get_marker() == ""


def test_both_files_are_written_and_are_the_same_bytes_again(tmp_path):
    for folder in ("a", "b"):
        write_curves(records(30), 12, tmp_path / folder)
    for name in ("curves.png", "curves.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / "curves.png") as image:
        assert image.size == (1024, 672)
    assert b"<dc:date>" not in (tmp_path / "a" / "curves.svg").read_bytes()


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'a figure needs matplotlib.*pip install "fusemix\[plot\]"'):
        write_curves(records(2), 2, tmp_path)
    assert not list(tmp_path.iterdir())
