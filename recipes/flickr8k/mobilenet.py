"""A frozen MobileNetV2 (ImageNet) as an encoder of one's own: a list of PIL images in, (n, 1280) latents out.

    MOBILENET=weights/mobilenet_v2_tf_fp16.npz fusemix extract ... --image image=recipes/flickr8k/mobilenet.py:encode

The environment variable names the dequantised weights; `torch_mobilenet_tf.py` beside them runs them in plain torch.
"""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling

SIDE = 224


def encode(images: list[Image]) -> torch.Tensor:
    """Encode n RGB images to (n, 1280): resized to 224 x 224, scaled to [-1, 1], pooled features."""
    pixels = np.stack([np.asarray(image.resize((SIDE, SIDE), Resampling.BILINEAR)) for image in images])
    latents: torch.Tensor = _network()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return latents


@cache
def _network() -> Any:
    weights = Path(os.environ.get("MOBILENET", ""))
    if not weights.is_file():
        raise SystemExit("set MOBILENET to the file mobilenet_v2_tf_fp16.npz; torch_mobilenet_tf.py must lie beside it")
    sys.path.insert(0, str(weights.parent))
    from torch_mobilenet_tf import TFMobileNet

    return TFMobileNet(str(weights)).eval()
