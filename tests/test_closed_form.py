"""Ridge and CCA against scikit-learn, scipy and the textbook; shrinkage where there are fewer pairs than dimensions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from fusemix.align.closed_form import CLOSED_FORMS, ClosedForm, cca, principal, ridge, ridge_onto
from fusemix.align.folds import SHRINKAGES, Folds, cross_fit, fit_closed_forms
from fusemix.align.metrics import mean_recall
from fusemix.align.moments import moments


def shared(pairs, dim_x=12, dim_y=9, factors=5, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(pairs, factors))
    x = z @ rng.normal(size=(factors, dim_x)) + noise * rng.normal(size=(pairs, dim_x)) + 3
    y = z @ rng.normal(size=(factors, dim_y)) + noise * rng.normal(size=(pairs, dim_y)) - 1
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def straight(count):
    return np.arange(count), np.arange(count)


def test_moments_over_pairs_count_repeated_items():
    x, y = shared(30)
    rows = (np.random.default_rng(0).integers(0, 30, 100), np.random.default_rng(1).integers(0, 30, 100))
    m = moments(x, y, rows)
    a, b = x.double()[rows[0]], y.double()[rows[1]]
    a, b = a - a.mean(0), b - b.mean(0)
    torch.testing.assert_close(m.xx, a.T @ a / 100)
    torch.testing.assert_close(m.yy, b.T @ b / 100)
    torch.testing.assert_close(m.xy, a.T @ b / 100)


def test_ridge_equals_scikit_learn():
    x, y = shared(60)
    m = moments(x, y, straight(60))
    penalty = 0.1 * float(m.xx.diagonal().mean()) * 60
    oracle = Ridge(alpha=penalty).fit(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(ridge(m, 0.1).map_x.numpy(), oracle.coef_.T, rtol=1e-4, atol=1e-5)


def test_cca_equals_the_generalised_eigenproblem():
    x, y = shared(80)
    m = moments(x, y, straight(80))
    s = 0.1
    cxx, cyy = (c + s * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype) for c in (m.xx, m.yy))
    form = cca(m, s)
    # The squared canonical correlations are the eigenvalues of Cxy Cyy^-1 Cyx against Cxx.
    values = eigh((m.xy @ torch.linalg.inv(cyy) @ m.xy.T).numpy(), cxx.numpy(), eigvals_only=True)[::-1]
    r = (form.map_x.double().T @ cxx @ form.map_x.double()).diagonal().sqrt()  # each direction was weighted by r
    np.testing.assert_allclose(r.numpy()[:5], np.sqrt(values[:5]), rtol=1e-4)
    u, v = form.map_x.double() / r, form.map_y.double() / r
    torch.testing.assert_close((u.T @ m.xy @ v).diagonal()[:5], r[:5], rtol=1e-4, atol=1e-5)


def test_cca_keeps_the_directions_of_the_highest_correlations():
    x, y = shared(80)
    m = moments(x, y, straight(80))
    whole, some = cca(m, 0.1, 0.75), cca(m, 0.1, 0.75, rank=3)
    assert torch.equal(some.map_x, whole.map_x[:, :3]) and torch.equal(some.map_y, whole.map_y[:, :3])


@pytest.mark.parametrize("name", list(CLOSED_FORMS))
def test_with_fewer_pairs_than_dimensions_shrinkage_saves_it(name):
    x, y = shared(400, dim_x=200, dim_y=150, factors=20)
    form = fit_closed_forms(Folds.of(x[:100], y[:100], straight(100), np.arange(100), 0))[name]
    held = mean_recall(form.embed_x(x[100:]), form.embed_y(y[100:]), straight(300))
    assert held > 50
    collapsed = cca(moments(x[:100], y[:100], straight(100)), 1e-9)
    if name == "cca":
        assert held > mean_recall(collapsed.embed_x(x[100:]), collapsed.embed_y(y[100:]), straight(300)) + 10


def test_the_shrinkage_is_the_best_on_the_held_out_groups():
    x, y = shared(120, dim_x=60, dim_y=50, factors=10)
    groups = np.arange(120) // 2
    form = fit_closed_forms(Folds.of(x, y, straight(120), groups, 3))["cca"]
    fold = (np.random.default_rng(3).permutation(60) % 5)[groups]
    scores = np.zeros(len(SHRINKAGES))
    for number in range(5):
        rest, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        part = moments(x, y, (rest, rest))
        for place, s in enumerate(SHRINKAGES):
            trial = cca(part, s)
            scores[place] += mean_recall(trial.embed_x(x[held]), trial.embed_y(y[held]), straight(len(held)))
    assert form.shrinkage == SHRINKAGES[int(np.argmax(scores))]


def test_two_pairs_are_enough_not_to_fail():
    x, y = shared(2)
    for form in fit_closed_forms(Folds.of(x, y, straight(2), np.arange(2), 0)).values():
        assert form.embed_x(x).isfinite().all()


def test_embeddings_have_unit_norm_and_tensors_round_trip():
    x, y = shared(40)
    form = fit_closed_forms(Folds.of(x, y, straight(40), np.arange(40), 0))["ridge"]
    torch.testing.assert_close(form.embed_x(x).norm(dim=1), torch.ones(40))
    again = ClosedForm.from_tensors(form.to_tensors())
    assert again.shrinkage == pytest.approx(form.shrinkage) and torch.equal(again.map_x, form.map_x)


def plain_moments(x, y, rows):
    """The textbook, with everything in memory."""
    a, b = x.double()[rows[0]], y.double()[rows[1]]
    mean_x, mean_y = a.mean(0), b.mean(0)
    a, b = a - mean_x, b - mean_y
    return mean_x, mean_y, a.T @ a / len(a), b.T @ b / len(b), a.T @ b / len(a)


class Counted:
    """Latents that remember how many rows were asked for at once."""

    def __init__(self, latents):
        self.latents, self.shape, self.most, self.asked = latents, tuple(latents.shape), 0, 0

    def __getitem__(self, rows):
        self.most, self.asked = max(self.most, len(rows)), self.asked + len(rows)
        return self.latents[rows]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("pairs", [1, 2, 2048, 5001])
def test_moments_in_blocks_are_those_of_the_whole(pairs, dtype):
    x, y = (side.to(dtype) for side in shared(1000))
    x[:, 0] += 100  # far from zero beside its deviation: nothing may cancel
    rng = np.random.default_rng(pairs)
    rows = rng.integers(0, 900, pairs), rng.integers(0, 700, pairs)
    m = moments(x, y, rows)
    for found, wanted in zip((m.mean_x, m.mean_y, m.xx, m.yy, m.xy), plain_moments(x, y, rows), strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12 * scale)


def test_moments_ask_for_a_block_at_a_time_and_for_shared_items_once():
    x, y = shared(20_000, dim_x=4, dim_y=3)
    x, y = Counted(x[:4000]), Counted(y)
    rows = np.arange(20_000) // 5, np.arange(20_000)
    moments(x, y, rows)
    assert max(x.most, y.most) <= 2048
    assert x.asked <= 4000 + 2048 + 20 and y.asked == 20_000 + 2048


def test_held_out_pairs_are_added_and_not_summed_again():
    x, y = (Counted(side) for side in shared(6000))
    forms = fit_closed_forms(Folds.of(x, y, straight(6000), np.arange(6000), 1))
    assert x.asked == 6000 + 2048 + 1200 + 2048  # all once, some for their mean, one fold and a bank to try it with
    whole = moments(x.latents, y.latents, straight(6000))
    expected = ridge(whole, forms["ridge"].shrinkage)
    torch.testing.assert_close(forms["ridge"].map_x, expected.map_x, rtol=1e-5, atol=1e-6)


def test_cross_fitting_judges_every_pair_once_by_a_form_that_has_not_seen_its_group():
    x, y = shared(90)
    groups = np.arange(90) // 3
    found = cross_fit(Folds.of(x, y, straight(90), groups, 1))
    assert sorted(np.concatenate([held for held, _ in found]).tolist()) == list(range(90))
    for held, form in found:
        rest = np.setdiff1d(np.arange(90), held)
        assert not set(groups[held]) & set(groups[rest])
        alone = cca(moments(x, y, (rest, rest)), form.shrinkage)
        torch.testing.assert_close(form.embed_x(x) @ form.embed_y(y).T, alone.embed_x(x) @ alone.embed_y(y).T)


@pytest.mark.parametrize(("count", "dim"), [(40, 12), (20, 50)])
def test_principal_components_are_those_of_a_singular_value_decomposition(count, dim):
    z = torch.randn(count, dim, generator=torch.Generator().manual_seed(0)) + 5
    got = principal(z, 6)
    u, s, _ = np.linalg.svd(z.double().numpy() - z.double().numpy().mean(axis=0), full_matrices=False)
    assert got.shape == (count, 6) and got.dtype == torch.float32
    np.testing.assert_allclose(np.abs(got.numpy()), np.abs(u[:, :6] * s[:6]), atol=1e-4)
    whole = principal(z, 1000)  # a turn: distances stay
    np.testing.assert_allclose(torch.pdist(whole), torch.pdist(z), atol=1e-4)


@pytest.mark.parametrize("form", [ridge, cca, ridge_onto])
@pytest.mark.parametrize(("items", "captions"), [(12, 1), (12, 3), (60, 1)])
def test_few_pairs_of_wide_latents_give_what_a_full_decomposition_gives(form, items, captions):
    """Only directions that the items have are looked for; 60 items of 100 numbers are decomposed in full anyway."""
    rng = np.random.default_rng(items)
    x = torch.from_numpy(rng.normal(size=(items, 100)) * np.logspace(0, -4, 100))
    y = torch.from_numpy(rng.normal(size=(items * captions, 40)))
    m = moments(x, y, (np.repeat(np.arange(items), captions), np.arange(items * captions)))
    full = replace(m, most_x=None, most_y=None)
    assert m.eigen_x[1].shape[1] == (items if items == 12 else 100) and full.eigen_x[1].shape[1] == 100
    for shrinkage in (0.003, 1.0):
        one, other = form(m, shrinkage), form(full, shrinkage)
        found, wanted = (f.embed_x(x.float()) @ f.embed_y(y.float()).T for f in (one, other))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_cca_is_that_of_an_svd(shape):
    """It is taken by eigenvectors, as LAPACK's SVD gave up on 300 sounds: finite numbers, and "failed to converge"."""
    x, y = shared(60, *shape)
    m = moments(x, y, (np.arange(60), np.arange(60)))
    roots = []
    for covariance in (m.xx, m.yy):
        values, axes = torch.linalg.eigh(covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance)))
        roots.append((axes * values.rsqrt()) @ axes.T)
    u, r, vt = torch.linalg.svd(roots[0] @ m.xy @ roots[1], full_matrices=False)
    a, b = (x - m.mean_x).double() @ roots[0] @ u * r**0.75, (y - m.mean_y).double() @ roots[1] @ vt.T * r**0.75
    form = cca(m, 0.01, 0.75)
    wanted = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    torch.testing.assert_close((form.embed_x(x) @ form.embed_y(y).T).double(), wanted, rtol=0, atol=1e-5)
    with pytest.raises(torch.linalg.LinAlgError):
        cca(replace(m, xy=m.xy * torch.nan), 0.01)
