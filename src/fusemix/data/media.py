"""Decode media files safely: limits that are checked before decoding, and a typed reason for every failure."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Reason = Literal["empty", "missing", "unreadable", "too large", "not finite"]
"""Why an item has no latent: a closed set.

empty: no text or no value in the table; missing: no such file; unreadable: no picture of an allowed format, or a
truncated one; too large: more than MAX_PIXELS; not finite: the encoder returned NaN or infinity.
"""

MAX_PIXELS = 40_000_000
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ItemError(Exception):
    """One item cannot be used. It is recorded and left out; the run goes on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def is_file(path: Path) -> bool:
    """Tell whether there is such a file; a name that no disk can hold, as a long caption, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def load_image(path: Path) -> "Image":
    """Decode a picture as upright RGB; of an animation the first frame; transparency becomes white.

    Raises:
        ItemError: with one of the reasons missing, unreadable and too large.
    """
    from PIL import Image, ImageOps

    if not is_file(path):
        raise ItemError("missing", f"no file {path}")
    try:
        with warnings.catch_warnings():
            # Pillow's own guard warns or raises in `open`, at limits above ours.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=IMAGE_FORMATS)
        with opened as image:
            width, height = image.size
            # The header is all that has been read so far: a bomb is refused before it unpacks.
            if width * height > MAX_PIXELS:
                raise ItemError("too large", f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16 bits of grey: plain conversion would cut every value above 255 to white.
                upright = upright.convert("I").point(lambda value: value * (1 / 257)).convert("L")
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layer = upright.convert("RGBA")
            paper = Image.new("RGBA", layer.size, "white")
            paper.alpha_composite(layer)
            return paper.convert("RGB")
    except ItemError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ItemError("too large", f"{error} (our limit is {MAX_PIXELS:,})") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more on bad bytes
        raise ItemError("unreadable", f"{type(error).__name__}: {error}") from error
