"""InfoNCE over two processes: the value of the whole batch on both, and gradients whose sum is the single one's."""

import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.align import tiles
from fusemix.align.losses import info_nce

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs gloo")

SHARES = [(20, 20), (21, 20), (1, 1), (1, 0), (5, 40)]
TEMPERATURES = [0.07, 0.005]


def batch(size: int) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, size, 6, generator=torch.Generator().manual_seed(size), dtype=torch.float64).unbind()
    return x, y


def gradients(x: Tensor, y: Tensor, temperature: float, group: dist.ProcessGroup | None) -> list[Tensor]:
    """The value, and the gradients of two small linear layers, of the temperature and of the rows of y."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()
    at = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    y = y.clone().requires_grad_()
    sides = [F.normalize(layer(side), dim=1) for layer, side in zip(layers, (x, y), strict=True)]
    loss = info_nce(*sides, at, group=group)
    loss.backward()
    shared = [loss.detach(), at.grad, *(p.grad for layer in layers for p in layer.parameters())]
    return [*shared, y.grad]


def work(rank: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    tiles.SIDE = 8  # the diagonal crosses tiles at an offset
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = []
    for shares in SHARES:
        x, y = batch(sum(shares))
        own = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
        found += [gradients(x[own], y[own], temperature, dist.group.WORLD) for temperature in TEMPERATURES]
    torch.save(found, f"{out}{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder / "meeting"), str(folder / "rank")), nprocs=2)
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("number", range(len(SHARES) * len(TEMPERATURES)))
def test_two_processes_equal_one(both, number):
    shares, temperature = SHARES[number // 2], TEMPERATURES[number % 2]
    first, second = both[0][number], both[1][number]
    expected = gradients(*batch(sum(shares)), temperature, None)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], expected[0], rtol=1e-12, atol=1e-15)
    for one, other, right in zip(first[1:-1], second[1:-1], expected[1:-1], strict=True):
        torch.testing.assert_close(one + other, right, rtol=1e-9, atol=1e-12 * max(1, right.abs().max().item()))
    rows = torch.cat([first[-1], second[-1]])
    torch.testing.assert_close(rows, expected[-1], rtol=1e-9, atol=1e-12 * max(1, expected[-1].abs().max().item()))
