"""A frozen UNICOM (arXiv 2304.05884), which is no transformers model, as an encoder of one's own.

    IMAGE=recipes/paper_image_text/unicom_encoder.py:encode ROW="U,B 5M" recipes/paper_image_text/run.sh DATA OUT

It needs the package `unicom` of github.com/deepglint/unicom on the PYTHONPATH (folder unicom/ of a clone), torchvision
and timm. The environment variable UNICOM names another of its models.
"""

import os
from functools import cache
from typing import Any

import torch
from PIL.Image import Image


def encode(images: list[Image]) -> torch.Tensor:
    """Encode n RGB images to (n, D) with UNICOM's own preprocessing, not normalised."""
    model, preprocess, device = _network()
    batch = torch.stack([preprocess(image) for image in images]).to(device)
    with torch.no_grad():
        latents: torch.Tensor = model(batch)
    return latents


encode.takes = "image"  # type: ignore[attr-defined]


@cache
def _network() -> tuple[Any, Any, str]:
    import unicom

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = unicom.load(os.environ.get("UNICOM", "ViT-L/14@336px"))
    return model.eval().to(device), preprocess, device
