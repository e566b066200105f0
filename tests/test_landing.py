"""A locked space: it stays as it is, and the other side learns to land in it, with its length, mean and spread."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

import fusemix as fm
from fusemix import fit
from fusemix.align.adapters import Adapter, Landing, Locked
from fusemix.align.landing import closeness, frechet, landing_loss
from fusemix.align.losses import info_nce
from fusemix.align.prior import posterior_mean
from fusemix.errors import DataError
from fusemix.training.forecast import forecast, step_flops
from fusemix.training.step import Adapters, Trainer
from test_cli import fusemix
from test_fit import CPU, small

RNG = np.random.default_rng(5)
MAP = RNG.normal(size=(6, 10)) * np.linspace(0.2, 3, 10)
SHARES = [(20, 20), (7, 30), (1, 0)]


def arrays(count=400, seed=0):
    """Two views of six numbers; y has a length and a mean of its own, and is not of unit norm."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 6))
    return z @ np.random.default_rng(1).normal(size=(6, 20)), np.tanh(z) @ MAP + 4.0


def plain_loss(x, y, temperature, variance, regression):
    """In float64, term by term."""
    x, y = x.double(), y.double()
    logits = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature
    right = torch.arange(len(x))
    contrast = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    errors = [sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for one, other in zip(x, y, strict=True)]
    return contrast + regression * sum(errors) / len(errors) / variance


@pytest.mark.parametrize("regression", [0.0, 0.7])
def test_the_loss_is_that_of_the_plain_form(regression):
    x, y = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    got = landing_loss(x, y, torch.tensor(0.1), torch.tensor(3.0), regression)
    expected = plain_loss(x, y, 0.1, 3.0, regression)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    one, other = (torch.autograd.grad(each, x)[0] for each in (got, expected))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_always_saying_the_mean_leaves_all_of_the_variance_whatever_the_units():
    y = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 8) + 5
    x = y.mean(0).expand_as(y)
    for unit in (1.0, 1e-3):
        variance = (unit * y).var(0, unbiased=False).sum()
        whole, contrast = (landing_loss(unit * x, unit * y, torch.tensor(0.1), variance, w) for w in (1.0, 0.0))
        assert (whole - contrast).item() == pytest.approx(1, rel=1e-4)


