"""A third modality lands in the space of a model that is there: what it costs, and what meets that never met.

    python benchmarks/bench_onto.py [--data FOLDER] [--seeds N]

FOLDER, or the environment variable FUSEMIX_DATA, holds the latents that `bench_fit.py` describes, and those of sounds.
A model joins photographs and captions (Flickr8k, 6,000 images); sounds and their captions (ESC) then land in its space.
Whole recordings are dealt to five folds by the seed; each is measured by models that were fitted on the others.
Beside it: sounds and captions joined freely. And sounds ask for photographs, which no pair joins: a photograph is right
where a caption of it has a word of the class. No split chooses anything; nothing is trained but closed forms.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

import fusemix as fm
from bench_fit import vectors
from bench_recall import open_flickr, spread
from fusemix.align.hubness import hub_bias
from fusemix.data.latents import Latents, LateTable
from fusemix.search.space import Space

WORDS = {  # of classes that photographs show, as captions name them
    "Airplane": ["plane"], "Cat": ["cat"], "Children": ["child"], "Church bells": ["church"], "Cow": ["cow"],
    "Crackling fire": ["fire"], "Crying baby": ["baby", "infant"], "Dog": ["dog"], "Engine": ["car", "truck", "motor"],
    "Fireworks": ["firework"], "Footsteps": ["walk"], "Helicopter": ["helicopter"], "Hen": ["chicken"],
    "Laughing": ["laugh", "smil"], "Pouring water": ["water"], "Rain": ["rain"], "Rooster": ["rooster", "chicken"],
    "Sea waves": ["ocean", "wave", "sea", "beach"], "Sheep": ["sheep"], "Train": ["train"], "Water drops": ["water"],
}  # fmt: skip
TEXTS = "text_minilm_l6_v2.npy"
FIRST = 10  # photographs that are looked at
FOLDS = 5


COLUMNS = ("text->sound, class", "sound->text, class", "sound->photo", "sound->photo, hubs corrected")
NOTHING = float("nan")


def open_sounds(folder: Path) -> tuple[Latents, NDArray[np.str_]]:
    """Sounds with their captions, grouped by recording, and the class of each."""
    with (folder / "esc/sounds.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    latents = folder / "latents/esc"
    items = {"sound": vectors("sound", latents / "audio_yamnet.npy"), "text": vectors("text", latents / TEXTS)}
    numbers = np.arange(len(rows))
    recordings = np.unique([row["source_id"] for row in rows], return_inverse=True)[1]
    late = LateTable(lambda: pa.table({"row": numbers}))
    pairs = Latents(items, dict.fromkeys(items, numbers), recordings, np.full(len(rows), "train"), late)
    return pairs, np.array([row["label"] for row in rows])


def photographs_of(folder: Path, seen: Latents) -> dict[str, NDArray[np.bool_]]:
    """For each class, which of the photographs have a caption that names it."""
    with (folder / "flickr8k/captions.tsv").open() as file:
        captions = [row["caption"].lower() for row in csv.DictReader(file, delimiter="\t")]
    place = np.unique(seen.rows["image"], return_inverse=True)[1]
    holds = {name: np.zeros(len(seen["image"]), bool) for name in WORDS}
    for row, image in zip(seen.rows["text"], place, strict=True):
        for name, words in WORDS.items():
            holds[name][image] |= any(word in captions[row] for word in words)
    return holds


def same_class(query: Tensor, gallery: Tensor, classes: NDArray[np.str_]) -> float:
    """Percentage of queries (N, S) whose nearest of the gallery (N, S) is of their class (N,)."""
    nearest = (query @ gallery.T).argmax(dim=1).numpy()
    return 100 * float((classes[nearest] == classes).mean())


def shown(scores: Tensor, classes: NDArray[np.str_], holds: dict[str, NDArray[np.bool_]]) -> float:
    """Percentage of right photographs among the first ten, over queries of classes that photographs show."""
    first = scores.topk(FIRST, dim=1).indices.numpy()
    return 100 * float(
        np.mean([holds[name][top].mean() for name, top in zip(classes, first, strict=True) if name in holds])
    )


def measure(
    base: fm.FuseMix, gallery: Tensor, holds: dict[str, NDArray[np.bool_]], train: Latents, test: Latents,
    classes: NDArray[np.str_], seed: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Fit sounds and captions freely, and onto the space of photographs; return figures in the order of COLUMNS."""
    found = {}
    for what, model in (
        ("joined freely", fm.FuseMix(adapter="cca", seed=seed).fit(train)),
        ("landed onto", fm.FuseMix(adapter="ridge", seed=seed).fit(train, onto=base)),
    ):
        sound, text = (
            torch.from_numpy(model.embed_latents(name, test.items[name].rows.take(test.rows[name])))
            for name in ("sound", "text")
        )
        found[what] = [same_class(text, sound, classes), same_class(sound, text, classes), NOTHING, NOTHING]
    Space([base, model])  # which refuses models of two spaces
    known = torch.from_numpy(model.embed_latents("sound", train["sound"].latents))
    bias = 0.5 * hub_bias(gallery, known)
    found["landed onto"][2:] = [
        shown(sound @ gallery.T, classes, holds),
        shown(sound @ gallery.T - bias, classes, holds),
    ]
    found["its caption asks instead"] = [NOTHING, NOTHING, shown(text @ gallery.T, classes, holds), NOTHING]
    chance = 100 * float(np.mean([holds[name].mean() for name in classes if name in holds]))
    found["chance"] = [NOTHING, NOTHING, chance, NOTHING]
    return found


def main() -> None:
    """Measure all seeds and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=os.environ.get("FUSEMIX_DATA"))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if given.data is None or not (Path(given.data) / "esc/sounds.tsv").is_file():
        print("nothing to measure: give --data FOLDER")
        return
    photos = open_flickr(Path(given.data), "v2")
    base, seen = fm.FuseMix(adapter="cca").fit(photos.only("train")), photos.only("val")
    gallery = torch.from_numpy(base.embed_latents("image", seen["image"].latents))
    holds = photographs_of(Path(given.data), seen)
    sounds, classes = open_sounds(Path(given.data))
    runs: dict[str, list[list[float]]] = {}
    for seed in range(given.seeds):
        fold_of = np.random.default_rng(seed).permutation(sounds.groups.max() + 1)[sounds.groups] % FOLDS
        folds = [
            measure(
                base, gallery, holds, sounds.take(fold_of != i), sounds.take(fold_of == i), classes[fold_of == i], seed
            )
            for i in range(FOLDS)
        ]
        for what in folds[0]:
            runs.setdefault(what, []).append(np.mean([fold[what] for fold in folds], axis=0).tolist())
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for what, rows in runs.items():
        cells = [spread([None if np.isnan(each) else each for each in values]) for values in zip(*rows, strict=True)]
        print(f"| {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
