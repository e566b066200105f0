"""Text extraction against the plain way, in texts per CPU second, side by side; and what is encoded of what there is.

    python benchmarks/bench_extraction.py

The plain way is what most scripts do: texts in the order of the table, each batch padded to its longest. Captions are
made of random words with the lengths of real ones (a few long among many short), and of pictures with five captions
each every picture counts once.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fusemix.data.pairs import read_pairs
from fusemix.encoders import load_encoder
from fusemix.extraction import extract
from goals import leave, result

TEXTS, ROUNDS = 1024, 5
WORDS = [
    "a", "the", "red", "dog", "runs", "over", "green", "grass", "while", "two",
    "people", "watch", "from", "old", "stone", "bridge", "near", "water", "in", "bright", "sun",
]  # fmt: skip


def captions(count: int, seed: int) -> list[str]:
    """Random texts; their lengths are those of captions, log-normal around 12 words."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(12), 0.6, count)).astype(int), 3, 120)
    return [f"{i} " + " ".join(rng.choice(WORDS, length)) for i, length in enumerate(lengths)]


def main() -> None:
    """Measure and print a RESULT line per goal."""
    with tempfile.TemporaryDirectory() as name:
        speed(Path(name))
        once(Path(name))


def speed(folder: Path) -> None:
    """Texts per CPU second of `extract`, everything included, and of the plain way, alternating."""
    plain = load_encoder("minilm", "text")
    ratios, rates = [], []
    for number in range(ROUNDS):
        texts = captions(TEXTS, number)
        rows = [f"{i},{text}" for i, text in enumerate(texts)]
        (folder / "t.csv").write_text("\n".join(["n,caption", *rows]) + "\n")
        pairs = read_pairs(folder / "t.csv", n="n", caption="caption")
        started = time.process_time()
        batches = [texts[i : i + plain.batch_size] for i in range(0, TEXTS, plain.batch_size)]
        expected = np.concatenate([plain.encode(batch) for batch in batches])
        theirs = time.process_time() - started
        started = time.process_time()
        latents = extract(
            pairs, out=folder / f"out{number}", n=lambda values: np.ones((len(values), 1)), caption="minilm"
        )
        ours = time.process_time() - started
        found = latents["caption"].numpy().astype(np.float32)
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > 0.9999, "the same latents"
        ratios.append(theirs / ours)
        rates.append((TEXTS / theirs, TEXTS / ours))
        print(
            f"# round {number}: plain {TEXTS / theirs:.0f} texts per CPU second, extract {TEXTS / ours:.0f}", flush=True
        )
    result(
        "text extraction, texts per CPU second against the plain way, median",
        round(statistics.median(ratios), 2),
        ">= 1.3",
        lambda r: r >= 1.3,
    )


def once(folder: Path) -> None:
    """Count what an encoder is asked for: pictures with five captions each."""
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    rows = [f"{i}.png,caption {i} {j}" for j in range(5) for i in range(40)]
    (folder / "p.csv").write_text("\n".join(["image,text", *rows]) + "\n")
    asked = 0

    def see(images: list[Image.Image]) -> list[np.ndarray]:
        nonlocal asked
        asked += len(images)
        return [np.asarray(image).mean(axis=(0, 1)) for image in images]

    extract(read_pairs(folder / "p.csv"), out=folder / "p", image=see, text=lambda texts: np.ones((len(texts), 1)))
    result("pictures encoded, of 40 with 5 captions each", asked, "40", lambda n: n == 40)


if __name__ == "__main__":
    main()
    leave()
