"""Ctrl-C and SIGTERM in the middle of a step: nothing that was learned is lost, and nothing is half done.

A step of a large fit can take longer than the ten seconds that a scheduler waits between SIGTERM and SIGKILL, so a flag
that is read between steps is too late. The signal raises at once; what must not be torn apart is held, and the signal
comes right after. State changes only while it is held, so whatever was interrupted can simply be done again.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came; like KeyboardInterrupt no `except Exception` catches it.

    Attributes:
        signum: which one.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    def leave(self) -> BaseException:
        """Return what the caller of a fit expects: KeyboardInterrupt, or the exit code of a terminated process."""
        return KeyboardInterrupt() if self.signum == signal.SIGINT else SystemExit(128 + self.signum)


class Interrupts:
    """A context in which the signals raise `Interrupted`; a second one ends the process at once.

    Only the main thread receives signals: elsewhere this does nothing.

    Args:
        listen: False leaves the signals to whoever has them.
    """

    def __init__(self, listen: bool = True) -> None:
        self._listen = listen
        self._held = 0
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._listen and threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Finish what is inside before a signal is heard."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._came is not None and not self._held:
            raise Interrupted(self._came)

    @property
    def came(self) -> int | None:
        """The signal that was received, if any."""
        return self._came

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._came is not None:  # asked twice: whatever is on the disk is whole, so just go
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._came = signum
        if not self._held:
            raise Interrupted(signum)
