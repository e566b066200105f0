"""Recall per pair, beside the paper's recipe tuned fairly: how the figures of docs/recall.md came.

    python benchmarks/bench_recall.py [--data FOLDER] [--images N] [--seeds N] [--encoder v2] [--ways ...] [--keep FILE]
        [--pooling mean+mean@3+mean@0]
    python benchmarks/bench_recall.py --latents FOLDER [--images N] [--seeds N] [--ways ...] [--keep FILE]

FOLDER, or the environment variable FUSEMIX_DATA, holds the latents that `bench_fit.py` describes; without it there is
nothing to measure, and the script says so. A seed draws the training images; each image brings its five captions. 500
other *training* images choose whatever is chosen (epochs and dropout of the paper's recipe, shrinkage, strength,
shares); what is told is recall on the validation split, which nothing has seen. What is "unpaired" also gets the
remaining training images and captions, whose pairing it is not told. With --keep, what is done is not done again.
With --pooling the captions are encoded anew, by MiniLM so pooled: 35,000 of them, five minutes.
With --latents it is a folder that `fusemix extract` wrote: N groups of its train split are drawn, its val split chooses
and its test split is what is told of.
The reference is "paper" where it is among the ways (a quarter of an hour a seed), else "scaled", which finds more.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import fusemix as fm
from bench_fit import vectors
from fusemix.data.latents import ItemLatents, Latents, LateTable
from fusemix.data.rows import LatentRows
from goals import leave, result

JUDGES = 500  # training images to choose by
GOALS = {200: 1.5, 1000: 1.25, 5500: 1.15}  # times the paper's recipe; with items without partners 2.0 at 200
PAPER = [{"epochs": epochs, "dropout": dropout} for epochs in (40, 120) for dropout in (0.3, 0.6)]
Way = Callable[[Latents, Latents, Latents, int], fm.FuseMix]


def paper(train: Latents, val: Latents, rest: Latents, seed: int) -> fm.FuseMix:
    """The released recipe; epochs, dropout and the epoch that is kept are chosen on validation."""
    models = [fm.FuseMix(recipe="paper", seed=seed, **given).fit(train, val=val) for given in PAPER]
    return max(models, key=lambda model: max(record.get("val", 0.0) for record in model.history_))


def way(unpaired: bool = False, **given: Any) -> Way:
    """A fit with these arguments."""
    return lambda train, val, rest, seed: fm.FuseMix(seed=seed, **given).fit(
        train, val=val, unpaired=[rest] if unpaired else ()
    )


WAYS: dict[str, Way] = {
    "paper": paper,
    "scaled": way(recipe="scaled"),
    "cca": way(adapter="cca"),
    "ridge": way(adapter="ridge"),
    "procrustes": way(adapter="procrustes"),
    "both": way(adapter="both"),
    "auto": way(),
    "auto, begun at random": way(settings={"refine": False}),
    "auto, begun at random, wide blocks": way(settings={"refine": False, "width": 0}),
    "cca, unpaired": way(adapter="cca", unpaired=True),
    "auto, unpaired": way(unpaired=True),
}


USUAL = '"scaled","cca","auto","cca, unpaired"'


def open_flickr(folder: Path, encoder: str, text: ItemLatents | None = None) -> Latents:
    """All pairs: each caption with its image; latents of v1, v2, or v1+v2 side by side, and of captions if given."""
    splits = np.array([line.split("\t")[1] for line in (folder / "flickr8k/images.tsv").read_text().split("\n")[1:-1]])
    arrays = folder / "latents/flickr8k"
    image_of = np.load(arrays / "caption_to_image.npy").astype(np.int64)
    rows = {"image": image_of, "text": np.arange(len(image_of))}
    parts = [vectors("image", arrays / f"image_mobilenet_{each}.npy") for each in encoder.split("+")]
    joined = torch.cat([part.rows.whole() for part in parts], dim=1)
    image = ItemLatents("image", "vector", parts[0].late, LatentRows.of(joined))
    items = {"image": image, "text": text or vectors("text", arrays / "text_minilm_l6_v2.npy")}
    return Latents(items, rows, image_of, splits[image_of], LateTable(lambda: pa.table({"row": rows["text"]})))


def encoded(folder: Path, pooling: str) -> ItemLatents:
    """All captions by MiniLM, pooled as is said, in the precision of the other latents."""
    lines = (folder / "flickr8k/captions.tsv").read_text().split("\n")[1:-1]
    captions = [line.split("\t")[3] for line in lines]
    encoder = fm.load_encoder("minilm", "text", pooling=pooling)
    by_length = np.argsort([len(caption) for caption in captions])
    rows: list[np.ndarray | None] = [None] * len(captions)
    for start in range(0, len(captions), encoder.batch_size):
        some = by_length[start : start + encoder.batch_size]
        for place, row in zip(some, encoder.encode([captions[i] for i in some]), strict=True):
            rows[place] = row.astype(np.float16)
    ids = pa.array([str(i) for i in range(len(rows))])
    late = LateTable(lambda: pa.table({"id": ids, "value": pa.array(captions)}))
    return ItemLatents("text", "text", late, LatentRows.of(torch.from_numpy(np.stack(rows))))


def mean_r1(ways: dict[str, Any] | None) -> float | None:
    """Mean R@1 of both directions."""
    return None if ways is None else round(float(np.mean([scores.recall[1] for scores in ways.values()])), 3)


def measure(train: Latents, val: Latents | None, told: Latents, name: str, images: int, seed: int) -> dict[str, Any]:
    """Fit one way on some groups of `train` and tell what it finds in `told`; without `val` other groups choose."""
    drawn = np.random.default_rng(seed).permutation(np.unique(train.groups))
    end = len(drawn) - (JUDGES if val is None else 0)
    part, rest, judges = (
        train.take(np.isin(train.groups, some)) for some in (drawn[:images], drawn[images:end], drawn[end:])
    )
    val = judges if val is None else val
    started = time.perf_counter()
    model = WAYS[name](part, val, rest, seed)
    seconds = time.perf_counter() - started
    found = model.evaluate(told)
    return {
        "way": name, "images": images, "seed": seed, "R@1": mean_r1(found.retrieval),
        "uncorrected": mean_r1(found.uncorrected), "bar": mean_r1(found.baselines["cca"]),
        "chosen": model.facts_["chosen"], "seconds": round(seconds),
    }  # fmt: skip


def main() -> None:
    """Measure all ways and seeds; print a table, and a RESULT line for each goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=os.environ.get("FUSEMIX_DATA"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", default="v2")
    parser.add_argument("--ways", default=USUAL, help=f"of {', '.join(WAYS)}; JSON strings, with commas")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--latents", type=Path)
    parser.add_argument("--pooling", help="of MiniLM, with which captions are encoded anew")
    given = parser.parse_args()
    if given.latents is not None:
        of, given.encoder = given.latents.name, str(given.latents)
        train, val, told = fm.open_latents(given.latents).split()
    elif given.data is None or not (Path(given.data) / "flickr8k/images.tsv").is_file():
        print("nothing to measure: give --data FOLDER")
        return
    else:
        folder, of = Path(given.data), f"flickr8k val, {given.encoder} {given.pooling or ''}".strip()
        pairs = open_flickr(folder, given.encoder, encoded(folder, given.pooling) if given.pooling else None)
        train, val, told = pairs.only("train"), None, pairs.only("val")
    done = (
        [json.loads(line) for line in given.keep.read_text().splitlines()] if given.keep and given.keep.exists() else []
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for name in json.loads(f"[{given.ways}]"):
        for seed in range(given.seeds):
            key = {
                "encoder": given.encoder,
                "pooling": given.pooling,
                "way": name,
                "images": given.images,
                "seed": seed,
            }
            record = next((each for each in done if key.items() <= each.items()), None)
            if record is None:
                record = {**key, **measure(train, val, told, name, given.images, seed)}
                print(json.dumps(record), flush=True)
                if given.keep:
                    with given.keep.open("a") as file:
                        file.write(json.dumps(record) + "\n")
            found.setdefault(name, []).append(record)
    tell(found, of, given.images)
    leave()


def tell(found: dict[str, list[dict[str, Any]]], of: str, images: int) -> None:
    """Print the table and the goals."""
    mean = {name: float(np.mean([each["R@1"] for each in runs])) for name, runs in found.items()}
    print("| way | mean R@1 | hubs uncorrected | regularised CCA | seeds | seconds |\n|---|---|---|---|---|---|")
    for name, runs in found.items():
        cells = [spread([each[key] for each in runs]) for key in ("R@1", "uncorrected", "bar")]
        seconds = float(np.median([each["seconds"] for each in runs]))
        print(f"| {name} | {' | '.join(cells)} | {len(runs)} | {seconds:.0f} |")
    where = f"{of}, {images:,} images: mean R@1"
    reference = "paper" if "paper" in mean else "scaled"
    goals = {"auto": GOALS.get(images)} | (
        dict.fromkeys(("auto, unpaired", "cca, unpaired"), 2.0) if images == 200 else {}
    )
    for name, goal in goals.items():
        if goal is not None and {name, reference} <= mean.keys():
            times = round(mean[name] / mean[reference], 2)
            result(f"{where}, {name} / {reference}", times, f">= {goal:g}", lambda x, goal=goal: x >= goal)
    if "auto" in mean:
        ahead = round(float(np.mean([each["R@1"] - each["bar"] for each in found["auto"]])), 2)
        result(f"{where}, auto minus CCA of cross-validated shrinkage", ahead, ">= 0", lambda x: x >= 0)


def spread(values: list[float | None]) -> str:
    """Mean and half a 95 % interval of the mean over seeds (Student's t)."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) < 2:
        return f"{known[0]:.1f}"
    t = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(known), 2.0)
    return f"{np.mean(known):.1f} ± {t * np.std(known, ddof=1) / len(known) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
