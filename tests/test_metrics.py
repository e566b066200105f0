"""Counting against brute force and against pytrec-eval-terrier, on random cases with ties and many captions."""

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemix.align import metrics
from fusemix.align.metrics import (
    Relevance,
    average_precisions,
    best_ranks,
    bootstrap,
    chance_average_precision,
    chance_rank_distribution,
    mean_recall,
    recall_at,
)
from fusemix.errors import FusemixError


@st.composite
def cases(draw):
    """Scores on a coarse grid (so that there are ties) and many-to-many relevance without gaps."""
    queries, items = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 5, 12, 60]))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, draw(st.integers(1, 8)), size=(queries, items)) / 4
    relevant = rng.random((queries, items)) < 0.3
    relevant[np.arange(queries), rng.integers(0, items, queries)] = True
    relevant[rng.integers(0, queries, items), np.arange(items)] = True
    return scores, relevant


def run(scores, relevant):
    """Scores as dot products: the gallery is the identity."""
    pairs = np.nonzero(relevant)
    gallery = torch.eye(scores.shape[1], dtype=torch.float64)
    arguments = torch.from_numpy(scores), gallery, Relevance.from_pairs(*pairs)
    return best_ranks(*arguments), average_precisions(*arguments)


def brute_force(scores, relevant):
    ranks, precisions = [], []
    for row, wanted in zip(scores, relevant, strict=True):
        # Among equal scores the irrelevant come first.
        order = sorted(range(len(row)), key=lambda i: (-row[i], wanted[i]))
        places = [place for place, i in enumerate(order, 1) if wanted[i]]
        ranks.append(places[0])
        precisions.append(np.mean([found / place for found, place in enumerate(places, 1)]))
    return np.array(ranks), np.array(precisions)


@given(cases())
@settings(max_examples=300, deadline=None)
def test_ranks_and_average_precision_equal_brute_force(case):
    ranks, precision = run(*case)
    expected_ranks, expected_precision = brute_force(*case)
    np.testing.assert_array_equal(ranks, expected_ranks)
    np.testing.assert_allclose(precision, expected_precision, rtol=1e-12)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_they_equal_trec_eval(case):
    scores, relevant = case
    ranks, precision = run(scores, relevant)
    # trec_eval puts equal scores in falling order of their names, so an irrelevant item gets the later name.
    names = [[f"{'a' if relevant[q, i] else 'z'}{i:03d}" for i in range(scores.shape[1])] for q in range(len(scores))]
    judged = {str(q): {names[q][i]: int(relevant[q, i]) for i in range(scores.shape[1])} for q in range(len(scores))}
    ranked = {str(q): {names[q][i]: float(scores[q, i]) for i in range(scores.shape[1])} for q in range(len(scores))}
    found = pytrec_eval.RelevanceEvaluator(judged, {"map", "success_1,5,10"}).evaluate(ranked)
    for q in range(len(scores)):
        assert precision[q] == pytest.approx(found[str(q)]["map"], abs=1e-9)
        for k in (1, 5, 10):
            assert float(ranks[q] <= k) == found[str(q)][f"success_{k}"]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    queries, gallery = torch.randn(50, 8), torch.randn(70, 8)
    relevance = Relevance.from_pairs(np.concatenate([np.arange(50), np.arange(50)]), rng.permutation(100) % 70)
    whole = [measure(queries, gallery, relevance) for measure in (best_ranks, average_precisions)]
    monkeypatch.setattr(metrics, "_SCORES_PER_BLOCK", 7 * 70)
    for a, measure in zip(whole, (best_ranks, average_precisions), strict=True):
        np.testing.assert_array_equal(a, measure(queries, gallery, relevance))


def test_a_model_that_scores_everything_alike_gets_the_worst_rank():
    same = torch.ones(5, 3)
    ranks = best_ranks(same, same, Relevance.from_pairs(np.arange(5), np.arange(5)))
    assert ranks.tolist() == [5] * 5


def test_embeddings_that_are_not_finite_are_refused_and_never_rank_first():
    broken = torch.full((3, 2), torch.nan)
    with pytest.raises(FusemixError, match="NaN"):
        best_ranks(broken, torch.ones(3, 2), Relevance.from_pairs(np.arange(3), np.arange(3)))


def test_recall_and_mean_recall():
    assert recall_at(np.array([1, 2, 6, 11]), 5) == 50
    eye = torch.eye(20)
    assert mean_recall(eye, eye, (np.arange(20), np.arange(20))) == 100


@given(cases())
@settings(max_examples=20, deadline=None)
def test_chance_equals_the_mean_over_random_orders(case):
    _, relevant = case
    relevance = Relevance.from_pairs(*np.nonzero(relevant))
    rng = np.random.default_rng(0)
    drawn = [run(rng.random(relevant.shape), relevant) for _ in range(400)]
    ranks = np.stack([ranks for ranks, _ in drawn])
    found = chance_rank_distribution(relevance)
    measured = [(ranks <= m + 1).mean() for m in range(relevance.items)]
    np.testing.assert_allclose(found, measured, atol=0.12)
    assert chance_average_precision(relevance) == pytest.approx(np.mean([p for _, p in drawn]), abs=0.08)


def test_chance_for_one_relevant_item_is_k_in_g():
    one = Relevance.from_pairs(np.arange(1000), np.arange(1000))
    np.testing.assert_allclose(chance_rank_distribution(one), np.arange(1, 1001) / 1000)


def test_the_bootstrap_covers_the_truth_and_resamples_whole_groups():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        ranks = np.where(rng.random(200) < 0.3, 1, 50)
        low, high = bootstrap(ranks, np.arange(200), rng)[1]
        inside += low <= 30 <= high
    assert inside >= 50
    same = np.repeat(np.where(rng.random(40) < 0.3, 1, 50), 5)
    alone = bootstrap(same, np.arange(200), np.random.default_rng(0))[1]
    grouped = bootstrap(same, np.repeat(np.arange(40), 5), np.random.default_rng(0))[1]
    assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])
