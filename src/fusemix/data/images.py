"""Decode pictures through Pillow: limits before decoding, upright, and never half of one."""

import re
import warnings
from typing import TYPE_CHECKING, BinaryIO

from fusemix.data.complete import check_first_page, check_image
from fusemix.data.media import MAX_PIXELS, ItemError, Reason, Source, check_size, opened, words_of

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_STARTS = {
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "PPM": rb"P[1-7fFy]\s",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WEBP": rb"RIFF....WEBP",
}


def load_image(source: Source) -> "Image":
    """Decode a picture as upright RGB; of an animation the first frame; transparency becomes white.

    Raises:
        ItemError: with one of the reasons missing, no access, no content, wrong format, truncated, unreadable and too
            large.
    """
    from PIL import Image

    with opened(source) as file:
        try:
            return _decode(file)
        except ItemError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ItemError("too large", f"{error} (our limit is {MAX_PIXELS:,})") from error
        except MemoryError as error:
            raise ItemError("too large", "more memory than a decoder may take") from error
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise _diagnosis(file, error) from error


def _decode(file: BinaryIO) -> "Image":
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on damaged notes beside the picture
        # Pillow's own guard warns or raises in `open`, at limits above ours.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            check_size(*image.size)  # the header is all that has been read: a bomb is refused before it unpacks
            check_image(file, image.format or "")
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)


def _diagnosis(file: BinaryIO, error: Exception) -> ItemError:
    """Find out why a picture does not decode: it is none, it is cut, or it is damaged."""
    file.seek(0)
    head = file.read(32)
    kind = next((kind for kind, start in _STARTS.items() if re.match(start, head, re.DOTALL)), None)
    if kind is None:
        return ItemError("wrong format", f"no picture of the formats {', '.join(IMAGE_FORMATS)}")
    try:
        check_image(file, kind)
        if kind == "TIFF":
            check_first_page(file)
    except ItemError as cut:
        return cut
    text = words_of(error)
    reason: Reason = "truncated" if re.search("truncated|EOF", text) else "unreadable"
    return ItemError(reason, text)


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        image.load()  # as it is: a copy of 40 megapixels takes 160 MB
        return image
    if image.mode.startswith("I"):
        # 16 bits of grey: plain conversion would cut every value above 255 to white.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    paper = Image.new("RGBA", layer.size, "white")
    paper.alpha_composite(layer)
    return paper.convert("RGB")
