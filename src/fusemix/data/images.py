"""Decode pictures through Pillow: limits before decoding, upright, and never half of one."""

import warnings
from typing import TYPE_CHECKING

from fusemix.data.complete import check_image
from fusemix.data.media import MAX_PIXELS, ItemError, Reason, Source, opened

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def load_image(source: Source) -> "Image":
    """Decode a picture as upright RGB; of an animation the first frame; transparency becomes white.

    Raises:
        ItemError: with one of the reasons missing, no access, no content, wrong format, truncated, unreadable and too
            large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with opened(source) as file:
            with warnings.catch_warnings():
                # Pillow's own guard warns or raises in `open`, at limits above ours.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(file, formats=IMAGE_FORMATS)
            with image:
                width, height = image.size
                # The header is all that has been read so far: a bomb is refused before it unpacks.
                if width * height > MAX_PIXELS:
                    raise ItemError("too large", f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}")
                check_image(file, image.format or "")
                return _upright_rgb(ImageOps.exif_transpose(image))
    except ItemError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ItemError("too large", f"{error} (our limit is {MAX_PIXELS:,})") from error
    except UnidentifiedImageError as error:
        raise ItemError("wrong format", f"no picture of the formats {', '.join(IMAGE_FORMATS)}") from error
    except MemoryError as error:
        raise ItemError("too large", "more memory than a decoder may take") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more on bad bytes
        reason: Reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ItemError(reason, f"{type(error).__name__}: {error}") from error


def _upright_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):
        # 16 bits of grey: plain conversion would cut every value above 255 to white.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    paper = Image.new("RGBA", layer.size, "white")
    paper.alpha_composite(layer)
    return paper.convert("RGB")
