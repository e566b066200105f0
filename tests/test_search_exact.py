"""Exact search against float64 and a full stable sort, and against FAISS: blocks, halves, a part of the rows, ties."""

from unittest import mock

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fusemix.search import exact
from fusemix.search.exact import best, nearest


def truth(embeddings, queries, k, among=None):
    """All scores in float64, sorted whole: what equal comes in order of its row."""
    scores = queries.double().numpy() @ embeddings.double().numpy().T
    rows = np.arange(len(embeddings)) if among is None else among.numpy()
    order = np.argsort(-scores[:, rows], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores[:, rows], order, axis=1), rows[order]


def blocks(rows, cast=3, queries=2):
    return mock.patch.multiple(exact, _ROWS_PER_BLOCK=rows, _CAST_ROWS=cast, _QUERIES_PER_BLOCK=queries)


@st.composite
def cases(draw):
    """Small whole numbers: their products are exact in every precision, and many are equal."""
    count, width, asked = draw(st.integers(0, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    most = draw(st.integers(1, 3))
    rows, queries = (torch.randint(-most, most + 1, (n, width), generator=generator).float() for n in (count, asked))
    among = draw(st.none() | st.lists(st.integers(0, count - 1), unique=True) if count else st.none())
    return (
        rows.to(draw(st.sampled_from([torch.float32, torch.float16]))),
        queries,
        draw(st.integers(1, count + 3)),
        torch.tensor(sorted(among), dtype=torch.int64) if among is not None else None,
        draw(st.integers(1, 9)),
    )


@given(cases())
@settings(max_examples=100, deadline=None)
def test_any_blocks_of_any_rows_give_what_a_full_stable_sort_gives(case):
    embeddings, queries, k, among, size = case
    with blocks(size):
        scores, rows = nearest(embeddings, queries, k, among)
    expected_scores, expected_rows = truth(embeddings, queries, k, among)
    assert scores.dtype == torch.float32 and rows.dtype == torch.int64
    np.testing.assert_array_equal(rows.numpy(), expected_rows)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]), min_size=7, max_size=7), min_size=1), st.data())
@settings(max_examples=50, deadline=None)
def test_best_is_a_stable_sort_cut_off(rows, data):
    scores, k = torch.tensor(rows), data.draw(st.integers(1, 9))
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(best(scores, k), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("asked", [1, 2, 5])
@pytest.mark.parametrize("width", [3, 32, 33])
def test_equal_rows_get_equal_scores_wherever_they_lie(dtype, asked, width):
    """The bits of a product depend on its shape: 12 rows in blocks of 5 would end with 2, and one query is a vector."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        kinds = F.normalize(torch.randn(3, width, generator=generator), dim=1).to(dtype)
        which = torch.randint(0, 3, (12,), generator=generator)
        queries = F.normalize(torch.randn(asked, width, generator=generator), dim=1)
        with blocks(5, cast=4):
            scores, rows = nearest(kinds[which], queries, 12)
        expected = np.argsort(-(queries.double() @ kinds.double().T)[:, which].numpy(), axis=1, kind="stable")
        np.testing.assert_array_equal(rows.numpy(), expected)
        assert all(len(set(each.tolist())) == len(which.unique()) for each in scores)


def test_equal_scores_come_in_order_of_their_rows_over_blocks_and_at_the_last_place():
    embeddings = torch.ones(10, 4)
    with blocks(4):
        assert nearest(embeddings, torch.ones(1, 4), 6)[1].tolist() == [[0, 1, 2, 3, 4, 5]]
        among = torch.tensor([1, 2, 4, 5, 6, 7, 9])
        assert nearest(embeddings, torch.ones(1, 4), 5, among)[1].tolist() == [[1, 2, 4, 5, 6]]
        embeddings[7] = 2
        assert nearest(embeddings, torch.ones(1, 4), 3)[1].tolist() == [[7, 0, 1]]


def test_one_query_and_many_find_the_same_as_faiss_does():
    generator = torch.Generator().manual_seed(1)
    embeddings = F.normalize(torch.randn(3000, 48, generator=generator), dim=1)
    queries = F.normalize(torch.randn(30, 48, generator=generator), dim=1)
    flat = faiss.IndexFlatIP(48)
    flat.add(embeddings.numpy())
    expected_scores, expected_rows = flat.search(queries.numpy(), 20)
    with blocks(700, queries=7):
        scores, rows = nearest(embeddings, queries, 20)
        single = [nearest(embeddings, query[None], 20)[1] for query in queries]
    np.testing.assert_array_equal(rows.numpy(), expected_rows)
    np.testing.assert_array_equal(torch.cat(single).numpy(), expected_rows)
    np.testing.assert_allclose(scores.numpy(), expected_scores, atol=1e-6)


def test_halves_find_what_their_widened_numbers_find():
    generator = torch.Generator().manual_seed(2)
    embeddings = F.normalize(torch.randn(500, 24, generator=generator), dim=1).half()
    queries = F.normalize(torch.randn(3, 24, generator=generator), dim=1)
    with blocks(101, cast=17):
        scores, rows = nearest(embeddings, queries, 9)
    expected_scores, expected_rows = truth(embeddings, queries, 9)
    np.testing.assert_array_equal(rows.numpy(), expected_rows)
    np.testing.assert_allclose(scores.numpy(), expected_scores, atol=1e-6)


def test_more_hits_than_rows_gives_all_and_no_rows_give_none():
    for among, count in ((None, 5), (torch.tensor([1, 3]), 2), (torch.tensor([], dtype=torch.int64), 0)):
        scores, rows = nearest(torch.eye(5), torch.ones(2, 5), 1000, among)
        assert scores.shape == rows.shape == (2, count)
    assert nearest(torch.empty(0, 5), torch.ones(2, 5), 3)[1].shape == (2, 0)
    assert nearest(torch.eye(5), torch.empty(0, 5), 3)[1].shape == (0, 3)


def test_a_row_is_found_once_where_the_last_block_reaches_back():
    with blocks(7):
        assert sorted(nearest(-torch.eye(9), torch.ones(1, 9), 9)[1][0].tolist()) == list(range(9))
