"""The demo on a part of the symbols: every file it promises, and an accuracy that only a working pipeline reaches."""

import json
import re

import pyarrow.csv
import pytest

from fusemix.data.symbols import write_symbols
from fusemix.demo import QUERIES, run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    stages = {}
    done = run_demo(
        tmp_path_factory.mktemp("demo"),
        limit=500,
        epochs=40,
        progress=lambda s, d, t, note="": stages.update({s: (d, t)}),
    )
    return done, stages


def test_unseen_symbols_are_found_far_above_chance(demo):
    evaluation = demo[0].evaluation
    assert evaluation.split == "test"
    for way, scores in evaluation.retrieval.items():
        assert scores.recall[10] > 3 * evaluation.baselines["chance"][way].recall[10]
        assert evaluation.baselines["cca"][way].recall[10] > 3 * evaluation.baselines["chance"][way].recall[10]


def test_every_stage_reports_progress_to_its_end(demo):
    stages = {
        "draw symbols",
        "extract image",
        "extract text",
        "check latents",
        "fit",
        "fit cca",
        "refine cca",
        "choose",
        "fit baselines",
        "previews",
    }
    assert set(demo[1]) == stages
    assert all(done == total for done, total in demo[1].values())


def test_it_leaves_everything_that_the_next_commands_need(demo):
    folder = demo[0].folder
    for name in ("symbols.csv", "latents/pairs.parquet", "model/facts.json", "index/facts.json", "report.html"):
        assert (folder / name).is_file()
    assert [example.query for example in demo[0].examples] == list(QUERIES)


def test_the_report_stands_alone(demo):
    html = (demo[0].folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert html.count("data:image/png;base64") == 5 * 6 and html.count("<svg") == 2
    for query in QUERIES:
        assert query in html
    assert json.dumps(demo[0].evaluation.to_dict())


def test_pictures_drawn_alike_share_one_file_and_one_split(tmp_path):
    table = pyarrow.csv.read_csv(write_symbols(tmp_path)).to_pydict()
    files = dict(zip(table["symbol"], table["image"], strict=True))
    assert files["A"] == files["Α"] == files["А"]  # noqa: RUF001 (Latin, Greek, Cyrillic)
    splits = {}
    for image, split in zip(table["image"], table["split"], strict=True):
        assert splits.setdefault(image, split) == split
    counts = [list(splits.values()).count(name) for name in ("train", "val", "test")]
    assert counts[1:] == [300, 1000] and counts[0] > 3500
