"""Whether `fusemix probe` ranks pairs of encoders as whole fits do, on Flickr8k.

    OMP_NUM_THREADS=1 python benchmarks/bench_probe.py [--keep FOLDER] [--data FOLDER]

The data are those of `bench_fit.py`, and `flickr8k/images/` and `flickr8k/captions.tsv`. Six encoders of pictures times
four of texts are made from what is at hand, strong and weak, wide and narrow (`IMAGES`, `TEXTS`). Their latents and the
figures of finished fits stay in FOLDER, and are not made again.

A whole fit is FuseMix on 5,000 training photographs with a caption each, by `config.scaled` made small enough for one
thread: blocks of the latent's own width, 300 steps. Its figure is the mean R@1, both ways, on the 1,000 validation
photographs and their 5,000 captions. The same with another seed, which also
draws other photographs, shows how well any measure could do. A probe has at most 2,000 training photographs, a caption
each, and never looks at those of validation.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

import fusemix as fm
import fusemix.probing as probing
from bench_fit import open_flickr, vectors
from fusemix.config import scaled
from fusemix.data.latents import Latents
from fusemix.encoders.offline import Hog
from fusemix.evaluate import score
from fusemix.fit import fit_adapters
from fusemix.training.validation import embed
from goals import leave, result

CPU = torch.device("cpu")
PAIRS, STEPS = 5000, 300
SAMPLES = (500, 1000, 2000)
WIDTHS = (64, 128, 256, 512, 4096)


def colours(pictures: Sequence[Any]) -> np.ndarray:
    """How much of each of 64 colours a picture has."""
    return np.stack([_colours(picture) for picture in pictures])


def _colours(picture: Any) -> np.ndarray:
    pixels = np.asarray(picture.convert("RGB").resize((64, 64)), dtype=np.int64).reshape(-1, 3) // 64
    return np.sqrt(np.bincount(pixels @ [16, 4, 1], minlength=64) / len(pixels))


def words(captions: Sequence[str], width: int = 1024) -> np.ndarray:
    """Which words a caption has, hashed to places."""
    latents = np.zeros((len(captions), width))
    for row, caption in zip(latents, captions, strict=True):
        for word in caption.lower().split():
            row[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % width] = 1
    return latents


def letters(captions: Sequence[str]) -> np.ndarray:
    """How often a caption has each letter."""
    return np.array([[caption.lower().count(chr(97 + i)) for i in range(26)] for caption in captions])


def narrowed(latents: np.ndarray, width: int) -> np.ndarray:
    """A random projection."""
    return latents @ np.random.default_rng(0).normal(size=(latents.shape[1], width)) / latents.shape[1] ** 0.5


def _pictures(data: Path, encode: Callable[[Sequence[Any]], np.ndarray]) -> np.ndarray:
    names = [line.split("\t")[0] for line in (data / "flickr8k/images.tsv").read_text().split("\n")[1:-1]]
    return np.concatenate([encode([Image.open(data / "flickr8k/images" / name)]) for name in names])


def _captions(data: Path) -> list[str]:
    return [line.split("\t")[3] for line in (data / "flickr8k/captions.tsv").read_text().split("\n")[1:-1]]


def _ready(data: Path, name: str) -> np.ndarray:
    return np.load(data / f"latents/flickr8k/{name}.npy").astype(np.float32)


IMAGES: dict[str, Callable[[Path], np.ndarray]] = {
    "mobilenet2": lambda data: _ready(data, "image_mobilenet_v2"),
    "mobilenet1": lambda data: _ready(data, "image_mobilenet_v1"),
    "hog": lambda data: _pictures(data, Hog().encode),
    "mobilenet2-32": lambda data: narrowed(_ready(data, "image_mobilenet_v2"), 32),
    "colours": lambda data: _pictures(data, colours),
    "mobilenet1+2": lambda data: np.hstack([_ready(data, f"image_mobilenet_v{i}") for i in (1, 2)]),
}
TEXTS: dict[str, Callable[[Path], np.ndarray]] = {
    "minilm": lambda data: _ready(data, "text_minilm_l6_v2"),
    "words": lambda data: words(_captions(data)),
    "word-vectors": lambda data: narrowed(words(_captions(data), 16_384), 64),  # a random vector a word, summed
    "letters": lambda data: letters(_captions(data)),
}


def array(keep: Path, data: Path, name: str) -> Path:
    """The latents of an encoder, made once."""
    path = keep / f"{name}.npy"
    if not path.exists():
        np.save(path, {**IMAGES, **TEXTS}[name](data).astype(np.float16))
    return path


def full_fit(keep: Path, data: Path, image: str, text: str, seed: int = 0) -> float:
    """Mean R@1, both ways, in percent, on the validation split; a fit that is done is not done again."""
    path = keep / f"fit-{image}-{text}-{seed}.json"
    if not path.exists():
        began = time.process_time()
        train, val = (swapped(part, keep, data, image, text) for part in open_flickr(data))
        first = np.unique(train.groups, return_index=True)[1]
        train = train.take(np.random.default_rng(seed).permutation(first)[:PAIRS])
        config = scaled(len(train), seed=seed)
        epochs = round(STEPS * 2 * config.batch_size / PAIRS)
        fitted = fit_adapters(
            train, None, replace(config, dim=256, expansion=1, epochs=epochs), CPU, lambda *_, **__: None
        )
        scores = score(lambda name, rows: embed(fitted.adapters[name], rows), val)
        recall = float(np.mean([way.recall[1] for way in scores.values()]))
        path.write_text(json.dumps({"recall": recall, "seconds": time.process_time() - began}))
    found = json.loads(path.read_text())
    print(f"# fit {seed} of {image} and {text}: mean R@1 {found['recall']:.2f} in {found['seconds']:.0f} s", flush=True)
    return float(found["recall"])


def swapped(pairs: Latents, keep: Path, data: Path, image: str, text: str) -> Latents:
    """The same pairs with latents of other encoders."""
    return replace(pairs, items={n: vectors(n, array(keep, data, e)) for n, e in (("image", image), ("text", text))})


def compare(keep: Path, data: Path, full: dict[str, dict[tuple[str, str], float]], sample: int) -> None:
    """Probe on a sample of a size, and say how well each measure orders the pairs as the fits do."""
    pairs = fm.read_pairs(data / "flickr8k/captions.tsv", image="image", text="caption", root=data / "flickr8k/images")
    began = time.process_time()
    probe = fm.probe(
        pairs, sample=sample, image=[keep / f"{i}.npy" for i in IMAGES], text=[keep / f"{t}.npy" for t in TEXTS]
    )
    seconds = time.process_time() - began
    print(f"# sample of {sample:,}, {seconds:.0f} CPU seconds\n{probe}\n")
    (keep / f"probe-{sample}.json").write_text(json.dumps({"cpu_seconds": seconds, "probe": probe.to_dict()}, indent=1))
    names = [tuple(Path(encoder.name).stem for encoder in match.encoders) for match in probe.ranking]
    measures = {
        "cross-validated recall, its ranking": [match.recall for match in probe.ranking],
        "mutual kNN, calibrated": [match.mutual.score for match in probe.ranking],
        "mutual kNN, uncalibrated": [match.mutual.overlap for match in probe.ranking],
        "width of both latents": [sum(encoder.dim for encoder in match.encoders) for match in probe.ranking],
    }
    for seeds, recalls in full.items():
        fits = np.array([recalls[name] for name in names])
        upper = fits >= np.median(fits)
        for measure, values in measures.items():
            for what, chosen in (("", np.ones_like(upper)), (" the better half,", upper)):
                name = f"probe of {sample:,} pairs: Spearman of {measure} with full fits, {seeds},{what} "
                figure = round(float(spearmanr(np.array(values)[chosen], fits[chosen]).statistic), 3)
                result(f"{name}{chosen.sum()} encoder pairs", figure, "reported", lambda _: True)
        lost = round(float(fits.max() - fits[0]), 2)
        name = f"probe of {sample:,} pairs: R@1 that its first loses to the best fit, {seeds}"
        result(name, lost, "reported", lambda _: True)


def cut(keep: Path, data: Path, width: int) -> None:
    """Probe the widest pictures' encoder with more or fewer principal components."""
    pairs = fm.read_pairs(data / "flickr8k/captions.tsv", image="image", text="caption", root=data / "flickr8k/images")
    probing.WIDTH = width
    began = time.process_time()
    probe = fm.probe(pairs, image=keep / "mobilenet1+2.npy", text=keep / "minilm.npy")
    seconds = time.process_time() - began
    print(f"# {width:,} principal components at most: recall {probe.ranking[0].recall:.1f}, {seconds:.1f} CPU seconds")


