"""Frozen image encoders of the timm library, from its hub names or from a folder; only safetensors weights are read."""

import json
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fusemix.encoders.base import Latent
from fusemix.encoders.huggingface import choose_device, hash_weights, plain
from fusemix.errors import EncoderError, MissingExtraError, choices

# What a folder may say of its pictures; the rest of its pretrained_cfg is about where weights come from.
PICTURE_SETTINGS = ("crop_mode", "crop_pct", "fixed_input_size", "input_size", "interpolation", "mean", "std")


class TimmEncoder:
    """PIL images to latents: the features before the classifier, pooled as the model does itself.

    Args:
        name: of timm, as "vit_small_patch14_dinov2.lvd142m", whose weights come from the hub; or a folder with
            config.json (as timm saves it for the hub) and model.safetensors; or a .safetensors file in such a folder.

    Raises:
        EncoderError: nothing of that name, weights that are no safetensors, or weights that do not fit.
        MissingExtraError: timm or torchvision is not installed, or cannot be imported.
    """

    takes = "image"
    batch_size = 32

    def __init__(self, name: str) -> None:
        timm = _import(name)
        given = _read_folder(Path(name)) if Path(name).exists() else _read_hub(timm, name)
        if not timm.is_model(given.architecture):
            raise EncoderError(f"timm has no model {given.architecture!r}; {_near(timm, given.architecture)}")
        self.device = choose_device()
        model = _build(timm, given)
        self.model = model.eval().requires_grad_(False).to(self.device)
        pictures = timm.data.resolve_data_config({}, pretrained_cfg=given.pictures, model=model)
        self.transform = timm.data.create_transform(**pictures, is_training=False)
        self.source = f"timm:{Path(name).resolve() if Path(name).exists() else name}"
        self.fingerprint: dict[str, Any] = {
            "loader": "timm",
            "name": given.name,
            "architecture": given.architecture,
            "config": plain(given.arguments),
            "weights": hash_weights(self.model),
            "preprocessing": plain(pictures),
            "reading": {"pooling": str(getattr(model, "global_pool", "model"))},
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n RGB images to (n, D)."""
        batch = torch.stack([self.transform(image) for image in items]).to(self.device)
        latents: Latent = self.model(batch).float().flatten(1).cpu().numpy()
        return latents


class _Given(NamedTuple):
    name: str
    architecture: str
    arguments: dict[str, Any]  # of the model's constructor
    pictures: dict[str, Any]
    weights: Path


def _import(name: str) -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        raise MissingExtraError("timm with its torchvision", "timm", f"the encoder 'timm:{name}'") from error
    return timm


def _read_folder(path: Path) -> _Given:
    """Read a folder that timm saved, or a .safetensors file in one, as plain settings."""
    folder, weights = (path, path / "model.safetensors") if path.is_dir() else (path.parent, path)
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise EncoderError(
            f"{path} holds no model.safetensors; other checkpoints are pickles, which may run code: convert them "
            "where you trust them (safetensors.torch.save_file(model.state_dict(), 'model.safetensors'))"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
        settings = dict(config.get("pretrained_cfg") or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{folder / 'config.json'} names no architecture of timm ({type(error).__name__}: {error})"
        ) from error
    for key, value in arguments.items():
        # A string could name a file to load; a number cannot.
        if key != "global_pool" and not _is_number(value):
            raise EncoderError(f"{folder / 'config.json'}: model_args.{key} is {value!r}; wanted numbers only")
    pictures = {key: settings[key] for key in PICTURE_SETTINGS if key in settings}
    return _Given(path.name if path.is_dir() else folder.name, architecture, arguments, pictures, weights)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, list) and all(map(_is_number, value)))


def _read_hub(timm: Any, name: str) -> _Given:
    """Find the weights of one of timm's own names, in the hub or its cache."""
    from huggingface_hub import hf_hub_download

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise EncoderError(f"timm has no model {name!r}, and there is no such folder; {_near(timm, architecture)}")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    settings = timm.models.get_pretrained_cfg(name) if name in (architecture, *tagged) else None
    if settings is None or not settings.hf_hub_id:
        raise EncoderError(f"timm has no weights {name!r}; {choices(name, tagged)}")
    try:
        weights = Path(hf_hub_download(settings.hf_hub_id, "model.safetensors"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EncoderError(
            f"timm:{name}: no model.safetensors of {settings.hf_hub_id} from the hub: {reason}"
        ) from error
    pictures = {key: value for key, value in settings.to_dict().items() if key in PICTURE_SETTINGS}
    return _Given(name, architecture, {}, pictures, weights)


def _near(timm: Any, name: str) -> str:
    """Name what sounds alike; timm has more than a thousand models."""
    near = get_close_matches(name, timm.list_models(), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "see timm.list_models()"


def _build(timm: Any, given: _Given) -> Any:
    """Build the network and put the weights in place; all of its own must be there.

    Raises:
        EncoderError: some are missing, or do not fit.
    """
    try:
        model = timm.create_model(given.architecture, pretrained=False, num_classes=0, **given.arguments)
        state: Mapping[str, Any] = load_file(given.weights)
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is not None and model.state_dict().keys() - state.keys():
            state = convert(state, model)  # weights of an older version of the architecture
        missing = sorted(model.load_state_dict(state, strict=False).missing_keys)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EncoderError(f"{given.weights} does not fit {given.architecture}: {reason}") from error
    if missing:
        raise EncoderError(
            f"{given.weights} lacks {len(missing)} weights of {given.architecture}, such as {missing[0]}: "
            "they would be random; give a complete checkpoint"
        )
    return model
