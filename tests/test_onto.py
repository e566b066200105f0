"""A third modality lands in the space of a model that is there; nothing of that space moves."""

import json
import os

import numpy as np
import pytest
import torch

import fusemix as fm
import warm
from fusemix.align.closed_form import ridge_onto
from fusemix.align.moments import moments
from fusemix.data.latents import Latents
from fusemix.errors import DataError, MismatchError
from fusemix.search.index import Index
from fusemix.search.space import Space

THINGS, KNOWN = 400, 320


@pytest.fixture(scope="module")
def views():
    """Four noisy views of 400 things that are six numbers each."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(THINGS, 6))
    widths = {"image": 9, "word": 12, "sound": 8, "touch": 7}
    return {
        name: (things @ rng.normal(size=(6, d)) + 0.05 * rng.normal(size=(THINGS, d))).astype("f4")
        for name, d in widths.items()
    }


def pairs(views, *names, things=slice(0, KNOWN), split="train"):
    return Latents.from_arrays(split, **{name: views[name][things] for name in names})


@pytest.fixture(scope="module")
def base(views):
    """Joins pictures and words of the first half."""
    return fm.FuseMix(adapter="both", epochs=5, dim=16).fit(pairs(views, "image", "word", things=slice(0, 160)))


@pytest.fixture(scope="module")
def sounds(views, base):
    """Joins sounds and words of the other half; no sound has a picture."""
    return fm.FuseMix(adapter="ridge").fit(pairs(views, "word", "sound", things=slice(160, KNOWN)), onto=base)


def test_a_new_modality_meets_what_it_never_met(views, base, sounds, tmp_path):
    space = Space([base, sounds])
    assert space.modalities_ == ("image", "word", "sound") and sounds.modalities_ == ("sound", "word")
    unseen = pairs(views, "image", "word", "sound", things=slice(KNOWN, None), split="test")
    index = Index.of(space, unseen["image"])
    index.save(tmp_path / "i")
    for each in (index, fm.open_index(tmp_path / "i")):
        found = [each.search(latent, 1, "sound")[0].columns["row"] for latent in unseen["sound"].numpy()]
        assert np.mean(np.array(found) == np.arange(len(found))) > 0.8  # by chance 1 in 80


def test_the_space_stays_as_it_is_bit_for_bit(views, base, sounds, tmp_path):
    sounds.save(tmp_path / "sounds")
    for model in (sounds, fm.FuseMix.load(tmp_path / "sounds")):
        assert model.adapters_["word"].embeds_like(base.adapters_["word"])
        assert np.array_equal(model.embed_latents("word", views["word"]), base.embed_latents("word", views["word"]))
        assert model.facts_["onto"] == "word" and model.facts_["dim"] == base.facts_["dim"]
    card = (tmp_path / "sounds" / "README.md").read_text()
    assert "sound lands in the space of another model, which embeds word in the same way" in card


def test_a_network_lands_too_and_validation_chooses(views, base):
    train, val = pairs(views, "sound", "word"), pairs(views, "sound", "word", things=slice(KNOWN, None), split="val")
    model = fm.FuseMix(epochs=30, lr=0.01, settings={"input_dropout": 0.0}, dropout=0.0).fit(train, val=val, onto=base)
    assert set(model.facts_["tried"]) == {"ridge", "trained adapters"}
    alone = fm.FuseMix(adapter="mlp", epochs=30, lr=0.01, dropout=0.0).fit(train, val=val, onto=base)
    assert alone.facts_["chosen"] == "trained adapters" and alone.config_.adapter == "mlp"
    by_chance = 100 / (THINGS - KNOWN)
    assert alone.evaluate(val).retrieval["sound->word"].recall[1] > 10 * by_chance
    with pytest.raises(DataError, match="no modality of this model is locked"):
        _ = alone.locked


def test_baselines_are_of_the_latents_and_not_of_the_target(views, base, sounds):
    """They may move both sides, so they say what the fixed space costs."""
    free = fm.FuseMix(adapter="cca").fit(pairs(views, "sound", "word", things=slice(160, KNOWN)))
    held = pairs(views, "word", "sound", things=slice(KNOWN, None), split="test")
    for name in ("ridge", "cca"):
        for way, scores in sounds.evaluate(held).baselines[name].items():
            assert scores.recall == free.evaluate(held).baselines[name][way].recall, (name, way)


def test_it_goes_on_from_there_modality_by_modality(views, base, sounds, tmp_path):
    touch = fm.FuseMix(adapter="ridge").fit(pairs(views, "touch", "sound"), onto=sounds)
    touch.save(tmp_path / "touch")
    space = Space([base, sounds, fm.FuseMix.load(tmp_path / "touch")])
    unseen = pairs(views, "image", "touch", things=slice(KNOWN, None), split="test")
    index = Index.of(space, unseen["image"])
    found = [index.search(latent, 1, "touch")[0].columns["row"] for latent in unseen["touch"].numpy()]
    assert np.mean(np.array(found) == np.arange(len(found))) > 0.5


def test_hubs_are_corrected_between_what_one_model_joins_and_nowhere_else(views, base, sounds):
    corrected = fm.FuseMix(adapter="cca").fit(
        pairs(views, "image", "word"), val=pairs(views, "image", "word", things=slice(KNOWN, None), split="val")
    )
    if corrected.hubs_ is None:  # whatever validation liked: the bias itself is what is looked at
        banks = {name: torch.from_numpy(corrected.embed_latents(name, views[name])) for name in ("image", "word")}
        corrected.hubs_ = fm.align.hubness.Hubs(0.5, banks)
    newcomer = fm.FuseMix(adapter="ridge").fit(pairs(views, "sound", "word"), onto=corrected)
    newcomer.hubs_ = None
    alone, both = Space([corrected]), Space([corrected, newcomer])
    assert both.corrected == ("image", "word")
    rows = torch.from_numpy(corrected.embed_latents("image", views["image"]))
    assert torch.equal(both.as_rows("image", rows), alone.as_rows("image", rows))
    sound = torch.from_numpy(newcomer.embed_latents("sound", views["sound"]))
    assert not bool(both.as_rows("sound", sound)[:, -2:].any())
    queries = sound[:2].numpy()
    assert np.array_equal(both.as_queries("sound", queries)[:, -2:], np.zeros((2, 2)))


def test_ridge_onto_is_least_squares_in_the_space_as_it_is():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 3)) + 2
    rows = (np.arange(50), np.arange(50))
    form = ridge_onto(moments(torch.from_numpy(x), torch.from_numpy(y), rows), 0.1)
    centred, s = x - x.mean(axis=0), 0.1 * np.trace(np.cov(x.T, bias=True)) / 4
    truth = np.linalg.solve(centred.T @ centred / 50 + s * np.eye(4), centred.T @ (y - y.mean(axis=0)) / 50)
    assert np.allclose(form.map_x.numpy(), truth, atol=1e-5)
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    assert np.allclose(form.embed_y(torch.from_numpy(y)).numpy(), unit, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "width", "message"),
    [
        (("sound", "word", "image"), 12, "validation pairs are of sound, word, image; wanted sound, word"),
        (("sound", "image"), 12, "validation pairs are of sound, image; wanted sound, word"),
        (("sound", "word"), 5, "word latents of validation come from another encoder: .*width"),
    ],
)
def test_validation_pairs_of_something_else_are_told(views, base, names, width, message):
    given = {name: views[name][KNOWN:, :width] if name == "word" else views[name][KNOWN:] for name in names}
    with pytest.raises((DataError, MismatchError), match=message):
        fm.FuseMix().fit(pairs(views, "sound", "word"), val=Latents.from_arrays("val", **given), onto=base)


def test_a_model_is_not_overwritten_by_what_lands_in_its_space(views, base, tmp_path):
    base.save(tmp_path / "m")
    done = warm.run(["fit", "l", "--onto", "m", "-o", "./m"], tmp_path, dict(os.environ))
    assert done.returncode == 2 and "-o m is the model that --onto names" in done.stderr


def test_a_landing_is_forecast(views, base):
    (cost,) = fm.FuseMix(epochs=2).forecast(pairs(views, "word", "sound"), onto=base)
    assert cost.pairs == 288 and cost.modalities == {"sound": 8, "word": base.facts_["dim"]} and cost.seconds > 0
    with pytest.raises(DataError, match="neither lock nor unpaired"):
        fm.FuseMix(lock="word").forecast(pairs(views, "word", "sound"), onto=base)


def test_what_cannot_land_is_told(views, base, sounds):
    with pytest.raises(DataError, match=r"one modality that the model has \(image, word\).*got sound, touch"):
        fm.FuseMix().fit(pairs(views, "sound", "touch"), onto=base)
    with pytest.raises(DataError, match="got image, word"):
        fm.FuseMix().fit(pairs(views, "image", "word"), onto=base)
    train = pairs(views, "sound", "word")
    with pytest.raises(DataError, match="onto takes adapter auto, mlp or ridge, not 'cca'"):
        fm.FuseMix(adapter="cca").fit(train, onto=base)
    with pytest.raises(DataError, match="is 28 wide, dim=5 contradicts|wide, dim=5 contradicts: leave dim out"):
        fm.FuseMix(5).fit(train, onto=base)
    with pytest.raises(DataError, match="neither lock nor unpaired"):
        fm.FuseMix(lock="word").fit(train, onto=base)
    with pytest.raises(DataError, match="neither lock nor unpaired"):
        fm.FuseMix().fit(train, onto=base, unpaired={"word": views["word"]})
    narrow = Latents.from_arrays("train", sound=views["sound"], word=views["word"][:, :5])
    with pytest.raises(MismatchError, match="takes word latents of width 12, got 5"):
        fm.FuseMix().fit(narrow, onto=base)
    locked = fm.FuseMix(lock="word", depth=0, epochs=1).fit(pairs(views, "image", "word"))
    with pytest.raises(DataError, match="the model locks word: fit pairs of that with lock='word' to land in"):
        fm.FuseMix().fit(train, onto=locked)
    with pytest.raises(MismatchError, match="share a space only where both embed one modality in the very same way"):
        Space([base, fm.FuseMix(adapter="ridge").fit(train)])


def test_the_command_line_joins_what_has_no_common_row(tmp_path):
    """A table of pictures with words and of sounds with words, none with all three."""
    rng = np.random.default_rng(0)
    things, lines = rng.normal(size=(120, 4)), []
    maps = {name: rng.normal(size=(4, d)) for name, d in (("photo", 6), ("sound", 5), ("words", 7))}
    for i, thing in enumerate(things):
        cells = {name: (thing @ by).tolist() for name, by in maps.items()}
        cells["sound" if i < 60 else "photo"] = None
        lines.append(json.dumps({**cells, "split": ("train", "val", "test")[i % 10 // 8 + (i % 10 == 9)]}))
    (tmp_path / "t.jsonl").write_text("\n".join(lines))

    def run(words, code=0):
        done = warm.run(words.split(), tmp_path, dict(os.environ))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    told = run("extract t.jsonl --photo photo --sound sound --words words -o l")
    assert "photo and sound: 0 rows" in told and "photo and words: 60 rows" in told and "sound and words: 60" in told
    assert "next: fusemix fit l -o model --modality photo --modality words" in told
    assert "name two of them" in run("fit l -o m", 2)
    run("fit l -o m --modality photo --modality words --adapter cca")
    run("fit l -o s --modality sound --modality words --onto m")
    assert "sound->words" in run("evaluate s l")
    assert "60 photo" in run("index m l --modality photo --also s -o i --no-previews")
    assert fm.open_index(tmp_path / "i").space.modalities_ == ("photo", "words", "sound")
    assert "no modality 'nose' in l" in run("fit l -o x --modality nose --modality words", 2)
