"""Poolings: each function against numpy, the table of architectures, and choices that are warned of or refused."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusemix.encoders.pooling import FAMILIES, NAMED, POOLINGS, choose, family_of, pool, show_layers, split
from fusemix.errors import EncoderError

HIDDEN = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32))
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
LENGTHS = (5, 3, 1)


def output(**values):
    return SimpleNamespace(last_hidden_state=HIDDEN, **values)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean", "last"])
def test_a_pooling_equals_its_definition_and_sees_no_padding(pooling, mask):
    got = pool(output(), pooling, mask).numpy()
    for row, tokens, length in zip(got, HIDDEN.numpy(), LENGTHS if mask is not None else (5, 5, 5), strict=True):
        real = tokens[:length]
        parts = {"cls": real[0], "mean": real.mean(axis=0), "last": real[-1]}
        np.testing.assert_allclose(row, np.concatenate([parts[word] for word in pooling.split("+")]), atol=1e-6)


def test_the_mean_leaves_out_special_tokens():
    np.testing.assert_allclose(pool(output(), "mean", None, 2), HIDDEN[:, 2:].mean(dim=1), atol=1e-6)
    both = pool(output(), "cls+mean", None, 2)
    np.testing.assert_allclose(both, torch.cat([HIDDEN[:, 0], HIDDEN[:, 2:].mean(dim=1)], dim=1), atol=1e-6)
    assert pool(output(), "mean", MASK, 2).isfinite().all()  # nothing real is left of the last row


def test_the_pooler_is_the_models_own_and_latents_are_float32():
    own = torch.ones(3, 4, 1, 1, dtype=torch.bfloat16)
    got = pool(output(pooler_output=own), "pooler")
    assert got.shape == (3, 4) and got.dtype == torch.float32
    assert pool(SimpleNamespace(last_hidden_state=HIDDEN.bfloat16()), "mean").dtype == torch.float32


def test_a_map_has_a_mean_and_no_tokens():
    image = SimpleNamespace(last_hidden_state=torch.rand(2, 3, 4, 5))
    np.testing.assert_allclose(pool(image, "mean"), image.last_hidden_state.mean(dim=(2, 3)))
    with pytest.raises(EncoderError, match="a map and no tokens, so no pooling 'cls'; choose mean or pooler"):
        pool(image, "cls")


def test_a_model_without_a_pooler_says_so():
    for values in ({}, {"pooler_output": None}):
        with pytest.raises(EncoderError, match="no pooler of its own; choose the pooling mean or cls"):
            pool(output(**values), "pooler")


def test_every_family_and_name_has_poolings_that_exist():
    each = [pooling for family in FAMILIES.values() for pooling in family.poolings]
    assert {part for pooling in each for part in split(pooling)} <= {(word, None) for word in POOLINGS}
    assert all(family.poolings for family in FAMILIES.values())
    assert set(NAMED.values()) <= set(POOLINGS)


def test_registers_count_as_special_tokens():
    registers = SimpleNamespace(model_type="dinov2_with_registers", num_register_tokens=4)
    assert family_of(registers).special == 5
    assert family_of(SimpleNamespace(model_type="dinov2")).special == 1
    assert family_of(SimpleNamespace(model_type="unheard-of")) is None


def test_the_default_is_what_the_family_was_made_for_and_else_the_fallback():
    assert choose(None, ("cls", "mean"), "mean", "m") == "cls"
    assert choose(None, (), "mean", "m") == "mean"


@pytest.mark.parametrize(("asked", "known"), [("mean", ("cls", "mean")), ("cls", ()), ("last", ("last",))])
def test_a_pooling_that_is_known_to_work_is_not_warned_of(asked, known):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(asked, known, "mean", "m") == asked


def test_another_pooling_of_a_known_family_is_warned_of_by_both_names():
    with pytest.warns(UserWarning, match="org/m was made for pooling 'last', and is used with 'mean'"):
        assert choose("mean", ("last",), "mean", "org/m") == "mean"


def test_an_unknown_pooling_names_the_choices():
    with pytest.raises(EncoderError, match=r"m: no pooling 'men'; found: cls, mean, .* mean 'mean'\?; of a layer"):
        choose("men", (), "mean", "m")


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_pooling_of_a_layer_is_that_pooling_of_its_hidden_states(pooling):
    states = tuple(HIDDEN * factor for factor in (1, 2, 3))
    for layer, state in ((0, 0), (2, 2), (-1, 2), (-3, 0)):
        wanted = pool(SimpleNamespace(last_hidden_state=states[state]), pooling, MASK)
        assert torch.equal(pool(output(hidden_states=states), f"{pooling}@{layer}", MASK), wanted)
    assert show_layers("mean@-2") == {"output_hidden_states": True} and show_layers("cls+mean") == {}


def test_a_layer_that_is_not_there_is_an_error_that_says_which_are():
    for layer in (3, -4):
        with pytest.raises(EncoderError, match=f"no layer {layer}: it has 2, which are @1 to @2 or @-2 to @-1, and @0"):
            pool(output(hidden_states=(HIDDEN,) * 3), f"mean@{layer}")
    with pytest.raises(EncoderError, match="does not show its layers, so no pooling of layer -2; leave out the @"):
        pool(output(), "mean@-2")


def test_poolings_of_several_layers_stand_side_by_side():
    states = tuple(HIDDEN * factor for factor in (1, 2, 3))
    got = pool(output(hidden_states=states), "mean+cls@0+mean@-2", MASK, 1)
    parts = [pool(output(), "mean", MASK, 1), states[0][:, 0], 2 * pool(output(), "mean", MASK, 1)]
    torch.testing.assert_close(got, torch.cat(parts, dim=1), rtol=0, atol=1e-6)
    assert show_layers("mean+mean@0") == {"output_hidden_states": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("cls@2+mean+mean@0", ("mean",), "mean", "m"), "what it was made for is among them"
    with pytest.warns(UserWarning, match="made for pooling 'cls.mean', and is used with 'cls.mean@0'"):
        choose("cls+mean@0", ("cls+mean",), "mean", "m")


@pytest.mark.parametrize("asked", ["+", "mean+", "+mean", "mean++cls", "mean+men@0", "mean+mean@x"])
def test_every_part_of_several_poolings_exists(asked):
    with pytest.raises(EncoderError, match=r"no pooling .*; found: cls, mean, last, pooler.* several: mean\+mean@0"):
        choose(asked, (), "mean", "m")


@pytest.mark.parametrize("asked", ["mean@", "mean@two", "mean@+1", "mean@-0", "mean@01", "max@-1", "@-1"])
def test_a_layer_has_one_way_to_be_written(asked):
    with pytest.raises(EncoderError, match="no pooling .* found: cls.* of a layer: mean@-2"):
        choose(asked, (), "mean", "m")


def test_the_pooler_has_no_layers():
    with pytest.raises(EncoderError, match="no pooling 'pooler@-2', as the pooler sees the last layer only"):
        choose("pooler@-2", (), "mean", "m")


def test_the_layer_of_a_pooling_that_the_model_was_made_for_is_warned_of():
    with pytest.warns(UserWarning, match="made for pooling 'mean', and is used with 'mean@-2'"):
        assert choose("mean@-2", ("mean",), "mean", "m") == "mean@-2"
