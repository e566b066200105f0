"""Any Python callable as an encoder: a list of items in, one vector per item out. Also one that calls a paid API."""

import importlib
import importlib.util
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.encoders.base import Latent, as_latents, out_of_memory
from fusemix.errors import EncoderError, choices
from fusemix.sound import Sound

TAKES = ("any", "image", "text", "audio", "video", "file")
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more


class FunctionEncoder:
    """A callable on a list of items: PIL images, strings, sounds or paths in, (n, D) numbers out (numpy, torch, lists).

    None in place of a vector refuses that item. What the callable says of itself, all optional, as attributes:

        batch_size: items per call, 32.
        takes: "image", "text", "audio", "video" (lists of PIL images), "file" (paths) or "any", which is the default.
        sample_rate: in Hz; sounds are resampled to it.
        retries: how often a call that raised is made again, 0; the waits double from a second to a minute, with
            jitter, unless the exception has `retry_after` in seconds or a response with that header.
        calls_per_minute: calls are spaced evenly to this rate, in each process.

    Its fingerprint is its name, the source file that defines it, and the arguments of a `functools.partial`: weights
    that the function loads from elsewhere are not seen.

    Attributes:
        refused: places of the items that the last call to `encode` got None for; their rows are NaN.

    Raises:
        EncoderError: one of the attributes is not what it should be, or a partial holds more than plain values.
    """

    def __init__(self, function: Callable[[list[Any]], Any], source: str | None = None) -> None:
        self.function = function
        named, arguments = _parts(function)
        name = getattr(named, "__qualname__", type(named).__qualname__)
        self.source = source or f"{getattr(named, '__module__', '__main__')}:{name}"
        module = self.source.rpartition(":")[0]
        module = Path(module).stem if module.endswith(".py") else module
        self.fingerprint: dict[str, Any] = {
            "loader": "function",
            "name": f"{module}:{name}",
            "code": _code_hash(named),
            **arguments,
        }
        self.takes = getattr(function, "takes", "any")
        if self.takes not in TAKES:
            raise EncoderError(f"{self.source}: takes is {self.takes!r}; {choices(str(self.takes), TAKES)}")
        self.batch_size = int(self._setting("batch_size", 32, least=1))
        self.sample_rate = int(self._setting("sample_rate", 0, least=1))
        self.retries = int(self._setting("retries", 0, least=0))
        calls_per_minute = self._setting("calls_per_minute", math.inf, least=1e-6)
        self._seconds_per_call = 60 / calls_per_minute
        self._next_call = -math.inf
        self._width = 0
        self.refused: list[int] = []

    def encode(self, items: Sequence[Any]) -> Latent:
        """Call the function on one batch.

        Returns:
            (n, D) float32, a row of NaN for each item in `refused`; (n, 0) if all are and D is not known yet.

        Raises:
            EncoderError: the function raised, and again at each retry, or gave not one row of numbers per item.
        """
        result = self._call([self._prepare(item) for item in items])
        if hasattr(result, "detach"):  # a torch tensor, with or without gradients, on any device
            result = result.detach().float().cpu()
        self.refused = _places_of_none(result)
        if self.refused:
            result = self._fill(result)
        latents = as_latents(result, len(items), self.fingerprint["name"])
        self._width = latents.shape[1]
        return latents

    def _setting(self, name: str, default: float, least: float) -> float:
        """Read a number that the function says of itself."""
        value = getattr(self.function, name, None)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise EncoderError(f"{self.source}: {name} is {value!r}; wanted a number of at least {least:g}")
        return value

    def _prepare(self, item: Any) -> Any:
        if not self.sample_rate or not isinstance(item, Sound):
            return item
        from fusemix.encoders.audio import resample

        return Sound(resample(item, self.sample_rate), self.sample_rate)

    def _fill(self, rows: Sequence[Any]) -> list[Any]:
        """Put NaN where the function returned None."""
        width = next((len(row) for row in rows if row is not None), self._width)
        return [np.full(width, np.nan, np.float32) if row is None else row for row in rows]

    def _call(self, batch: list[Any]) -> Any:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt

        retrying = Retrying(
            stop=stop_after_attempt(self.retries + 1), wait=_wait, retry=retry_if_exception(_may_pass), reraise=True
        )
        try:
            return retrying(self._call_once, batch)
        except Exception as error:
            # The caller answers this one with smaller batches.
            if out_of_memory(error):
                raise
            tried = f" {self.retries + 1} times, at last" if self.retries else ""
            raise EncoderError(
                f"the encoder {self.fingerprint['name']} raised{tried} {type(error).__name__}: {error}"
            ) from error

    def _call_once(self, batch: list[Any]) -> Any:
        now = time.monotonic()
        if now < self._next_call:
            time.sleep(self._next_call - now)
        self._next_call = max(now, self._next_call) + self._seconds_per_call
        return self.function(batch)


