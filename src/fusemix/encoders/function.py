"""Any Python callable as an encoder: a list of items in, one vector per item out."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.encoders.base import Latent
from fusemix.errors import EncoderError, choices


class FunctionEncoder:
    """A callable on a list of items: PIL images, strings or paths in, (n, D) numbers out (numpy, torch or lists).

    Its fingerprint is its name and the source file that defines it: weights that the function loads from elsewhere
    are not seen.
    """

    takes = "any"

    def __init__(self, function: Callable[[list[Any]], Any], source: str | None = None) -> None:
        self.function = function
        self.batch_size = int(getattr(function, "batch_size", 32))
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self.source = source or f"{getattr(function, '__module__', '__main__')}:{name}"
        module = self.source.rpartition(":")[0]
        module = Path(module).stem if module.endswith(".py") else module
        self.fingerprint = {"loader": "function", "name": f"{module}:{name}", "code": _code_hash(function)}

    def encode(self, items: Sequence[Any]) -> Latent:
        """Call the function on one batch."""
        result = self.function(list(items))
        if hasattr(result, "detach"):  # a torch tensor, with or without gradients, on any device
            result = result.detach().float().cpu()
        return np.asarray(result, dtype=np.float32)


def load_function(spec: str) -> FunctionEncoder:
    """Load `module:function` or `path/to/file.py:function`.

    This runs the module, so it is only ever done for a user who typed its name.

    Raises:
        EncoderError: no such module, file or function.
    """
    place, _, name = spec.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if function is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise EncoderError(f"{place} has no function {name!r}; {choices(name, public)}")
    if not callable(function):
        raise EncoderError(f"{spec} is a {type(function).__name__}; wanted a function of a list of items")
    return FunctionEncoder(function, spec)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise EncoderError(f"no file {path} (looked in {Path.cwd()})")
    # A name of its own: another file or library module of this name must not answer for the classes in this one.
    name = f"{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> Any:
    if not name or name.startswith("."):
        raise EncoderError(f"no module {name!r}; give module:function or path/to/file.py:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise EncoderError(f"no module {name!r} ({error}); give module:function or path/to/file.py:function") from error
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
