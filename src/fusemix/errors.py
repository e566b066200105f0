"""Every error that a user of fusemix can cause, as one tree.

    FusemixError
    ├── DataError          a table, a column, a file or an array is not what was needed (also a ValueError)
    ├── EncoderError       an encoder cannot be loaded, or returned something that is no latent
    ├── StoreError         latents on disk are missing, unfinished or damaged
    ├── MismatchError      two things that were not made for each other were put together
    ├── NotFittedError     a model was used before `fit`
    ├── DivergedError      the loss of a fit became NaN or infinite
    ├── TooManyFailuresError  so many items failed that the run stopped
    └── MissingExtraError  an optional dependency is not installed (also an ImportError)

A message names the thing, what was wanted, what came and the next step. `assert` is kept for our own invariants.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class FusemixError(Exception):
    """Base of all errors that fusemix raises on purpose."""


class DataError(FusemixError, ValueError):
    """A table, a column, a file or an array is not what was needed."""


class EncoderError(FusemixError):
    """An encoder cannot be loaded, or returned something that is no latent."""


class StoreError(FusemixError):
    """Latents on disk are missing, unfinished or damaged."""


class MismatchError(FusemixError):
    """Two things that were not made for each other were put together."""


class NotFittedError(FusemixError):
    """A model was used before `fit`."""


class DivergedError(FusemixError):
    """The loss of a fit became NaN or infinite.

    Attributes:
        ids: of the items of the batch in which it did, by modality; the items of one pair stand at the same place.
    """

    def __init__(self, message: str, ids: Mapping[str, list[str]]) -> None:
        super().__init__(message)
        self.ids = ids

    def __reduce__(self) -> tuple[Any, ...]:
        """Come whole out of another process."""
        return type(self), (str(self), self.ids)


class TooManyFailuresError(FusemixError):
    """So many items failed that the run stopped.

    Attributes:
        failures: of each modality, what is known so far.
    """

    def __init__(self, message: str, failures: Mapping[str, list[Any]]) -> None:
        super().__init__(message)
        self.failures = failures

    def __reduce__(self) -> tuple[Any, ...]:
        """Come whole out of another process."""
        return type(self), (str(self), self.failures)


class MissingExtraError(FusemixError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(f'{purpose} needs {package}, which is not installed: pip install "fusemix[{extra}]"')

    def __reduce__(self) -> tuple[Any, ...]:
        """Come whole out of another process."""
        return type(self), (self.package, self.extra, self.purpose)


def choices(wanted: str, found: Iterable[str]) -> str:
    """Say what there is to choose from, and the name nearest to the one that was wanted."""
    names = [str(name) for name in found]
    near = get_close_matches(wanted, names, n=1)
    return f"found: {', '.join(names) or 'none'}" + (f"; did you mean {near[0]!r}?" if near else "")
