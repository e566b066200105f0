"""The peer of the training benchmarks is the recipe it stands for: the same mathematics as ours, by slower means."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import released
from fusemix.align.adapters import Adapter
from fusemix.align.losses import info_nce
from fusemix.align.metrics import mean_recall
from fusemix.config import paper

CPU = torch.device("cpu")
SMALL = replace(paper(0), dim=16, depth=2, dropout=0.0, batch_size=16, epochs=8, warmup_steps=5)


@pytest.fixture
def world():
    """80 items of x, two y for each, all made from common causes."""
    rng = torch.Generator().manual_seed(0)
    cause = torch.randn(80, 6, generator=rng)
    x, y = cause @ torch.randn(6, 12, generator=rng), cause.repeat_interleave(2, 0) @ torch.randn(6, 9, generator=rng)
    return x, y + 0.1 * torch.randn(y.shape, generator=rng), (torch.arange(160) // 2, torch.arange(160))


def test_the_model_is_the_adapter_of_the_paper():
    model = released.Model(1536, 1024, paper(0))
    assert sum(p.numel() for p in model.parameters()) == 110_440_449


def test_embeddings_and_loss_are_ours_with_the_same_weights():
    model, config = released.Model(12, 9, replace(SMALL, alpha=0.0)), SMALL
    ours = [Adapter(12, config), Adapter(9, config)]
    for adapter, side in zip(ours, (model.x, model.y), strict=True):
        for mine, theirs in zip(adapter.parameters(), side.parameters(), strict=True):
            mine.data.copy_(theirs.data)
    x, y = torch.randn(7, 12), torch.randn(7, 9)
    torch.testing.assert_close(model(x, y), info_nce(ours[0](x), ours[1](y), config.temperature))


def test_both_modalities_are_mixed_with_one_lam(monkeypatch):
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.25)
    seen = {}
    model = released.Model(4, 4, replace(SMALL, depth=0))
    for name in ("x", "y"):
        getattr(model, name).register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    model(x, y)
    for name, latents in (("x", x), ("y", y)):
        torch.testing.assert_close(seen[name], 0.25 * latents[:3] + 0.75 * latents[3:])


def test_the_loader_deals_every_pair_at_most_once_and_only_whole_batches(world):
    *_, rows = world
    numbered = released.dataset(torch.arange(80.0)[:, None], torch.arange(160.0)[:, None], rows)
    batches = list(released.loader(numbered, replace(SMALL, batch_size=25)))
    assert [len(first) for first, _ in batches] == [50, 50, 50]
    seen = torch.cat([second for _, second in batches]).flatten()
    assert len(seen.unique()) == 150 and not torch.equal(seen, seen.sort().values)
    assert all(torch.equal(first, second // 2) for first, second in batches)
    assert numbered[0][0].dtype == torch.float32


def test_the_rate_warms_up_in_the_first_epoch_and_then_falls_once_an_epoch():
    rates = [released.learning_rate(paper(0), epoch, step) for epoch, step in ((0, 0), (0, 50), (0, 121), (250, 7))]
    assert rates == pytest.approx([1e-6, 5.005e-4, 1e-3, 5.005e-4])


def test_decay_is_on_matrices_only_and_adamw_is_the_default_one():
    model = released.Model(12, 9, SMALL)
    decayed, plain = released.adamw(model, SMALL).param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.ndim == 2 for p in decayed["params"])
    assert plain["weight_decay"] == 0 and any(p is model.temperature for p in plain["params"])
    assert not decayed["fused"]


def test_a_fit_learns_and_keeps_the_best_epoch(world):
    x, y, rows = world
    data = released.dataset(x, y, rows)
    model, history = released.fit(data, data, replace(SMALL, epochs=40), CPU)
    assert [record["epoch"] for record in history] == list(range(1, 41))
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert released.validate(model, data) == max(record["val"] for record in history) > 50
    assert 0.001 <= model.temperature.item() <= 0.5
    again, _ = released.fit(data, None, SMALL, CPU)
    assert not again.training


def test_recall_is_counted_as_ours_is(world):
    x, y, rows = world
    model = released.Model(12, 9, SMALL).eval()
    with torch.no_grad():
        embedded = [torch.nn.functional.normalize(side(z), dim=-1) for side, z in ((model.x, x), (model.y, y))]
    ours = mean_recall(*embedded, (rows[0].numpy(), rows[1].numpy()))
    assert released.validate(model, released.dataset(x, y, rows)) == pytest.approx(ours)
