"""Print what was measured beside Table 2 of the paper (arXiv 2312.10144), and one RESULT line per published R@1.

    python recipes/paper_audio_text/published.py [--row 65K] test-audiocaps.json test-clotho.json

The files are what `fusemix evaluate --json` printed for the split of that name. 65K is trained on AudioCaps and Clotho,
50K/15K on the one that is measured, all with Whisper & HTS-AT and BGE. Without files it prints the published row.
"""

import argparse
import json
from pathlib import Path
from typing import Any

CUTOFFS = ("R@1", "R@5", "R@10")
WAYS = ("text->sound", "sound->text")
# For each row R@1, R@5, R@10 of AudioCaps text->sound, sound->text, then of Clotho in the same order.
TABLE_2 = {
    "50K/15K": ((41.3, 76.9, 87.6), (50.3, 81.0, 89.6), (15.7, 39.4, 53.8), (19.7, 42.9, 56.5)),
    "65K": ((43.1, 77.4, 87.4), (52.4, 83.4, 92.4), (17.6, 41.1, 53.5), (21.5, 44.7, 57.4)),
}
COLUMNS = {"test-audiocaps": 0, "test-clotho": 2}
SIZES = {"test-audiocaps": 975, "test-clotho": 1045}  # clips; a smaller gallery is an easier one


def main() -> None:
    """Print a Markdown table, the notes of the evaluation and the RESULT lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--row", choices=TABLE_2, default="65K")
    given = parser.parse_args()
    measured = {path.stem: json.loads(path.read_text()) for path in given.files}
    results = []
    print(f"| split, direction | method | {' | '.join(CUTOFFS)} |\n|---|---|---|---|---|")
    for split in measured or COLUMNS:
        for i, way in enumerate(WAYS):
            published = TABLE_2[given.row][COLUMNS[split] + i]
            rows = recalls(measured[split], way) if measured else {}
            for method, row in {**rows, f"published, {given.row}": published}.items():
                print(f"| {split}, {way} | {method} | {' | '.join(f'{recall:.1f}' for recall in row)} |")
            if rows:
                figure, target = round(rows["fusemix"][0], 1), published[0]
                size = measured[split]["retrieval"][WAYS[0]]["gallery"]
                holds = figure >= target and size >= 0.9 * SIZES[split]
                name = f"paper Table 2 ({given.row}): {split} {way} R@1, {size} of {SIZES[split]} clips"
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
