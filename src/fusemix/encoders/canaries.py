"""Sixteen fixed items that an encoder encodes again, to see whether it still does what it did.

A fingerprint holds what an encoder says of itself. The canaries see what it does: a changed default, library or
processor gives other latents under the same fingerprint.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusemix.encoders.base import Encoder, Latent, encode_batch
from fusemix.errors import MismatchError
from fusemix.sound import Sound

COUNT = 16
LONG = 1500  # words of a text that every truncation cuts
COSINE = {"float32": 0.999, "bfloat16": 0.99, "float16": 0.99}
# Heights and widths: squares, both orientations, odd numbers, extreme shapes, smaller and larger than any input.
SIZES = (
    (224, 224), (231, 317), (317, 231), (97, 101), (33, 29), (480, 360), (360, 480), (150, 613),
    (613, 150), (64, 64), (16, 16), (257, 255), (401, 299), (299, 401), (512, 512), (75, 200),
)  # fmt: skip
TEXTS = (
    "a", "A Red Kite", "a red kite", "Überraschung im Café, naïve façade", "3.14159 metres, 42 kg, 1,000 W", ".",
    "What?! (Really...) -- \"quoted\"; it's 50% off & more: #1 @ home", "東京タワー и Красная площадь",
    "The QUICK brown fox jumps over the lazy DOG.", "two  spaces\tand a tab\nand a line",
    "antidisestablishmentarianism electroencephalographically", "x = [i**2 for i in range(10)]  # code",
    "A dog barks while rain falls on a tin roof.", "NASA's ISS passed over at 05:42 UTC on 1998-11-20",
)  # fmt: skip
# Samples per second and seconds: rates that need resampling, a clip shorter than one frame, one above any window.
SOUNDS = (
    (16000, 1.0), (48000, 0.7), (44100, 1.3), (22050, 0.5), (8000, 2.0), (16000, 0.02), (32000, 0.9), (16000, 3.1),
    (11025, 1.7), (96000, 0.3), (16000, 10.4), (48000, 5.2), (44100, 0.1), (24000, 2.5), (16000, 31.0), (12000, 0.6),
)  # fmt: skip


def canary_items(takes: str) -> list[Any] | None:
    """Return the 16 items for an encoder of this kind, the same on every machine; None if there are none.

    Args:
        takes: "image" (PIL images), "text" (strings), "audio" (Sounds) or "video" (lists of PIL images).
    """
    makers: dict[str, Callable[[int], Any]] = {"image": _picture, "text": _text, "audio": _sound, "video": _frames}
    return [makers[takes](number) for number in range(COUNT)] if takes in makers else None


def encode_canaries(encoder: Encoder) -> Latent | None:
    """Encode the canaries: (16, D) float32; None where only the user knows what the items are."""
    items = canary_items(encoder.takes)
    # A function may cost money, or answer anew each time.
    if items is None or loaders(encoder.fingerprint) & {"function", "vectors"}:
        return None
    step = max(1, encoder.batch_size)
    return np.concatenate([encode_batch(encoder, items[i : i + step]) for i in range(0, COUNT, step)])


def check_canaries(encoder: Encoder, stored: Any) -> None:
    """Refuse an encoder that no longer gives the latents which it gave.

    The measure is the cosine after subtracting the mean of the stored latents: what all latents of an encoder have in
    common, often most of their length, would hide a change.

    Args:
        encoder: with the fingerprint of the one that made the stored latents.
        stored: (16, D) array or tensor, from `encode_canaries`; None, or an encoder without canaries, is not checked.

    Raises:
        MismatchError: it names the canary, the cosine and what may have changed.
    """
    latents = None if stored is None else encode_canaries(encoder)
    if latents is None:
        return
    name = encoder.fingerprint.get("name", encoder.source)
    if latents.shape != tuple(stored.shape):
        raise MismatchError(f"the encoder {name!r} gives canaries of {latents.shape}, it gave {tuple(stored.shape)}")
    cosines = _centred_cosines(np.asarray(stored, np.float64), np.asarray(latents, np.float64))
    wanted = COSINE[_precision(encoder.fingerprint)]
    worst = int(np.argmin(cosines))
    if cosines[worst] < wanted:
        raise MismatchError(
            f"the encoder {name!r} says that it is the same, but it gives other latents: on canary {worst + 1} of "
            f"{COUNT} ({_describe(encoder.takes, worst)}) the cosine with the stored latent is {cosines[worst]:.4f}, "
            f"wanted at least {wanted}; {_suspects(encoder.takes)} may have changed with a version of a library: go "
            "back to the versions that made the latents, or extract and fit anew"
        )


def loaders(fingerprint: Mapping[str, Any]) -> set[str]:
    """Return all loaders in a fingerprint: a user's function, "function", may be one part of a cocktail."""
    found = {str(fingerprint.get("loader"))}
    return found.union(*(loaders(value) for value in fingerprint.values() if isinstance(value, Mapping)))


