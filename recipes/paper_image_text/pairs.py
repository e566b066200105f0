"""Make the table of the paper's image-text run from the annotation files as they are published.

    python recipes/paper_image_text/pairs.py DATA TABLE.parquet [--sources coco vg sbu cc3m] [--regions 8]

DATA is laid out as the README beside this file says. The table has the columns image, text, split and group; images are
file names, or parts of tars, relative to DATA. Splits: train; val, COCO's, which chooses the epoch; test-coco; and
test-flickr30k, if its annotation file is there.
"""

import argparse
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from fusemix.data.tars import read_tars

SOURCES = ("coco", "vg", "sbu", "cc3m")
MAX_WORDS = 50
_SIGNS = re.compile(r'[.!"()*#:;~]')


class Row(NamedTuple):
    """One pair; the columns of the table."""

    image: str
    text: str
    split: str
    group: str


def main() -> None:
    """Write the table and say how many pairs and images each source gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="what to train on")
    parser.add_argument("--regions", type=int, default=8, help="descriptions per image of Visual Genome, largest first")
    given = parser.parse_args()
    part = given.table.with_name(given.table.name + ".part")
    schema = pa.schema([(name, pa.string()) for name in Row._fields])
    with pa.parquet.ParquetWriter(part, schema) as writer:
        for source, rows in sources(given.data, given.sources, given.regions):
            count, images = 0, set()
            while chunk := list(islice(rows, 100_000)):
                writer.write_table(pa.table(dict(zip(Row._fields, zip(*chunk, strict=True), strict=True)), schema))
                count += len(chunk)
                images |= {row.image for row in chunk}
            print(f"{source:<9} {count:>9,} pairs  {len(images):>9,} images", flush=True)
    part.replace(given.table)  # a table that is there is whole


def sources(data: Path, wanted: list[str], regions: int) -> Iterator[tuple[str, Iterator[Row]]]:
    """Yield each source with its rows."""
    coco = read(data / "coco/dataset_coco.json")["images"]
    yield "coco", coco_rows(coco, train="coco" in wanted)
    flickr: list[dict[str, Any]] = []
    if (data / "flickr30k/dataset_flickr30k.json").is_file():
        flickr = [
            image for image in read(data / "flickr30k/dataset_flickr30k.json")["images"] if image["split"] == "test"
        ]
        yield "flickr30k", flickr_rows(flickr)
    if "vg" in wanted:
        # Half of Visual Genome are pictures of COCO, some of them of its val and test splits.
        held = {image["cocoid"] for image in coco if image["split"] in ("val", "test")}
        yield "vg", genome_rows(data / "vg", held, {int(Path(image["filename"]).stem) for image in flickr}, regions)
    for name in ("sbu", "cc3m"):
        if name in wanted:
            yield name, web_rows(data, name)


def coco_rows(images: list[dict[str, Any]], train: bool) -> Iterator[Row]:
    """COCO with the splits of Karpathy; his "restval" is trained on, as everybody does."""
    splits = {"val": "val", "test": "test-coco"} | ({"train": "train", "restval": "train"} if train else {})
    for image in images:
        if image["split"] in splits:
            name = f"coco/{image['filepath']}/{image['filename']}"
            for sentence in image["sentences"]:
                yield Row(name, clean(sentence["raw"]), splits[image["split"]], f"coco/{image['cocoid']}")


def flickr_rows(images: list[dict[str, Any]]) -> Iterator[Row]:
    """Flickr30k, the 1,000 test images of Karpathy; nothing is trained on."""
    for image in images:
        name = f"flickr30k/images/{image['filename']}"
        for sentence in image["sentences"]:
            yield Row(name, clean(sentence["raw"]), "test-flickr30k", name)


def genome_rows(folder: Path, held_coco: set[int], held_flickr: set[int], regions: int) -> Iterator[Row]:
    """Visual Genome: the descriptions of the largest regions, without pictures that are held out elsewhere."""
    facts = {image["image_id"]: image for image in read(folder / "image_data.json")}
    for image in read(folder / "region_descriptions.json"):
        number = image["id"]
        fact = facts[number]
        if fact["coco_id"] in held_coco or fact["flickr_id"] in held_flickr:
            continue
        name = f"vg/{fact['url'].split('/')[-2]}/{number}.jpg"
        group = f"vg/{number}" if fact["coco_id"] is None else f"coco/{fact['coco_id']}"
        largest = sorted(image["regions"], key=lambda region: -region["width"] * region["height"])[:regions]
        for phrase in dict.fromkeys(clean(region["phrase"]) for region in largest):
            if phrase:
                yield Row(name, phrase, "train", group)


def web_rows(data: Path, name: str) -> Iterator[Row]:
    """Tars of img2dataset, read in place: an image is the tar's name, the offset and the size of its bytes."""
    tars = sorted((data / name).glob("*.tar"))
    if not tars:
        raise SystemExit(
            f"{data / name} holds no tars; leave {name} out (--sources), or see the README for how to get it"
        )
    for tar in tars:
        reading = read_tars([tar], data)
        names, texts = (reading.table[column].to_pylist() for column in ("image", "text"))
        for key, place, text in zip(names, reading.spans["image"].to_pylist(), texts, strict=True):
            if place and (text := clean(text or "")):
                yield Row(place, text, "train", key)


def clean(caption: str) -> str:
    """Prepare a caption as the released code does: lower case, without signs, at most 50 words."""
    return " ".join(_SIGNS.sub(" ", caption.lower()).split()[:MAX_WORDS])


def read(path: Path) -> Any:
    """Read a JSON file."""
    if not path.is_file():
        raise SystemExit(f"no file {path}; the README says where it comes from")
    with path.open(encoding="utf-8") as file:
        return json.load(file)


if __name__ == "__main__":
    main()
