"""Frozen encoders: an explicit table of loaders. A new one is one class and one line here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusemix.encoders.base import Encoder, encode_batch
from fusemix.errors import EncoderError

__all__ = ["Encoder", "absolute", "encode_batch", "load_encoder", "runs_code", "takes_pooling"]

LIBRARIES = ("timm:", "open_clip:", "diffusers:")  # prefixes that name a library's model, not code of the user
# What an encoder may take besides the items themselves: the file, and of a video its sound track.
ALSO = {"audio": ("file",), "video": ("file", "audio")}


def load_encoder(
    spec: str | Encoder | Callable[..., Any], kind: str, *, pooling: str | None = None, precision: str | None = None
) -> Encoder:
    """Load an encoder for items of a kind.

    Args:
        spec: a transformers or sentence-transformers folder, or a hub id, perhaps `id@revision`; `timm:NAME`;
            `open_clip:MODEL/PRETRAINED`; `diffusers:PIPELINE`, what conditions that pipeline; a `.onnx` file or folder
            with one; "hog" or "minilm"; `module:function` or `file.py:function`; several of these joined by `+`, whose
            latents are put side by side; a callable on a list of items; or an object that already is an Encoder.
        kind: of the raw items, see `data.pairs.Kind`. Videos go through an image encoder frame by frame, or through
            an audio encoder by their sound track.
        pooling: "cls", "mean", "last" or "pooler", of transformers models, of one of their layers "mean@-2", counted
            from the end, or "mean@6", and several side by side "mean+mean@0"; None is what they were made for. A
            fingerprint has it as "pooling".
        precision: "float32", "bfloat16" or "float16", of transformers models and pipelines; None chooses by the
            device. A fingerprint has it as "dtype". Encoders without such a choice are what they are.

    Raises:
        EncoderError: nothing of that name, it does not load, it has no such choice, or it takes items of another kind.
    """
    encoder = _load(spec, kind, pooling, precision)
    if kind == "video" and encoder.takes == "image":
        from fusemix.encoders.video import VideoEncoder

        encoder = VideoEncoder(encoder)
    if encoder.takes not in ("any", kind, *ALSO.get(kind, ())):
        raise EncoderError(
            f"the encoder {encoder.fingerprint['name']!r} takes {encoder.takes} items, but these are {kind} items"
        )
    return encoder


def runs_code(spec: str) -> bool:
    """Tell whether loading this spec would run Python code that it names."""
    parts = _split(spec)
    if len(parts) > 1:
        return any(runs_code(part) for part in parts)
    return ":" in spec and not spec.startswith(LIBRARIES) and not Path(spec).exists()


def takes_pooling(spec: Any) -> bool:
    """Tell whether what a spec names may have a choice of pooling: networks of transformers and ONNX files."""
    if not isinstance(spec, str) or spec == "hog" or spec.endswith(".npy"):
        return False
    parts = _split(spec)
    if len(parts) > 1:
        return any(map(takes_pooling, parts))
    return not spec.startswith(LIBRARIES) and not runs_code(spec)


def absolute(spec: Any) -> Any:
    """Write the files and folders in a spec in full; what is no file of this machine stays as it is."""
    if not isinstance(spec, str):
        return spec
    parts = []
    for part in _split(spec):
        path, colon, name = part.rpartition(":")
        whole, owner = Path(part), Path(path)
        if whole.exists():
            part = str(whole.resolve())
        elif path and owner.is_file():
            part = f"{owner.resolve()}{colon}{name}"
        parts.append(part)
    return "+".join(parts)


def _split(spec: str) -> list[str]:
    """Split "A+B"; a path that contains a + and exists is one path, with or without a function after it."""
    if "+" not in spec or Path(spec).exists() or Path(spec.rpartition(":")[0] or spec).exists():
        return [spec]
    return spec.split("+")


def _load(spec: str | Encoder | Callable[..., Any], kind: str, pooling: str | None, precision: str | None) -> Encoder:
    parts = _split(spec) if isinstance(spec, str) else []
    if not all(parts):
        raise EncoderError(f"{spec!r}: wanted the names of encoders joined by +")
    if len(parts) > 1:
        from fusemix.encoders.combined import CombinedEncoder

        encoder: Encoder = CombinedEncoder([_load_one(part, kind, pooling, precision) for part in parts], pooling)
    else:
        encoder = _load_one(spec, kind, pooling, precision)
    if pooling is not None and encoder.fingerprint.get("pooling") != pooling:
        raise EncoderError(f"the encoder {encoder.fingerprint['name']!r} has no choice of pooling, got {pooling!r}")
    return encoder


def _load_one(
    spec: str | Encoder | Callable[..., Any], kind: str, pooling: str | None, precision: str | None
) -> Encoder:
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

        return minilm(pooling=pooling, precision=precision)
    if runs_code(spec):
        from fusemix.encoders.function import load_function

        return load_function(spec)
    library = _load_library(spec, "image" if kind == "video" else kind, pooling, precision)
    return library or _load_transformers(spec, kind, pooling, precision)


def _load_library(spec: str, kind: str, pooling: str | None, precision: str | None) -> Encoder | None:
    """Load a model of another library than transformers; None if the spec names none."""
    library, _, name = spec.partition(":")
    if library == "timm" and name:
        from fusemix.encoders.timm_models import TimmEncoder

        return TimmEncoder(name)
    if library == "open_clip" and name:
        from fusemix.encoders.open_clip_models import OpenClipEncoder

        return OpenClipEncoder(name, kind)
    if library == "diffusers" and name:
        from fusemix.encoders.conditioning import ConditioningEncoder

        return ConditioningEncoder(name, kind, precision)
    if spec.endswith(".onnx") or _is_onnx_folder(Path(spec)):
        from fusemix.encoders.onnx_models import OnnxEncoder

        return OnnxEncoder(spec, kind, pooling)
    return None


def _is_onnx_folder(path: Path) -> bool:
    graph = (path / "model.onnx").is_file() or (path / "onnx" / "model.onnx").is_file()
    return graph and not any(path.glob("*.safetensors"))


def _load_transformers(spec: str, kind: str, pooling: str | None, precision: str | None) -> Encoder:
    if kind in ("text", "image") and _hears(spec):
        raise EncoderError(f"{spec!r} is a model of sounds, but these are {kind} items")
    if kind == "text":
        from fusemix.encoders.text import TextEncoder

        return TextEncoder(spec, pooling=pooling, precision=precision)
    if kind == "audio" or (kind == "video" and _hears(spec)):
        from fusemix.encoders.audio import AudioEncoder

        return AudioEncoder(spec, pooling=pooling, precision=precision)
    if kind in ("image", "video"):
        from fusemix.encoders.image import ImageEncoder

        return ImageEncoder(spec, pooling=pooling, precision=precision)
    raise EncoderError(f"no encoder {spec!r} for {kind} items; give module:function or file.py:function")


def _hears(spec: str) -> bool:
    """Tell whether a transformers model takes sound."""
    from fusemix.encoders.audio import FORMS
    from fusemix.encoders.huggingface import Checkpoint

    model_type = (Checkpoint.of(spec).read_json("config.json") or {}).get("model_type")
    return model_type in FORMS or model_type == "clap"
