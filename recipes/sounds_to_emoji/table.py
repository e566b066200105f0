"""A dog's bark draws a dog: frozen sounds land in the text latents that a painter of emoji is conditioned on.

    python table.py DATA PAINTER OUT [--fold 4] [--seeds 0,1,2,3,4]

DATA holds esc/sounds.tsv, latents/esc/ and weights/; PAINTER is what painter.py wrote. Sounds of folds 1 to 3 are
aligned with the text latents of their captions, the text space locked; pictures are drawn from sounds of fold 4,
recordings that nothing was trained on, and judged by the nearest of the ten concepts in frozen MobileNetV2 latents.
"""

import argparse
import csv
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

import fusemix as fm
from fusemix.align.prior import posterior_mean
from fusemix.contact_sheet import contact_sheet

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "flickr8k"))

import painter

SHOTS = (1, 5, 0)  # clips per class; 0 is all there are: no class has more than 20
TAKES = 20  # drawings of each word
CLIPS = 4  # of each class on the contact sheet; fold 4 has no fewer of any but one
# Sounds this few need neither a wide block nor many passes.
FIT = {"epochs": 40, "settings": {"expansion": 1}}


@dataclass(frozen=True)
class Sounds:
    """Clips of the ten classes.

    Attributes:
        audio: (n, 2048) YAMNet latents.
        text: (n, 384) MiniLM latents of the captions.
        classes: (n,) places in painter.CONCEPTS.
        files: where the clips are.
    """

    audio: NDArray[np.float32]
    text: NDArray[np.float32]
    classes: NDArray[np.int64]
    files: list[str]

    def take(self, rows: NDArray[np.int64]) -> "Sounds":
        """Return some of the clips."""
        return Sounds(self.audio[rows], self.text[rows], self.classes[rows], [self.files[row] for row in rows])


def open_sounds(data: Path, folds: Sequence[int]) -> Sounds:
    """Read the clips of some folds."""
    with (data / "esc" / "sounds.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = list(painter.CONCEPTS)
    audio, text = (np.load(data / "latents" / "esc" / f"{name}.npy") for name in ("audio_yamnet", "text_minilm_l6_v2"))
    keep = [i for i, row in enumerate(rows) if row["esc10"] == "1" and int(row["fold"]) in folds]
    classes = np.array([names.index(rows[i]["label"]) for i in keep])
    return Sounds(
        audio[keep].astype(np.float32), text[keep].astype(np.float32), classes, [rows[i]["file"] for i in keep]
    )


def shots(sounds: Sounds, count: int, seed: int) -> Sounds:
    """Draw so many clips of each class, or take all."""
    order = np.random.default_rng(seed).permutation(len(sounds.classes))
    rows = [order[sounds.classes[order] == each][: count or None] for each in range(len(painter.CONCEPTS))]
    return sounds.take(np.concatenate(rows))


def fit(train: Sounds, seed: int, alpha: float) -> fm.FuseMix:
    """Fit sounds into the locked text space."""
    model = fm.FuseMix(lock="text", alpha=alpha, seed=seed, **FIT)
    return model.fit(fm.Latents.from_arrays(sound=train.audio, text=train.text))


def conditions(job: tuple[Sounds, Sounds, int, int]) -> dict[str, Tensor]:
    """Return what the heard sounds say to the painter, by every method, for one number of clips and one seed."""
    torch.set_num_threads(1)
    sounds, heard, count, seed = job
    train = shots(sounds, count, seed)
    mixed, plain = (fit(train, seed, alpha) for alpha in (1.0, 0.0))
    landing = mixed.adapters_["sound"]
    captions = torch.from_numpy(np.unique(train.text, axis=0))
    with torch.inference_mode():
        audio = torch.from_numpy(heard.audio)
        landed, ridge = landing.land(audio), mixed.baselines_["ridge"].embed_x(audio)
        nearest = (F.normalize(landed, dim=-1) @ F.normalize(captions, dim=-1).T).argmax(dim=1)
        found = {
            "FuseMix": landing.condition(audio),
            "FuseMix without the prior": landed,
            "no mixing": plain.adapters_["sound"].condition(audio),
            "ridge": ridge,
            "ridge with the prior": posterior_mean(ridge, landing.known, landing.temperature),
            "nearest training caption": captions[nearest],
        }
    if count == 0:
        order = np.random.default_rng(seed).permutation(len(train.classes))
        shuffled = Sounds(train.audio, train.text[order], train.classes, train.files)
        found["shuffled pairs"] = torch.from_numpy(fit(shuffled, seed, 1.0).condition_latents("sound", heard.audio))
    return found


def probe(train: Sounds, heard: Sounds) -> float:
    """Linear probe on the same sound latents: percent of the heard sounds that it names."""
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train.audio, train.classes)
    return 100 * float(np.mean(fitted.predict(heard.audio) == heard.classes))


