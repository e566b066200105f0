"""Trials: who is trained on, who is judged on, and what is done to the pairs in between."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusemix.data.latents import Latents, LateTable
from fusemix.errors import DataError
from fusemix.studies.trials import Pool, Trial, pick, run_trial, swap_partners
from fusemix.training.order import Order

CPU = torch.device("cpu")
SMALL = (("batch_size", 32), ("depth", 0), ("dim", 16))


def paired(count=200, splits=("train", "val", "test"), shares=(0.6, 0.2, 0.2), per_group=2, seed=0):
    """Latents of two views of the same factors; neighbours share a group."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 6))
    x, y = (z @ rng.normal(size=(6, d)) + 0.3 * rng.normal(size=(count, d)) for d in (12, 8))
    groups = np.arange(count) // per_group
    edges = np.cumsum(shares) * count / per_group
    names = np.array(splits)[np.searchsorted(edges, groups, side="right").clip(max=len(splits) - 1)]
    table = pa.table({"who": ["human" if i % 4 else "web" for i in range(count)]})
    return replace(Latents.from_arrays(x=x, y=y), groups=groups, splits=names, late=LateTable(lambda: table))


def test_the_three_parts_share_no_group():
    for splits in (("train", "val", "test"), ("train", "val"), ("train", "test")):
        pool = Pool.of(paired(splits=splits, shares=(0.7, 0.3) if len(splits) == 2 else (0.6, 0.2, 0.2)))
        parts = [set(part.groups.tolist()) for part in (pool.train, pool.choose, pool.measured)]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert pool.measured.split_name == splits[-1]
        assert pool.choose.split_name == ("val" if len(splits) == 3 else "train")


def test_too_few_groups_to_choose_an_epoch_on_are_refused():
    with pytest.raises(DataError, match="at least 20 groups of training pairs, got 14"):
        Pool.of(paired(40, splits=("train", "val"), shares=(0.7, 0.3)))


def test_a_larger_trial_has_all_pairs_of_a_smaller_one_and_another_seed_draws_others():
    latents = paired()
    small, large = (pick(Trial(n, 1), latents, {}) for n in (30, 90))
    assert np.array_equal(small, large[:30]) and len(set(large.tolist())) == 90
    assert set(pick(Trial(30, 2), latents, {})) != set(small)


def test_a_source_is_drawn_from_its_own_rows():
    latents = paired()
    rows = pick(Trial(40, 0, pick="who=web"), latents, {})
    assert len(rows) == 40 and set(latents.table["who"].take(pa.array(rows)).to_pylist()) == {"web"}
    with pytest.raises(DataError, match="who=web: wanted 60 pairs, there are 50"):
        pick(Trial(60, 0, pick="who=web"), latents, {})


def test_what_was_picked_for_diversity_comes_in_its_order():
    order = np.array([5, 3, 8, 1])
    assert pick(Trial(3, 0, pick="diversity on x"), paired(), {"diversity on x": order}).tolist() == [5, 3, 8]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_as_many_pairs_get_a_wrong_partner_as_was_asked_for_and_nothing_is_lost(share):
    latents = paired()
    swapped = swap_partners(latents, share, seed=3)
    changed = swapped.rows["y"] != latents.rows["y"]
    assert changed.sum() == round(share * 200)
    assert np.array_equal(swapped.rows["x"], latents.rows["x"])
    assert sorted(swapped.rows["y"]) == sorted(latents.rows["y"])


def test_no_wrong_partners_is_no_change():
    latents = paired()
    assert np.array_equal(swap_partners(latents, 0.0, 0).rows["y"], latents.rows["y"])


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}, {"batch_size": 64}, {"batch_size": 16, "alpha": 0.0}])
def test_every_variant_takes_the_same_number_of_steps(settings):
    config = Trial(4000, 0, steps=400, settings=tuple(settings.items())).config()
    steps = Order.of(4000, config).steps * config.epochs
    assert abs(steps - 400) <= Order.of(4000, config).steps / 2
    assert all(getattr(config, name) == value for name, value in settings.items())


def test_a_key_is_of_everything_that_decides_a_fit():
    trials = [
        Trial(100, 0), Trial(101, 0), Trial(100, 1), Trial(100, 0, "cca"), Trial(100, 0, pick="all"),
        Trial(100, 0, wrong=0.1), Trial(100, 0, latents=1), Trial(100, 0, steps=5),
        Trial(100, 0, settings=(("alpha", 0.0),)),
    ]  # fmt: skip
    assert len({trial.key for trial in trials}) == len(trials)


@pytest.mark.parametrize("method", ["adapters", "cca", "ridge"])
def test_a_trial_learns_and_says_what_it_cost(method):
    pool = Pool.of(paired(400))
    trial = Trial(200, 0, method, steps=60, settings=SMALL if method == "adapters" else ())
    figures = run_trial(trial, pool, {}, CPU)
    assert figures["R@1"] == pytest.approx((figures["R@1 x->y"] + figures["R@1 y->x"]) / 2, abs=1e-3)
    assert figures["R@1"] > 10  # chance: 1.25
    assert figures["pairs"] == 200 and figures["x items"] == 200 and figures["seconds"] > 0
    if method == "adapters":
        assert abs(figures["steps"] - 60) <= 3 and figures["flops"] > 0 and figures["batch"] == 34


def test_wrong_partners_hurt():
    pool = Pool.of(paired(400))
    clean, half, all_ = (run_trial(Trial(200, 0, "cca", wrong=w), pool, {}, CPU)["R@1"] for w in (0.0, 0.5, 1.0))
    assert clean > half > all_


def test_a_trial_is_the_same_twice():
    pool = Pool.of(paired(200))
    first, second = (run_trial(Trial(100, 0, steps=10, settings=SMALL), pool, {}, CPU) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