def shares(rank, file, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = []
    for sizes in SHARES:
        x, y = torch.randn(2, sum(sizes), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        own = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        x = x[own].clone().requires_grad_()
        loss = landing_loss(x, y[own], torch.tensor(0.1), torch.tensor(2.0), 0.5, group=dist.group.WORLD)
        loss.backward()
        found.append([loss.detach(), x.grad])
    torch.save(found, f"{out}{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs gloo")
def test_two_processes_equal_one(tmp_path):
    mp.spawn(shares, (str(tmp_path / "meeting"), str(tmp_path / "rank")), nprocs=2)
    both = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    for sizes, first, second in zip(SHARES, *both, strict=True):
        x, y = torch.randn(2, sum(sizes), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x.requires_grad_()
        loss = landing_loss(x, y, torch.tensor(0.1), torch.tensor(2.0), 0.5)
        loss.backward()
        assert torch.equal(first[0], second[0])
        torch.testing.assert_close(first[0], loss.detach(), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("lock", ["x", "y"])
def test_one_side_is_left_as_it_is_and_the_other_lands_near_its_pair(lock):
    x, y = arrays()
    given = {"x": y, "y": x} if lock == "x" else {"x": x, "y": y}
    model = fm.FuseMix(lock=lock, epochs=150).fit(given["x"], given["y"])
    free = "y" if lock == "x" else "x"
    assert isinstance(model.adapters_[lock], Locked) and isinstance(model.adapters_[free], Landing)
    assert not list(model.adapters_[lock].parameters()) and model.config_.dim == 10
    new_x, new_y = (side.astype(np.float32) for side in arrays(100, seed=9))
    assert np.array_equal(model.condition_latents(lock, new_y), new_y)  # bit for bit
    np.testing.assert_allclose(
        model.embed_latents(lock, new_y), new_y / np.linalg.norm(new_y, axis=1, keepdims=True), rtol=1e-6
    )
    condition = model.condition_latents(free, new_x)
    landed = model.adapters_[free].land(torch.tensor(new_x)).detach().numpy()
    for each in (landed, condition):
        assert ((each - new_y) ** 2).sum() / ((new_y - new_y.mean(0)) ** 2).sum() < 0.25
    assert np.linalg.norm(landed, axis=1).mean() == pytest.approx(np.linalg.norm(new_y, axis=1).mean(), rel=0.1)
    np.testing.assert_allclose(
        model.embed_latents(free, new_x), landed / np.linalg.norm(landed, axis=1, keepdims=True), rtol=1e-5
    )


def test_regression_explains_more_of_the_space_and_costs_no_recall():
    """What the second term is for."""
    x, y = arrays()
    new_x, new_y = arrays(100, seed=9)
    left = {}
    for weight in (0.0, 1.0):
        model = fm.FuseMix(lock="y", epochs=150, alpha=0.0, settings={"regression": weight, "prior": 0}).fit(x, y)
        landed = model.condition_latents("x", new_x)
        left[weight] = ((landed - new_y) ** 2).sum() / ((new_y - new_y.mean(0)) ** 2).sum()
        assert model.score(new_x, new_y) > 0.8
    assert left[1.0] < 0.75 * left[0.0]


def test_what_lands_has_the_mean_and_the_spread_of_the_space():
    """On the training pairs exactly; on others nearly, and never by more than a factor of three."""
    x, y = arrays()
    noise = np.random.default_rng(3).normal(size=x.shape) * 3  # little can be predicted
    model = fm.FuseMix(lock="y", epochs=60, settings={"prior": 0}).fit(x + noise, y)
    landed = model.condition_latents("x", x + noise)
    np.testing.assert_allclose(landed.mean(0), y.mean(0), atol=0.02 * y.std())
    assert np.sqrt(landed.var(0).sum()) == pytest.approx(np.sqrt(y.var(0).sum()), rel=0.01)
    landing = Landing(4, small(lock="y", dim=3))
    landing.aim(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 1, 2]))
    landing.settle(torch.full((5, 3), 7.0))
    torch.testing.assert_close(landing.spread, torch.tensor([3.0, 3, 6]))


def plain_mean(landed, known, temperature):
    """In float64, one by one."""
    found = []
    for one in landed.double():
        cosines = [float(one @ each) / float(one.norm() * each.norm()) for each in known.double()]
        weights = np.exp((np.array(cosines) - max(cosines)) / temperature)
        found.append(sum(w * each for w, each in zip(weights / weights.sum(), known.double(), strict=True)))
    return torch.stack(found)


def test_a_condition_is_the_mean_of_what_a_landing_may_mean():
    landed, known = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(3))
    got = posterior_mean(7 * landed, known, torch.tensor(0.1))
    torch.testing.assert_close(got.double(), plain_mean(landed, known, 0.1), rtol=1e-4, atol=1e-5)
    cold = posterior_mean(landed, known, torch.tensor(0.001))
    nearest = (F.normalize(landed, dim=1) @ F.normalize(known, dim=1).T).argmax(1)
    torch.testing.assert_close(cold[:3], known[nearest][:3], rtol=1e-3, atol=1e-3)


def test_a_prior_brings_a_guess_back_to_what_is_real():
    """Ten kinds of y, and x that tells them apart with much noise: a landing alone lies between and off them."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(10, 16)) * 3
    given, heard = rng.integers(10, size=300), rng.integers(10, size=200)
    signs = rng.normal(size=(10, 30)) * 1.2
    x, new_x = (signs[each] + rng.normal(size=(len(each), 30)) for each in (given, heard))
    y, new_y = (kinds[each] + 0.3 * rng.normal(size=(len(each), 16)) for each in (given, heard))
    model = fm.FuseMix(lock="y", epochs=60).fit(x, y)
    landed = model.adapters_["x"].land(torch.tensor(new_x, dtype=torch.float32)).detach()
    found = {
        name: closeness(torch.as_tensor(each), torch.tensor(new_y))
        for name, each in (("landed", landed), ("drawn", model.condition_latents("x", new_x)))
    }
    assert found["drawn"].unexplained < 0.8 * found["landed"].unexplained
    assert found["drawn"].frechet < 0.8 * found["landed"].frechet


def test_a_model_keeps_real_latents_of_the_locked_space_as_many_as_asked_for(monkeypatch):
    x, y = arrays(100)
    for prior, kept in ((7, 7), (4096, 100), (0, None)):
        landing = fm.FuseMix(lock="y", epochs=1, settings={"prior": prior}).fit(x, y).adapters_["x"]
        assert (None if landing.known is None else len(landing.known)) == kept
        if kept == 100:
            assert np.array_equal(landing.known, y.astype(np.float32))
    monkeypatch.setattr(fit, "KNOWN_NUMBERS", 55)  # y is ten wide
    assert len(fm.FuseMix(lock="y", epochs=1).fit(x, y).adapters_["x"].known) == 5


def test_latents_too_wide_for_closed_forms_are_fitted_without_them(monkeypatch, tmp_path):
    """A sequence of tokens has 59,136 numbers: one covariance would take 28 GB."""
    monkeypatch.setattr(fit, "WIDEST", 15)  # x is twenty wide
    x, y = arrays(60)
    model = fm.FuseMix(lock="y", epochs=2).fit(x, y, out=tmp_path / "m")
    model.save(tmp_path / "m")
    assert model.baselines_ == {} and fm.FuseMix.load(tmp_path / "m").baselines_ == {}
    assert "no ridge and CCA to compare with: latents of 20 numbers" in " ".join(model.facts_["notes"])
    assert "ridge" not in str(model.evaluate(fm.Latents.from_arrays(x=x, y=y)))


def test_a_locked_model_is_saved_and_a_fit_goes_on(tmp_path):
    x, y = arrays(100)
    model = fm.FuseMix(lock="y", epochs=6).fit(x, y, out=tmp_path / "m")
    model.save(tmp_path / "m")
    again = fm.FuseMix.load(tmp_path / "m")
    assert again.get_params() == model.get_params() and again.lock == "y"
    assert np.array_equal(again.condition_latents("x", x), model.condition_latents("x", x))
    assert np.array_equal(again.condition_latents("y", y), y.astype(np.float32))


@pytest.mark.parametrize("recompute", [False, True])
def test_pieces_give_the_gradients_of_the_whole(recompute):
    config = small(dropout=0.0, input_dropout=0.0, precision="float32", lock="y", dim=16)
    torch.manual_seed(0)
    adapters = Adapters([20, 16], config)
    batch, got = (torch.randn(50, 20), torch.randn(50, 16)), []
    for piece, again in ((50, False), (16, recompute), (7, recompute)):
        trainer = Trainer(adapters, config, CPU)
        trainer.piece, trainer.recompute = piece, again
        got.append([trainer.gradients(3, batch), *(p.grad.clone() for p in adapters.parameters())])
    for pieces in got[1:]:
        for one, whole in zip(pieces, got[0], strict=True):
            torch.testing.assert_close(one, whole, rtol=1e-5, atol=1e-6)


def test_a_landing_starts_at_the_mean_of_the_space_and_in_its_deviations():
    x, y = (torch.tensor(side, dtype=torch.float32) for side in arrays())
    torch.manual_seed(0)
    landing = Landing(20, small(lock="y", dim=10)).eval()
    landing.aim(y.mean(0), y.std(0))
    with torch.inference_mode():
        landed = landing.land(x)
    assert ((landed.mean(0) - y.mean(0)).abs() < 2 * y.std(0)).all()
    ratio = landed.std(0) / y.std(0)
    assert (ratio > 0.1).all() and (ratio < 2).all()


def plain_frechet(x, y):
    """By the covariances and the root of their product, in float64."""
    from scipy.linalg import sqrtm

    a, b = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))


def test_the_frechet_distance_is_that_of_the_covariances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) @ rng.normal(size=(6, 6)) + 1
    assert float(frechet(torch.tensor(x), torch.tensor(y))) == pytest.approx(plain_frechet(x, y), rel=1e-6)
    assert float(frechet(torch.tensor(x), torch.tensor(x))) == pytest.approx(0, abs=1e-9)


def test_closeness_tells_what_shrinks_what_is_moved_and_what_is_right():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(400, 5, generator=rng, dtype=torch.float64) + 3
    same, shrunk, moved = (
        closeness(landed, real) for landed in (real, real.mean(0) + 0.5 * (real - real.mean(0)), real + 10)
    )
    assert same.unexplained == 0 and same.length == same.spread == pytest.approx(1)
    assert same.frechet == pytest.approx(same.floor) and same.floor < 0.05
    assert shrunk.spread == pytest.approx(0.5) and shrunk.unexplained == pytest.approx(0.25)
    assert shrunk.frechet > 5 * same.frechet and moved.frechet > 50 and moved.length > 3
    for unit in (1e-3, 1e3):
        assert closeness(unit * shrunk_of(real), unit * real).frechet == pytest.approx(shrunk.frechet)


def shrunk_of(real):
    return real.mean(0) + 0.5 * (real - real.mean(0))


def test_an_evaluation_says_how_close_a_landing_comes():
    from fusemix.data.latents import Latents

    model = fm.FuseMix(lock="y", epochs=60).fit(*arrays())
    test = Latents.from_arrays(**dict(zip("xy", arrays(200, seed=9), strict=True)))
    found = model.evaluate(test)
    assert found.closeness is not None and 0 < found.closeness.unexplained < 0.5
    assert found.closeness.spread == pytest.approx(1, abs=0.2) and found.closeness.length == pytest.approx(1, abs=0.1)
    assert found.to_dict()["closeness"]["frechet"] == found.closeness.frechet
    assert "% of the variance unexplained; their length is" in str(found)
    assert fm.FuseMix(8, epochs=1).fit(*arrays(50)).evaluate(test.take(np.arange(50))).closeness is None


def test_a_forecast_counts_the_side_that_is_trained():
    from fusemix.data.latents import Latents

    config = small(lock="y", dim=10)
    whole = Latents.from_arrays(**dict(zip("xy", arrays(100), strict=True)))
    cost = forecast(whole, config, CPU, "float32", 1e10, 0.1, True)
    free = replace(config, lock="none")
    assert cost.parameters == sum(p.numel() for p in Adapter(20, free).parameters())
    assert cost.parameters == sum(p.numel() for p in Adapters([20, 10], config).parameters()) - 1  # the temperature
    assert step_flops(config, (20, 10), 8) < step_flops(free, (20, 10), 8)
    assert cost.memory["activations"] < forecast(whole, free, CPU, "float32", 1e10, 0.1, True).memory["activations"]


def test_mistakes_are_told():
    x, y = arrays(50)
    with pytest.raises(DataError, match="lock='z': no such modality; found: x, y"):
        fm.FuseMix(lock="z").fit(x, y)
    with pytest.raises(DataError, match="makes the shared space 10 wide, dim=64 contradicts: leave dim out"):
        fm.FuseMix(64, lock="y").fit(x, y)
    with pytest.raises(DataError, match="setting lock='y' follows from the modality"):
        fm.FuseMix(settings={"lock": "y"}).fit(x, y)
    with pytest.raises(DataError, match="no modality of this model is locked; fit one with FuseMix.lock="):
        fm.FuseMix(8, epochs=1).fit(x, y).condition_latents("x", x)


def test_the_command_line_locks(tmp_path):
    from test_studies import stored

    stored(tmp_path, "l")
    said = json.loads(
        fusemix("fit", "l", "-o", "m", "--lock", "y", "--epochs", "2", "--json", "-q", cwd=tmp_path).stdout
    )
    assert said["config"]["lock"] == "y" and said["config"]["dim"] == 10
    done = fusemix("fit", "l", "-o", "n", "--lock", "text", cwd=tmp_path, code=2)
    assert "no such modality; found: x, y" in done.stderr


def test_directions_alone_are_what_no_lock_compares():
    """A locked fit with no weight on lengths is plain InfoNCE."""
    x, y = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(2))
    got = landing_loss(3 * x, 0.1 * y, torch.tensor(0.2), torch.tensor(1.0), 0.0)
    torch.testing.assert_close(got, info_nce(F.normalize(x, dim=1), F.normalize(y, dim=1), 0.2))
