"""Files that are either whole or absent, also after a crash.

A file is written under a temporary name, flushed to the disk, read back, and only then renamed to its own name; the
rename is the commit. Nothing that carries its final name is ever opened for writing again. Two processes may commit
the same file: each has a temporary name of its own, and the last rename wins whole.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fusemix.errors import StoreError

HOST = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
# A leftover of another machine on a shared disk: nobody can see from here whether its writer lives.
FOREIGN_LEFTOVER_SECONDS = 24 * 3600
PIECE = 8 * 2**20  # bytes that are compared at a time


def write(path: Path, content: bytes, *more: memoryview) -> None:
    """Commit `content`, and what follows it, to `path`, whole or not at all.

    Raises:
        OSError: the disk refused, or took the bytes and gave back others; names the path. What `path` held before is
            untouched.
    """
    parts = memoryview(content), *more
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        # A short or silent failure of the write shows here, before the name exists.
        if not _holds(temporary, parts):
            raise OSError(errno.EIO, "what was read back differs from what was written; check the disk")
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or type(error).__name__, str(path)) from error
    finally:
        with suppress(OSError):  # there is nothing to remove where nothing could be written
            temporary.unlink(missing_ok=True)


def _holds(path: Path, parts: Sequence[memoryview]) -> bool:
    """Compare a file piece by piece: a checkpoint can have gigabytes, and need not be in memory twice."""
    with path.open("rb") as file:
        for part in parts:
            for start in range(0, len(part), PIECE):
                wanted = part[start : start + PIECE]
                if file.read(len(wanted)) != bytes(wanted):  # a memoryview would be compared number by number
                    return False
        return not file.read(1)


def claim(folder: Path, format_: str, what: str) -> None:
    """Make sure that a folder holds nothing yet, or an earlier one of what is to be written.

    Raises:
        StoreError: it holds something else.
    """
    try:
        found = json.loads((folder / "facts.json").read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        found = "latents" if (folder / "pairs.parquet").exists() else format_
    if found != format_:
        raise StoreError(f"{folder} holds something else ({found}); write the {what} into another folder")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed writers left in `folder`; those of writers that live stay."""
    for path in folder.glob(".*.tmp"):
        host, _, pid = path.name.removesuffix(".tmp").rpartition(".")
        if host.endswith(f".{HOST}") and pid.isdigit():
            abandoned = int(pid) == os.getpid() or not _runs(int(pid))
        else:
            try:
                abandoned = time.time() - path.stat().st_mtime > FOREIGN_LEFTOVER_SECONDS
            except FileNotFoundError:  # its writer has just finished
                continue
        if abandoned:
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Tell whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut (on POSIX a folder must be synced like a file)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
