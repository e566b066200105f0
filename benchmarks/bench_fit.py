"""How long a fit takes to a given validation recall on Flickr8k, beside the released recipe.

    python benchmarks/bench_fit.py [--data FOLDER] [--epochs N] [--keep FILE]

FOLDER, or the environment variable FUSEMIX_DATA, holds `flickr8k/images.tsv` (columns image and split) and
`latents/flickr8k/`: `image_mobilenet_v1.npy`, `text_minilm_l6_v2.npy` and `caption_to_image.npy`, rows in the order of
the table. Without it there is nothing to measure, and the script says so.

Ours is `fit_adapters` with the default settings of `config.scaled`. The reference is the data path, model, loss and
optimiser of `released.py` with our depth, width, dropout, batch, learning rate, warm-up, weight decay and number of
epochs; its latents are raw and its schedule is its own. Both are judged on the validation pairs after every epoch by
the same recall. What counts is the CPU time of the steps alone, in one thread, up to the end of the first epoch that
reached 95 % of the lower of the two best recalls. With --keep, a form that is done is not done again.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import released
from fusemix.config import FitConfig, scaled
from fusemix.data.latents import ItemLatents, Latents, LateTable
from fusemix.data.rows import LatentRows
from fusemix.fit import fit_adapters
from goals import leave, result

CPU = torch.device("cpu")
SHARE = 0.95
Curve = list[tuple[float, float]]
"""For each epoch: CPU seconds of all steps so far, and validation recall in percent."""


def open_flickr(folder: Path) -> tuple[Latents, Latents]:
    """Training and validation pairs: each caption with its image."""
    splits = np.array([line.split("\t")[1] for line in (folder / "flickr8k/images.tsv").read_text().split("\n")[1:-1]])
    arrays = folder / "latents/flickr8k"
    image_of = np.load(arrays / "caption_to_image.npy").astype(np.int64)
    rows = {"image": image_of, "text": np.arange(len(image_of))}
    files = {"image": "image_mobilenet_v1.npy", "text": "text_minilm_l6_v2.npy"}
    items = {name: vectors(name, arrays / file) for name, file in files.items()}
    pairs = Latents(items, rows, image_of, splits[image_of], LateTable(lambda: pa.table({"row": rows["text"]})))
    return pairs.only("train"), pairs.only("val")


def vectors(name: str, path: Path) -> ItemLatents:
    """Latents of a .npy file; the numbers of its rows are the ids."""
    latents = torch.from_numpy(np.load(path))
    ids = pa.array([str(row) for row in range(len(latents))])
    table = LateTable(lambda: pa.table({"id": ids, "value": pa.nulls(len(ids), pa.string())}))
    return ItemLatents(name, "vector", table, LatentRows.of(latents))


def ours(train: Latents, val: Latents, config: FitConfig) -> Curve:
    """The whole fit, timed from step to step."""
    curve: Curve = []
    spent, mark = 0.0, time.process_time()

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal spent, mark
        now = time.process_time()
        spent += now - mark if stage == "fit" else 0.0
        mark = now

    def track(record: dict[str, float]) -> None:
        nonlocal mark
        if "val" in record:
            curve.append((spent, record["val"]))
            tell("fusemix", curve)
            mark = time.process_time()  # validation is no step

    fit_adapters(train, val, config, CPU, progress, track=track)
    return curve


def reference(train: Latents, val: Latents, config: FitConfig) -> Curve:
    """`released.fit`, with a clock around its epochs."""
    sets = [
        released.dataset(
            *(part.items[name].latents for name in part.modalities),
            tuple(torch.from_numpy(part.rows[name]) for name in part.modalities),
        )
        for part in (train, val)
    ]
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002
    x, y = sets[0][0]
    model = released.Model(len(x), len(y), config)
    optimizer, batches = released.adamw(model, config), released.loader(sets[0], config)
    curve: Curve = []
    spent = 0.0
    for epoch in range(config.epochs):
        model.train()
        began = time.process_time()
        for _ in released.epoch_steps(model, optimizer, batches, config, epoch):
            pass
        spent += time.process_time() - began
        curve.append((spent, released.validate(model, sets[1])))
        tell("released", curve)
    return curve


def tell(form: str, curve: Curve) -> None:
    """Say that it lives."""
    print(f"# {form}: epoch {len(curve)}, {curve[-1][0]:.1f} s, recall {curve[-1][1]:.2f}", flush=True)


def seconds_to(curve: Curve, target: float) -> float:
    """CPU seconds at the end of the first epoch that reached the target."""
    return next(seconds for seconds, recall in curve if recall >= target)


def main() -> None:
    """Train both, print both curves and the ratio of their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FUSEMIX_DATA"))
    parser.add_argument("--epochs", type=int, help="fewer or more than the default settings have")
    parser.add_argument("--keep", type=Path, help="JSON file of the curves that are done")
    given = parser.parse_args()
    if given.data is None or not (Path(given.data) / "latents/flickr8k/image_mobilenet_v1.npy").is_file():
        print("# no Flickr8k latents here (--data or FUSEMIX_DATA): the time to a recall stays open")
        return
    torch.set_num_threads(1)
    train, val = open_flickr(Path(given.data))
    config = scaled(len(train), seed=0)
    config = replace(config, epochs=given.epochs or config.epochs)
    images = len(np.unique(train.rows["image"]))
    print(
        f"# {images:,} images, {len(train):,} pairs; {config.depth} block(s), dim {config.dim},"
        f" B {config.batch_size:,}, lr {config.lr:g}, dropout {config.dropout}, {config.epochs} epochs"
    )
    setting = {**config.to_dict(), "pairs": len(train)}
    kept = json.loads(given.keep.read_text()) if given.keep and given.keep.exists() else {}
    curves: dict[str, Curve] = kept["curves"] if kept.get("setting") == setting else {}
    for form, work in (("fusemix", ours), ("released", reference)):
        if form not in curves:
            curves[form] = work(train, val, config)
            if given.keep:
                given.keep.write_text(json.dumps({"setting": setting, "curves": curves}))
    compare(curves)


def compare(curves: dict[str, Curve]) -> None:
    """The table and the ratio."""
    print(f"{'epoch':>5} {'fusemix, s':>11} {'recall':>7} {'released, s':>12} {'recall':>7}")
    for epoch, ((mine, high), (theirs, low)) in enumerate(zip(*curves.values(), strict=True), 1):
        print(f"{epoch:>5} {mine:>11.1f} {high:>7.2f} {theirs:>12.1f} {low:>7.2f}")
    best = {form: max(recall for _, recall in curve) for form, curve in curves.items()}
    target = SHARE * min(best.values())
    times = {form: seconds_to(curve, target) for form, curve in curves.items()}
    print(f"best: fusemix {best['fusemix']:.2f}, released {best['released']:.2f}; to {target:.2f}: {times}")
    ratio = round(times["released"] / times["fusemix"], 2)
    name = f"Flickr8k fit to a validation recall of {target:.1f}: times faster than the released recipe"
    result(name, ratio, "reported", lambda value: 0 < value < float("inf"))


if __name__ == "__main__":
    main()
    leave()
