"""The way of the latents to the device: resident or from the disk, the same batches."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from fusemix.data.latents import Latents, open_latents
from fusemix.data.pairs import read_pairs
from fusemix.errors import StoreError
from fusemix.extraction import extract
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training import feed
from fusemix.training.feed import Resident, Streamed, fits, open_feed
from fusemix.training.order import Order
from test_fit import CPU, small, weights

PAIRS = 300


class Vector:
    """An encoder of numbers that are written in the table."""

    takes, batch_size = "any", 64

    def __init__(self, dim):
        self.dim, self.source, self.fingerprint = dim, f"vector {dim}", {"name": f"vector {dim}"}

    def encode(self, items):
        return np.stack([np.random.default_rng(int(item.split()[0])).normal(size=self.dim) for item in items])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Latents in five shards on one side and in eight on the other: five pairs share an x."""
    folder = tmp_path_factory.mktemp("store")
    lines = [f"{i // 5} x,{1000 + i} y,{'val' if i % 10 == 9 else 'train'}" for i in range(PAIRS)]
    (folder / "t.csv").write_text("\n".join(["x,y,split", *lines]) + "\n")
    extract(read_pairs(folder / "t.csv", x="x", y="y"), out=folder / "l", shard_items=40, x=Vector(24), y=Vector(10))
    return folder / "l"


def test_a_store_has_several_shards(stored):
    assert len(list((stored / "y").rglob("shard-*"))) == 8


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("block", [1, 64])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3)])
def test_both_ways_give_the_same_batches(stored, alpha, block, rank, world):
    train = open_latents(stored).only("train")
    order = Order.of(len(train), small(alpha=alpha, batch_size=32), block)
    ways = [kind(open_latents(stored).only("train"), order, CPU, rank, world) for kind in (Resident, Streamed)]
    for step in (0, 1, 2, 7, 3):  # also out of order, as after a resume
        one, other = (way.batch(step) for way in ways)
        for side, again in zip(one, other, strict=True):
            assert torch.equal(side, again) and side.dtype == torch.float32
            assert len(side) == order.batch_size * (rank + 1) // world - order.batch_size * rank // world
    for way in ways:
        way.close()


def test_the_shares_of_all_ranks_are_the_batch(stored):
    train = open_latents(stored).only("train")
    order = Order.of(len(train), small(batch_size=33))
    whole = Resident(train, order, CPU, 0, 1).batch(4)
    shares = [Resident(train, order, CPU, rank, 4).batch(4) for rank in range(4)]
    for side in (0, 1):
        assert torch.equal(torch.cat([share[side] for share in shares]), whole[side])


def test_what_does_not_fit_is_read_from_the_disk(stored, monkeypatch):
    train = open_latents(stored).only("train")
    order = Order.of(len(train), small(batch_size=32))
    assert fits(train, CPU)
    monkeypatch.setattr(feed, "free_memory", lambda: 1000)
    assert not fits(train, CPU) and isinstance(open_feed(train, order, CPU, resident=fits(train, CPU)), Streamed)
    arrays = Latents.from_arrays(x=np.ones((9, 3)), y=np.ones((9, 2)))
    assert fits(arrays, CPU)  # they are in memory already


def test_the_memory_of_this_machine_is_known():
    assert 2**24 < feed.free_memory() < 2**50


def test_a_fit_from_the_disk_learns_as_well_and_resumes_in_its_own_order(stored, tmp_path, monkeypatch):
    """More memory after an interruption does not change the order that the fit began with."""
    train, val = (open_latents(stored).only(split) for split in ("train", "val"))
    config = small(epochs=3, batch_size=32, dropout=0.2)
    monkeypatch.setattr(feed, "free_memory", lambda: 1000)
    monkeypatch.setattr("fusemix.training.run.BLOCK", 16)
    expected = fit_adapters(train, val, config, CPU, silent)

    def stop(stage, done, total, note=""):
        if stage == "fit" and done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("fusemix.fit.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("fusemix.fit.SAVE_COST", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit_adapters(train, val, config, CPU, stop, out=tmp_path)
    monkeypatch.setattr(feed, "free_memory", lambda: 2**40)
    assert torch.equal(weights(fit_adapters(train, val, config, CPU, silent, out=tmp_path)), weights(expected))
    resident = fit_adapters(train, val, config, CPU, silent)
    assert not torch.equal(weights(resident), weights(expected))


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_of_the_store(stored, monkeypatch, tmp_path):
    import shutil

    shutil.copytree(stored, tmp_path / "l")
    train = open_latents(tmp_path / "l").only("train")
    monkeypatch.setattr(feed, "free_memory", lambda: 1000)
    way = Streamed(train, Order.of(len(train), small(batch_size=64)), CPU, 0, 1)
    shard = sorted((tmp_path / "l" / "y").rglob("shard-*"))[3]
    shard.write_bytes(shard.read_bytes()[:-900])
    with pytest.raises(StoreError, match="shard-00003.*damaged"):
        for step in range(10):
            way.batch(step)
    way.close()


def test_the_reader_does_not_keep_a_process_alive(stored):
    """A fit that ends in an error ends; the thread that reads ahead does not hold it."""
    code = f"""

import torch
from fusemix.data.latents import open_latents
from fusemix.training import feed
from fusemix.training.order import Order
train = open_latents({str(stored)!r}).only("train")
way = feed.Streamed(train, Order(len(train), 64, 4, 1.0, 0), torch.device("cpu"), 0, 1)
way.batch(0)
raise SystemExit(7)
"""
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7
    assert time.monotonic() - began < 50


def test_float32_latents_are_not_rounded(stored):
    latents = open_latents(stored).only("train")
    exact = {
        name: replace(items, rows=type(items.rows).of(items.latents.float() + 1e-5))
        for name, items in latents.items.items()
    }
    train = replace(latents, items=exact)
    order = Order.of(len(train), small(alpha=0.0, batch_size=32))
    x, _ = Resident(train, order, CPU, 0, 1).batch(0)
    assert torch.equal(x, exact["x"].latents[torch.from_numpy(train.rows["x"][order.batch(0)])])
