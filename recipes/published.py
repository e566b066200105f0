"""Print what was measured beside the tables of the paper (arXiv 2312.10144), and one RESULT line per published R@1.

    python recipes/published.py paper_image_text [--row "D,B 5M"] test-coco.json test-flickr30k.json
    python recipes/published.py paper_audio_text [--row 65K] test-audiocaps.json test-clotho.json

The files are what `fusemix evaluate --json` printed for the split of that name; without any, the published row is
printed. Rows of images: D is DINOv2, U UNICOM, B BGE and E E5; 5M is COCO, Visual Genome, SBU and CC3M, 3M is CC3M.
Rows of sounds: 65K is trained on AudioCaps and Clotho, 50K/15K on the one that is measured, with Whisper & HTS-AT, BGE.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

CUTOFFS = ("R@1", "R@5", "R@10")
Recalls = tuple[float, float, float]


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
        number: in the paper.
        ways: the two directions.
        what: the items that are not text.
        sizes: of each split, its items in the paper; a smaller gallery is an easier one.
        rows: R@1, R@5, R@10 of each split, in the order of `sizes`, in both directions.
    """

    number: int
    ways: tuple[str, str]
    what: str
    sizes: dict[str, int]
    rows: dict[str, tuple[Recalls, ...]]


TABLES = {
    "paper_image_text": Table(
        1,
        ("text->image", "image->text"),
        "images",
        {"test-flickr30k": 1000, "test-coco": 5000},
        {
            "D,B 5M": ((71.2, 91.4, 94.7), (84.8, 97.2, 99.1), (46.3, 74.6, 83.4), (62.7, 86.4, 92.7)),
            "D,B 3M": ((59.9, 86.4, 91.6), (74.4, 94.0, 97.4), (32.2, 58.2, 69.4), (42.3, 68.4, 78.9)),
            "U,B 5M": ((66.3, 88.9, 93.3), (81.2, 95.9, 97.7), (42.5, 70.2, 80.0), (59.1, 83.4, 90.3)),
            "U,E 5M": ((64.3, 87.7, 93.0), (80.2, 95.6, 98.1), (42.9, 70.0, 80.1), (59.1, 83.9, 91.0)),
            "D,E 5M": ((68.8, 90.9, 94.6), (85.2, 96.9, 98.4), (46.1, 74.3, 84.1), (64.3, 86.2, 92.1)),
        },
    ),
    "paper_audio_text": Table(
        2,
        ("text->sound", "sound->text"),
        "clips",
        {"test-audiocaps": 975, "test-clotho": 1045},
        {
            "65K": ((43.1, 77.4, 87.4), (52.4, 83.4, 92.4), (17.6, 41.1, 53.5), (21.5, 44.7, 57.4)),
            "50K/15K": ((41.3, 76.9, 87.6), (50.3, 81.0, 89.6), (15.7, 39.4, 53.8), (19.7, 42.9, 56.5)),
        },
    ),
}


def main() -> None:
    """Print a Markdown table, the notes of the evaluation and the RESULT lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = parser.add_subparsers(dest="recipe", required=True)
    for name, table in TABLES.items():
        recipe = recipes.add_parser(name)
        recipe.add_argument("files", nargs="*", type=Path)
        recipe.add_argument("--row", choices=table.rows, default=next(iter(table.rows)))
    given = parser.parse_args()
    table = TABLES[given.recipe]
    measured = {path.stem: json.loads(path.read_text()) for path in given.files}
    results = []
    print(f"| split, direction | method | {' | '.join(CUTOFFS)} |\n|---|---|---|---|---|")
    for split in measured or table.sizes:
        for i, way in enumerate(table.ways):
            published = table.rows[given.row][2 * list(table.sizes).index(split) + i]
            rows = recalls(measured[split], way) if measured else {}
            for method, row in {**rows, f"published, {given.row}": published}.items():
                print(f"| {split}, {way} | {method} | {' | '.join(f'{recall:.1f}' for recall in row)} |")
            if rows:
                figure, target = round(rows["fusemix"][0], 1), published[0]
                size, whole = measured[split]["retrieval"][table.ways[0]]["gallery"], table.sizes[split]
                holds = figure >= target and size >= 0.9 * whole
                name = f"paper Table {table.number} ({given.row}): {split} {way} R@1, {size} of {whole} {table.what}"
                results.append({"name": name, "figure": figure, "target": f">= {target}", "holds": holds})
    for split, found in measured.items():
        for note in found["notes"]:
            print(f"note, {split}: {note}")
    for result in results:
        print("RESULT", json.dumps(result))


def recalls(found: dict[str, Any], way: str) -> dict[str, list[float]]:
    """R@1, R@5 and R@10 of the baselines and of the model, in one direction."""
    methods = {**found["baselines"], "fusemix": found["retrieval"]}
    return {name: [ways[way][cutoff] for cutoff in CUTOFFS] for name, ways in methods.items()}


if __name__ == "__main__":
    main()