def main() -> None:
    """Fit, probe and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=os.environ.get("FUSEMIX_DATA"))
    parser.add_argument("--keep", type=Path, default=Path("probe-figures"))
    given = parser.parse_args()
    if given.data is None or not (given.data / "flickr8k/captions.tsv").is_file():
        print("# no Flickr8k here: --data FOLDER with flickr8k/captions.tsv and latents/flickr8k/; nothing measured")
        return
    torch.set_num_threads(1)
    given.keep.mkdir(parents=True, exist_ok=True)
    full = {(i, t): full_fit(given.keep, given.data, i, t) for t in TEXTS for i in IMAGES}
    again = {(i, t): full_fit(given.keep, given.data, i, t, seed=1) for t in TEXTS for i in IMAGES}
    figure = round(float(spearmanr(list(full.values()), list(again.values())).statistic), 3)
    result(f"Spearman of full fits with those of another seed, {len(full)} encoder pairs", figure, "reported", bool)
    both = {pair: (full[pair] + again[pair]) / 2 for pair in full}
    for sample in SAMPLES:
        compare(given.keep, given.data, {"seed 0": full, "seed 1": again, "mean of both": both}, sample)
    for width in WIDTHS:
        cut(given.keep, given.data, width)
    leave()


if __name__ == "__main__":
    main()
