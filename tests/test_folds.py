"""Closed forms chosen on held-out folds, for a search that corrects hubs."""

import numpy as np
import pytest
import torch

from fusemix.align.closed_form import cca, procrustes, ridge
from fusemix.align.folds import POWER, RANK, SHRINKAGES, STRENGTH, Folds, Judge, settings_for_search
from fusemix.align.hubness import corrected_recall, hub_bias
from fusemix.align.moments import moments
from test_closed_form import shared, straight


def test_folds_hold_every_pair_once_and_groups_whole():
    x, y = shared(90)
    groups = np.arange(90) // 3
    folds = Folds.of(x, y, straight(90), groups, 1)
    assert sorted(np.concatenate(folds.held).tolist()) == list(range(90))
    for held in folds.held:
        assert not set(groups[held]) & set(np.delete(groups, held))
    rest = np.flatnonzero(~np.isin(np.arange(90), folds.held[2]))
    torch.testing.assert_close(folds.without(2).xy, moments(x, y, (rest, rest)).xy)
    torch.testing.assert_close(folds.whole.yy, moments(x, y, straight(90)).yy)


def test_small_folds_are_all_judged_and_of_large_ones_one():
    x, y = shared(6000, dim_x=4, dim_y=4)
    assert len(Folds.of(x[:100], y[:100], straight(100), np.arange(100), 0).judges) == 5
    assert len(Folds.of(x, y, straight(6000), np.arange(6000), 0).judges) == 1
    assert Folds.of(x[:4], y[:4], straight(4), np.arange(4), 0).judges == []
    assert Folds.of(x[:9], y[:9], straight(9), np.zeros(9, int), 0).judges == []


def test_the_settings_are_the_best_of_a_corrected_search():
    x, y = shared(100, dim_x=60, dim_y=50, factors=10)
    folds = Folds.of(x, y, straight(100), np.arange(100), 2)
    scores = dict.fromkeys(SHRINKAGES, 0.0)
    for s in SHRINKAGES:
        for number, held in enumerate(folds.held):
            rest = np.concatenate([each for i, each in enumerate(folds.held) if i != number])
            form = cca(folds.without(number), s, POWER)
            a, b = form.embed_x(x[held]), form.embed_y(y[held])
            biases = hub_bias(a, form.embed_y(y[rest])), hub_bias(b, form.embed_x(x[rest]))
            scores[s] += corrected_recall(a, b, straight(len(held)), *(STRENGTH * bias for bias in biases))
    form = settings_for_search(folds, "cca")(folds.whole)
    assert (form.shrinkage, form.power) == (max(scores, key=lambda s: scores[s]), POWER)


def test_a_search_keeps_512_directions_of_wide_latents():
    x, y = shared(1200, dim_x=560, dim_y=530, factors=20)
    form = settings_for_search(Folds.of(x, y, straight(1200), np.arange(1200), 0), "cca")
    assert form.keywords["rank"] == RANK == 512
    folds = Folds.of(x, y, straight(1200), np.arange(1200), 0)
    assert form(folds.whole).map_x.shape == (560, RANK)


@pytest.mark.parametrize(("name", "plain"), [("ridge", ridge), ("procrustes", procrustes)])
def test_other_forms_are_chosen_too(name, plain):
    x, y = shared(60)
    folds = Folds.of(x, y, straight(60), np.arange(60), 0)
    form = settings_for_search(folds, name)(folds.whole)
    again = plain(folds.whole, form.shrinkage) if name == "ridge" else plain(folds.whole)
    assert torch.equal(form.map_x, again.map_x) and Judge.of(folds, 0).plain(form) > 50


def test_procrustes_rotates_and_makes_the_cross_covariance_diagonal():
    x, y = shared(80)
    m = moments(x, y, straight(80))
    form = procrustes(m)
    u, v = form.map_x.double(), form.map_y.double()
    torch.testing.assert_close(u.T @ u, torch.eye(9, dtype=torch.float64), atol=1e-5, rtol=0)
    product = u.T @ m.xy @ v
    torch.testing.assert_close(product, torch.diag(torch.linalg.svdvals(m.xy)), atol=1e-4, rtol=1e-4)
