"""What the small prior does to conditions in a locked text space, on data that was not trained on.

    python benchmarks/bench_landing.py [--data FOLDER]

FOLDER (default: ../shared/data beside the project) holds latents of Flickr8k and of the ESC-10 clips. Beside where an
item lands lies the condition that the model makes of it: how close they come to real latents, and the R@1 of the item's
own caption among all that are held out.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import fusemix as fm
from fusemix.align.landing import closeness
from goals import leave, result

FLICKR_PAIRS = 5000  # 1,000 photographs with five captions each
SMALL = {"epochs": 40, "settings": {"expansion": 1}}  # a few hundred clips need neither a wide block nor many passes


def open_sounds(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sound and text latents of the ESC-10 clips: folds 1 to 3, then fold 4."""
    with (data / "esc" / "sounds.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    sound, text = (_load(data / "latents" / "esc" / f"{name}.npy") for name in ("audio_yamnet", "text_minilm_l6_v2"))
    ten = np.array([row["esc10"] == "1" for row in rows])
    fold = np.array([int(row["fold"]) for row in rows])
    train, test = ten & (fold < 4), ten & (fold == 4)
    return sound[train], text[train], sound[test], text[test]


def open_flickr(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return image and text latents of Flickr8k: training pairs, then validation photographs with a caption each."""
    folder = data / "latents" / "flickr8k"
    image, text = (_load(folder / f"{name}.npy") for name in ("image_mobilenet_v2", "text_minilm_l6_v2"))
    of = np.load(folder / "caption_to_image.npy")
    held = np.unique(of, return_index=True)[1][6000:]
    return image[of[:FLICKR_PAIRS]], text[:FLICKR_PAIRS], image[of[held]], text[held]


def _load(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path).astype(np.float32))


def measure(name: str, data: tuple[Tensor, Tensor, Tensor, Tensor], **how: object) -> tuple[float, float]:
    """Print a row each for landing and condition; return the share of the variance that either leaves unexplained."""
    x, text, new, real = data
    model = fm.FuseMix(lock="text", **how).fit(fm.Latents.from_arrays(x=x.numpy(), text=text.numpy()))
    side, left = model.adapters_["x"], []
    for what, function in (("landing", side.land), ("condition", side.condition)):
        with torch.inference_mode():
            found = function(new)
        close = closeness(found, real)
        own = (F.normalize(found, dim=1) @ F.normalize(real, dim=1).T).argmax(dim=1) == torch.arange(len(real))
        left.append(close.unexplained)
        print(
            f"| {name} | {what} | {100 * close.unexplained:.0f} | {close.length:.2f} | {close.spread:.2f} | "
            f"{close.frechet:.2f} | {close.floor:.2f} | {100 * own.double().mean():.1f} |",
            flush=True,
        )
    return left[0], left[1]


def main() -> None:
    """Fit, measure, print a Markdown table and the RESULT lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    data = parser.parse_args().data
    if not (data / "latents").is_dir():
        print(f"no latents in {data / 'latents'}: nothing measured")
        return
    print("| held out | what | unexplained % | length | spread | Fréchet | of real ones | R@1 |")
    print("|---|---|---|---|---|---|---|---|")
    for name, opened, how in (
        ("ESC-10 clips, fold 4", open_sounds(data), SMALL),
        ("Flickr8k, validation", open_flickr(data), {"epochs": 30}),
    ):
        before, after = measure(name, opened, **how)
        result(f"landing: unexplained with the prior, of that without; {name}", after / before, "< 1", lambda r: r < 1)
    leave()


if __name__ == "__main__":
    main()
