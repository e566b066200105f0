"""Approximate search: exact scores in exact order, a recall that is measured as it says, and files that come back."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusemix.errors import DataError, MissingExtraError
from fusemix.search import approximate, exact
from fusemix.search.approximate import Approximate

N, S = 4000, 16


@pytest.fixture(scope="module", autouse=True)
def few():
    """Let a few rows be enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "FEWEST", 300)
        yield


@pytest.fixture(scope="module")
def rows():
    """Clustered rows, as embeddings are; the last hundred repeat the first ones."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, S, generator=generator)
    noise = 0.5 * torch.randn(N - 100, S, generator=generator)
    drawn = F.normalize(centres[torch.randint(0, 40, (N - 100,), generator=generator)] + noise, dim=1)
    return torch.cat([drawn, drawn[:100]])


@pytest.fixture(scope="module")
def queries():
    """Such as of another modality: they lie apart from the rows."""
    return F.normalize(torch.randn(200, S, generator=torch.Generator().manual_seed(1)) + 0.3, dim=1)


@pytest.fixture(scope="module")
def built(rows, queries):
    return Approximate.build(rows, queries, 0.9)


def recall(found, truth):
    """Share of the true rows that were found, counted in Python."""
    shares = [len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    return float(np.mean(shares))


def test_the_recall_that_was_measured_is_the_recall(rows, queries, built):
    truth = np.argsort(-(queries.double() @ rows.double().T).numpy(), axis=1, kind="stable")[:, :10]
    found = built.search(rows, queries, 10)[1]
    assert built.facts["recall"] == pytest.approx(recall(found, torch.from_numpy(truth)), abs=1e-6)
    assert built.facts["recall"] >= built.facts["goal"] == 0.9 and built.facts["queries"] == 200
    assert built.facts["of"] == "queries" and built.facts["cells"] == round(4 * N**0.5)
    assert 1 < built.facts["probed"] < built.facts["cells"]
    fewer = built.search(rows, queries, 10, built.facts["probed"] // 2)[1]
    assert recall(fewer, torch.from_numpy(truth)) < 0.9  # half as many cells would not have done


def test_scores_are_exact_and_so_is_their_order(rows, queries, built):
    scores, found = built.search(rows, queries, 50)
    whole = queries.double() @ rows.double().T
    np.testing.assert_allclose(scores.numpy(), whole.gather(1, found).numpy(), atol=1e-6)
    assert (scores.diff(dim=1) <= 0).all()
    equal = scores[:, 1:] == scores[:, :-1]
    assert equal.any() and (found.diff(dim=1)[equal] > 0).all()  # such as the rows that are there twice
    assert all(len(set(each)) == 50 for each in found.tolist())


def test_a_query_that_finds_too_few_is_answered_exactly(rows, queries, built):
    scores, found = built.search(rows, queries[:9], 1500, 1)
    expected_scores, expected = exact.nearest(rows, queries[:9], 1500)
    assert torch.equal(found, expected) and torch.equal(scores, expected_scores)
    for k in (N, N + 5):
        assert torch.equal(built.search(rows, queries[:2], k)[1], exact.nearest(rows, queries[:2], N)[1])


def test_it_proposes_only_and_looks_at_few(rows, queries, built, monkeypatch):
    seen = []
    monkeypatch.setattr(approximate, "nearest", lambda *given: seen.append(given) or exact.nearest(*given))
    built.search(rows, queries, 10)
    assert seen == []


def test_all_cells_reach_any_recall(rows, queries):
    assert Approximate.build(rows, queries[:20], 1.0).facts["recall"] == 1


@pytest.mark.parametrize("asked", [None, torch.empty(0, S)])
def test_without_queries_it_is_measured_on_rows_of_the_index(rows, asked, monkeypatch):
    monkeypatch.setattr(approximate, "QUERIES", 50)
    facts = Approximate.build(rows.half(), asked, 0.5).facts
    assert facts["of"] == "items of the index" and facts["queries"] == 50 and 0.5 <= facts["recall"] <= 1


def test_it_comes_back_from_its_file(rows, queries, built):
    again = Approximate.of(built.to_bytes(), built.facts, rows)
    for one, other in zip(built.search(rows, queries, 7), again.search(rows, queries, 7), strict=True):
        assert torch.equal(one, other)


def test_the_same_rows_make_the_same_file_and_faiss_says_nothing(rows, queries, built, capfd):
    assert Approximate.build(rows, queries, 0.9).to_bytes() == built.to_bytes()
    assert capfd.readouterr() == ("", "")


def test_mistakes_say_what_to_do(rows, monkeypatch):
    with pytest.raises(DataError, match="299 items: exact search is as fast below 300; leave --approximate out"):
        Approximate.build(rows[:299], None, 0.9)
    for wrong in (0, 1.5, float("nan")):
        with pytest.raises(DataError, match=r"recall must be in \(0, 1\], got"):
            Approximate.build(rows, None, wrong)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r'approximate search needs faiss.*pip install "fusemix\[index\]"'):
        Approximate.build(rows, None, 0.9)
