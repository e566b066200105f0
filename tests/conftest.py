"""Shared: everything runs offline, and a small world of pictures, texts and encoders made on the spot."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # pytest runs one process a core, so none may take them all
os.environ["OMP_WAIT_POLICY"] = "passive"  # and where a test asks for two threads, none spins while it waits

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The files that take longest, the longest first: at the end only short ones are left, and no core waits for another.
LONG = (
    "server", "page", "readme", "flickr8k", "generation", "zeroshot", "resume", "canaries", "fit_ranks", "engines",
    "studies", "hostile", "recipes", "shards", "cli_fit", "cli", "cli_study", "demo", "emoji", "losses", "fit",
    "encoders_huggingface", "landing", "memory", "decoding", "benchmarks_rehearsed", "metrics", "encoders_audio",
    "probe", "sabotage",
)  # fmt: skip

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}


def pytest_collection_modifyitems(items):
    """Order the files; pytest-xdist is told to keep this order (--no-loadscope-reorder)."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def encode_image(images):
    """Mean colour and a 4 x 4 thumbnail, (n, 51)."""
    small = np.stack([np.asarray(image.resize((4, 4)), dtype=np.float32).ravel() / 255 for image in images])
    return np.concatenate([small.reshape(-1, 16, 3).mean(axis=1), small], axis=1)


def encode_text(texts):
    """Counts of letter pairs, (n, 64)."""
    latents = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in zip(latents, texts, strict=True):
        for a, b in pairwise(text):
            row[(ord(a) * 31 + ord(b)) % 64] += 1
    return latents


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with 120 pictures, two captions each, in table.csv: columns photo, title, maker and split."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    lines = ["photo,title,maker,split"]
    for i in range(120):
        top, bottom = rng.choice(list(COLOURS), 2)
        pixels = np.empty((16, 16, 3), dtype=np.uint8)
        pixels[:8], pixels[8:] = COLOURS[top], COLOURS[bottom]
        pixels = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        split = "train" if i < 80 else "val" if i < 95 else "test"
        lines += [f"{i:03d}.png,{top} above {bottom} number {i},m{i % 7},{split}"]
        lines += [f"{i:03d}.png,picture {i} of {bottom} under {top},m{i % 7},{split}"]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def latents(world, tmp_path_factory):
    """Latents of the world, by two callables."""
    import fusemix as fm

    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title")
    return fm.extract(pairs, image=encode_image, text=encode_text, out=tmp_path_factory.mktemp("latents") / "l")


@pytest.fixture(scope="session")
def model(latents):
    """A model fitted on them."""
    import fusemix as fm

    train, val, _ = latents.split()
    return fm.FuseMix(dim=32, epochs=20, recipe="scaled").fit(train, val=val)
