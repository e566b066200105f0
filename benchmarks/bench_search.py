"""Exact search beside faiss IndexFlatIP, one core, 200,000 x 512; and what approximate search and float16 rows cost.

    python benchmarks/bench_search.py

Ratios are of medians of rounds that alternate between the two, k = 10. The rows are unit vectors around 2,000 centres,
and the queries lie beside rows as captions lie beside pictures: apart, at a cosine of about 0.5.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and faiss read it

import statistics
import time
from collections.abc import Callable

import faiss
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fusemix.search.approximate import Approximate
from fusemix.search.exact import nearest
from goals import leave, result

ROWS, WIDTH, K, ROUNDS = 200_000, 512, 10, 7
GOALS = {1: 0.75, 16: 3.0, 64: 5.0, 1024: 0.75}


def rows_and_queries(count: int) -> tuple[Tensor, Tensor]:
    """Unit rows (N, S) and queries (Q, S)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2_000, WIDTH, generator=generator)
    rows = torch.randn(ROWS, WIDTH, generator=generator).add_(centres[torch.arange(ROWS) % 2_000])
    noise = torch.randn(count, WIDTH, generator=generator) * 2.4
    return normalize(rows, dim=1), normalize(rows[:count] + noise, dim=1)


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_each(*works: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Median time of each, in rounds that alternate."""
    for work in works:
        work()
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    """Print a line per size of query, and the goals."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows, queries = rows_and_queries(1024)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(rows.numpy())
    scores, found = nearest(rows, queries[:64], K)
    wanted, known = flat.search(queries[:64].numpy(), K)
    agree = float((torch.from_numpy(known) == found).float().mean())
    apart = float((torch.from_numpy(wanted) - scores).abs().max())
    print(f"# {100 * agree:.2f} % of rows as faiss has them, scores within {apart:.1e}")
    half = rows.half()
    for count, goal in GOALS.items():
        asked = queries[:count]
        ours, theirs, halved = median_each(
            lambda asked=asked: nearest(rows, asked, K),
            lambda asked=asked: flat.search(asked.numpy(), K),
            lambda asked=asked: nearest(half, asked, K),
            rounds=3 if count > 64 else ROUNDS,
        )
        print(
            f"# {count} queries: {count / ours:,.0f}/s, faiss {count / theirs:,.0f}/s, float16 {count / halved:,.0f}/s"
        )
        name = f"speed of exact search beside faiss IndexFlatIP, {count} queries a call"
        result(name, round(theirs / ours, 2), f">= {goal:g}", lambda x, goal=goal: x >= goal)
    started = time.perf_counter()
    near = Approximate.build(rows, queries[:500], 0.95)
    built = time.perf_counter() - started
    exact, quick = median_each(lambda: nearest(rows, queries[:1], K), lambda: near.search(rows, queries[:1], K))
    facts = near.facts
    share = f"{facts['probed']} of {facts['cells']} cells"
    print(f"# approximate: built in {built:.0f} s, {share}, {exact / quick:.1f} times as fast as exact")
    truth, fresh = nearest(rows, queries[500:], K)[1], near.search(rows, queries[500:], K)[1]
    recall = float((fresh[:, :, None] == truth[:, None, :]).any(dim=1).float().mean())
    result(
        "recall@10 of approximate search on queries it was not tuned on",
        round(recall, 3),
        ">= 0.94",
        lambda x: x >= 0.94,
    )
    leave()


if __name__ == "__main__":
    main()
