"""Transport plans against a plain one, and what a closed form learns from items whose partners nobody knows."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fusemix.align.closed_form import cca
from fusemix.align.metrics import mean_recall
from fusemix.align.moments import moments
from fusemix.align.transport import Unpaired, learn_unpaired, plan


def shared(count, seed=0, factors=8, noise=0.5):
    draw = np.random.default_rng(7)
    to_x, to_y = draw.normal(size=(factors, 60)), draw.normal(size=(factors, 50))
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, factors)) * np.linspace(2, 0.5, factors)  # unlike axes, so that a rotation can be told
    x, y = z @ to_x + noise * rng.normal(size=(count, 60)), z @ to_y + noise * rng.normal(size=(count, 50))
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def plain_plan(cosines, epsilon, iterations):
    """Sinkhorn in float64 as the textbook has it."""
    kernel = np.exp(cosines / epsilon)
    rows, columns = kernel.shape
    b = np.ones(columns)
    for _ in range(iterations):
        a = 1 / (kernel @ b)
        b = rows / columns / (a @ kernel)
    return a[:, None] * kernel * b


@pytest.mark.parametrize("epsilon", [0.02, 0.2])
def test_the_plan_is_sinkhorns(epsilon):
    rng = np.random.default_rng(0)
    x, y = (normalize(torch.from_numpy(rng.normal(size=(n, 5))), dim=1) for n in (30, 80))
    found = plan(x.float(), y.float(), epsilon, iterations=50).double().numpy()
    wanted = plain_plan((x @ y.T).numpy(), epsilon, 51)  # the first scaling is done among logarithms
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    np.testing.assert_allclose(found.sum(axis=0), 30 / 80, rtol=1e-4)


def test_a_plan_survives_what_underflows():
    x = normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    found = plan(x, torch.cat([x, -x]), 0.001)
    assert bool(found.isfinite().all()) and float(found[0, 0]) > float(found[0, 1])


def test_the_expected_cross_covariance_is_that_of_the_pairs_where_the_plan_knows_them():
    x, y = shared(40)
    unpaired = Unpaired.of(x, y)
    rows = np.arange(40), np.arange(40)
    m = moments(x, y, rows)
    torch.testing.assert_close(unpaired.expected(torch.eye(40)), m.xy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unpaired.xx, m.xx)
    torch.testing.assert_close(unpaired.mean_y, m.mean_y)


def test_items_without_partners_help_a_form_of_few_pairs():
    x, y = shared(25, noise=3)
    rest_x, rest_y = shared(1500, seed=1, noise=3)
    shuffled = torch.from_numpy(np.random.default_rng(2).permutation(1500))
    test_x, test_y = shared(300, seed=3, noise=3)
    rows = np.arange(300), np.arange(300)
    paired = moments(x, y, (np.arange(25), np.arange(25)))
    first = cca(paired, 1.0)
    learned = learn_unpaired(paired, Unpaired.of(rest_x, rest_y[shuffled]), first, lambda m: cca(m, 1.0), 0.8)
    before, after = (mean_recall(f.embed_x(test_x), f.embed_y(test_y), rows) for f in (first, learned))
    assert after > before + 15


def test_a_share_of_nothing_changes_nothing():
    x, y = shared(60)
    paired = moments(x, y, (np.arange(60), np.arange(60)))
    first = cca(paired, 0.3)
    same = learn_unpaired(paired, Unpaired.of(*shared(100, seed=1)), first, lambda m: cca(m, 0.3), 0.0, rounds=2)
    torch.testing.assert_close(same.embed_x(x), first.embed_x(x), rtol=1e-3, atol=1e-4)
