"""The Triton kernels against their eager forms; run by test_kernels.py with TRITON_INTERPRET=1, on a CPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton.language as tl
from torch.nn import functional as F
from triton.runtime.interpreter import InterpreterBuilder

from fusemix.align import kernels, losses, mixup, tiles

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")  # numpy's log2(0), as meant


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter of triton 3.6 multiplies the bit patterns of bfloat16 as if they were integers."""
    plain = InterpreterBuilder.create_dot

    def dot(self, a, b, *rest):
        if a.dtype == tl.bfloat16:
            single = [(side.data.astype(np.uint32) << 16).view(np.float32) for side in (a, b)]
            a, b = (SimpleNamespace(data=data, dtype=tl.float32) for data in single)
        return plain(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


def rows(count, dim, dtype, seed):
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=1).to(dtype)


CASES = [  # rows of x, rows of y, dim, offset of the diagonal
    (1, 1, 3, 0),
    (128, 128, 32, 0),
    (130, 130, 40, 0),
    (100, 300, 70, 170),
    (300, 300, 33, 0),
    (5, 131, 8, 126),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(("b", "B", "dim", "offset"), CASES)
def test_both_passes_equal_the_eager_ones(monkeypatch, b, B, dim, offset, safe, dtype):
    for name in ("CHUNK", "SUMS_CHUNK"):
        monkeypatch.setattr(kernels, name, 128)  # several chunks, and a ragged last one
    x, y = rows(b, dim, dtype, 0), rows(B, dim, dtype, 1)
    scale = 300.0 if safe else 14.0
    expected = tiles.log_sums(x.double(), y.double(), scale, offset, safe)
    got = kernels.log_sums(x, y, scale, offset, safe)
    for one, other in zip(got[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=3e-6 * max(1.0, scale / 30))
    totals = torch.logaddexp(expected[0], expected[2]), expected[1].clone()
    totals[1][offset : offset + b] = torch.logaddexp(totals[1][offset : offset + b], expected[2])
    wanted = torch.zeros(b, dim, dtype=torch.float64), torch.zeros(B, dim, dtype=torch.float64)
    tiles.add_gradients(x.double(), y.double(), scale, offset, safe, totals, wanted, [])
    found = torch.ones(b, dim), torch.ones(B, dim)
    kernels.add_gradients(x, y, scale, offset, safe, totals, found, [])
    for one, other in zip(found, wanted, strict=True):
        error = (one.double() - 1 - other).norm() / other.norm().clamp(min=1e-3)
        assert error < (4e-3 if dtype == torch.bfloat16 else 3e-6 * max(1.0, scale / 30))


@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_the_loss_on_the_kernels_equals_the_loss_on_the_tiles(monkeypatch, temperature):
    results = []
    for passes in (tiles, kernels):
        monkeypatch.setattr(losses, "_passes", lambda _, passes=passes: passes)
        x, y = rows(150, 24, torch.float32, 2).requires_grad_(), rows(150, 24, torch.float32, 3).requires_grad_()
        at = torch.tensor(temperature, requires_grad=True)
        loss = losses.info_nce(x, y, at)
        loss.backward()
        results.append([loss.detach(), x.grad, y.grad, at.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_huge_equal_logits_do_not_overflow():
    same = rows(1, 16, torch.float32, 4).expand(200, 16).contiguous()
    over_rows, over_columns, matching, _ = kernels.log_sums(same, same, 1000.0, 0, True)
    for sums in (over_rows, over_columns):
        torch.testing.assert_close(sums - matching, torch.full_like(sums, 199.0).log(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [1, 7, 1100])
def test_gather_mix_equals_mix(lam, dtype, dim):
    latents = torch.randn(50, dim, generator=torch.Generator().manual_seed(5)).to(dtype)
    first, second = torch.randint(0, 50, (2, 33), generator=torch.Generator().manual_seed(6)).unbind()
    expected = mixup.mix(latents[torch.cat([first, second])].float(), lam)
    out = torch.empty(33, dim)
    assert kernels.gather_mix(latents, first, second, lam, out) is out
    torch.testing.assert_close(out, expected, rtol=3e-7, atol=3e-7)
    half = kernels.gather_mix(latents, first, second, lam, torch.empty(33, dim, dtype=torch.bfloat16))
    torch.testing.assert_close(half.float(), expected, rtol=8e-3, atol=1e-6)


def test_chunks_are_equal_and_weights_are_aligned(monkeypatch):
    lengths = [part.stop - part.start for part in kernels._chunks(20_492, 4096)]
    assert sum(lengths) == 20_492 and max(lengths) <= 4096 and max(lengths) - min(lengths) < 6 * kernels.TILE
    assert list(kernels._chunks(0, 4096)) == []
    seen = []
    plain = kernels._product
    monkeypatch.setattr(kernels, "_product", lambda a, b: (seen.append(max(a.stride())), plain(a, b))[1])
    x, y = rows(70, 8, torch.float32, 0), rows(70, 8, torch.float32, 1)
    totals = torch.zeros(70, dtype=torch.float64), torch.zeros(70, dtype=torch.float64)
    kernels.add_gradients(x, y, 14.0, 0, False, totals, (torch.zeros(70, 8), torch.zeros(70, 8)), [])
    assert seen and all(stride % kernels.ALIGN == 0 for stride in seen)
