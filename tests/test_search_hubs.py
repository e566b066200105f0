"""A search that corrects hubs: by brute force, for queries of one modality, of both, of none, on disk and in cells."""

import numpy as np
import pytest
import torch

import fusemix as fm
from fusemix.search.approximate import Approximate
from fusemix.search.query import ItemId, Term
from test_transport import shared


@pytest.fixture(scope="module")
def pairs():
    x, y = shared(90, noise=3)
    return fm.Latents.from_arrays("train", image=x.numpy(), text=y.numpy())


@pytest.fixture(scope="module")
def model(pairs):
    x, y = shared(400, seed=8, noise=3)
    model = fm.FuseMix(adapter="cca").fit(pairs, val=fm.Latents.from_arrays("val", image=x.numpy(), text=y.numpy()))
    assert model.hubs_ is not None and model.hubs_.strength > 0
    return model


@pytest.fixture(scope="module")
def index(model, pairs):
    return model.index(pairs["image"], pairs["text"])


def corrected(model, index, asked, vector):
    """Cosines in float64, less the bias where a row is not of the modality that asks."""
    cosines = index.embeddings.double().numpy() @ vector.astype(np.float64)
    bias = np.concatenate([model.hubs_.bias(name, index.embeddings[rows]) for name, rows in halves(index).items()])
    modality = np.array(index.items["modality"].to_pylist())
    return cosines - np.where((modality != asked) & (asked is not None), bias, 0)


def halves(index):
    modality = np.array(index.items["modality"].to_pylist())
    return {name: torch.from_numpy(np.flatnonzero(modality == name)) for name in ("image", "text")}


def scores(index, query, modality=None):
    found = {(hit.modality, hit.id): hit.score for hit in index.search(query, len(index), modality)}
    return np.array([found[key] for key in index.keys])


@pytest.mark.parametrize("asked", ["image", "text"])
def test_a_query_is_corrected_among_items_of_the_other_modality(model, index, pairs, asked):
    latent = pairs[asked].latents[7].numpy()
    vector = model.embed_latents(asked, latent[None])[0]
    np.testing.assert_allclose(scores(index, latent, asked), corrected(model, index, asked, vector), atol=1e-5)
    item = ItemId(pairs[asked].ids[7], asked)
    np.testing.assert_allclose(scores(index, item), corrected(model, index, asked, vector), atol=1e-5)


def test_a_vector_that_nobody_says_the_modality_of_is_not_corrected(model, index):
    vector = index.embeddings[3].numpy()
    np.testing.assert_allclose(scores(index, vector), corrected(model, index, None, vector), atol=1e-5)
    rows = index.search_embeddings(torch.from_numpy(vector)[None], 5)[1]
    assert rows[0, 0] == 3


def test_of_a_sum_each_term_is_corrected_by_its_weight(model, index, pairs):
    image, text = ItemId(pairs["image"].ids[1], "image"), ItemId(pairs["text"].ids[2], "text")
    a, b = (index.embed(each) for each in (image, text))
    length = np.linalg.norm(2 * a - b)
    wanted = (2 * corrected(model, index, "image", a) - corrected(model, index, "text", b)) / length
    np.testing.assert_allclose(scores(index, [Term(image, None, 2.0), Term(text, None, -1.0)]), wanted, atol=1e-5)


def test_what_evaluate_measures_is_what_a_search_finds(model, pairs):
    x, y = shared(60, seed=4, noise=3)
    test = fm.Latents.from_arrays("test", image=x.numpy(), text=y.numpy())
    index = model.index(test["image"])
    first = [index.search(latent.numpy(), 1, "text")[0].id for latent in test["text"].latents]
    hits = np.mean([a == b for a, b in zip(first, test["image"].ids, strict=True)])
    found = model.evaluate(test)
    assert found.retrieval["text->image"].recall[1] == pytest.approx(100 * hits)
    assert found.uncorrected is not None and "hubs uncorrected" in str(found)
    assert {"retrieval", "uncorrected"} <= found.to_dict().keys()


def test_the_correction_stays_in_what_is_saved_added_removed_and_halved(model, index, pairs, tmp_path):
    query = pairs["text"].latents[11].numpy()
    wanted = scores(index, query, "text")
    index.save(tmp_path / "i")
    opened = fm.open_index(tmp_path / "i")
    np.testing.assert_allclose(scores(opened, query, "text"), wanted, atol=2e-3)
    assert opened.dim == index.dim == model.facts_["dim"] and opened.vectors.shape[1] == index.dim + 2
    gone = ItemId(pairs["image"].ids[0], "image")
    again = opened.remove([gone]).add(pairs["image"])
    found = {hit.id: hit.score for hit in again.search(query, len(again), "text")}
    assert found[gone.id] == pytest.approx(wanted[0], abs=2e-3)
    half = model.index(pairs["image"], pairs["text"], dtype="float16")
    np.testing.assert_allclose(scores(half, query, "text"), wanted, atol=5e-3)


def test_cells_answer_with_corrected_scores(model, index, pairs, monkeypatch):
    monkeypatch.setattr("fusemix.search.approximate.FEWEST", 10)
    queries = torch.from_numpy(index.space.as_queries("text", model.embed_latents("text", pairs["text"].latents)))
    near = index.approximately(queries, recall=1.0)
    assert isinstance(near.approximate, Approximate)
    query = pairs["text"].latents[5].numpy()
    exact = {(hit.modality, hit.id): hit.score for hit in near.search(query, len(near), "text", exact=True)}
    found = near.search(query, 5, "text")
    np.testing.assert_allclose([hit.score for hit in found], [exact[hit.modality, hit.id] for hit in found], atol=1e-5)
    assert (found[0].modality, found[0].id) == max(exact, key=lambda key: exact[key])


def test_queries_of_another_width_are_refused(index):
    for width in (5, index.dim - 1, index.dim + 1, index.dim + 3):
        with pytest.raises(fm.errors.DataError, match=f"embeddings of {index.dim} numbers, the queries have {width}"):
            index.search_embeddings(torch.ones(1, width), 3)
