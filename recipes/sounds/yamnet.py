"""A frozen YAMNet (AudioSet) as an encoder of one's own: a list of sounds in, (n, 2048) latents out.

    YAMNET=weights/yamnet.tflite fusemix extract ... --sound file=recipes/sounds/yamnet.py:encode

The environment variable names the TensorFlow Lite file; `pip install ai-edge-litert` runs it.
"""

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusemix import Sound

RATE, WINDOW, HOP = 16_000, 15_600, 7_800  # 0.975 s, half overlapping
EMBEDDING = 112  # the tensor of the file that holds the 1,024 numbers before the classifier


def encode(sounds: list[Sound]) -> NDArray[np.float32]:
    """Encode n sounds at 16 kHz to (n, 2048): the mean and the maximum over their windows."""
    return np.stack([_encode(sound.samples) for sound in sounds])


encode.takes = "audio"  # type: ignore[attr-defined]
encode.sample_rate = RATE  # type: ignore[attr-defined]


def _encode(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    starts = range(0, len(samples) - WINDOW + 1, HOP)
    windows = np.stack([_embed(samples[start : start + WINDOW]) for start in starts])
    return np.concatenate([windows.mean(axis=0), windows.max(axis=0)])


def _embed(window: NDArray[np.float32]) -> NDArray[np.float32]:
    network = _network()
    network.set_tensor(network.get_input_details()[0]["index"], window.astype(np.float32))
    network.invoke()
    embedding: NDArray[np.float32] = network.get_tensor(EMBEDDING).reshape(-1)
    return embedding


@cache
def _network() -> Any:
    weights = Path(os.environ.get("YAMNET", ""))
    if not weights.is_file():
        raise SystemExit("set YAMNET to the file yamnet.tflite")
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*preserve_all_tensors")  # it is for debugging, and for this
        network = Interpreter(str(weights), experimental_preserve_all_tensors=True, num_threads=1)
    network.allocate_tensors()
    return network
