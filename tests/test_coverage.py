"""k-centre and facility location against brute force."""

import numpy as np
import pytest
import torch

from fusemix.align import coverage, greedy
from fusemix.align.coverage import facility, farthest


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (greedy, coverage):
        monkeypatch.setattr(module, "SMALLEST", 6)
    monkeypatch.setattr(greedy, "_SHARE", 4)
    monkeypatch.setattr(greedy, "_ROOM", 5)
    monkeypatch.setattr(coverage, "_CANDIDATES", 7)


def similarity(sides):
    out = 1.0
    for side in sides:
        x = np.asarray(side, dtype=np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(norms == 0, 1, norms)
        out = out * (x @ x.T + 1) / 2
    return out


def first(scores, rounding):
    return int(np.flatnonzero(scores >= scores.max() - rounding)[0])


def plain_farthest(s, k):
    away, picks, gains = np.ones(len(s)), [], []
    while len(picks) < k and away.max() > 1e-10:
        j = first(away, 1e-10)
        picks, gains = [*picks, j], [*gains, away[j]]
        away = np.minimum(away, 1 - s[j])
        away[picks] = -np.inf
    return picks, gains


def plain_facility(s, k):
    near, picks, gains = np.zeros(len(s)), [], []
    while len(picks) < k:
        raised = np.array([np.maximum(row - near, 0).sum() for row in s])
        raised[picks] = -np.inf
        j = first(raised, 1e-10 * len(s) ** 0.5)
        if raised[j] <= 1e-10 * len(s) ** 0.5:
            break
        picks, gains = [*picks, j], [*gains, raised[j]]
        near = np.maximum(near, s[j])
    return picks, gains


def cases():
    rng = np.random.default_rng(0)
    yield [rng.normal(size=(200, 12))], 60
    yield [rng.normal(size=(80, 8)), rng.normal(size=(80, 3))], 80
    yield [np.eye(40)], 40
    yield [np.repeat(rng.normal(size=(15, 5)), 4, axis=0)], 60
    for seed in range(15):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 60))
        yield [rng.integers(-1, 2, size=(n, 3))], n


@pytest.mark.parametrize(("fast", "plain"), [(farthest, plain_farthest), (facility, plain_facility)])
@pytest.mark.parametrize(("sides", "k"), list(cases()))
def test_picks_are_those_of_brute_force(fast, plain, sides, k):
    tensors = [torch.from_numpy(side.astype(np.float32)) for side in sides]
    picks, gains = fast(tensors, k)
    wanted, worth = plain(similarity([t.numpy() for t in tensors]), k)
    assert picks.tolist() == wanted
    np.testing.assert_allclose(gains, worth, rtol=1e-9, atol=1e-9)


def test_they_do_what_they_are_for():
    """Nine of ten items in one cluster: coverage sees the tenth soon, the first facility is in the cluster."""
    rng = np.random.default_rng(0)
    x = np.repeat(np.eye(3)[:2], [90, 10], axis=0) + 0.01 * rng.normal(size=(100, 3))
    assert farthest([torch.from_numpy(x)], 2)[0][1] >= 90
    picks, gains = facility([torch.from_numpy(x)], 2)
    assert picks[0] < 90 <= picks[1] and gains[0] > 90 > gains[1]
