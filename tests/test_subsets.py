"""Subsets of pairs: chosen, kept in a file, applied to the latents they are of; and the verb."""

import json

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import fusemix as fm
from fusemix.align import selection
from fusemix.cli import app
from fusemix.data.latents import Latents
from fusemix.errors import DataError, MismatchError, StoreError
from fusemix.subsets import METHODS, Subset, compared, forecast, qualities, select


@pytest.mark.parametrize("by", METHODS)
def test_any_prefix_is_the_answer_for_a_smaller_k(latents, by):
    whole = select(latents, 100, by)
    assert whole.rows.dtype == np.int64 and whole.gains.dtype == np.float64
    assert len(set(whole.rows.tolist())) == 100 and set(latents.splits[whole.rows]) == {"train"}
    for k in (1, 37):
        assert select(latents, k, by).rows.tolist() == whole.rows[:k].tolist() == whole.first(k).rows.tolist()


@pytest.mark.parametrize("by", ["diversity", "coverage", "facility"])
def test_all_pictures_come_before_one_comes_twice(latents, by):
    """80 pictures with two captions each."""
    subset = select(latents, 120, by, on="image")
    pictures = latents.rows["image"][subset.rows]
    distinct = len(set(pictures[: np.argmax(np.diff(subset.gains) > 1e-6) + 1].tolist()))
    assert subset.facts["passes"] >= 2 and subset.facts["on"] == ["image"] and distinct > 60


def test_nothing_but_the_split_is_looked_at(latents):
    train = latents.only("train")
    rows = np.flatnonzero(latents.splits == "train")
    for by in METHODS:
        assert rows[select(train, 20, by).rows].tolist() == select(latents, 20, by).rows.tolist()


def test_a_test_split_is_refused_and_other_mistakes_are_named(latents):
    for words, message in [
        ({"split": "test"}, "never looks at the split test"),
        ({"split": "tran"}, "no split 'tran'.*did you mean 'train'"),
        ({"by": "diverse"}, "did you mean 'diversity'"),
        ({"on": "imag"}, "did you mean 'image'"),
        ({"on": ["image", "image"]}, "each once"),
        ({"k": 0}, "cannot keep 0 of the 160 pairs of split 'train': give 1 to 160"),
        ({"k": 161}, "give 1 to 160"),
        ({"parts": 0}, "at least 1"),
        ({"precision": "float16"}, "float64 or float32"),
        ({"weight": -1.0}, "weight -1.0"),
    ]:
        with pytest.raises(DataError, match=message):
            select(latents, **{"k": 10, **words})
    alone = Latents.from_arrays("train", x=np.eye(5))
    with pytest.raises(DataError, match="these latents have one"):
        select(alone, 2, "quality")
    assert select(alone, 3).rows.tolist() == [0, 1, 2]


def test_swapped_captions_are_kept_last_by_quality_and_left_out_by_a_mix():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 6))
    x, y = z @ rng.normal(size=(6, 16)), z @ rng.normal(size=(6, 12))
    y[:20] = y[np.roll(np.arange(20), 1)]
    latents = Latents.from_arrays("train", x=x, y=y)
    assert (select(latents, 280, "quality").rows < 20).sum() <= 4
    assert (qualities(latents)[:20] < np.median(qualities(latents)[20:])).all()
    bad = [(select(latents, 60, "mix", weight=weight).rows < 20).sum() for weight in (0.0, 4.0)]
    assert bad[1] < bad[0]
    assert select(latents, 60, "mix", weight=0.0).rows.tolist() == select(latents, 60).rows.tolist()


def test_of_three_modalities_quality_is_the_mean():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 4))
    latents = Latents.from_arrays("train", **{name: z @ rng.normal(size=(4, 8)) for name in "abc"})
    assert (qualities(latents) > 0.9).all()
    assert select(latents, 5).facts["on"] == ["a", "b", "c"]


def test_diversity_spans_more_than_chance(latents):
    beside = compared(latents, select(latents, 40, on="both"))
    assert beside["picked"]["log_det"] > beside["uniform"]["log_det"]
    assert beside["picked"]["items"]["image"] <= 40


