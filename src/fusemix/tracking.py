"""The records of a fit, told to an experiment tracker while the fit runs: trackio, wandb or tensorboard.

A tracker is a guest: one that cannot start is an error before any training, one that fails later is let go with a
warning, and the training goes on. What it was told is in the model's own history all the same.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fusemix.errors import DataError, FusemixError, MissingExtraError, choices

PROJECT = "fusemix"
EXTRAS = {"trackio": "track", "wandb": "wandb", "tensorboard": "tensorboard"}  # what pip has to install for each


class Tracker:
    """A callable that takes one record after the other; a context manager that closes.

    Args:
        name: of the tracker, for the warning.
        log: sends the numbers of a record, by name, and its step.
        finish: ends the run.
    """

    def __init__(self, name: str, log: Callable[[dict[str, float], int], object], finish: Callable[[], object]) -> None:
        self.name = name
        self._log, self._finish = log, finish
        self._failed = False

    def __call__(self, record: Mapping[str, float]) -> None:
        """Send a record: numbers by name, one of them "step".

        The first failure warns and is the last: each further try could wait for a network that is gone.
        """
        numbers = {name: value for name, value in record.items() if name != "step"}
        self._try(lambda: self._log(numbers, int(record["step"])))

    def close(self) -> None:
        """End the run; what was sent is kept there."""
        self._try(self._finish)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            with redirect_stdout(sys.stderr):  # trackio prints its greetings there, where --json has the word
                call()
        except Exception as error:  # whatever a foreign library raises must not end a training of hours
            self._failed = True
            warnings.warn(
                f"{self.name} failed and is told no more: {_said(error)}; the training goes on", RuntimeWarning, 3
            )


def tracker(name: str, run: str, config: Mapping[str, Any], folder: Path) -> Tracker:
    """Begin a run, or go on with the run of that name.

    A fit that is resumed sends some steps twice: tensorboard hides the earlier ones, trackio keeps both, wandb shows a
    second run of that name.

    Args:
        name: "trackio", "wandb" or "tensorboard". Where the first two send is set as they say: TRACKIO_SPACE_ID,
            WANDB_MODE=offline, `wandb login`.
        run: what the tracker calls this fit.
        config: its settings, shown beside it.
        folder: tensorboard writes `folder / "tensorboard"`; the others have places of their own.

    Raises:
        DataError: no tracker of that name.
        MissingExtraError: it is not installed.
        FusemixError: it cannot start, for example because nobody is logged in.
    """
    if name not in EXTRAS:
        raise DataError(f"no tracker {name!r}; {choices(name, EXTRAS)}")
    try:
        library = import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, EXTRAS[name], f"--track {name}") from error
    try:
        if name == "tensorboard":
            return _tensorboard(library, config, folder / "tensorboard")
        with redirect_stdout(sys.stderr):
            library.init(project=PROJECT, name=run, config=dict(config), resume="allow")
    except Exception as error:
        raise FusemixError(f"{name} cannot start: {_said(error)}; set it up, or fit without --track") from error
    return Tracker(name, lambda numbers, step: library.log(numbers, step=step), library.finish)


def _tensorboard(library: Any, config: Mapping[str, Any], folder: Path) -> Tracker:
    writers: list[Any] = []

    def log(numbers: dict[str, float], step: int) -> None:
        if not writers:  # only the first record says from which step on the events of an interrupted fit are void
            writers.append(library.SummaryWriter(folder, purge_step=step))
            writers[0].add_text("config", "".join(f"    {key}: {value}\n" for key, value in config.items()), step)
        for name, value in numbers.items():
            writers[0].add_scalar(name, value, step)
        writers[0].flush()

    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written shows before the training
    return Tracker("tensorboard", log, lambda: [writer.close() for writer in writers])


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
