"""Rows that stay where they are give the same numbers as the whole tensor, and a cut file is an error."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusemix.data import rows as module
from fusemix.data.mapped import Mapped, read_header
from fusemix.data.rows import LatentRows
from fusemix.errors import StoreError

SIZES = (7, 1, 30, 12)


def numbers(count, dim=6, dtype=torch.float16):
    return torch.arange(count * dim, dtype=torch.float32).remainder(2048).reshape(count, dim).to(dtype)


def mapped(folder, dtype=torch.float16, sizes=SIZES, dim=6):
    """One file for each size, and what they hold together."""
    whole, parts, done = numbers(sum(sizes), dim, dtype), [], 0
    for i, size in enumerate(sizes):
        path = folder / f"{i}.safetensors"
        save_file({"latents": whole[done : done + size].clone(), "items": torch.arange(size)}, path)
        parts.append(read_header(path)[1]["latents"])
        done += size
    return parts, whole


@pytest.fixture(params=["one tensor", "tensors", "one file", "files", "float32 files", "both", "some of the files"])
def both(request, tmp_path):
    """Rows of each kind, and the tensor that they are."""
    dtype = torch.float32 if request.param.startswith("float32") else torch.float16
    parts, whole = mapped(tmp_path, dtype, SIZES[2:3] if request.param == "one file" else SIZES)
    if request.param == "one tensor":
        return LatentRows.of(whole), whole
    if request.param == "tensors":
        return LatentRows([part.map().clone() for part in parts]), whole
    if request.param == "both":
        return LatentRows([parts[0].map().clone(), *parts[1:]]), whole
    if request.param == "some of the files":
        chosen = np.random.default_rng(0).permutation(len(whole))[:40]
        return LatentRows(parts).select(chosen[:45]).select(np.arange(40)[::-1]), whole[chosen[::-1].copy()]
    return LatentRows(parts), whole


def test_rows_know_their_shape_and_size(both):
    rows, whole = both
    assert rows.shape == tuple(whole.shape) and len(rows) == len(whole)
    assert rows.dtype == whole.dtype and rows.nbytes == whole.nbytes


@pytest.mark.parametrize("size", [1, 5, 12, 8192])
def test_blocks_are_the_whole_in_order_and_never_longer_than_asked(both, size):
    rows, whole = both
    blocks = list(rows.blocks(size))
    assert max(map(len, blocks)) <= size
    assert torch.equal(torch.cat(blocks), whole)
    assert torch.equal(rows.whole(), whole)
    assert torch.equal(torch.cat(list(rows.blocks(size))), whole)
    assert rows.whole() is rows.whole()


ORDERS = {
    "none": lambda n: [],
    "all": range,
    "backwards": lambda n: range(n - 1, -1, -1),
    "random": lambda n: np.random.default_rng(1).permutation(n),
    "repeated": lambda n: np.random.default_rng(2).integers(0, n, 200),
    "a few": lambda n: [n - 1, 0, 0, n // 2],
    "every third": lambda n: range(0, n, 3),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("gap", [0, 40, 32 * 1024])
def test_take_and_read_give_the_rows_in_the_order_asked_for(both, order, gap, monkeypatch):
    rows, whole = both
    wanted = np.array(list(order(len(rows))), dtype=np.int64)
    expected = whole[torch.from_numpy(wanted)]
    assert torch.equal(rows.take(wanted), expected) and torch.equal(rows[torch.from_numpy(wanted)], expected)
    monkeypatch.setattr(module, "GAP", gap)
    for longest in (1, 50, 8 * 1024**2):
        monkeypatch.setattr(module, "RUN", longest)
        out = torch.full(expected.shape, -1, dtype=rows.dtype)
        rows.read(wanted, out)
        assert torch.equal(out, expected)
    rows.whole()
    assert torch.equal(rows.take(wanted), expected)
    rows.read(wanted, out.zero_())
    assert torch.equal(out, expected)


def test_without_preadv_the_map_is_asked(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    parts, whole = mapped(tmp_path)
    out = torch.empty(3, 6, dtype=torch.float16)
    LatentRows(parts).read(np.array([40, 3, 8]), out)
    assert torch.equal(out, whole[[40, 3, 8]])


def test_without_advice_to_the_kernel_the_same_is_read(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    parts, whole = mapped(tmp_path)
    out = torch.empty(3, 6, dtype=torch.float16)
    LatentRows(parts).read(np.array([40, 3, 8]), out)
    assert torch.equal(out, whole[[40, 3, 8]])


def test_neighbours_come_in_one_read_and_short_reads_go_on(tmp_path, monkeypatch):
    parts, whole = mapped(tmp_path, sizes=(500,))
    calls = []

    def little(file, buffers, offset):
        calls.append(len(buffers[0]))
        return preadv(file, [buffers[0][:700]], offset)

    preadv = os.preadv
    out = torch.empty(100, 6, dtype=torch.float16)
    monkeypatch.setattr(os, "preadv", lambda *given: calls.append(given) or preadv(*given))
    LatentRows(parts).read(np.arange(200, 300), out)
    assert len(calls) == 1 and torch.equal(out, whole[200:300])
    calls.clear()
    monkeypatch.setattr(os, "preadv", little)
    LatentRows(parts).read(np.arange(100), out)
    assert calls == [1200, 500] and torch.equal(out, whole[:100])


def test_only_what_lies_in_memory_is_resident(tmp_path):
    parts, whole = mapped(tmp_path)
    assert LatentRows.of(whole).resident and LatentRows.of(whole).select(np.arange(3)).resident
    rows, one = LatentRows(parts), LatentRows(parts[:1])
    assert not rows.resident and not one.resident and not one.select(np.arange(3)).resident
    rows.whole(), one.whole()
    assert rows.resident and not one.resident


def test_one_file_and_one_tensor_are_not_copied(tmp_path, monkeypatch):
    parts, whole = mapped(tmp_path)
    monkeypatch.setattr(torch, "cat", lambda _: pytest.fail("copied"))
    assert LatentRows.of(whole).whole() is whole
    one = LatentRows(parts[2:3])
    assert torch.equal(one.whole(), whole[8:38])
    assert [block.data_ptr() for block in one.blocks(10)] == [one.whole()[i].data_ptr() for i in (0, 10, 20)]


def test_a_selection_reads_nothing(tmp_path, monkeypatch):
    parts, _ = mapped(tmp_path)
    monkeypatch.setattr(Mapped, "map", lambda _: pytest.fail("mapped"))
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("read"))
    some = LatentRows(parts).select(np.arange(40, 10, -1)).select(torch.arange(5))
    assert some.shape == (5, 6)


@pytest.mark.parametrize("wanted", [[50], [-1], [0, 99]])
def test_a_row_that_is_not_there_is_an_error_that_says_what_there_is(both, wanted):
    rows, whole = both
    for call in (rows.take, rows.select, lambda w: rows.read(w, torch.empty(len(w), 6, dtype=rows.dtype))):
        with pytest.raises(IndexError, match=f"of {len(whole)} latents; wanted 0 to {len(whole) - 1}"):
            call(np.array(wanted))


def test_a_file_that_was_cut_or_is_gone_is_an_error_that_says_what_to_do(tmp_path):
    parts, _ = mapped(tmp_path)
    path = tmp_path / "3.safetensors"
    content = path.read_bytes()
    out = torch.empty(2, 6, dtype=torch.float16)
    for damage in (lambda: path.write_bytes(content[:-5]), path.unlink):
        damage()
        for call in (
            lambda: LatentRows(parts).read(np.array([48, 49]), out),
            lambda: LatentRows(parts).take(np.array([48, 49])),
            lambda: LatentRows(parts).whole(),
            lambda: list(LatentRows(parts).blocks()),
        ):
            with pytest.raises(StoreError, match="3.safetensors is damaged.*run the same `fusemix extract` again"):
                call()


def test_what_is_written_into_a_mapped_tensor_does_not_reach_the_file(tmp_path):
    parts, whole = mapped(tmp_path)
    LatentRows(parts[:1]).whole().zero_()
    assert torch.equal(parts[0].map(), whole[:7])
