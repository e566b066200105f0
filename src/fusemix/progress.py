"""How long work tells that it goes on: a function the caller gives, called with plain numbers."""

from typing import Protocol


class Progress(Protocol):
    """Called often while work goes on; must be cheap. The command line draws a bar from it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` rows or steps of `stage` are finished; `note` is a short live remark."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing: the default in Python."""