def _centred_cosines(stored: NDArray[np.float64], latents: NDArray[np.float64]) -> NDArray[np.float64]:
    """(16,) cosines about the stored mean; a canary that lies on the mean is compared by its distance from it."""
    mean = stored.mean(axis=0)
    old, new = stored - mean, latents - mean
    size = np.linalg.norm(old, axis=1).max() or float(np.abs(stored).max()) or 1.0
    lengths = np.linalg.norm(old, axis=1), np.linalg.norm(new, axis=1)
    still = np.maximum(*lengths) < 1e-3 * size
    cosines = (old * new).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-30)
    return np.where(np.isfinite(cosines), np.where(still, 1.0, cosines), -1.0)


def _precision(fingerprint: Mapping[str, Any]) -> str:
    """The coarsest precision anywhere in a fingerprint; that of a combined encoder lies in its parts."""
    found = [_precision(value) for value in fingerprint.values() if isinstance(value, Mapping)]
    found.append(str(fingerprint.get("dtype", "float32")))
    return min((word for word in found if word in COSINE), key=lambda word: COSINE[word], default="float32")


def _describe(takes: str, number: int) -> str:
    if takes == "text":
        text = _text(number)
        return f"the text {text[:40]!r}" + (f"... of {len(text):,} characters" if len(text) > 40 else "")
    if takes == "audio":
        return f"a sound of {SOUNDS[number][1]} s at {SOUNDS[number][0]} Hz"
    height, width = SIZES[number]
    return f"a picture of {width} x {height}" if takes == "image" else f"{number % 4 + 1} frames of {width} x {height}"


def _suspects(takes: str) -> str:
    before = {
        "text": "the tokenizer, its lower-casing, the truncation, a prefix",
        "audio": "resampling, the window, the spectrogram",
    }.get(takes, "the resize filter, crop, mean or std of the pictures")
    return f"{before}, the pooling, the activation function or another default of the network"


class _Dice:
    """Random numbers that no version of numpy may change: it promises this of the bits, not of the distributions."""

    def __init__(self, number: int) -> None:
        self.bits = np.random.PCG64([COUNT, number])

    def uniform(self, low: float, high: float, *shape: int) -> NDArray[np.float64]:
        raw = self.bits.random_raw(int(np.prod(shape, dtype=np.int64)))
        return low + (high - low) * (np.asarray(raw >> np.uint64(11), np.float64) / 2**53).reshape(shape)

    def one(self, low: float, high: float) -> float:
        return float(self.uniform(low, high, 1)[0])


def _picture(number: int) -> Any:
    return _draw(number, *SIZES[number])


def _draw(number: int, height: int, width: int) -> Any:
    """A picture with shapes of every scale: blocks, stripes up to the finest, grain, a tint and a border."""
    from PIL import Image

    dice = _Dice(number)
    y, x = np.mgrid[0:height, 0:width]
    pixels = dice.uniform(0, 255, 5, 5, 3)[(y * 5) // height, (x * 5) // width]
    for channel in range(3):
        angle, period = dice.one(0, np.pi), dice.one(2, 12)
        wave = np.sign(np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period))
        pixels[..., channel] += 60 * wave + dice.one(-60, 60)
    pixels += dice.uniform(-45, 45, height, width, 1)
    edge = max(1, min(height, width) // 12)  # what a crop cuts away looks unlike the rest
    for border in (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:]):
        border[:] = dice.uniform(0, 255, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _text(number: int) -> str:
    """A fixed text; the last two are longer than any truncation and drift, so that every cut shows."""
    if number < len(TEXTS):
        return TEXTS[number]
    words = [word for text in TEXTS for word in text.split()]
    places = np.linspace(0, len(words) - 3, LONG) + _Dice(number).uniform(0, 3, LONG)
    return " ".join(words[int(place)] for place in places)


def _sound(number: int) -> Sound:
    """A glide, a tone with overtones, and a noise that comes and goes."""
    dice = _Dice(number)
    rate, seconds = SOUNDS[number]
    t = np.arange(round(rate * seconds)) / rate
    low, high = dice.one(80, 400), dice.one(800, 3500)
    samples = np.sin(2 * np.pi * (low * t + (high - low) * t**2 / (2 * seconds)))
    for overtone in range(1, 6):
        samples += np.sin(2 * np.pi * low * overtone * t + dice.one(0, 6)) / overtone
    samples += dice.uniform(-1, 1, len(t)) * (np.sin(2 * np.pi * dice.one(1, 7) * t) > 0)
    return Sound((samples * dice.one(0.05, 0.2)).astype(np.float32), rate)


def _frames(number: int) -> list[Any]:
    """One to four pictures of one shape."""
    return [_draw((number + step) % COUNT, *SIZES[number]) for step in range(number % 4 + 1)]
