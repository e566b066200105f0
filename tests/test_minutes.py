"""A fit within a stated time: fewer epochs of the network, or none; an interrupted one keeps what it began with."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import fusemix as fm
from fusemix import fit as fitting
from fusemix.config import scaled
from fusemix.data.latents import Latents
from fusemix.errors import DataError
from fusemix.training.validation import validations

CPU = torch.device("cpu")


def shared(count, split="train", seed=0):
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(count, 5))
    mixing = np.random.default_rng(9)
    return Latents.from_arrays(split, **{name: cause @ mixing.normal(size=(5, d)) for name, d in (("x", 8), ("y", 7))})


TRAIN, VAL = shared(200), shared(40, "val", 1)


@pytest.fixture
def device_of(monkeypatch):
    """Make a device whose epochs and validations take so many seconds."""

    def make(epoch, validation):
        whole = fitting.foresee

        def foresee(train, config, device, val=None):
            looks = validation * validations(config.epochs) if val is not None else 0.0
            cost = whole(train, config, device, val)
            return replace(cost, seconds=epoch * config.epochs, validating=looks)

        monkeypatch.setattr(fitting, "foresee", foresee)

    return make


@pytest.mark.parametrize(
    ("seconds", "val", "epochs"),
    [(1e9, VAL, 200), (200.0, None, 200), (199.9, None, 199), (30.0, VAL, 20), (1.4, VAL, 0), (-5.0, VAL, 0)],
)
def test_the_most_epochs_that_end_in_time(device_of, seconds, val, epochs):
    device_of(1.0, 0.5)
    config = replace(scaled(len(TRAIN), 0), epochs=200)
    assert fitting.within(seconds, TRAIN, val, config, CPU, None) == epochs
    looks = 0.5 * validations(epochs) if val is not None and epochs else 0.0
    assert epochs + looks <= max(seconds, 0.0)


def test_time_enough_changes_nothing():
    plain, timed = (fm.FuseMix(epochs=3, batch_size=32, minutes=m).fit(TRAIN, val=VAL) for m in (None, 60.0))
    assert np.array_equal(plain.embed_latents("x", np.eye(8)), timed.embed_latents("x", np.eye(8)))
    assert timed.facts_["notes"] == plain.facts_["notes"] == []


def test_too_little_time_leaves_a_closed_form_or_one_epoch_and_says_so():
    auto = fm.FuseMix(epochs=50, minutes=1e-6).fit(TRAIN, val=VAL)
    assert set(auto.facts_["tried"]) == {"cca"} and auto.history_ == []
    assert auto.facts_["notes"] == ["no time was left to train a network"]
    alone = fm.FuseMix(epochs=50, minutes=1e-6, recipe="scaled").fit(TRAIN, val=VAL)
    assert len(alone.history_) == alone.config_.epochs == 1
    assert alone.facts_["notes"] == ["trained for 1 of 50 epochs: more would take over 1e-06 minutes"]


def test_both_networks_share_the_time(device_of):
    """The second one, of the width of CCA, is foreseen by its share of the work; here both are alike."""
    device_of(1.0, 0.0)
    both = fm.FuseMix(epochs=50, dim=7, minutes=1.0, adapter="both").fit(TRAIN, val=VAL)
    alone = fm.FuseMix(epochs=50, dim=7, minutes=1.0, adapter="both", settings={"refine": False}).fit(TRAIN, val=VAL)
    assert 20 <= both.config_.epochs < 35 and alone.config_.epochs == 50
    none = fm.FuseMix(epochs=50, minutes=1e-6, adapter="both").fit(TRAIN, val=VAL)
    assert none.config_.epochs == 1 and none.config_.epochs is not True
    with pytest.raises(DataError, match="validation pairs are of x, z; wanted x, y"):
        other = Latents.from_arrays("val", x=np.eye(8), z=np.eye(8))
        fm.FuseMix(minutes=1.0, recipe="scaled").fit(TRAIN, val=other)


def test_an_interrupted_fit_keeps_the_epochs_that_it_began_with(tmp_path, device_of):
    device_of(1.0, 0.0)
    given = {"epochs": 50, "batch_size": 32, "minutes": 4.5 / 60, "recipe": "scaled"}
    whole = fm.FuseMix(**given).fit(TRAIN)
    assert len(whole.history_) == 4

    def stop(what, done, total, note=""):
        if what == "fit" and done == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fm.FuseMix(**given).fit(TRAIN, out=tmp_path / "m", progress=stop)
    device_of(9.0, 0.0)  # slower now: a fresh fit would have no epoch
    again = fm.FuseMix(**given).fit(TRAIN, out=tmp_path / "m")
    assert len(again.history_) == 4
    assert np.array_equal(whole.embed_latents("x", np.eye(8)), again.embed_latents("x", np.eye(8)))


def test_minutes_below_zero_are_refused():
    with pytest.raises(DataError, match="minutes must not be negative, got -1"):
        fm.FuseMix(minutes=-1.0).fit(TRAIN)
