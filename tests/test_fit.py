"""The training loop: schedules, batches, determinism, selection, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fusemix.config import FitConfig, paper, scaled
from fusemix.data.latents import Latents
from fusemix.errors import DataError, DivergedError, FusemixError, MismatchError
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training.device import choose_precision
from fusemix.training.order import Order
from fusemix.training.schedule import MIN_LR, learning_rate
from fusemix.training.step import Adapters, Trainer

CPU = torch.device("cpu")


def pairs(count, split="train", seed=0, factors=6):
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(99)
    z = rng.normal(size=(count, factors))
    x = z @ maps.normal(size=(factors, 20)) + 0.1 * rng.normal(size=(count, 20))
    y = z @ maps.normal(size=(factors, 16)) + 0.1 * rng.normal(size=(count, 16))
    return Latents.from_arrays(split, x=x, y=y)


def small(**changes):
    return replace(scaled(1000, 0), **{"dim": 8, "batch_size": 16, "epochs": 4, "warmup_steps": 3, **changes})


def weights(fitted):
    return torch.cat([p.flatten() for adapter in fitted.adapters.values() for p in adapter.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (weights(fit_adapters(pairs(64), None, small(seed=s), CPU, silent)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_adapters(pairs(32), None, small(), CPU, silent)
    assert torch.equal(torch.rand(3), expected)


def test_training_lowers_the_loss_and_finds_unseen_pairs():
    fitted = fit_adapters(pairs(400), pairs(100, "val", seed=1), small(epochs=30), CPU, silent)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] / 2
    assert max(record["val"] for record in fitted.history if "val" in record) > 60


def test_the_best_epoch_on_validation_is_kept():
    val = pairs(60, "val", seed=1)
    fitted = fit_adapters(pairs(128), val, small(epochs=12), CPU, silent)
    measured = {record["epoch"]: record["val"] for record in fitted.history}
    assert fitted.best_epoch == max(measured, key=lambda epoch: (measured[epoch], -epoch))
    shorter = fit_adapters(pairs(128), None, small(epochs=12), CPU, silent)
    assert shorter.best_epoch == 12 and "val" not in shorter.history[0]


def test_a_split_named_test_never_chooses_the_epoch():
    with pytest.raises(DataError, match="split named 'test'"):
        fit_adapters(pairs(32), pairs(16, "test"), small(), CPU, silent)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pairs_are_refused(count):
    with pytest.raises(DataError, match="at least 2 pairs"):
        fit_adapters(pairs(8).take(np.arange(count)), None, small(), CPU, silent)


def test_validation_pairs_of_other_encoders_or_modalities_are_refused():
    train, val = pairs(16), pairs(8, "val")
    other = replace(val.items["y"], encoder={"name": "another"})
    with pytest.raises(MismatchError, match="y latents of validation.*name"):
        fit_adapters(train, replace(val, items={**val.items, "y": other}), small(), CPU, silent)
    named = Latents.from_arrays("val", x=val["x"].numpy(), z=val["y"].numpy())
    with pytest.raises(DataError, match="validation pairs are of x, z; wanted x, y"):
        fit_adapters(train, named, small(), CPU, silent)


def test_validation_in_another_order_of_modalities_is_the_same():
    train, val = pairs(64), pairs(20, "val", seed=1)
    turned = Latents.from_arrays("val", y=val["y"].numpy(), x=val["x"].numpy())
    curves = [[r["val"] for r in fit_adapters(train, v, small(), CPU, silent).history] for v in (val, turned)]
    assert curves[0] == curves[1]


def test_items_that_are_all_alike_are_refused():
    same = Latents.from_arrays("train", x=np.ones((5, 3)), y=np.random.default_rng(0).normal(size=(5, 3)))
    with pytest.raises(DataError, match="x: all 1 latents are the same|x: all 5 latents are the same"):
        fit_adapters(same, None, small(), CPU, silent)


def test_the_default_makes_as_many_steps_whatever_the_batch_and_the_mixing():
    for count in (5_000, 30_000):
        for given in ({}, {"batch_size": 128}, {"batch_size": 512}, {"alpha": 0.0}):
            config = scaled(count, 0, **given)
            steps = config.epochs * Order.of(count, config).steps
            assert 750 <= steps <= 1300, (count, given, steps)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_very_few_pairs_still_train(count, alpha):
    fitted = fit_adapters(pairs(count), None, small(alpha=alpha), CPU, silent)
    assert all(math.isfinite(record["loss"]) and record["loss"] > 0 for record in fitted.history)
    assert not any(module._forward_hooks for adapter in fitted.adapters.values() for module in adapter.modules())


def test_nan_latents_are_refused_with_the_item():
    data = pairs(8)
    data.items["y"].latents[3, 1] = float("nan")
    with pytest.raises(DataError, match="y: the latent of '[0-9a-f]{16}' is NaN or infinite .1 such"):
        fit_adapters(data, None, small(), CPU, silent)


def test_three_modalities_are_refused():
    rng = np.random.default_rng(0)
    data = Latents.from_arrays("train", **{name: rng.normal(size=(8, 3)) for name in ("a", "b", "c")})
    with pytest.raises(DataError, match="joins two modalities, these latents have 3: a, b, c"):
        fit_adapters(data, None, small(), CPU, silent)


def test_a_loss_that_is_no_number_stops_the_fit():
    data = pairs(8)
    for items in data.items.values():
        items.latents.mul_(1e30)
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) at step \d+ .*lower lr") as stopped:
        fit_adapters(data, None, small(standardize=False, lr=1e30), CPU, silent)
    assert set(stopped.value.ids) == {"x", "y"} and set(stopped.value.ids["x"]) <= set(data["x"].ids)


def test_the_paper_schedule_warms_up_inside_epoch_zero_and_then_steps_down_once_per_epoch():
    config = paper(0)
    rates = [learning_rate(config, step, 122) for step in range(122 * 3)]
    assert rates[0] == MIN_LR and rates[50] == pytest.approx(MIN_LR + (1e-3 - MIN_LR) / 2) and rates[121] == 1e-3
    for epoch in (1, 2):
        inside = set(rates[122 * epoch : 122 * (epoch + 1)])
        assert inside == {MIN_LR + (1e-3 - MIN_LR) * (1 + math.cos(math.pi * epoch / 500)) / 2}


def test_the_smooth_schedule_rises_then_falls_to_the_floor():
    config = small(schedule="step", epochs=20, warmup_steps=20)
    rates = [learning_rate(config, step, 10) for step in range(200)]
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == pytest.approx(config.lr) and rates[-1] < config.lr / 100


def test_weight_decay_is_on_matrices_only():
    adapters = Adapters([6, 5], small())
    decayed, free = Trainer(adapters, small(), CPU).optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.ndim == 2 for p in decayed["params"])
    assert free["weight_decay"] == 0 and all(p.ndim < 2 for p in free["params"])
    assert any(p is adapters.temperature for p in free["params"])


def test_the_temperature_stays_in_its_bounds():
    fitted = fit_adapters(pairs(64), None, small(lr=0.5, epochs=6), CPU, silent)
    assert all(0.001 <= record["temperature"] <= 0.5 for record in fitted.history)


def test_the_paper_recipe_is_the_released_run():
    assert paper(3) == FitConfig(
        adapter="mlp", dim=512, depth=4, width=0, expansion=4, refine=False, dropout=0.6, input_dropout=0.0, alpha=1.0,
        mixing="shared", noise=0.0, quantize=0, lock="none", regression=1.0, prior=4096,
        batch_size=20480, epochs=500, lr=1e-3, warmup_steps=100, schedule="epoch", weight_decay=0.1, temperature=0.07,
        standardize=False, patience=0, minutes=0.0, precision="auto", seed=3,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["dim", "epochs", "batch_size"])
def test_settings_that_no_fit_can_use_are_refused(name):
    with pytest.raises(DataError, match=f"{name} must be at least 1"):
        small(**{name: 0})


def test_saved_settings_with_a_typo_are_refused():
    values = scaled(100, 0).to_dict()
    assert FitConfig.from_dict(values) == scaled(100, 0)
    with pytest.raises(DataError, match="no setting 'drop_out'.*did you mean 'dropout'"):
        FitConfig.from_dict({**values, "drop_out": 0.5})
    del values["depth"]
    with pytest.raises(DataError, match="lack depth"):
        FitConfig.from_dict(values)


def test_patience_stops_when_validation_no_longer_gains():
    val = pairs(60, "val", seed=1)
    whole = fit_adapters(pairs(128), val, small(epochs=40), CPU, silent)
    early = fit_adapters(pairs(128), val, small(epochs=40, patience=3), CPU, silent)
    assert len(early.history) < 40 and early.best_epoch == len(early.history) - 3
    shared = [record["val"] for record in whole.history[: len(early.history)]]
    assert [record["val"] for record in early.history] == shared
    assert max(shared) == shared[early.best_epoch - 1]


def test_precision_follows_what_the_device_can_do(monkeypatch):
    for can, expected in (({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert choose_precision("auto", CPU) == getattr(torch, expected)
        assert choose_precision("float32", CPU) == torch.float32
    for capability, expected in (((7, 0), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert choose_precision("auto", torch.device("cuda")) == expected


def test_half_precision_learns_as_well():
    val = pairs(100, "val", seed=1)
    got = {}
    for precision in ("float32", "bfloat16"):
        fitted = fit_adapters(pairs(400), val, small(epochs=20, precision=precision), CPU, silent)
        assert all(p.dtype == torch.float32 for a in fitted.adapters.values() for p in a.parameters())
        got[precision] = max(record["val"] for record in fitted.history if "val" in record)
    assert got["bfloat16"] > got["float32"] - 4 and got["float32"] > 60


@pytest.mark.parametrize("recompute", [False, True])
def test_pieces_give_the_gradients_of_the_whole(recompute):
    config = small(dropout=0.0, input_dropout=0.0, precision="float32")
    torch.manual_seed(0)
    adapters = Adapters([20, 16], config)
    batch = torch.randn(50, 20), torch.randn(50, 16)
    got = []
    for piece, again in ((50, False), (16, recompute), (7, recompute)):
        trainer = Trainer(adapters, config, CPU)
        trainer.piece, trainer.recompute = piece, again
        loss = trainer.gradients(3, batch)
        got.append([loss, *(p.grad.clone() for p in adapters.parameters())])
    for pieces in got[1:]:
        for one, whole in zip(pieces, got[0], strict=True):
            torch.testing.assert_close(one, whole, rtol=1e-5, atol=1e-6)


def test_a_recomputed_piece_draws_the_same_dropout():
    config = small(precision="float32")
    adapters = Adapters([20, 16], config)
    batch = torch.randn(50, 20), torch.randn(50, 16)
    got = []
    for again in (False, True):
        trainer = Trainer(adapters, config, CPU)
        trainer.piece, trainer.recompute = 16, again
        got.append([trainer.gradients(3, batch), *(p.grad.clone() for p in adapters.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*got, strict=True))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(), RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
    )],
)  # fmt: skip
def test_a_full_memory_shrinks_the_pieces_and_never_the_batch(monkeypatch, error):
    seen = []
    real = Trainer._embed_all

    def full(self, step, batch):
        seen.append((step, len(batch[0]), self.piece, self.recompute))
        if step == 2 and self.piece > 20:
            raise error
        return real(self, step, batch)

    config = small(batch_size=64, dropout=0.0, input_dropout=0.0, precision="float32", epochs=2)
    plain = fit_adapters(pairs(256), None, config, CPU, silent)
    monkeypatch.setattr(Trainer, "_embed_all", full)
    fitted = fit_adapters(pairs(256), None, config, CPU, silent)
    assert {rows for _, rows, _, _ in seen} == {64}
    assert [(piece, again) for step, _, piece, again in seen if step == 2][1:] == [(32, True), (16, True)]
    for one, other in zip(fitted.history, plain.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_any_other_error_is_never_tried_again(monkeypatch):
    calls = []

    def broken(self, step, batch):
        calls.append(step)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "_embed_all", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fit_adapters(pairs(64), None, small(), CPU, silent)
    assert calls == [0]


def test_a_memory_that_is_too_small_for_anything_is_said(monkeypatch):
    def full(self, step, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Trainer, "_embed_all", full)
    with pytest.raises(FusemixError, match="16 pairs does not fit the memory.*lower batch_size .now 16., dim or depth"):
        fit_adapters(pairs(64), None, small(), CPU, silent)


def test_compiled_adapters_are_the_same_adapters(monkeypatch):
    """The path that a GPU takes, with a backend that needs none."""
    config = small(dropout=0.0, input_dropout=0.0, precision="float32")
    torch.manual_seed(0)
    adapters = Adapters([20, 16], config)
    batch = torch.randn(32, 20), torch.randn(32, 16)
    plain = Trainer(adapters, config, CPU)
    expected = [plain.gradients(0, batch), *(p.grad.clone() for p in adapters.parameters())]
    compiled = Trainer(adapters, config, CPU)
    compiled.forwards = [torch.compile(side, backend="aot_eager") for side in adapters.sides]
    got = [compiled.gradients(0, batch), *(p.grad for p in adapters.parameters())]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_loss_in_half_precision_gives_nearly_the_same_gradients():
    """What CUDA does: the embeddings enter the loss in bfloat16, and the gradient goes on in float32."""
    config = small(dropout=0.0, input_dropout=0.0, precision="float32")
    torch.manual_seed(0)
    adapters = Adapters([20, 16], config)
    batch = torch.randn(32, 20), torch.randn(32, 16)
    trainer, found = Trainer(adapters, config, CPU), []
    for precision in (torch.float32, torch.bfloat16):
        trainer.loss_precision = precision
        loss = trainer.gradients(0, batch)
        assert loss.dtype == torch.float32
        found.append(torch.cat([loss.flatten(), *(p.grad.flatten() for p in adapters.parameters())]))
    assert 0 < (found[1] - found[0]).norm() < 0.02 * found[0].norm()


def test_only_a_long_fit_on_a_gpu_is_compiled(monkeypatch):
    from fusemix.training import step

    monkeypatch.setattr(step, "runs_triton", lambda device: True)
    assert step.compiling_pays(1e18, torch.device("cuda"))
    assert not step.compiling_pays(1e12, torch.device("cuda"))
    assert not step.compiling_pays(1e18, CPU)


def test_pieces_that_are_embedded_twice_are_not_compiled():
    config = small(precision="float32")
    trainer = Trainer(Adapters([20, 16], config), config, CPU)
    trainer.forwards = [None, None]
    trainer.recompute = True
    assert trainer.gradients(0, (torch.randn(8, 20), torch.randn(8, 16))).isfinite()


def test_rows_of_several_parts_reach_another_device_block_by_block():
    """The meta device stands for a GPU: shapes only."""
    from fusemix.data.rows import LatentRows
    from fusemix.training import feed

    latents = LatentRows([torch.randn(5, 3).half(), torch.randn(9000, 3).half()])
    brought = feed._bring(latents, torch.device("meta"))
    assert brought.shape == (9005, 3) and brought.dtype == torch.float16 and brought.device.type == "meta"
    assert latents._whole is None, "nothing is gathered in memory"


def test_validation_embeddings_that_are_no_numbers_are_a_fit_that_diverged(monkeypatch):
    monkeypatch.setattr("fusemix.training.run.validate", lambda adapters, held: float("nan"))
    with pytest.raises(DivergedError, match=r"the validation embeddings became NaN after step 4 \(epoch 1\).*lower lr"):
        fit_adapters(pairs(128), pairs(40, "val", seed=1), small(), CPU, silent)
