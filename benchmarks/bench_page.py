"""How soon the search page shows something, with 100,000 items behind it.

    python benchmarks/bench_page.py [--small]

Needs Debian's chromium and playwright. Every load has a browser context of its own, so nothing is in its cache; the
browser shares the machine's cores with the server.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

import fusemix as fm
from fusemix.search.hit import Found
from fusemix.search.index import Index
from fusemix.search.previews import encoded
from fusemix.search.space import Space
from goals import leave, result
from served import Server, make_index
from torture_page import MISSING, ask, browser, settle

LOADS = 5
PAINTS = "performance.getEntriesByType('paint').map((paint) => [paint.name, paint.startTime / 1000])"


def large_index(space: Space, count: int) -> Index:
    """Make an index of random unit vectors, every one with the same picture."""
    name = next(name for name, side in space.sides_.items() if side.kind == "image")
    dim = space.embed_latents(name, np.zeros((1, space.sides_[name].dim), np.float32)).shape[1]
    vectors = torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)))
    ids = [f"pictures/{i:06d}.jpg" for i in range(count)]
    items = pa.table({"modality": [name] * count, "id": ids, "value": ids})
    rng = np.random.default_rng(0)
    columns = pa.table(
        {
            "caption": [f"what is on picture {i}" for i in range(count)],
            "maker": [f"maker {i}" for i in rng.integers(0, 40, count)],
            "price": rng.uniform(1, 100, count).round(2),
        }
    )
    noise = Image.fromarray(rng.integers(0, 256, (192, 256, 3), dtype=np.uint8)).resize((256, 192))
    previews = pa.chunked_array([pa.array([encoded(noise)] * count, pa.large_binary())])
    return Index(vectors, items, columns, {name: Found("image", Path())}, space, previews)


def load(chromium: Any, address: str) -> tuple[float, float]:
    """Open the page in a fresh context; return seconds until it shows something, and until it shows items."""
    with chromium.new_context() as context:
        page = context.new_page()
        started = time.perf_counter()
        page.goto(address)
        page.locator(".card").nth(23).wait_for()
        items = time.perf_counter() - started
        return dict(page.evaluate(PAINTS))["first-contentful-paint"], items


def main() -> None:
    """Build, serve, load and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="2,000 items, to see that it runs")
    given = parser.parse_args()
    if MISSING:
        sys.exit(MISSING)
    count = 2_000 if given.small else 100_000
    with tempfile.TemporaryDirectory() as name, browser() as chromium:
        index = make_index(Path(name), 60)
        large_index(fm.open_index(index).space, count).save(Path(name) / "large")
        with Server(Path(name) / "large") as server:
            load(chromium, server.address)  # the browser's own first time
            paints, items = zip(*(load(chromium, server.address) for _ in range(LOADS)), strict=True)
            with chromium.new_context() as context:
                page = context.new_page()
                page.goto(server.address)
                settle(page)
                ask(page, "the first search is slower")
                started = time.perf_counter()
                ask(page, "a black square")
                searched = time.perf_counter() - started
    print(f"# {count:,} items, {LOADS} fresh loads: first paint {', '.join(f'{s:.2f}' for s in paints)} s")
    print(f"# items shown after {statistics.median(items):.2f} s; a search by words drawn after {searched:.2f} s")
    paint = round(statistics.median(paints), 2)
    result(f"first contentful paint with {count:,} items, s", paint, "< 1", lambda x: x < 1)
    leave()


if __name__ == "__main__":
    main()
