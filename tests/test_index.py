"""Exact search against argsort, ties, saving, and what comes back."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

import fusemix as fm
from conftest import encode_image, encode_text
from fusemix import index as module
from fusemix.errors import DataError, EncoderError, StoreError


@pytest.fixture
def index(model, latents):
    return model.index(latents["image"])


def test_blocks_give_what_a_full_sort_gives(index, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_BLOCK", 7)
    queries = torch.nn.functional.normalize(torch.randn(9, 32), dim=-1)
    scores, rows = index.search_embeddings(queries, 11)
    full = queries.double() @ index.embeddings.double().T
    np.testing.assert_array_equal(rows.numpy(), np.argsort(-full.numpy(), axis=1, kind="stable")[:, :11])
    torch.testing.assert_close(scores.double(), full.gather(1, rows), atol=1e-6, rtol=1e-6)


def test_equal_scores_come_in_order_of_their_rows(index, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_BLOCK", 4)
    index.embeddings = torch.ones(10, 32)
    assert index.search_embeddings(torch.ones(1, 32), 6)[1].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_more_hits_than_items_gives_all_items(index):
    assert index.search_embeddings(torch.ones(2, 32), 1000)[1].shape == (2, len(index))
    with pytest.raises(DataError, match="k must be at least 1"):
        index.search_embeddings(torch.ones(2, 32), 0)


def test_a_text_and_a_file_find_items_with_id_score_and_path(index, world, model):
    model.use_encoder("text", encode_text).use_encoder("image", encode_image)
    hits = index.search("red above blue number 3", k=5)
    assert len(hits) == 5 and [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert hits[0].path == str(world.resolve() / hits[0].id) and hits[0].text is None
    first = index.search(world / "017.png", k=3)[0]
    assert first.id == "017.png" and first.score == pytest.approx(1, abs=1e-3)
    assert set(json.loads(json.dumps(asdict(first)))) == {"id", "score", "modality", "path", "text"}


def test_an_index_of_texts_returns_texts(model, latents, world):
    model.use_encoder("image", encode_image)
    hit = model.index(latents["text"]).search(world / "003.png", k=1)[0]
    assert hit.text is not None and hit.path is None and hit.modality == "text"


def test_a_saved_index_needs_nothing_else_and_runs_no_code(index, world, model, tmp_path):
    index.save(tmp_path / "i")
    again = fm.open_index(tmp_path / "i")
    assert torch.equal(again.embeddings, index.embeddings) and again.items.equals(index.items)
    with pytest.raises(EncoderError, match="never runs code by itself"):
        again.search("red above blue")
    again.model.use_encoder("text", encode_text)
    model.use_encoder("text", encode_text)
    assert again.search("red above blue", k=4) == index.search("red above blue", k=4)


def test_a_damaged_or_missing_index_says_so(index, tmp_path):
    with pytest.raises(StoreError, match="holds no index; make one with `fusemix index`"):
        fm.open_index(tmp_path)
    index.save(tmp_path / "i")
    path = tmp_path / "i" / "embeddings.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StoreError, match="damaged"):
        fm.open_index(tmp_path / "i")
