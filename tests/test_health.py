"""Every fault that was planted is found, and none is invented."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusemix.data import health
from fusemix.data.health import examine, row_hashes
from fusemix.data.latents import ItemLatents, LateTable
from fusemix.data.rows import LatentRows


def items(latents, parts=1):
    count = len(latents)
    table = pa.table({"id": [f"id{i}" for i in range(count)], "value": pa.nulls(count, pa.string())})
    return ItemLatents("image", "image", LateTable(lambda: table), LatentRows(list(torch.chunk(latents, parts))))


def healthy(count=3000, dim=21, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, dim, generator=generator) * 3 + 5).to(dtype)


def places(*sizes, count=3000, seed=1):
    """Disjoint sets of random rows, each ascending."""
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_is_found_in_healthy_latents(dtype):
    found = examine(items(healthy(dtype=dtype)))
    assert found.notes() == []
    assert not any(len(rows) for rows in (found.not_finite, found.zero, found.shared, found.constant))


def plain(latents):
    """Mean and deviation of finite rows, in float64, all at once."""
    finite = latents.double()[latents.isfinite().all(1)]
    return finite.mean(0), finite.std(0, correction=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("piece", [1, 7 * 21, 256 * 21, 10**6])
def test_all_that_was_planted_is_found_and_nothing_else(dtype, piece, monkeypatch):
    monkeypatch.setattr(health, "PIECE", piece)
    latents = healthy(dtype=dtype)
    bad, zero, copies, originals = places(500, 500, 300, 200)
    latents[:, [3, 20]] = torch.tensor([1.5, 0.0], dtype=dtype)
    latents[copies] = latents[np.random.default_rng(2).choice(originals, 300)]
    latents[zero] = 0
    latents[bad, np.random.default_rng(3).integers(0, 21, 500)] = torch.tensor(
        [float("nan"), float("inf"), -float("inf")], dtype=dtype
    ).repeat(167)[:500]
    latents[:, 3][zero] = 0  # so this dimension has two values
    found = examine(items(latents, parts=4))
    assert found.not_finite.tolist() == bad.tolist() and found.zero.tolist() == zero.tolist()
    _, group, sizes = np.unique(latents.view(torch.uint8).numpy(), axis=0, return_inverse=True, return_counts=True)
    again = np.setdiff1d(np.flatnonzero(sizes[group.ravel()] > 1), np.concatenate([bad, zero]))
    assert found.shared.tolist() == again.tolist() and set(copies.tolist()) <= set(again.tolist())
    assert found.constant.tolist() == [20]
    mean, deviation = plain(latents)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.deviation, deviation, rtol=1e-12, atol=1e-12)


def test_blocks_of_any_size_give_the_same_findings_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(health, "PIECE", 64 * 21)
    latents = healthy(dtype=torch.float32)
    latents[[0, 63, 64, 2999]] = torch.tensor([0, float("nan"), float("inf"), 0])[:, None]
    latents[70] = latents[2000]
    ways = [items(latents, parts) for parts in (1, 2, 47, 3000)]
    ways.append(items(latents.T.contiguous().T))
    ways.append(replace(ways[2], rows=ways[2].rows.select(np.arange(3000))))
    first, *others = map(examine, ways)
    assert first.zero.tolist() == [0, 2999] and first.not_finite.tolist() == [63, 64]
    assert first.shared.tolist() == [70, 2000]
    for other in others:
        assert torch.equal(other.mean, first.mean) and torch.equal(other.deviation, first.deviation)
        for kind in ("zero", "not_finite", "shared", "constant"):
            assert getattr(other, kind).tolist() == getattr(first, kind).tolist()


def test_a_negative_zero_is_a_zero_and_equals_one():
    latents = healthy(dim=3)
    latents[5] = torch.tensor([-0.0, 0.0, -0.0])
    latents[:, 1] = torch.tensor([0.0, -0.0]).repeat(1500)
    found = examine(items(latents))
    assert found.zero.tolist() == [5] and found.constant.tolist() == [1]


def test_notes_say_it_in_plain_words():
    latents = healthy(count=2000, dim=10)
    latents[:, 4] = 2
    latents[[5, 9, 11, 300]] = 0
    latents[:, 4] = 2  # now none is all zero, but four are the same
    assert examine(items(latents)).notes() == [
        "image: 4 of 2,000 items have a latent that another item has too: 'id5', 'id9', 'id11', ...",
        "image: 1 of 10 dimensions is constant",
    ]
    latents = healthy(count=2000, dim=10)
    latents[[7, 8]] = 0
    latents[1999, 9] = float("inf")
    assert examine(items(latents)).notes() == [
        "image: 1 latent is NaN or infinite: 'id1999'",
        "image: 2 latents are all zero: 'id7', 'id8'",
    ]


def test_the_deviation_is_right_far_from_zero():
    latents = (torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) + 1e6).float()
    found = examine(items(latents))
    torch.testing.assert_close(found.deviation, latents.double().std(0, correction=0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("first", [0.0, 6e4])
def test_the_deviation_is_right_where_the_mean_is_large_or_the_first_row_lies_far_away(first):
    latents = (torch.randn(20_000, 40, generator=torch.Generator().manual_seed(0)) * 2 + 2000).half()
    latents[0] = first
    latents[1:, 7] = 2000  # all of the deviation comes from the first row
    found = examine(items(latents))
    mean, deviation = plain(latents)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.deviation, deviation, rtol=1e-10, atol=0)
    assert not len(found.constant)


def test_the_smallest_difference_is_one():
    latents = torch.zeros(5000, 2)
    latents[:, 0] = 1
    latents[4321, 1] = 1e-45
    assert examine(items(latents)).constant.tolist() == [0]


def test_latents_that_are_all_bad_have_no_constant_dimension():
    found = examine(items(torch.full((10, 3), float("nan"))))
    assert found.not_finite.tolist() == list(range(10))
    assert not len(found.constant) and found.mean.isfinite().all() and found.deviation.tolist() == [0, 0, 0]


def test_rows_that_differ_in_one_bit_have_other_hashes():
    row = healthy(count=1, dim=8)
    factors = np.random.default_rng(0).integers(0, 2**64, 8, dtype=np.uint64) | np.uint64(1)
    flipped = row.view(torch.int16).repeat(128, 1)
    for bit in range(128):
        flipped[bit, bit // 16] ^= torch.tensor(-(2**15) if bit % 16 == 15 else 1 << (bit % 16), dtype=torch.int16)
    assert distinct(torch.cat([row, flipped.view(torch.float16)]), factors) == 129


def distinct(rows, factors):
    hashes = row_hashes(rows, factors, np.empty((len(rows), len(factors)), np.uint64))
    return len(set(hashes.tolist()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_that_differ_in_two_numbers_have_other_hashes(dtype):
    row = healthy(count=1, dim=64, dtype=dtype)[0]
    pairs = torch.combinations(torch.arange(64))
    index = torch.arange(len(pairs))[:, None]
    signs, last, swapped = (row.repeat(len(pairs), 1) for _ in range(3))
    signs[index, pairs] *= -1
    bits = last.view(torch.int16 if dtype == torch.float16 else torch.int32)
    bits[index, pairs] ^= 1
    swapped[index, pairs] = row[pairs.flip(1)]
    rows = torch.cat([row[None], -row[None], signs, last, swapped])
    expected = len(np.unique(rows.view(torch.uint8).numpy(), axis=0))
    factors = np.random.default_rng(0).integers(0, 2**64, 32 * dtype.itemsize, dtype=np.uint64) | np.uint64(1)
    assert expected > 3 * len(pairs) - 20 and distinct(rows, factors) == expected
