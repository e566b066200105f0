"""Make the table of the paper's audio-text run from the CSV files of AudioCaps and Clotho.

    python recipes/paper_audio_text/pairs.py DATA TABLE.csv [--sources audiocaps clotho]

DATA is laid out as the README beside this file says. The table has the columns sound, text, split and group; sounds are
file names relative to DATA. Splits: train; val, which chooses the epoch; test-audiocaps and test-clotho. Clips of
AudioCaps that are not there, as many are no longer on YouTube, are left out and counted.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusemix.data.media import AUDIO_SUFFIXES

SOURCES = ("audiocaps", "clotho")
CLOTHO = {"development": "train", "validation": "val", "evaluation": "test-clotho"}
AUDIOCAPS = {"train": "train", "val": "val", "test": "test-audiocaps"}


class Row(NamedTuple):
    """One pair; the columns of the table."""

    sound: str
    text: str
    split: str
    group: str


def main() -> None:
    """Write the table and say how many pairs and clips each source gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="what to train and measure on")
    given = parser.parse_args()
    part = given.table.with_name(given.table.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for source in given.sources:
            rows = list((audiocaps_rows if source == "audiocaps" else clotho_rows)(given.data / source))
            writer.writerows(rows)
            for split in dict.fromkeys(row.split for row in rows):
                of_split = [row for row in rows if row.split == split]
                clips = len({row.sound for row in of_split})
                print(f"{source:<9} {split:<14} {len(of_split):>7,} pairs  {clips:>7,} clips", flush=True)
    part.replace(given.table)  # a table that is there is whole


def audiocaps_rows(folder: Path) -> Iterator[Row]:
    """AudioCaps: clips by their YouTube id, as ID.wav, YID.wav or ID_START.wav in audio/ or any folder below it."""
    clips = {path.stem: path for path in sorted((folder / "audio").rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES}
    for name, split in AUDIOCAPS.items():
        missing = set()
        for row in read(folder / f"{name}.csv"):
            key = row["youtube_id"]
            clip = clips.get(key) or clips.get(f"Y{key}") or clips.get(f"{key}_{row['start_time']}")
            if clip is None:
                missing.add(key)
            else:
                yield Row(clip.relative_to(folder.parent).as_posix(), row["caption"].strip(), split, f"audiocaps/{key}")
        if missing:
            print(f"audiocaps {split:<14} {len(missing):>7,} clips are not in {folder / 'audio'}", flush=True)


def clotho_rows(folder: Path) -> Iterator[Row]:
    """Clotho: five captions a clip."""
    for name, split in CLOTHO.items():
        if name == "validation" and not (folder / f"clotho_captions_{name}.csv").is_file():
            continue  # version 1 has none
        for row in read(folder / f"clotho_captions_{name}.csv"):
            sound = f"clotho/{name}/{row['file_name']}"
            for number in range(1, 6):
                yield Row(sound, row[f"caption_{number}"].strip(), split, sound)


def read(path: Path) -> Iterator[dict[str, str]]:
    """Read a CSV file with a header."""
    if not path.is_file():
        raise SystemExit(f"no file {path}; the README says where it comes from")
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


if __name__ == "__main__":
    main()
