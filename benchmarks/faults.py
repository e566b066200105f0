"""Faults put between a process and its disk, in forked children: what the torture runs have in common."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusemix.errors import FusemixError


class Touches:
    """Counts what `durable` does to the disk and lets something happen at the n-th touch.

    Touches are: opening for writing, each write, fsync of the file, read back, rename, fsync of the folder, removal.
    """

    def __init__(self, at: int, happen: Callable[[str], None], after: bool = False) -> None:
        self.count, self.at, self.happen, self.after = 0, at, happen, after

    def __call__(self, what: str, do: Callable[[], Any]) -> Any:
        """Do it, and let happen what is to happen."""
        self.count += 1
        if self.count == self.at and not self.after:
            self.happen(what)
        result = do()
        if self.count == self.at and self.after:
            self.happen(what)
        return result

    def install(self) -> None:
        """Put itself between `durable` and the disk, in this (forked) process."""
        fsync, replace, unlink, open_ = os.fsync, Path.replace, Path.unlink, Path.open
        touch = self

        class File:
            """A file whose writes are counted."""

            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> "File":
                return self

            def __exit__(self, *error: object) -> None:
                self.file.close()

            def write(self, content: bytes) -> int:
                """Write in two halves, so that a kill can tear a file."""
                half = len(content) // 2
                touch("write", lambda: self.file.write(content[:half]))
                return half + int(touch("write", lambda: self.file.write(content[half:])))

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if mode != "wb":
                return open_(path, mode, *rest, **options)
            return File(touch("open", lambda: open_(path, mode, *rest, **options)))

        os.fsync = lambda descriptor: touch("fsync", lambda: fsync(descriptor))  # type: ignore[assignment]
        Path.replace = lambda path, target: touch("rename", lambda: replace(path, target))  # type: ignore[assignment,method-assign]
        Path.unlink = lambda path, missing_ok=False: touch("remove", lambda: unlink(path, missing_ok))  # type: ignore[assignment,method-assign]
        Path.open = opened  # type: ignore[assignment,method-assign]


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run in a forked child; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        try:
            work()
        except FusemixError:
            os._exit(2)
        except OSError:
            os._exit(1)
        except BaseException:
            os._exit(70)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
