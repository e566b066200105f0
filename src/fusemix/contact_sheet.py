"""Pictures as files: each a PNG that says how it was made, and all of them on one sheet."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fusemix import durable

SMALLEST = 96  # pixels of a side on the sheet: a smaller picture is enlarged by a whole factor
GAP, LABEL = 8, 18
NARROWEST = 320  # of a sheet: a label has to be read


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Put pictures on a sheet: a row for each label, which stands above it.

    Args:
        rows: label and pictures of each row, one at least; all pictures of one size.
    """
    width, height = rows[0][1][0].size
    factor = -(-SMALLEST // min(width, height)) if min(width, height) < SMALLEST else 1
    width, height = factor * width, factor * height
    columns = max(len(pictures) for _, pictures in rows)
    size = max(columns * (width + GAP) + GAP, NARROWEST), len(rows) * (height + LABEL + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    writing, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for y, (label, pictures) in enumerate(rows):
        top = GAP + y * (height + LABEL + GAP)
        writing.text((GAP, top), _shortened(label, size[0] - 2 * GAP, font), fill="black", font=font)
        for x, picture in enumerate(pictures):
            whole = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(whole, (GAP + x * (width + GAP), top + LABEL))
    return sheet


def _shortened(label: str, width: int, font: Any) -> str:
    """Cut a label to a width in pixels."""
    label = " ".join(label.split())
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}...") > width:
        label = label[:-1]
    return f"{label}..."


def save_png(picture: Image.Image, path: Path, facts: dict[str, Any]) -> None:
    """Write a picture whole or not at all, with how it was made as JSON in the text chunk "fusemix"."""
    info, content = PngInfo(), BytesIO()
    info.add_itxt("fusemix", json.dumps(facts, ensure_ascii=False))
    picture.save(content, "PNG", pnginfo=info)
    durable.write(path, content.getvalue())
