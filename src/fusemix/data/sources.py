"""Tell what the user points at: a table, a folder, tars, a data set of the hub."""

import re
from itertools import takewhile
from pathlib import Path

from fusemix.data.folders import files_below, read_folder
from fusemix.data.hub import HUB, is_saved, read_hub, read_saved
from fusemix.data.items import SUFFIXES, Reading
from fusemix.data.tables import read_table
from fusemix.data.tars import read_tars
from fusemix.errors import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_RANGE = 1_000_000


def read_source(source: str | Path, root: Path | None = None) -> Reading:
    """Read whatever the user points at.

    Args:
        source: see `read_pairs`.
        root: folder that file names are relative to; by default the folder that holds them.

    Raises:
        DataError: nothing there, a format that is not read, or content that does not parse; it says where.
        MissingExtraError: a data set of the hub without the extra `data`.
    """
    if str(source).startswith(HUB):
        return read_hub(str(source), root)
    path = Path(source)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # a name that no disk can hold
        raise DataError(f"{source}: {error}") from error
    if is_folder:
        return _read_folder(path, root)
    if not exists and (_RANGE.search(path.name) or any(mark in str(source) for mark in "*?")):
        tars, folder = _named(path)
        return read_tars(tars, root or folder)
    if path.name.lower().endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")) and path.is_file():
        return read_tars([path], root or path.parent)
    return Reading(read_table(path), root or path.parent, [], {})


def _read_folder(folder: Path, root: Path | None) -> Reading:
    if is_saved(folder):
        return read_saved(folder, root)
    names = list(files_below(folder))
    tars = [folder / name for name in names if name.lower().endswith(".tar")]
    media = sum(name[name.rfind(".") :].lower() in SUFFIXES for name in names)
    if tars and media:
        raise DataError(
            f"{folder} holds {len(tars):,} tars and {media:,} media files; give one of both: {folder}/*.tar for the "
            "tars, or a folder without any"
        )
    if tars:
        return read_tars(tars, root or folder)
    found = read_folder(folder)
    return found._replace(root=root) if root is not None else found


def _named(pattern: Path) -> tuple[list[Path], Path]:
    """Find the tars that "shards/*.tar" or "shards/{0000..0012}.tar" means, and the folder they are named from.

    Raises:
        DataError: there are none, or one of a range is missing.
    """
    written = _RANGE.search(pattern.name)
    if written:
        first, last = int(written[1]), int(written[2])
        if not first <= last < first + _MAX_RANGE:
            raise DataError(f"{pattern}: {written[0]} is no range of less than {_MAX_RANGE:,} numbers")
        width = len(written[1])
        names = [
            f"{pattern.name[: written.start()]}{i:0{width}}{pattern.name[written.end() :]}"
            for i in range(first, last + 1)
        ]
        tars = [pattern.with_name(name) for name in names]
        missing = [path for path in tars if not path.is_file()]
        if missing:
            raise DataError(f"{pattern}: {len(missing):,} of {len(tars):,} are missing, first {missing[0]}")
        return tars, pattern.parent
    parts = list(takewhile(lambda part: not set("*?[") & set(part), pattern.parts))
    folder = Path(*parts)
    tars = sorted(path for path in folder.glob(str(Path(*pattern.parts[len(parts) :]))) if path.is_file())
    if not tars:
        raise DataError(f"{pattern}: no such files (looked in {folder.resolve()})")
    if others := [path for path in tars if path.suffix.lower() != ".tar"]:
        raise DataError(f"{pattern}: {others[0]} is not a .tar; give one table, or tars")
    return tars, folder
