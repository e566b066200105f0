"""The table of docs/results.md: six methods, three seeds, 200, 1,000 and 6,000 training images, the validation split.

    python recipes/flickr8k/table.py LATENTS [--sizes 200,1000,6000] [--seeds 0,1,2]

LATENTS is what run.sh extracted. No epoch is chosen on the split that is measured: every fit keeps its last one. A seed
draws the training images (all of them at 6,000), the weights, the batches and lam.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

import fusemix as fm
from fusemix.evaluate import Scores, chance

WAYS = ("text->image", "image->text")
# Without mixing a step loads half as many pairs; the recipe then takes about half the epochs
# for as many steps, except on so few pairs that the epochs reach their cap.
METHODS: dict[str, Callable[[int], fm.FuseMix]] = {
    "linear InfoNCE": lambda seed: fm.FuseMix(recipe="scaled", depth=0, alpha=0, seed=seed),
    "FuseMix without mixing": lambda seed: fm.FuseMix(recipe="scaled", alpha=0, seed=seed),
    "FuseMix": lambda seed: fm.FuseMix(recipe="scaled", seed=seed),
}


def main() -> None:
    """Fit, measure and print a Markdown table and the RESULT line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("latents")
    parser.add_argument("--sizes", default="200,1000,6000")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="of the trained ones; chance, ridge and cca always"
    )
    given = parser.parse_args()
    whole = fm.open_latents(given.latents)
    train, val = whole.only("train"), whole.only("val")
    sizes, seeds = ([int(word) for word in words.split(",")] for words in (given.sizes, given.seeds))
    started = time.perf_counter()
    found: dict[tuple[int, str], list[dict[str, Scores]]] = {}
    for size in sizes:
        found[size, "chance"] = [chance(val)]
        for seed in seeds:
            for name, ways in one_seed(train, val, size, seed, given.methods.split(",")).items():
                found.setdefault((size, name), []).append(ways)
    print("| training images | method | " + " | ".join(f"{way} R@1 | R@10" for way in WAYS) + " | mean R@1 |")
    print("|---|---|" + "---|" * 5)
    for (size, name), runs in found.items():
        cells = [spread([run[way].recall[k] for run in runs]) for way in WAYS for k in (1, 10)]
        print(f"| {size:,} | {name} | {' | '.join(cells)} | {spread(mean_r1(runs))} |")
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes")
    ours, cca = (np.mean(mean_r1(found[max(sizes), name])) for name in ("FuseMix", "cca"))
    result = {
        "name": f"flickr8k val, {max(sizes):,} images: mean R@1, FuseMix minus CCA",
        "figure": round(float(ours - cca), 2), "target": "> 0", "holds": bool(ours > cca),
    }  # fmt: skip
    print("RESULT", json.dumps(result))


def one_seed(
    train: fm.Latents, val: fm.Latents, size: int, seed: int, methods: list[str]
) -> dict[str, dict[str, Scores]]:
    """Fit every method on `size` training images drawn by `seed`."""
    images = np.unique(train.rows["image"])
    drawn = np.random.default_rng(seed).permutation(images)[:size]
    part = train.take(np.isin(train.rows["image"], drawn))
    scores: dict[str, dict[str, Scores]] = {}
    for name in methods:
        started = time.perf_counter()
        evaluation = METHODS[name](seed).fit(part).evaluate(val)
        scores |= {key: ways for key, ways in evaluation.baselines.items() if key != "chance"}
        scores[name] = evaluation.retrieval
        print(f"# {size} images, seed {seed}, {name}: {time.perf_counter() - started:.0f} s", flush=True)
    for name, ways in scores.items():
        print(f"# {size} images, seed {seed}, {name}:", [ways[way].recall for way in WAYS], flush=True)
    return scores


def mean_r1(runs: list[dict[str, Scores]]) -> list[float]:
    """Mean R@1 of both directions of each run."""
    return [float(np.mean([run[way].recall[1] for way in WAYS])) for run in runs]


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
