"""The bias of hubs against a plain loop, what it does to a search, and that no asked query is looked at."""

import numpy as np
import torch
from torch.nn.functional import normalize

from fusemix.align.hubness import NEIGHBOURS, Hubs, as_query, corrected_recall, hub_bias, spaced, with_bias
from fusemix.align.metrics import mean_recall


def units(rows, dim=6, seed=0):
    return normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim))).float(), dim=1)


def test_the_bias_is_the_mean_cosine_of_the_nearest_known_queries():
    gallery, bank = units(5000), units(40, seed=1)
    found = hub_bias(gallery, bank)
    assert found.shape == (5000,)
    for row in (0, 7, 4095, 4096, 4999):  # across a block
        cosines = sorted((float(gallery[row] @ query) for query in bank), reverse=True)
        assert abs(float(found[row]) - np.mean(cosines[:NEIGHBOURS])) < 1e-6


def test_few_known_queries_and_an_empty_gallery_have_a_bias_too():
    gallery, bank = units(3), units(2, seed=1)
    torch.testing.assert_close(hub_bias(gallery, bank), (gallery @ bank.T).mean(dim=1))
    assert hub_bias(units(0), bank).shape == (0,)


def test_a_product_with_the_bias_appended_is_the_cosine_less_it():
    gallery, queries, bias = units(9), units(4, seed=2), torch.rand(9)
    torch.testing.assert_close(as_query(queries) @ with_bias(gallery, bias).T, queries @ gallery.T - bias)


def test_a_hub_that_wins_every_search_is_held_back():
    true = units(200, 20)
    noise = normalize(true + 0.9 * units(200, 20, seed=3), dim=1)
    hub = normalize(noise.mean(dim=0, keepdim=True), dim=1)
    pull = normalize(noise + 1.5 * hub, dim=1)  # all queries lean towards one place, where a gallery item lies
    gallery = torch.cat([true[:-1], hub])
    rows = np.arange(200), np.arange(200)
    known = normalize(normalize(units(400, 20, seed=5) + 0.9 * units(400, 20, seed=6), dim=1) + 1.5 * hub, dim=1)
    zero = torch.zeros(200)
    plain = mean_recall(gallery, pull, rows)
    assert corrected_recall(gallery, pull, rows, zero, zero) == plain
    assert corrected_recall(gallery, pull, rows, 0.5 * hub_bias(gallery, known), zero) > plain + 5


def test_the_correction_of_one_modality_comes_from_the_other_and_is_nothing_on_average():
    image, text = units(50, seed=1), units(70, seed=2)
    hubs = Hubs(0.5, {"image": image, "text": text})
    gallery = units(11, seed=3)
    level = hub_bias(image, text).mean()
    torch.testing.assert_close(hubs.bias("image", gallery), 0.5 * (hub_bias(gallery, text) - level))
    assert abs(float(hubs.bias("text", text).mean())) < 1e-6
    torch.testing.assert_close(hubs.bias("image", gallery.half()), hubs.bias("image", gallery), atol=1e-3, rtol=0)


def test_spaced_places_are_distinct_and_reach_both_ends():
    assert spaced(3, 10).tolist() == [0, 1, 2]
    places = spaced(1000, 7)
    assert len(places) == 7 and places[0] == 0 and places[-1] == 999