def test_parts_are_seeded(latents, monkeypatch):
    monkeypatch.setattr(selection, "_FINALISTS", 2)
    found = [select(latents, 30, parts=3, seed=seed).rows.tolist() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_what_is_saved_is_loaded_and_applied(latents, tmp_path):
    subset = select(latents, 25, "mix", seed=5)
    subset.save(tmp_path / "s.parquet")
    again = Subset.load(tmp_path / "s.parquet")
    assert again.rows.tolist() == subset.rows.tolist() and again.gains.tolist() == subset.gains.tolist()
    assert again.facts == subset.facts and again.facts["seed"] == 5 and again.facts["by"] == "mix"
    taken = again.first(10).pairs(latents)
    assert len(taken) == 10 and taken.split_name == "train"
    assert taken.table["title"].to_pylist() == again.table["title"].to_pylist()[:10]
    assert again.table["fusemix.order"].to_pylist() == list(range(25))
    ids = [latents.items["image"].ids[row] for row in latents.rows["image"][subset.rows]]
    assert again.table["fusemix.id.image"].to_pylist() == ids
    assert len(Subset.train(latents, tmp_path / "s.parquet", 7)) == 7
    with pytest.raises(DataError, match="the subset has 25"):
        again.first(26)


def test_a_subset_of_other_latents_is_refused(latents, tmp_path):
    subset = select(latents, 10)
    with pytest.raises(MismatchError, match="the number of pairs is 160, where it was picked 240"):
        subset.pairs(latents.only("train"))
    rng = np.random.default_rng(0)
    arrays = [Latents.from_arrays("train", x=rng.normal(size=(20, 4)), y=rng.normal(size=(20, 4))) for _ in range(2)]
    with pytest.raises(MismatchError, match="its x items differ"):
        select(arrays[0], 5).pairs(arrays[1])
    with pytest.raises(MismatchError, match="which image each pair has"):
        subset.pairs(latents.take(np.r_[2, 1, 0, 3 : len(latents)]))


def test_a_file_that_is_no_subset_is_named(latents, tmp_path):
    with pytest.raises(StoreError, match="no such file; make a subset with `fusemix select"):
        Subset.load(tmp_path / "gone.parquet")
    (tmp_path / "words.parquet").write_text("words")
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("words", "other"):
        with pytest.raises(StoreError, match="damaged or no subset of fusemix"):
            Subset.load(tmp_path / f"{name}.parquet")


def test_pairs_of_val_are_not_trained_on(latents, tmp_path):
    select(latents, 5, split="val").save(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="picked from split 'val'"):
        Subset.train(latents, tmp_path / "v.parquet")


@pytest.mark.parametrize("by", METHODS)
def test_a_forecast_picks_nothing_and_counts(latents, by):
    cost = forecast(latents, 40, by, "image")
    assert (cost.pairs, cost.items, cost.plan.parts) == (160, 80, 1)
    assert (cost.seconds > 0) == (by != "uniform") and (cost.memory_bytes > 0) == (by not in ("uniform", "quality"))
    assert forecast(latents, 40, parts=4).plan.parts == 4


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_verb_picks_and_writes(latents, tmp_path):
    folder, out = latents_folder(latents), tmp_path / "s.parquet"
    shown = run("select", folder, "--keep", 160, "--on", "image", "-o", out, "-q")
    assert "160 of 160 train pairs by diversity" in shown and "passes" in shown and "log-determinant" in shown
    assert f"next: fusemix fit {folder} --subset {out} -o model" in shown
    result = json.loads(run("select", folder, "--keep", 60, "--by", "mix", "-o", out, "--json", "-q"))
    assert result["k"] == 60 and result["picked"]["log_det"] > -1e4 and result["uniform"]["items"]["image"] <= 60
    assert len(Subset.load(out)) == 60
    assert "not exact" in run("select", folder, "--keep", 20, "--parts", 2, "-o", out, "-q")


def test_a_dry_run_picks_nothing(latents, tmp_path):
    folder, out = latents_folder(latents), tmp_path / "s.parquet"
    shown = run("select", folder, "--keep", 60, "--parts", 2, "--dry-run", "-o", out)
    assert "nothing was picked" in shown and "in 2 parts" in shown and not out.exists()
    cost = json.loads(run("select", folder, "--keep", 60, "--dry-run", "--json"))
    assert cost["pairs"] == 160 and cost["plan"]["dtype"] == "float64"


def test_a_fit_trains_on_a_subset(latents, tmp_path):
    folder = latents_folder(latents)
    select(fm.open_latents(folder), 60).save(tmp_path / "s.parquet")
    words = ["fit", folder, "--subset", tmp_path / "s.parquet", "-o", "m", "--recipe", "scaled", "--dry-run", "--json"]
    for given, pairs in ((["--keep", 40], 40), ([], 60)):
        assert {cost["pairs"] for cost in json.loads(run(*words, *given))["networks"]} == {pairs}
    assert len(Subset.train(latents, None)) == 160
    run("fit", folder, "--subset", tmp_path / "s.parquet", "--keep", 40, "-o", tmp_path / "m", "--epochs", 1, "-q")
    facts = fm.FuseMix.load(tmp_path / "m").facts_
    assert facts["pairs"] == 40 and facts["subset"]["by"] == "diversity" and facts["subset"]["n"] == 160
    assert "40 pairs of train, picked by diversity from 160; " in (tmp_path / "m" / "README.md").read_text()
    with pytest.raises(DataError, match="keep 40 of which subset"):
        Subset.train(latents, None, 40)


def latents_folder(latents):
    """Return where the latents of the fixture lie."""
    return latents.items["image"].rows._parts[0].path.parents[2]


def test_select_is_public():
    assert fm.select is select and fm.Subset is Subset
