"""Frozen encoders: an explicit table of loaders. A new one is one class and one line here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusemix.encoders.base import Encoder, encode_batch
from fusemix.errors import EncoderError

__all__ = ["Encoder", "encode_batch", "load_encoder", "runs_code"]


def load_encoder(spec: str | Encoder | Callable[..., Any], kind: str) -> Encoder:
    """Load an encoder for items of a kind.

    Args:
        spec: "hog" or "minilm"; `module:function` or `file.py:function`; a transformers folder or hub id; a callable on
            a list of items; or an object that already is an Encoder.
        kind: of the raw items, see `data.pairs.Kind`.

    Raises:
        EncoderError: nothing of that name, it does not load, or it takes items of another kind.
    """
    encoder = _load(spec, kind)
    if encoder.takes not in ("any", kind):
        raise EncoderError(
            f"the encoder {encoder.fingerprint['name']!r} takes {encoder.takes} items, but these are {kind} items"
        )
    return encoder


def runs_code(spec: str) -> bool:
    """Tell whether loading this spec would run Python code that it names."""
    return ":" in spec and not Path(spec).exists()


def _load(spec: str | Encoder | Callable[..., Any], kind: str) -> Encoder:
    if isinstance(spec, Encoder):
        return spec
    if callable(spec):
        from fusemix.encoders.function import FunctionEncoder

        return FunctionEncoder(spec)
    if spec == "hog":
        from fusemix.encoders.offline import Hog

        return Hog()
    if spec == "minilm":
        from fusemix.encoders.offline import minilm

        return minilm()
    if runs_code(spec):
        from fusemix.encoders.function import load_function

        return load_function(spec)
    if kind == "image":
        from fusemix.encoders.huggingface import ImageEncoder

        return ImageEncoder(spec)
    if kind == "text":
        from fusemix.encoders.huggingface import TextEncoder

        return TextEncoder(spec)
    raise EncoderError(f"no encoder {spec!r} for {kind} items; give module:function or file.py:function")
