"""Noise and randomised quantisation against plain loops; they act in training alone."""

import pytest
import torch
from torch import nn

from fusemix.align.adapters import Adapter
from fusemix.align.augment import GaussianNoise, RandomQuantization
from test_fit import small


@pytest.mark.parametrize("augmentation", [GaussianNoise(0.5), RandomQuantization(4)])
def test_they_act_in_training_alone(augmentation):
    x = torch.randn(64, 5)
    assert torch.equal(augmentation.eval()(x), x)
    assert not torch.equal(augmentation.train()(x), x)


def test_none_is_none_and_draws_nothing():
    x = torch.randn(64, 5)
    off = nn.Sequential(RandomQuantization(0), GaussianNoise(0.0)).train()
    torch.manual_seed(0)
    untouched = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(off(x), x)
    assert torch.equal(torch.rand(1), untouched)


def test_noise_has_the_deviation_that_was_asked_for():
    torch.manual_seed(0)
    noise = GaussianNoise(0.3).train()(torch.zeros(20_000, 3))
    torch.testing.assert_close(noise.std(dim=0), torch.full((3,), 0.3), rtol=0.02, atol=0)


@pytest.mark.parametrize("bins", [2, 3, 8])
def test_quantisation_keeps_the_order_of_values_and_few_of_them(bins):
    torch.manual_seed(0)
    x = torch.randn(500, 6, dtype=torch.float64)
    out = RandomQuantization(bins).train()(x)
    for column, before in zip(out.T, x.T, strict=True):
        assert 2 <= len(column.unique()) <= bins
        assert (column[before.argsort()].diff() >= 0).all()  # a smaller value never becomes the larger one
        assert before.min() <= column.min() and column.max() <= before.max()
        # Values of one bin are neighbours: the bins do not overlap.
        for value in column.unique():
            inside = before[column == value]
            others = before[column != value]
            assert not ((others > inside.min()) & (others < inside.max())).any()


def test_every_dimension_has_bins_of_its_own():
    torch.manual_seed(0)
    x = torch.randn(200, 1).expand(200, 4)
    out = RandomQuantization(3).train()(x)
    assert not torch.equal(out[:, 0], out[:, 1])


def test_a_constant_dimension_stays():
    out = RandomQuantization(5).train()(torch.full((10, 2), 3.0))
    assert torch.equal(out, torch.full((10, 2), 3.0))


def test_an_adapter_augments_standardised_latents():
    adapter = Adapter(4, small(noise=0.5, input_dropout=0.0, dropout=0.0)).train()
    adapter.standardize(torch.full((4,), 10.0), torch.full((4,), 100.0))
    seen = []
    adapter.blocks.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    adapter(torch.full((5000, 4), 10.0))
    torch.testing.assert_close(seen[0].std(dim=0), torch.full((4,), 0.5), rtol=0.05, atol=0)
