"""Files that are either whole or absent, also after a crash.

A file is written under a temporary name, flushed to the disk, read back, and only then renamed to its own name; the
rename is the commit. Nothing that carries its final name is ever opened for writing again.
"""

import os
from pathlib import Path

from fusemix.errors import StoreError


def write(path: Path, content: bytes) -> None:
    """Commit `content` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A short or silent failure of the write shows here, before the name exists.
        if temporary.read_bytes() != content:
            raise StoreError(f"{path}: what was read back differs from what was written; check the disk")
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed writer left in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut (on POSIX a folder must be synced like a file)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
