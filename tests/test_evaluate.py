"""Evaluation: what it prints beside the model's own numbers, and the shape of its JSON."""

import json

import numpy as np
import pytest

import fusemix as fm
from fusemix.data.latents import Latents
from fusemix.errors import DataError
from fusemix.evaluate import chance


def test_json_has_split_rows_retrieval_and_baselines(model, latents):
    result = model.evaluate(latents.only("test")).to_dict()
    assert json.loads(json.dumps(result)) == result
    assert (result["split"], result["rows"]) == ("test", 50)
    assert set(result["retrieval"]) == {"text->image", "image->text"}
    assert set(result["baselines"]) == {"chance", "ridge", "cca"}
    for ways in (result["retrieval"], *result["baselines"].values()):
        for scores in ways.values():
            assert {"R@1", "R@5", "R@10", "median_rank", "mAP", "queries", "gallery"} <= set(scores)
            assert 0 <= scores["R@1"] <= scores["R@5"] <= scores["R@10"] <= 100
    assert (result["retrieval"]["text->image"]["queries"], result["retrieval"]["text->image"]["gallery"]) == (50, 25)
    low, high = result["retrieval"]["text->image"]["R@1_ci95"]
    assert low <= result["retrieval"]["text->image"]["R@1"] <= high


def test_the_table_shows_every_method_in_both_directions(model, latents):
    text = str(model.evaluate(latents.only("test")))
    assert "split 'test', 50 pairs; text->image: 50 queries over 25 items" in text
    for name in ("chance", "ridge", "cca", "fusemix"):
        assert text.count(name) == 2


def test_chance_knows_several_captions_per_picture(latents):
    scores = chance(latents.only("test"))
    assert scores["text->image"].recall[1] == pytest.approx(100 / 25)
    assert scores["image->text"].recall[1] == pytest.approx(100 * 2 / 50)
    assert scores["text->image"].interval == {}


def test_measuring_on_trained_or_chosen_pairs_is_noted(model, latents):
    assert model.evaluate(latents.only("train")).notes[0].startswith("80 of 80 image items were trained on")
    assert model.evaluate(latents.only("val")).notes[0].startswith("15 of 15 image items were used to choose")
    assert model.evaluate(latents.only("test")).notes == []


def test_the_overlap_is_counted_by_items_whatever_the_splits_are_called(model, latents):
    train, _, test = latents.split(fractions=(0.5, 0.2, 0.3), seed=5)
    again = fm.FuseMix(dim=8, epochs=1).fit(train)
    recorded = latents.only("test")
    shared = len(set(train["image"].ids) & set(recorded["image"].ids))
    assert again.evaluate(recorded).notes[0].startswith(f"{shared} of 25 image items were trained on")
    assert again.evaluate(test).notes == []


def test_an_unknown_split_names_those_that_are_there(latents):
    with pytest.raises(DataError, match="no split 'tset'; found: test, train, val; did you mean 'test'"):
        latents.only("tset")


def test_no_pairs_is_an_error(model, latents):
    with pytest.raises(DataError, match="no pairs to evaluate on"):
        model.evaluate(latents.take(np.arange(0)))


def test_many_to_many_relevance_counts_every_partner():
    """Two pictures share one caption: either of them is a right answer to it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    model = fm.FuseMix(dim=4, epochs=1).fit(x, x)
    pairs = Latents.from_arrays("given", x=x, y=x)
    pairs.rows["y"] = pairs.rows["y"] // 2
    pairs = pairs.take(np.arange(40))
    scores = model.evaluate(pairs).retrieval
    assert (scores["y->x"].queries, scores["y->x"].gallery) == (20, 40)
