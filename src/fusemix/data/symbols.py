"""The demo's data: the symbols that DejaVu Sans draws, with their Unicode names. Real pairs that need no download.

Several characters can be drawn alike (Latin A, Greek Alpha, Cyrillic A): they share one picture, which so has several
names, as a photograph has several captions.
"""

import csv
import unicodedata
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from fusemix import durable
from fusemix.errors import MissingExtraError
from fusemix.progress import Progress, silent

SIDE = 64  # pixels
TEST, VAL = 1000, 300  # pictures


def write_symbols(folder: Path, limit: int | None = None, progress: Progress = silent) -> Path:
    """Draw the symbols as PNG files and write symbols.csv with the columns image, text, symbol and split.

    Args:
        folder: gets symbols.csv and images/.
        limit: use only this many pictures, spread over the font; test and validation shrink with it.
        progress: called while drawing.

    Returns:
        The path of symbols.csv.
    """
    pictures: dict[bytes, tuple[str, Any]] = {}
    names: list[tuple[bytes, str, str]] = []
    for symbol, image in _draw_all():
        content = image.tobytes()
        pictures.setdefault(content, (f"images/u{ord(symbol):04x}.png", image))
        names.append((content, unicodedata.name(symbol).lower(), symbol))
    order = np.random.default_rng(0).permutation(len(pictures))[:limit]
    share = len(order) / len(pictures)
    test, val = round(TEST * share), round(VAL * share)
    keys = list(pictures)
    split = {
        keys[i]: "test" if place < test else "val" if place < test + val else "train" for place, i in enumerate(order)
    }
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for done, key in enumerate(split, 1):
        name, image = pictures[key]
        image.save(folder / name)
        progress("draw symbols", done, len(split))
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "text", "symbol", "split"])
    writer.writerows([pictures[key][0], name, symbol, split[key]] for key, name, symbol in names if key in split)
    durable.write(folder / "symbols.csv", table.getvalue().encode())
    return folder / "symbols.csv"


def _draw_all() -> Iterator[tuple[str, Any]]:
    """Draw every named symbol, black on white, centred across and standing on a common baseline."""
    try:
        from matplotlib import get_data_path
        from matplotlib.ft2font import FT2Font
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "demo", "the demo") from error
    from PIL import Image, ImageDraw, ImageFont

    path = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    fonts = {size: ImageFont.truetype(path, size) for size in range(8, 45)}
    for code in sorted(FT2Font(path).get_charmap()):
        symbol = chr(code)
        # Marks (M) attach to other symbols, controls (C) and separators (Z) draw nothing.
        if not unicodedata.name(symbol, "") or unicodedata.category(symbol)[0] in "MCZ":
            continue
        size = 44
        left, top, right, bottom = fonts[size].getbbox(symbol, anchor="ls")
        if max(right - left, bottom - top) > SIDE - 2:
            size = int(size * (SIDE - 2) / max(right - left, bottom - top))
            left, top, right, bottom = fonts[size].getbbox(symbol, anchor="ls")
        if right <= left or bottom <= top:
            continue
        baseline = min(max(47, 1 - top), SIDE - 1 - bottom)
        image = Image.new("L", (SIDE, SIDE), 255)
        corner = ((SIDE - (right - left)) / 2 - left, baseline)
        ImageDraw.Draw(image).text(corner, symbol, font=fonts[size], fill=0, anchor="ls")
        yield symbol, image
