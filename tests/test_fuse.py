"""What validation likes best: closed forms, a network, both; without validation, with few pairs, without partners."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fusemix as fm
from fusemix.align.adapters import Adapter, Joined, Linear, Refined, refining
from fusemix.align.closed_form import ClosedForm, cca, in_deviations
from fusemix.align.folds import STRENGTH
from fusemix.align.hubness import corrected_recall, hub_bias
from fusemix.config import scaled
from fusemix.contest import Entry, Way, _error, calibrate, contest
from fusemix.data.latents import Latents
from fusemix.errors import DataError, MismatchError, StoreError
from fusemix.fit import fit_adapters
from fusemix.fuse import LEAD, folds_of, fuse, hold_out, latents_of
from fusemix.progress import silent
from fusemix.training.validation import Sides
from fusemix.unpaired import without_partners
from test_transport import shared

CPU = torch.device("cpu")
QUICK = {"epochs": 2, "batch_size": 32, "depth": 0, "dim": 8}


def pairs(count, seed=0, noise=1.0, split="train"):
    x, y = shared(count, seed=seed, noise=noise)
    return Latents.from_arrays(split, image=x.numpy(), text=y.numpy())


def quick(**given):
    return fm.FuseMix(**{**QUICK, "settings": {"refine": False}, **given})


def recall(model, latents):
    return np.mean([ways.recall[1] for ways in model.evaluate(latents).retrieval.values()])


def test_auto_keeps_what_validation_likes_best_and_says_what_it_tried():
    train, val = pairs(200), pairs(80, 1)
    model = quick().fit(train, val=val)
    tried = model.facts_["tried"]
    assert list(tried.values()) == sorted(tried.values(), reverse=True)
    assert set(tried) == {"cca", "trained adapters", *(f"cca + {s:g} trained adapters" for s in (0.3, 0.5, 0.7))}
    assert model.facts_["chosen"] == next(iter(tried))
    assert model.config_.adapter == "cca", "two epochs of a network cannot have learned as much"
    assert isinstance(model.adapters_["image"], Linear)


def test_a_network_that_validates_better_is_kept():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(700, 2))
    x = z @ rng.normal(size=(2, 10))
    y = np.cos(3 * z @ rng.normal(size=(2, 40)) + rng.uniform(0, 6, 40))  # little of it is linear in x
    given = {"dim": 16, "batch_size": 100, "alpha": 0, "dropout": 0, "lr": 5e-3, "settings": {"input_dropout": 0.0}}
    model = fm.FuseMix(epochs=30, **given).fit(x[:600], y[:600], val=(x[600:], y[600:]))
    assert model.config_.adapter in ("mlp", "both")
    tried = model.facts_["tried"]
    assert tried["trained adapters"] > tried["cca"] + LEAD and not any("refined" in name for name in tried)
    assert "no network that begins as CCA was trained, as the other one is far ahead of CCA" in model.facts_["notes"]
    assert tried[model.facts_["chosen"]] > tried["cca"] + 10


@pytest.mark.parametrize("adapter", ["cca", "ridge", "procrustes"])
def test_a_closed_form_alone_trains_nothing(adapter):
    model = fm.FuseMix(adapter=adapter).fit(pairs(150), val=pairs(60, 1))
    assert model.config_.adapter == adapter and model.history_ == [] and model.facts_["best_epoch"] is None
    assert recall(model, pairs(100, 2)) > 50


def test_the_sum_of_scores_is_one_embedding():
    train, val = pairs(150), pairs(60, 1)
    model = quick(adapter="both").fit(train, val=val)
    adapter = model.adapters_["image"]
    assert isinstance(adapter, Joined) and [type(each) for each in adapter.each] == [Linear, Adapter]
    x, y = torch.from_numpy(val["image"].numpy()), torch.from_numpy(val["text"].numpy())
    cosines = torch.from_numpy(model.embed_latents("image", x) @ model.embed_latents("text", y).T)
    parts = zip(adapter.each, model.adapters_["text"].each, strict=True)
    with torch.no_grad():
        wanted = sum(share * a(x) @ b(y).T for share, (a, b) in zip(adapter.shares, parts, strict=True))
    torch.testing.assert_close(cosines, wanted, atol=1e-5, rtol=0)
    assert model.facts_["dim"] == model.embed_latents("image", x).shape[1] == 50 + 8


def test_without_validation_some_training_groups_judge_and_the_closed_form_then_takes_them_in():
    train = pairs(200)
    model = fm.FuseMix(adapter="cca", seed=3).fit(train)
    assert model.facts_["tried"] and model.facts_["chosen_on"] == []
    rest, held = hold_out(train, 3)
    assert len(held) == 20 and not set(held.groups) & set(rest.groups)
    torch.testing.assert_close(model.adapters_["image"].shift, train["image"].latents.mean(dim=0))  # of all 200


def test_pairs_of_any_split_may_be_trained_on_and_then_some_of_them_judge():
    facts = quick().fit(pairs(250, split="test")).facts_
    assert facts["tried"] and facts["judged"] == 25 and facts["judges"] == "train, held out"


def test_too_few_pairs_to_choose_by_are_joined_by_a_closed_form():
    """Its shrinkage is that which suits a corrected search of its folds, and so it is corrected."""
    model = quick().fit(pairs(60))
    assert model.config_.adapter == "cca" and model.facts_["tried"] == {} and model.history_ == []
    assert model.hubs_.strength == STRENGTH and model.facts_["hubs"]["uncorrected"] is None
    assert model.facts_["temperature"] < 0.07
    few = quick().fit(pairs(60), val=pairs(19, 1))
    assert few.facts_["judged"] == 0 and any("19 validation pairs are too few" in note for note in few.facts_["notes"])
    assert np.array_equal(few.embed_latents("image", np.eye(60)), model.embed_latents("image", np.eye(60)))
    assert quick().fit(pairs(60), val=pairs(20, 1)).facts_["judged"] == 20
    instead = quick().fit(pairs(250), val=pairs(19, 1)).facts_
    assert (instead["judged"], instead["judges"]) == (25, "train, held out")
    turned = quick(adapter="procrustes").fit(pairs(60))
    assert turned.hubs_ is None, "nothing was chosen for it"
    lone = quick().fit(pairs(5))
    assert lone.hubs_ is None and lone.facts_["temperature"] == 0.07, "nobody chose a shrinkage either"
    assert quick(adapter="both").fit(pairs(12)).config_.adapter == "both"
    two = quick().fit(pairs(2))
    assert np.isfinite(two.embed_latents("image", pairs(2)["image"].latents)).all()


def test_the_seed_decides_everything():
    one, two = (quick(adapter="both", seed=5).fit(pairs(80), val=pairs(40, 1)) for _ in range(2))
    latents = pairs(10, 2)["image"].latents
    assert np.array_equal(one.embed_latents("image", latents), two.embed_latents("image", latents))


def test_a_saved_model_embeds_and_corrects_as_it_did(tmp_path):
    for adapter in ("cca", "both", "mlp"):
        model = quick(adapter=adapter).fit(pairs(120), val=pairs(60, 1))
        model.save(tmp_path / adapter)
        again = fm.FuseMix.load(tmp_path / adapter)
        latents = pairs(30, 2)
        for name in latents:
            numbers = latents[name].latents
            assert np.array_equal(model.embed_latents(name, numbers), again.embed_latents(name, numbers))
        assert (again.hubs_ is None) == (model.hubs_ is None)
        if model.hubs_ is not None:
            assert again.hubs_.strength == model.hubs_.strength
            for name, bank in model.hubs_.banks.items():
                torch.testing.assert_close(again.hubs_.banks[name], bank, atol=1e-3, rtol=0)
        np.testing.assert_allclose(recall(again, latents), recall(model, latents), atol=4)


def test_the_contest_is_what_a_plain_one_finds():
    train, held = pairs(100, noise=3), pairs(50, 1, noise=3)
    model = fm.FuseMix(adapter="cca").fit(train)
    way = Way("cca", "cca", model.adapters_)
    known = [train[name].rows.whole() for name in train]
    won = contest([way], [], known, held, only=False)
    x, y = (torch.from_numpy(model.embed_latents(name, held[name].latents)) for name in held)
    bank_x, bank_y = (torch.from_numpy(model.embed_latents(name, each)) for name, each in zip(held, known, strict=True))
    rows = np.arange(50), np.arange(50)
    recalls = [corrected_recall(x, y, rows, s * hub_bias(x, bank_y), s * hub_bias(y, bank_x)) for s in (0.0, 0.25, 0.5)]
    assert won.uncorrected == pytest.approx(recalls[0]) and won.tried["cca"] == pytest.approx(max(recalls), abs=0.01)
    assert won.strength == (0.0, 0.25, 0.5)[int(np.argmax(recalls))]


def test_a_way_that_is_ahead_by_chance_is_not_kept_and_that_is_told():
    train, held = pairs(200, noise=3), pairs(40, 1, noise=3)
    known = [train[name].rows.whole() for name in train]
    simple = Way("simple", "cca", fm.FuseMix(adapter="cca").fit(train).adapters_)

    def blurred(seed, by):
        noise, sides = torch.Generator().manual_seed(seed), {}
        for name, side in simple.adapters.items():
            sides[name] = Linear(
                side.shift, side.map + by * side.map.std() * torch.randn(side.map.shape, generator=noise)
            )
        return Way(f"blurred {seed}", "cca", sides)

    won = contest([simple, *(blurred(seed, 0.3) for seed in range(12))], [], known, held)
    first = next(iter(won.tried))
    assert first != "simple" == won.way.what, "of a dozen that are no better some are ahead by chance"
    (note,) = won.notes
    ahead = won.tried[first] - won.tried["simple"]
    assert note.startswith(f"{first} found {ahead:.1f} more in held-out pairs than simple, which is less than")
    won = contest([blurred(0, 3.0), simple], [], known, held)
    assert won.way.what == "simple" and not won.notes, "what is ahead beyond doubt"


def test_many_judges_need_one_standard_error_and_few_need_two(monkeypatch):
    train = pairs(200, noise=3)
    known = [train[name].rows.whole() for name in train]
    good = fm.FuseMix(adapter="cca").fit(train).adapters_
    noise = torch.Generator().manual_seed(0)
    poor = {
        name: Linear(side.shift, side.map + side.map.std() * torch.randn(side.map.shape, generator=noise))
        for name, side in good.items()
    }
    ways = [Way("poor", "cca", poor), Way("good", "cca", good)]
    for judges, errors in ((99, 2), (100, 1)):
        held = pairs(judges, 1, noise=3)
        tried = contest(ways, [], known, held).tried
        ahead = tried["good"] - max(contest(ways[:1], [], known, held).tried.values())
        for share, kept in ((0.9, "good"), (1.1, "poor")):
            monkeypatch.setattr("fusemix.contest._error", lambda *_, error=share * ahead / errors: error)
            assert contest(ways, [], known, held).way.what == kept, (judges, share)
        monkeypatch.undo()


def test_the_error_of_a_difference_is_that_of_whole_groups():
    """Captions of one picture stand or fall together: as a bootstrap of pictures says, whichever side comes first."""
    rng = np.random.default_rng(0)
    pictures, captions = np.arange(60), np.arange(300)
    luck = rng.integers(0, 9, size=(2, 60))
    ways = [(1 + each, 1 + np.repeat(each, 5) + rng.integers(0, 3, size=300)) for each in luck]
    groups = pictures, captions // 5
    found = _error(*ways, groups)
    gains = [100 * np.mean([(a <= k) * 1.0 - (b <= k) for k in (1, 5, 10)], axis=0) for a, b in zip(*ways, strict=True)]
    drawn = [rng.integers(60, size=60) for _ in range(4000)]
    means = [(gains[0][some].mean() + gains[1].reshape(60, 5)[some].mean()) / 2 for some in drawn]
    assert found == pytest.approx(np.std(means), rel=0.05)
    assert found == pytest.approx(_error(*(way[::-1] for way in ways), groups[::-1]))
    assert _error(*((way[0][:1], way[1][:5]) for way in ways), (pictures[:1], captions[:5] // 5)) == np.inf


def test_the_simplest_is_corrected_as_when_its_shrinkage_was_chosen():
    """Unless another strength is clearly ahead: on few held-out pairs one is by chance."""
    train = pairs(200, noise=3)
    known = [train[name].rows.whole() for name in train]
    simple = Way("simple", "cca", fm.FuseMix(adapter="cca").fit(train).adapters_)
    judges = [pairs(40, seed, noise=3) for seed in range(1, 9)]
    kept = [contest([simple], [], known, held).strength for held in judges]
    best = [contest([simple], [simple], known, held, only=True, shares=(0.5,)).strength for held in judges]
    assert kept.count(STRENGTH) >= 7 > best.count(STRENGTH)


def test_scores_are_added_in_units_of_their_spread():
    train, held = pairs(60), pairs(30, 1)
    known = [train[name].rows.whole() for name in train]
    wide = Way("wide", "cca", fm.FuseMix(adapter="cca").fit(train).adapters_)
    narrow = Way("narrow", "procrustes", fm.FuseMix(adapter="procrustes").fit(train).adapters_)
    sides = Sides.of(held, held.modalities, CPU)
    first, second = (Entry.of(way, sides, known) for way in (wide, narrow))
    both = first.joined(second, 0.3)
    cosines = 0.7 / first.spread() * first.x @ first.y.T + 0.3 / second.spread() * second.x @ second.y.T
    found = both.x @ both.y.T
    torch.testing.assert_close(found / found.std(), cosines / cosines.std(), atol=1e-4, rtol=1e-4)


def test_the_temperature_is_the_likeliest():
    x, y = torch.eye(5), torch.nn.functional.normalize(torch.eye(5) + 0.5, dim=1)
    rows = np.arange(5), np.arange(5)
    found = calibrate(x, y, rows)
    costs = {t: float(torch.nn.functional.cross_entropy(x @ y.T / t, torch.arange(5))) for t in (found, 0.1, 0.3)}
    assert min(costs, key=costs.get) == found


def test_items_without_partners_are_learned_from():
    train, val, test = pairs(40, noise=3), pairs(100, 1, noise=3), pairs(200, 2, noise=3)
    x, y = shared(1200, seed=5, noise=3)
    alone = fm.FuseMix(adapter="cca").fit(train, val=val)
    others = {"image": x.numpy(), "text": y.numpy()[::-1].copy()}
    helped = fm.FuseMix(adapter="cca").fit(train, val=val, unpaired=others)
    assert helped.facts_["chosen"] == "cca that learned from items without partners"
    assert recall(helped, test) > recall(alone, test) + 10
    seen = helped.evaluate(Latents.from_arrays("test", image=x[:50].numpy(), text=y[:50].numpy())).notes
    assert "50 of 50 image items were learned from without their partners: in our favour" in seen
    one_sided = fm.FuseMix(adapter="cca").fit(train, val=val, unpaired={"text": others["text"]})
    assert "cca that learned from items without partners" in one_sided.facts_["tried"]


def test_items_of_val_and_test_are_never_learned_from():
    x, y = shared(30)
    train, val = pairs(10), Latents.from_arrays("val", image=x[:5].numpy(), text=y[:5].numpy())
    for split, count in (("train", 25), ("arrays", 25), ("val", 0), ("test", 0)):
        given = Latents.from_arrays(split, image=x.numpy(), text=y.numpy())
        if not count:
            with pytest.raises(DataError, match="no item is left beside those of the splits val and test"):
                without_partners(given, train)
            continue
        found = latents_of(without_partners(given, train), val)
        assert len(found["image"]) == count and torch.equal(found["image"], x[5:])  # 5 of 30 are in val


def test_items_without_partners_are_learned_from_where_nobody_can_judge_because_that_was_asked():
    x, y = shared(200, seed=3)
    model = quick().fit(pairs(30), unpaired={"image": x.numpy(), "text": y.numpy()})
    assert "learned from items without partners" in model.facts_["chosen"] and model.facts_["judged"] == 0
    assert not np.array_equal(model.transform(x, y)[0], quick().fit(pairs(30)).transform(x, y)[0])
    notes = model.evaluate(Latents.from_arrays("more", image=x.numpy(), text=y.numpy())).notes
    assert any("learned from without their partners" in note for note in notes)


def test_what_was_looked_at_and_not_learned_from_is_not_said_to_be():
    x, y = shared(200, seed=3)
    noise = {"image": np.random.default_rng(0).normal(size=x.shape), "text": y.numpy()}
    model = quick().fit(pairs(150), val=pairs(60, 1), unpaired=noise)
    seen = model.seen_["learned from without their partners/image"]
    assert bool(len(seen)) == ("learned from items" in model.facts_["chosen"] or model.hubs_ is not None)


def test_what_cannot_be_learned_from_says_so():
    train = pairs(10)
    with pytest.raises(DataError, match="wanted items of image or text, got audio"):
        without_partners({"audio": np.ones((3, 4))}, train)
    with pytest.raises(MismatchError, match="width"):
        without_partners({"image": np.ones((3, 4))}, train)
    with pytest.raises(
        DataError, match=r"wanted Latents, or arrays by modality such as unpaired=.'image': array., got ndarray"
    ):
        without_partners([np.ones((3, 4))], train)
    assert without_partners((), train) == {}


def test_many_pairs_do_without_items_that_have_no_partner(monkeypatch):
    monkeypatch.setattr("fusemix.fuse.ENOUGH_PAIRS", 100)
    config = scaled(120, 0).changed({"adapter": "cca"})
    others = {"image": [pairs(50, 3).items["image"]]}
    fused = fuse(pairs(120), pairs(40, 1), config, CPU, silent, unpaired=others)
    assert any("items without partners are left out" in note for note in fused.notes) and not fused.learned
    for adapter in ("ridge", "mlp"):
        given = config.changed({"adapter": adapter, "refine": False, **QUICK})
        fused = fuse(pairs(120), pairs(40, 1), given, CPU, silent, unpaired=others)
        assert any("left out" in note for note in fused.notes) and not fused.learned


def test_latents_too_wide_for_a_closed_form_are_refused_where_one_is_asked_for(monkeypatch):
    monkeypatch.setattr("fusemix.fit.WIDEST", 55)
    with pytest.raises(DataError, match="latents of at most .* numbers, got 60"):
        fm.FuseMix(adapter="cca").fit(pairs(30))
    assert quick().fit(pairs(30)).config_.adapter == "mlp"


@pytest.mark.parametrize("adapter", ["cca", "auto", "mlp"])
def test_what_cannot_be_fitted_says_so_also_where_nothing_is_trained(adapter):
    model = quick(adapter=adapter)
    x, y = shared(40)
    with pytest.raises(DataError, match="must not be chosen on a split named 'test'"):
        model.fit(pairs(60), val=pairs(30, 1, split="test"))
    with pytest.raises(DataError, match="at least 2 pairs"):
        model.fit(x[:1], y[:1])
    with pytest.raises(DataError, match="modalities"):
        model.fit(Latents.from_arrays("train", image=x.numpy()))


def test_validation_pairs_may_name_the_modalities_in_another_order():
    train, val = pairs(100), pairs(60, 1)
    turned = Latents.from_arrays("val", text=val["text"].numpy(), image=val["image"].numpy())
    one, two = (fm.FuseMix(adapter="cca").fit(train, val=each) for each in (val, turned))
    assert one.facts_["tried"] == two.facts_["tried"] and one.facts_["temperature"] == two.facts_["temperature"]


def test_a_few_items_without_partners_do_no_harm():
    train, test = pairs(18), pairs(100, 2)
    x, y = shared(3, seed=5)
    alone = recall(fm.FuseMix(adapter="cca").fit(train), test)
    for count, other in ((18, train), (60, pairs(60))):
        model = fm.FuseMix(adapter="cca").fit(other, unpaired={"image": x.numpy(), "text": y.numpy()})
        assert recall(model, test) > 0.9 * alone, count


def test_the_items_that_are_held_out_to_choose_by_are_not_learned_from():
    train = pairs(300)
    _, held = hold_out(train, 0)
    found = latents_of(without_partners([train], train), held)
    judges = held["image"].latents
    assert len(found["image"]) == 270 and not any(bool((found["image"] == judge).all(dim=1).any()) for judge in judges)


def test_what_trains_nothing_is_not_forecast():
    assert fm.FuseMix(adapter="cca").forecast(pairs(30)) == fm.FuseMix().forecast(pairs(8)) == []
    with pytest.raises(DataError, match="at least 2 pairs, got 1"):
        fm.FuseMix().forecast(pairs(1))


def test_every_network_is_forecast():
    train, val = pairs(150), pairs(60, 1)
    one, two = fm.FuseMix(epochs=3).forecast(train, val=val)
    assert (one.network, two.network) == ("begins at random", "begins as a closed form")
    assert one.pairs == two.pairs == 150 and one.modalities == two.modalities and one.steps == two.steps
    assert one.validating > 0 and two.validating > 0
    model = fm.FuseMix(epochs=3).fit(train, val=val)
    config = replace(model.config_, adapter="mlp", refine=False, dim=min(one.modalities.values()), width=0)
    form = ClosedForm(*(torch.zeros(d) for d in one.modalities.values()),
                      *(torch.zeros(d, config.dim) for d in one.modalities.values()), 1.0)  # fmt: skip
    learned = sum(p.numel() for side in refining(form, config) for p in side.parameters())
    assert two.parameters == pytest.approx(learned, rel=0.01)
    # Without pairs to choose by, a tenth of the groups does and is not trained on.
    assert [cost.pairs for cost in fm.FuseMix(epochs=3).forecast(pairs(250))] == [225, 225]
    assert len(fm.FuseMix(recipe="scaled", epochs=3).forecast(train)) == 1
    assert len(fm.FuseMix(epochs=3, settings={"refine": False}).forecast(train, val=val)) == 1


def test_a_network_begins_as_cca_and_learns_what_to_add():
    """Before a step it embeds as the closed form does. A network that is asked for alone begins as none."""
    train, val = pairs(150), pairs(60, 1)
    folds = folds_of(train, 0)
    form = in_deviations(folds.whole, cca(folds.whole, 3.0, 0.75))
    x, y = torch.from_numpy(train["image"].numpy()), torch.from_numpy(train["text"].numpy())
    config = replace(scaled(150, 0), refine=True, dim=form.map_x.shape[1], depth=2)
    adapter = Refined(x.shape[1], config).eval()
    adapter.begin(form.shift_x, form.map_x)
    torch.testing.assert_close(adapter(x), form.embed_x(x), rtol=0, atol=1e-6)
    for side, shift, by in ((x, form.shift_x, form.map_x), (y, form.shift_y, form.map_y)):
        assert abs(float(((side - shift) @ by).std()) - 1) < 0.1
    model = quick(settings=None).fit(train, val=val)
    assert {"cca", "trained adapters", "refined cca", "cca + 0.5 refined cca"} <= set(model.facts_["tried"])
    plain = quick().fit(train, val=val)
    assert model.config_.refine and not plain.config_.refine
    assert set(plain.facts_["tried"]) == {name for name in model.facts_["tried"] if "refined" not in name}
    assert {name: model.facts_["tried"][name] for name in plain.facts_["tried"]} == plain.facts_["tried"]


def test_a_refined_model_is_saved_and_held_to_its_settings(tmp_path):
    train, val = pairs(150), pairs(60, 1)
    model = quick(adapter="both").fit(train, val=val)
    folds = folds_of(train, 0)
    form = in_deviations(folds.whole, cca(folds.whole, 3.0, 0.75))
    config = replace(model.config_, adapter="mlp", dim=form.map_x.shape[1])
    refined = fit_adapters(train, val, config, CPU, silent, start=form).adapters
    assert all(isinstance(side, Refined) and bool(side.turn.weight.any()) for side in refined.values())
    for name, side in model.adapters_.items():
        model.adapters_[name] = Joined([side.each[0], refined[name]], side.shares).eval()
    model.save(tmp_path / "m")
    again = fm.FuseMix.load(tmp_path / "m")
    latents = pairs(60, 1)["image"].numpy()
    assert np.array_equal(again.embed_latents("image", latents), model.embed_latents("image", latents))
    facts = (tmp_path / "m" / "facts.json").read_text()
    (tmp_path / "m" / "facts.json").write_text(facts.replace('"depth": 0', '"depth": 2'))
    with pytest.raises(StoreError, match="a network of .*, which are not its settings"):
        fm.FuseMix.load(tmp_path / "m")


def test_a_fit_learns_wherever_it_is_called():
    """Whoever evaluates under torch.inference_mode() or no_grad() may fit there, too."""
    train, val = pairs(100), pairs(40, 1)
    made = [fm.FuseMix(**QUICK, adapter="both").fit(train, val=val)]
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            made.append(fm.FuseMix(**QUICK, adapter="both").fit(pairs(100), val=pairs(40, 1)))
    first, *others = (model.transform(train["image"].numpy(), train["text"].numpy()) for model in made)
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
