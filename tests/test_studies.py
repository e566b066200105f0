"""A study from end to end: plan, fits in processes of their own, a kill, the same command again, and what it writes."""

import csv
import json
import multiprocessing

import numpy as np
import pytest

from fusemix.data.pairs import read_pairs
from fusemix.errors import DataError, FusemixError, MismatchError, StoreError
from fusemix.extraction import extract
from fusemix.studies import plan_study, runner, study
from fusemix.studies.runner import open_pool, run_all
from fusemix.studies.trials import Trial
from test_feed import Vector

FAST = {"sizes": [24, 60], "pairs": 60, "seeds": 2, "steps": 3}
ONLY = ["quantity"]


def stored(folder, name, count=120, dim=16, start=0):
    lines = [f"{start + i} x,{1000 + start + i} y,{'train' if i % 3 else 'val'}" for i in range(count)]
    (folder / f"{name}.csv").write_text("\n".join(["x,y,split", *lines]) + "\n")
    extract(read_pairs(folder / f"{name}.csv", x="x", y="y"), out=folder / name, x=Vector(dim), y=Vector(10))
    return folder / name


@pytest.fixture(scope="module", autouse=True)
def forked():
    """Fits in forks of a process that has imported torch, which each would for four seconds; test_cli_study spawns."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch._dynamo", "fusemix.studies.runner"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: server)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    return stored(folder, "one"), stored(folder, "two", dim=20), stored(folder, "other", start=500)


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    return out, study(folders[0], out, only=ONLY, **FAST)


def test_everything_is_written(done):
    out, found = done
    assert {path.name for path in out.iterdir()} == {
        "study.json", "trials.jsonl", "study.csv", "quantity.png", "quantity.svg", "report.html",
    }  # fmt: skip
    rows = list(csv.DictReader((out / "study.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * 2  # sizes, curves, seeds
    points = {(p.variant, p.x, seed): value for p in found.points for seed, value in p.values.items()}
    assert all(points[r["variant"], int(r["x"]), int(r["seed"])] == float(r["R@1"]) for r in rows)
    page = (out / "report.html").read_text()
    assert all(each.verdict in page for each in found.findings) and "not known" in page
    assert json.loads(json.dumps(found.to_dict()))["findings"][0]["verdict"] == found.findings[0].verdict


def test_the_same_call_does_nothing_twice_and_a_kill_loses_one_fit_at_most(done, folders, monkeypatch):
    out, found = done
    lines = (out / "trials.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(plan_study([folders[0]], only=ONLY, **FAST).trials)
    (out / "trials.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])  # what a kill leaves
    again = study(folders[0], out, only=ONLY, **FAST)
    assert (out / "trials.jsonl").read_text().splitlines(keepends=True)[:-1] == lines[:-1]
    assert [p.values for p in again.points] == [p.values for p in found.points]

    def never(*_):
        raise AssertionError("a fit was done again")

    monkeypatch.setattr(runner, "_work", never)
    assert [p.values for p in study(folders[0], out, only=ONLY, **FAST).points] == [p.values for p in found.points]


def test_a_study_can_be_extended_but_not_of_other_pairs(done, folders, tmp_path):
    out, _ = done
    with pytest.raises(MismatchError, match="holds a study of other pairs: "):
        study(folders[2], out, only=ONLY, **FAST)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds something else"):
        study(folders[0], tmp_path, only=ONLY, **FAST)
    (out / "study.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        study(folders[0], out, only=ONLY, **FAST)


def test_a_fit_that_breaks_down_is_counted_and_the_others_go_on(folders, tmp_path):
    told = []
    trials = [
        Trial(60, 0, steps=30, settings=(("batch_size", 16), ("lr", 1e38))),
        Trial(60, 0, steps=3, settings=(("batch_size", 16),)),
    ]
    done = run_all(trials, [folders[0]], {}, tmp_path, 1, "cpu", lambda trial, figures: told.append(figures))
    assert len(told) == 2 and "error" in done[trials[0].key] and "R@1" in done[trials[1].key]
    assert "lower lr" in done[trials[0].key]["error"] or "nothing can be ranked" in done[trials[0].key]["error"]


def test_encoders_are_compared_on_the_same_pairs(folders):
    one, two = (open_pool(folders[:2], place) for place in (0, 1))
    for a, b in zip((one.train, one.choose, one.measured), (two.train, two.choose, two.measured), strict=True):
        ids = [[np.array(part.items[n].ids)[part.rows[n]].tolist() for n in ("x", "y")] for part in (a, b)]
        assert ids[0] == ids[1]
    assert [part.train.items["x"].rows.shape[1] for part in (one, two)] == [16, 20]
    planned = plan_study(folders[:2], only=["encoders"], **FAST)
    assert planned.plan.swaps == ("vector 16", "vector 20")
    assert {trial.latents for trial in planned.trials} == {0, 1}
    with pytest.raises(FusemixError, match="other lacks 72 of 72 pairs: the folders must be of the same pairs"):
        plan_study([folders[0], folders[2]], only=["encoders"], **FAST)


def test_nothing_is_trained_on_what_is_measured(folders):
    pool = open_pool((folders[0],), 0)
    assert set(pool.measured.splits) == {"val"} and set(pool.choose.splits) == {"train"}
    assert not set(pool.train.groups.tolist()) & set(pool.choose.groups.tolist())


def test_no_folder_is_an_error():
    with pytest.raises(DataError, match="needs a folder of latents"):
        plan_study([])


def test_the_values_of_a_column_are_compared(tmp_path):
    """The pairs of one value are right and those of the other are shuffled: the study tells them apart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(320, 12))
    y = np.tanh(x @ rng.normal(size=(12, 10)))
    who = np.where(np.arange(320) % 2 == 0, "human", "web")
    split = np.where(np.arange(320) < 240, "train", "val")
    web = np.flatnonzero((who == "web") & (split == "train"))
    partner = np.arange(320)
    partner[web] = np.roll(web, 1)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    np.save(tmp_path / "y.npy", y[partner].astype(np.float32))
    lines = [f"x{i},y{i},{who[i]},{split[i]}" for i in range(320)]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(["x,y,who,split", *lines]) + "\n")
    extract(read_pairs(table, x="x", y="y"), out=tmp_path / "l", x=tmp_path / "x.npy", y=tmp_path / "y.npy")
    found = study(tmp_path / "l", tmp_path / "out", only=["quality"], source="who", seeds=1, steps=30, jobs=2)
    human, web, _ = (p for p in found.points if p.study == "source")
    assert (human.variant, web.variant, human.x) == ("human", "web", web.x) and human.mean > web.mean + 10
    said = next(each.verdict for each in found.findings if each.verdict.startswith("human and web"))
    assert said in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "source.png").stat().st_size > 1000
