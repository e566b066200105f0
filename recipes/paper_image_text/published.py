"""Print what was measured beside Table 1 of the paper (arXiv 2312.10144), and one RESULT line per published R@1.

    python recipes/paper_image_text/published.py [--row "D,B 5M"] test-coco.json test-flickr30k.json

The files are what `fusemix evaluate --json` printed for the split of that name. D is DINOv2, U UNICOM, B BGE and E E5;
5M is COCO, Visual Genome, SBU and CC3M, 3M is CC3M alone. Without files it prints the published row.
"""

import argparse
import json
from pathlib import Path
from typing import Any

CUTOFFS = ("R@1", "R@5", "R@10")
WAYS = ("text->image", "image->text")
# For each row R@1, R@5, R@10 of Flickr30k text->image, image->text, then of COCO in the same order.
TABLE_1 = {
    "D,B 3M": ((59.9, 86.4, 91.6), (74.4, 94.0, 97.4), (32.2, 58.2, 69.4), (42.3, 68.4, 78.9)),
    "U,B 5M": ((66.3, 88.9, 93.3), (81.2, 95.9, 97.7), (42.5, 70.2, 80.0), (59.1, 83.4, 90.3)),
    "U,E 5M": ((64.3, 87.7, 93.0), (80.2, 95.6, 98.1), (42.9, 70.0, 80.1), (59.1, 83.9, 91.0)),
    "D,E 5M": ((68.8, 90.9, 94.6), (85.2, 96.9, 98.4), (46.1, 74.3, 84.1), (64.3, 86.2, 92.1)),
    "D,B 5M": ((71.2, 91.4, 94.7), (84.8, 97.2, 99.1), (46.3, 74.6, 83.4), (62.7, 86.4, 92.7)),
}
COLUMNS = {"test-flickr30k": 0, "test-coco": 2}
SIZES = {"test-flickr30k": 1000, "test-coco": 5000}  # images; a smaller gallery is an easier one


def main() -> None:
    """Print a Markdown table, the notes of the evaluation and the RESULT lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--row", choices=TABLE_1, default="D,B 5M")
    given = parser.parse_args()
    measured = {path.stem: json.loads(path.read_text()) for path in given.files}
    results = []
    print(f"| split, direction | method | {' | '.join(CUTOFFS)} |\n|---|---|---|---|---|")
    for split in measured or COLUMNS:
        for i, way in enumerate(WAYS):
            published = TABLE_1[given.row][COLUMNS[split] + i]
            rows = recalls(measured[split], way) if measured else {}
            for method, row in {**rows, f"published, {given.row}": published}.items():
                print(f"| {split}, {way} | {method} | {' | '.join(f'{recall:.1f}' for recall in row)} |")
            if rows:
                figure, target = round(rows["fusemix"][0], 1), published[0]
                size = measured[split]["retrieval"][WAYS[0]]["gallery"]
                holds = figure >= target and size >= 0.9 * SIZES[split]
                name = f"paper Table 1 ({given.row}): {split} {way} R@1, {size} of {SIZES[split]} images"
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