def make_judge(data: Path) -> Callable[[Tensor], NDArray[np.int64]]:
    """Return what names the nearest concept of pictures (n, 3, SIDE, SIDE), in MobileNetV2 latents."""
    os.environ.setdefault("MOBILENET", str(data / "weights" / "mobilenet_v2_tf_fp16.npz"))
    import mobilenet

    def encode(pictures: Tensor) -> Tensor:
        return F.normalize(mobilenet.encode([painter.as_image(each) for each in pictures]), dim=-1)

    concepts = encode(painter.open_concepts(data / "emoji"))
    return lambda pictures: (encode(pictures) @ concepts.T).argmax(dim=1).numpy()


def measure(
    unet: UNet2DConditionModel, judge: Callable[[Tensor], NDArray[np.int64]], wanted: Tensor, right: NDArray[np.int64]
) -> tuple[float, Tensor]:
    """Draw a picture for each condition; return the percentage that show what they should, and the pictures."""
    pictures = painter.draw(unet, wanted, range(len(wanted)))
    return 100 * float(np.mean(judge(pictures) == right)), pictures


def main() -> None:
    """Align, draw, judge; print a Markdown table and the RESULT lines, write a contact sheet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("painter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fold", type=int, default=4, help="of the recordings to draw from")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    unet, judge = UNet2DConditionModel.from_pretrained(given.painter).eval(), make_judge(given.data)
    sounds, heard = open_sounds(given.data, (1, 2, 3)), open_sounds(given.data, (given.fold,))

    words = painter.encode_texts([name.lower() for name in painter.CONCEPTS])
    places = np.repeat(np.arange(len(words)), TAKES)
    from_words, drawn = measure(unet, judge, words[places], places)
    one_each = drawn[::TAKES]
    from_captions, _ = measure(unet, judge, torch.from_numpy(heard.text), heard.classes)

    jobs = [(sounds, heard, count, seed) for count in SHOTS for seed in seeds]
    figures: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ProcessPoolExecutor(os.cpu_count(), torch.multiprocessing.get_context("spawn")) as processes:
        for (_, _, count, seed), landed in zip(jobs, processes.map(conditions, jobs), strict=True):
            for name, wanted in landed.items():
                figure, drawn = measure(unet, judge, wanted, heard.classes)
                figures[name][count].append(figure)
                if (name, count, seed) == ("FuseMix", 0, seeds[0]):
                    write_sheet(one_each, drawn, heard, given.out)
            figures["linear probe"][count].append(probe(shots(sounds, count, seed), heard))
            print(
                f"# {count or 'all'} clips a class, seed {seed}: FuseMix {figures['FuseMix'][count][-1]:.1f}",
                flush=True,
            )
    show(from_words, from_captions, figures)


def show(from_words: float, from_captions: float, figures: dict[str, dict[int, list[float]]]) -> None:
    """Print the table and the goals."""
    print(f"from words: {from_words:.1f} % of {TAKES} drawings of each class word")
    print(f"from the captions of the same sounds: {from_captions:.1f} %\n")
    print("| from sounds | " + " | ".join(f"{count or 'all'} a class" for count in SHOTS) + " |")
    print("|---|" + "---|" * len(SHOTS))
    for name, by_count in figures.items():
        print(f"| {name} | " + " | ".join(spread(by_count.get(count, [])) for count in SHOTS) + " |")
    result("emoji: from words", from_words, ">= 98", from_words >= 98)
    probed, drawn = (float(np.mean(figures[name][0])) for name in ("linear probe", "FuseMix"))
    result("emoji: linear probe less FuseMix, all clips", probed - drawn, "<= 3", probed - drawn <= 3)
    for count in (1, 5):
        gains = np.subtract(figures["FuseMix"][count], figures["no mixing"][count])
        half = half_width(gains)
        target = f"> 0 by more than its 95 % interval, {half:.1f}"
        result(f"emoji: FuseMix less no mixing, {count} a class", float(gains.mean()), target, gains.mean() > half)
    shuffled = np.array(figures["shuffled pairs"][0])
    chance = 100 / len(painter.CONCEPTS)
    target = f"{chance:.0f}, within its 95 % interval of {half_width(shuffled):.1f}"
    holds = abs(shuffled.mean() - chance) <= half_width(shuffled)
    result("emoji: from shuffled pairs", float(shuffled.mean()), target, holds)


def half_width(values: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of a mean, Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else np.nan


def spread(values: list[float]) -> str:
    """Mean and 95 % interval over seeds."""
    return f"{np.mean(values):.1f} ± {half_width(np.array(values)):.1f}" if values else ""


def result(name: str, figure: float, target: str, holds: bool) -> None:
    """Print a goal."""
    print("RESULT", json.dumps({"name": name, "figure": round(figure, 1), "target": target, "holds": bool(holds)}))


def write_sheet(words: Tensor, sounds: Tensor, heard: Sounds, path: Path) -> None:
    """Write a row for each concept: the picture drawn from its word, then those from the first sounds of it."""
    rows = []
    for place, name in enumerate(painter.CONCEPTS):
        some = np.flatnonzero(heard.classes == place)[:CLIPS]
        clips = ", ".join(Path(heard.files[row]).stem for row in some)
        pictures = [painter.as_image(each) for each in (words[place], *sounds[some])]
        rows.append((f"{name}: {clips}", pictures))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(path)


if __name__ == "__main__":
    main()
