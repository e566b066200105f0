"""Nearest neighbours in blocks against all cosines at once."""

import pytest
import torch
from torch.nn import functional as F

from fusemix.align import neighbours
from fusemix.align.neighbours import nearest


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("k", [1, 5, 500])
def test_blocks_find_what_all_cosines_at_once_show(monkeypatch, same, k):
    monkeypatch.setattr(neighbours, "_BLOCK", 16)
    torch.manual_seed(0)
    gallery = torch.randn(50, 8).half()
    queries = gallery if same else torch.randn(37, 8).half()
    cosines = F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T
    if same:
        cosines.fill_diagonal_(-torch.inf)
    wanted = cosines.topk(min(k, 50 - same), dim=1)
    scores, rows = nearest(queries, gallery, k, same=same)
    torch.testing.assert_close(scores.double(), wanted.values, atol=1e-5, rtol=0)
    assert torch.equal(rows, wanted.indices)


def test_zero_rows_have_no_direction():
    scores, _ = nearest(torch.zeros(1, 3), torch.ones(2, 3), 2)
    assert scores.tolist() == [[0.0, 0.0]]
