"""Diversity against slow truth: full kernels, numpy's singular values, loops over all pairs."""

import numpy as np
import pytest
import torch

from fusemix.align.diversity import coverage, effective_rank, expected_coverage, mean, vendi


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def entropy(p):
    p = p[p > 1e-15]
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize(("count", "dim"), [(40, 7), (9, 30), (2100, 5)])
@pytest.mark.parametrize("centred", [True, False])
def test_both_scores_are_those_of_the_full_kernel_and_of_numpy(count, dim, centred):
    x = np.random.default_rng(0).normal(1.0, 1.0, (count, dim)).astype(np.float32)
    centre = mean(torch.from_numpy(x)) if centred else None
    y = x.astype(np.float64) - (x.astype(np.float64).mean(axis=0) if centred else 0)
    kernel = unit(y) @ unit(y).T / count
    assert vendi(torch.from_numpy(x), centre) == pytest.approx(entropy(np.linalg.eigvalsh(kernel)), rel=1e-6)
    s = np.linalg.svd(y, compute_uv=False)
    s = s[s > s[0] * 1e-6]
    assert effective_rank(torch.from_numpy(x), centre) == pytest.approx(entropy(s / s.sum()), rel=1e-5)


def test_known_scores():
    eye = torch.eye(6)
    assert vendi(eye) == pytest.approx(6)
    assert vendi(eye.repeat(5, 1)) == pytest.approx(6)  # copies add nothing
    assert vendi(torch.ones(6, 3)) == pytest.approx(1)
    assert effective_rank(torch.ones(6, 3)) == pytest.approx(1)
    assert vendi(torch.zeros(4, 3)) == effective_rank(torch.zeros(4, 3)) == 0


def test_coverage_counts_balls_as_a_loop_does():
    rng = np.random.default_rng(0)
    held, train = rng.normal(size=(60, 6)), rng.normal(0.7, 1, size=(15, 6))
    near, far = 1 - unit(held) @ unit(held).T, 1 - unit(held) @ unit(train).T
    np.fill_diagonal(near, np.inf)
    slow = np.mean([far[i].min() <= np.sort(near[i])[4] for i in range(60)])
    assert 0 < slow < 1
    assert coverage(torch.from_numpy(held), torch.from_numpy(train)) == pytest.approx(slow)


def test_the_expected_coverage_is_what_one_distribution_gives():
    rng = np.random.default_rng(0)
    found = [
        coverage(torch.from_numpy(rng.normal(size=(50, 20))), torch.from_numpy(rng.normal(size=(15, 20))), k=3)
        for _ in range(60)
    ]
    assert np.mean(found) == pytest.approx(expected_coverage(50, 15, 3), abs=0.03)
