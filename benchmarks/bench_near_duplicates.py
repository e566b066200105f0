"""What the limits of an inspection find: altered copies of photographs, and pictures that are none.

    OMP_NUM_THREADS=2 python benchmarks/bench_near_duplicates.py --data DATA

DATA holds the Flickr8k pictures, their MobileNetV2 latents, and the weights that made them. Of some pictures altered
copies are encoded; a copy is found where its cosine with the original reaches the limit that the latents of the set
give. Pictures of one colour, of noise and of a checkered page are encoded too, and found where they are outliers.
"""

import argparse
import os
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

import goals
from fusemix.align.neighbours import nearest
from fusemix.inspection.vectors import FAR, K, far_from_all, near_limit

ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same file": lambda image: image,
    "5 % cropped": lambda image: image.crop((11, 11, 213, 213)),
    "10 % cropped": lambda image: image.crop((22, 22, 202, 202)),
    "mirrored": ImageOps.mirror,
    "30 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "JPEG of quality 30": lambda image: jpeg(image, 30),
    "half the size": lambda image: image.resize((112, 112)),
    "grey": lambda image: image.convert("L"),
}


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Save and open again."""
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


def encoder(data: Path) -> Callable[[list[Image.Image]], Tensor]:
    """Return the frozen MobileNetV2, from pictures to (n, 1280)."""
    sys.path.insert(0, str(data / "weights"))
    from torch_mobilenet_tf import TFMobileNet

    network = TFMobileNet(str(data / "weights" / "mobilenet_v2_tf_fp16.npz")).eval()

    def encode(images: list[Image.Image]) -> Tensor:
        pixels = [np.asarray(image.convert("RGB").resize((224, 224)), dtype=np.float32) for image in images]
        batches = torch.split(torch.from_numpy(np.stack(pixels) / 127.5 - 1).permute(0, 3, 1, 2), 32)
        return torch.cat([network(batch).float() for batch in batches])

    return encode


def strange(rng: np.random.Generator) -> list[Image.Image]:
    """Return pictures that are no photographs."""
    arrays: list[NDArray[np.uint8]] = [rng.integers(0, 255, (224, 224, 3), dtype=np.uint8) for _ in range(3)]
    arrays += [np.full((224, 224, 3), colour, np.uint8) for colour in (0, 255, (120, 80, 200))]
    arrays += [np.kron(rng.integers(0, 2, (28, 28)), np.ones((8, 8))).astype(np.uint8) * 255 for _ in range(2)]
    return [Image.fromarray(array) for array in arrays]


def main() -> None:
    """Print how many of each kind are found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FUSEMIX_DATA", "")))
    parser.add_argument("--count", type=int, default=120, help="pictures that are altered")
    given = parser.parse_args()
    data, stored = given.data, given.data / "latents/flickr8k/image_mobilenet_v2.npy"
    if not stored.exists() or not (data / "flickr8k/images").exists():
        print(f"# no Flickr8k pictures and latents here ({data}): give --data")
        return
    latents, encode, rng = torch.from_numpy(np.load(stored)).float(), encoder(data), np.random.default_rng(0)
    names = [line.split("\t")[0] for line in (data / "flickr8k/images.tsv").read_text().splitlines()[1:]]
    chosen = np.sort(rng.choice(len(names), given.count, replace=False))
    images = [Image.open(data / "flickr8k/images" / names[i]).convert("RGB") for i in chosen]
    cosines = nearest(latents, latents, K, same=True)[0].numpy()
    limit = 1 - near_limit(cosines)
    print(
        f"# a near duplicate has a cosine of {limit:.3f}; {(cosines[:, 0] >= limit).sum()} of {len(names):,} have one"
    )
    found = {}
    for name, alter in ALTERED.items():
        copies = encode([alter(image) for image in images])
        found[name] = float((F.cosine_similarity(copies, latents[chosen]) >= limit).double().mean())
        print(f"# {name}: {100 * found[name]:.0f} % found")
    for name in ("5 % cropped", "mirrored", "30 % brighter"):
        goals.result(f"share of copies found, {name}", round(found[name], 3), ">= 0.9", lambda v: v >= 0.9)
    odd = encode(strange(rng))
    z = far_from_all(nearest(whole := torch.cat([latents, odd]), whole, K, same=True)[0].numpy())[0]
    print(
        f"# {(z[: len(names)] > FAR).sum()} of {len(names):,} photographs are outliers; "
        f"z of noise, of one colour, of pages: {z[-8:].round(1)}"
    )
    beside = far_from_all(nearest(centred := whole - whole.mean(dim=0), centred, K, same=True)[0].numpy())[0]
    print(f"# the same by the cosines of centred latents: {beside[-8:].round(1)}")
    goals.result("of 8 pictures that are no photographs, found", int((z[-8:] > FAR).sum()), "reported", lambda v: True)
    goals.leave()


if __name__ == "__main__":
    main()
