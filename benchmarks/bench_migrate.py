"""How much recall a gallery keeps that goes from one image encoder to another without being encoded again.

    python benchmarks/bench_migrate.py [--data FOLDER]

FOLDER, or the environment variable FUSEMIX_DATA, is that of `bench_recall.py`. CCA is fitted on MobileNetV2 latents of
5,500 training images; the gallery, the validation images, has MobileNetV1 latents alone. The rotation is learned from
training images that have both.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

import fusemix as fm
from bench_recall import JUDGES, mean_r1, open_flickr

SHARED = (300, 1000, 3000, 6000)


def main() -> None:
    """Print R@1 of the new encoder itself, and of the migrated gallery by the number of shared images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=os.environ.get("FUSEMIX_DATA"))
    given = parser.parse_args()
    if given.data is None or not (Path(given.data) / "flickr8k/images.tsv").is_file():
        print("nothing to measure: give --data FOLDER")
        return
    old, new = (open_flickr(Path(given.data), encoder) for encoder in ("v1", "v2"))
    train, test = new.only("train"), new.only("val")
    drawn = np.random.default_rng(0).permutation(np.unique(train.groups))
    part, val = (train.take(np.isin(train.groups, some)) for some in (drawn[:-JUDGES], drawn[-JUDGES:]))
    model = fm.FuseMix(adapter="cca").fit(part, val=val)
    native = mean_r1(model.evaluate(test).retrieval)
    assert native is not None
    print(f"encoded by the new encoder: mean R@1 {native:.1f}")
    for count in SHARED:
        found = fm.migrate(old.items["image"], new.items["image"].select(np.sort(drawn[:count])))
        moved = mean_r1(model.evaluate(replace(test, items={**test.items, "image": found.items()})).retrieval)
        assert moved is not None
        print(f"migrated, {count:,} shared images: mean R@1 {moved:.1f}, {moved / native:.0%} of it")


if __name__ == "__main__":
    main()