def _parts(function: Any) -> tuple[Any, dict[str, Any]]:
    """Return what has a name, and what a partial adds to it: {"arguments": ...} in plain values."""
    if not isinstance(function, partial):
        return function, {}
    arguments = {"positional": list(function.args), **function.keywords}
    try:
        return function.func, {"arguments": json.loads(json.dumps(arguments))}
    except (TypeError, ValueError) as error:
        raise EncoderError(
            f"a partial of {function.func!r} holds more than numbers, strings and lists of them ({error}), so nobody "
            "could tell it from another; write a named function"
        ) from error


def _may_pass(error: BaseException) -> bool:
    """Tell what may go better the next time from Ctrl-C, an exit, and a batch that will never fit."""
    return isinstance(error, Exception) and not out_of_memory(error)


def _wait(state: Any) -> float:
    """Return the seconds until the next attempt: what the server asked for, else twice as long as before."""
    from tenacity import wait_exponential_jitter

    asked = _retry_after(state.outcome.exception())
    if asked is not None:
        return max(asked, 0.0)
    return wait_exponential_jitter(initial=1, max=LONGEST_WAIT, jitter=1)(state)


def _retry_after(error: BaseException) -> float | None:
    """Read how long a server asks to wait, in seconds (RFC 9110, 10.2.3); a date counts as nothing."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    header = next((headers[key] for key in ("retry-after", "Retry-After") if key in headers), None)
    for value in (getattr(error, "retry_after", None), header):
        try:
            seconds = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if math.isfinite(seconds):
            return seconds
    return None


def _places_of_none(rows: Any) -> list[int]:
    if isinstance(rows, list | tuple) or (isinstance(rows, np.ndarray) and rows.dtype == object and rows.ndim):
        return [place for place, row in enumerate(rows) if row is None]
    return []


def load_function(spec: str) -> FunctionEncoder:
    """Load `module:function` or `path/to/file.py:function` as an encoder, see `find_function`."""
    return FunctionEncoder(find_function(spec), spec)


def find_function(spec: str) -> Callable[..., Any]:
    """Find `module:function` or `path/to/file.py:function`.

    This runs the module, so it is only ever done for a user who typed its name.

    Raises:
        EncoderError: no such module, file or function, or the module itself raised.
    """
    place, _, name = spec.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if function is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise EncoderError(f"{place} has no function {name!r}; {choices(name, public)}")
    if not callable(function):
        raise EncoderError(f"{spec} is a {type(function).__name__}; wanted a function")
    found: Callable[..., Any] = function
    return found


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise EncoderError(f"no file {path} (looked in {Path.cwd()})")
    # A name of its own: another file or library module of this name must not answer for the classes in this one.
    name = f"{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise EncoderError(f"{path} does not import: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str) -> Any:
    if not name or name.startswith("."):
        raise EncoderError(f"no module {name!r}; give module:function or path/to/file.py:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise EncoderError(f"the module {name!r} imports {error.name!r}, which is not installed") from error
        raise EncoderError(f"no module {name!r} ({error}); give module:function or path/to/file.py:function") from error
    except Exception as error:
        raise EncoderError(f"the module {name!r} does not import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _code_hash(function: Any) -> str:
    """Hash the file that defines the callable, or its class; "unknown" where there is none, as at a prompt."""
    for target in (function, type(function)):
        try:
            path = inspect.getsourcefile(target)
        except (TypeError, OSError):
            continue
        if path is not None and Path(path).is_file():
            return sha256(Path(path).read_bytes()).hexdigest()[:16]
    return "unknown"
