"""FuseMix as a user holds it: scikit-learn's manners, saving, raw items, and every guard against a mix-up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone

import fusemix as fm
from conftest import encode_image, encode_text
from fusemix.data.latents import Latents
from fusemix.errors import DataError, EncoderError, MismatchError, NotFittedError, StoreError


def arrays(count=200, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 6))
    return z @ np.random.default_rng(1).normal(size=(6, 20)), z @ np.random.default_rng(2).normal(size=(6, 10))


def test_arrays_work_as_in_scikit_learn():
    x, y = arrays()
    zx, zy = fm.FuseMix(dim=16, epochs=150, recipe="scaled").fit_transform(x, y)
    assert zx.shape == zy.shape == (200, 16) and zx.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(zx, axis=1), 1, rtol=1e-5)
    assert ((zx @ zy.T).argmax(axis=1) == np.arange(200)).mean() > 0.5


def test_clone_and_params():
    model = fm.FuseMix(dim=16, alpha=0.3, seed=4)
    copy = clone(model)
    assert copy is not model and copy.get_params() == model.get_params()
    assert model.set_params(alpha=1.0).alpha == 1.0
    assert repr(model) == "FuseMix(dim=16, alpha=1.0, recipe='auto', seed=4)"
    with pytest.raises(DataError, match="no parameter 'alhpa'.*did you mean 'alpha'"):
        model.set_params(alhpa=1)


def test_score_is_the_mean_recall_at_one():
    x, y = arrays()
    model = fm.FuseMix(dim=16, epochs=5).fit(x, y)
    ways = model.evaluate(Latents.from_arrays(x=x, y=y)).retrieval
    assert model.score(x, y) == pytest.approx(np.mean([s.recall[1] for s in ways.values()]) / 100)


def test_a_saved_model_gives_the_same_embeddings_and_the_same_evaluation(model, latents, tmp_path):
    test = latents.only("test")
    model.save(tmp_path / "m")
    again = fm.FuseMix.load(tmp_path / "m")
    np.testing.assert_array_equal(
        again.embed_latents("image", test["image"].latents), model.embed_latents("image", test["image"].latents)
    )
    assert again.evaluate(test).to_dict() == model.evaluate(test).to_dict()
    assert again.get_params() == model.get_params() and again.history_ == model.history_
    assert "licences of the encoders" in (tmp_path / "m" / "README.md").read_text()
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "README.md", "adapters.safetensors", "baselines.safetensors", "canaries.safetensors", "facts.json",
        "hubs.safetensors", "seen.safetensors",
    ]  # fmt: skip


def test_a_damaged_or_missing_model_says_so(model, tmp_path):
    with pytest.raises(StoreError, match="holds no model .*fusemix fit"):
        fm.FuseMix.load(tmp_path / "none")
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="damaged"):
        fm.FuseMix.load(tmp_path / "m")
    facts = tmp_path / "m" / "facts.json"
    facts.write_text(facts.read_text().replace('"dropout"', '"drop_out"'))
    with pytest.raises(StoreError, match="drop_out"):
        fm.FuseMix.load(tmp_path / "m")


def test_weights_of_another_shape_are_never_loaded_silently(model, tmp_path):
    """The released code loads four-block weights into one block without a word (method.md, trap 2)."""
    model.save(tmp_path / "m")
    facts = tmp_path / "m" / "facts.json"
    facts.write_text(
        facts.read_text().replace(f'"depth": {model.config_.depth}', f'"depth": {model.config_.depth + 1}')
    )
    with pytest.raises(StoreError, match="damaged or was made by another version"):
        fm.FuseMix.load(tmp_path / "m")


def test_raw_items_are_encoded_and_embedded(world, model, latents):
    images = latents["image"]
    model.use_encoder("image", encode_image).use_encoder("text", encode_text)
    by_file = model.embed([world / images.values[0], world / images.values[1]])
    np.testing.assert_allclose(by_file, model.embed_latents("image", images.latents[:2]), atol=2e-3)
    texts = latents["text"]
    np.testing.assert_allclose(
        model.embed([texts.values[5]]), model.embed_latents("text", texts.latents[5:6]), atol=2e-3
    )
    with pytest.raises(DataError, match="missing"):
        model.embed([world / "nothing.png"])
    with pytest.raises(DataError, match="wanted a list of items, got one str"):
        model.embed("red above blue")
    assert model.embed([]).shape == (0, 32)
    with pytest.raises(DataError, match="cannot tell which modality a int is.*image .image., text .text."):
        model.embed([3])


def test_an_encoder_that_differs_is_refused_with_the_field(model):
    with pytest.raises(MismatchError, match="not the encoder of 'text'.*code"):
        model.use_encoder("text", lambda texts: encode_text(texts))


def test_latents_of_another_encoder_are_refused_with_the_field(model, latents):
    other = replace(latents.items["text"], encoder={**latents.items["text"].encoder, "code": "changed"})
    mixed = replace(latents, items={**latents.items, "text": other})
    with pytest.raises(MismatchError, match=r"text latents come from another encoder.*code \(was .*, is 'changed'\)"):
        model.evaluate(mixed.only("test"))
    with pytest.raises(MismatchError, match="joins image and text, these latents are of x and y"):
        model.evaluate(Latents.from_arrays(x=[[1.0]], y=[[1.0]]))


def test_wrong_widths_unknown_modalities_and_unfitted_models_are_refused(model):
    with pytest.raises(DataError, match=r"image: wanted latents of shape \(N, 51\), got \(3, 4\)"):
        model.embed_latents("image", np.zeros((3, 4)))
    with pytest.raises(DataError, match="no modality 'imagee'.*did you mean 'image'"):
        model.embed_latents("imagee", np.zeros((3, 51)))
    with pytest.raises(NotFittedError, match="call fit"):
        fm.FuseMix().transform([[1.0]], [[1.0]])
    with pytest.raises(DataError, match="device 'gpu' cannot be used here"):
        fm.FuseMix(device="gpu").fit(*arrays(8))
    with pytest.raises(DataError, match="two arrays whose rows belong together"):
        fm.FuseMix().fit([[1.0]])
    with pytest.raises(DataError, match="no recipe 'papper'.*did you mean 'paper'"):
        fm.FuseMix(recipe="papper").fit(*arrays(8))


def test_models_fitted_on_arrays_cannot_take_raw_items():
    model = fm.FuseMix(dim=4, epochs=1).fit(*arrays(16))
    with pytest.raises(EncoderError, match="given ready-made"):
        model.embed(["some text"], modality="x")


def test_arrays_that_do_not_pair_are_refused():
    x, y = arrays(20)
    with pytest.raises(DataError, match="rows"):
        fm.FuseMix().fit(x, y[:-1])
    x[3, 2] = np.nan
    with pytest.raises(DataError, match="row 3 holds NaN"):
        fm.FuseMix().fit(x, y)


def test_validation_pairs_in_the_place_of_y_are_not_ignored(latents):
    train, val, _ = latents.split()
    with pytest.raises(DataError, match="give validation pairs as val="):
        fm.FuseMix(epochs=1).fit(train, val)


def test_the_epoch_is_not_chosen_on_test(latents):
    train, _, test = latents.split()
    with pytest.raises(DataError, match="split named 'test'"):
        fm.FuseMix(epochs=1).fit(train, val=test)


def test_the_paper_recipe_has_four_blocks_and_its_settings():
    config = fm.FuseMix(recipe="paper", seed=7).config(5_000_000)
    assert (config.depth, config.dropout, config.batch_size, config.epochs, config.seed) == (4, 0.6, 20480, 500, 7)
    assert fm.FuseMix(recipe="paper", epochs=3).config(10).epochs == 3


def test_the_model_leaves_the_training_latents_untouched(latents):
    before = latents["image"].latents.clone()
    fm.FuseMix(dim=8, epochs=1).fit(latents.only("train"))
    assert torch.equal(before, latents["image"].latents)


def test_any_setting_of_a_fit_can_be_given_by_name(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 5))
    given = {"mixing": "sample", "noise": 0.2, "input_dropout": 0.0}
    model = fm.FuseMix(dim=8, epochs=2, settings=given).fit(x, y)
    assert {name: getattr(model.config_, name) for name in given} == given
    assert clone(model).settings == given
    model.save(tmp_path / "m")
    assert fm.FuseMix.load(tmp_path / "m").settings == given
    with pytest.raises(DataError, match="a fit has no setting 'nois'; .* did you mean 'noise'"):
        fm.FuseMix(settings={"nois": 0.2}).fit(x, y)
    with pytest.raises(DataError, match="no mixing 'both' for a fit; found: shared, separate, sample, spherical"):
        fm.FuseMix(settings={"mixing": "both"}).fit(x, y)
