"""The image or the text tower of an open_clip model; only safetensors weights are read."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fusemix.encoders.base import Latent
from fusemix.encoders.huggingface import choose_device, describe_tokenizer, hash_weights, plain
from fusemix.errors import EncoderError, MissingExtraError, choices

WEIGHTS = "open_clip_model.safetensors"
PICTURE_SETTINGS = ("fill_color", "interpolation", "mean", "resize_mode", "std")


class OpenClipEncoder:
    """PIL images or strings to the joint space of an open_clip model, not normalised.

    Args:
        name: "MODEL/PRETRAINED": one of open_clip's architectures and one of its tags for it, as
            "ViT-B-32/laion2b_s34b_b79k", whose weights come from the hub; or in place of the tag a .safetensors file,
            or a folder with open_clip_model.safetensors and perhaps open_clip_config.json for its preprocessing.
        kind: "image" or "text".

    Raises:
        EncoderError: nothing of that name, weights that are no safetensors, or weights that do not fit.
        MissingExtraError: open_clip or torchvision is not installed, or cannot be imported.
    """

    def __init__(self, name: str, kind: str) -> None:
        if kind not in ("image", "text"):
            raise EncoderError(f"open_clip:{name} encodes images or texts, not {kind} items")
        open_clip = _import(name)
        architecture, _, pretrained = name.partition("/")
        if architecture not in open_clip.list_models():
            raise EncoderError(
                f"open_clip has no model {architecture!r}; {choices(architecture, open_clip.list_models())}"
            )
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        local = Path(pretrained)
        if pretrained and local.exists():
            weights, settings = (
                _local_weights(local),
                {**_tag(open_clip, architecture, tags[:1]), **_read_settings(local)},
            )
        elif pretrained in tags:
            settings = _tag(open_clip, architecture, [pretrained])
            weights = _download(name, settings)
        else:
            raise EncoderError(
                f"{architecture} has no weights {pretrained!r}, and there is no such file or folder; "
                f"{choices(pretrained, tags)}"
            )
        pictures = {key: settings[key] for key in PICTURE_SETTINGS if key in settings}
        quick = bool(settings.get("quick_gelu")) and not local.exists()
        self.device = choose_device()
        model = _build(open_clip, architecture, weights, force_quick_gelu=quick, force_preprocess_cfg=pictures)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.takes = kind
        self.batch_size = 64 if kind == "text" else 32
        self.source = f"open_clip:{architecture}/{local.resolve() if local.exists() else pretrained}"
        preprocessing = self._see(open_clip) if kind == "image" else self._read(open_clip, architecture)
        self.fingerprint: dict[str, Any] = {
            "loader": "open_clip",
            "name": f"{architecture}/{local.name if local.exists() else pretrained}",
            "architecture": architecture,
            "config": {**plain(open_clip.get_model_config(architecture)), "forced_quick_gelu": quick},
            "tower": kind,
            "weights": hash_weights(self.model),
            "preprocessing": preprocessing,
        }

    def _see(self, open_clip: Any) -> dict[str, Any]:
        settings = open_clip.transform.PreprocessCfg(**self.model.visual.preprocess_cfg)
        self.transform = open_clip.transform.image_transform_v2(settings, is_train=False)
        return dict(plain(asdict(settings)))

    def _read(self, open_clip: Any, architecture: str) -> dict[str, Any]:
        self.tokenizer = open_clip.get_tokenizer(architecture)
        inner = getattr(self.tokenizer, "tokenizer", None)
        facts = {} if inner is None else describe_tokenizer(inner)
        return {"tokenizer": type(self.tokenizer).__name__, "max_tokens": self.tokenizer.context_length, **facts}

    @torch.inference_mode()
    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n RGB images or n strings to (n, D)."""
        if self.takes == "image":
            batch = torch.stack([self.transform(image) for image in items]).to(self.device)
            rows = self.model.encode_image(batch)
        else:
            rows = self.model.encode_text(self.tokenizer(list(items)).to(self.device))
        latents: Latent = rows.float().cpu().numpy()
        return latents


def _import(name: str) -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        raise MissingExtraError("open-clip-torch with its torchvision", "open-clip", f"'open_clip:{name}'") from error
    return open_clip


def _tag(open_clip: Any, architecture: str, tags: Sequence[str]) -> dict[str, Any]:
    """Return what open_clip knows of the first of these tags; nothing if there is none."""
    return dict(open_clip.get_pretrained_cfg(architecture, tags[0])) if tags else {}


def _local_weights(path: Path) -> Path:
    weights = path / WEIGHTS if path.is_dir() else path
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise EncoderError(
            f"{path} is or holds no {WEIGHTS}; other checkpoints are pickles, which may run code: convert them where "
            "you trust them (safetensors.torch.save_file)"
        )
    return weights


def _read_settings(path: Path) -> dict[str, Any]:
    """Read how pictures were prepared, from open_clip_config.json beside the weights, if it is there."""
    file = (path if path.is_dir() else path.parent) / "open_clip_config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")).get("preprocess_cfg") or {})
    except (ValueError, TypeError, AttributeError) as error:
        raise EncoderError(f"{file} is damaged: {error}") from error


def _download(name: str, settings: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    repository = "/".join(str(settings.get("hf_hub", "")).split("/")[:2])  # a file name may follow
    if not repository:
        raise EncoderError(f"open_clip:{name} is published as a pickle only, which may run code; choose another tag")
    try:
        return Path(hf_hub_download(repository, WEIGHTS))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EncoderError(f"open_clip:{name}: no {WEIGHTS} of {repository} from the hub: {reason}") from error


def _build(open_clip: Any, architecture: str, weights: Path, **options: Any) -> Any:
    """Build the network and put the weights in place, all of them.

    Raises:
        EncoderError: some are missing, or do not fit.
    """
    shown = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that the weights are random, which they are for a moment
    try:
        model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, **options)
        open_clip.load_checkpoint(model, str(weights), strict=True)
    except (SafetensorError, OSError, RuntimeError, KeyError, StopIteration) as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(f"{weights} does not fit {architecture}: {reason}") from error
    finally:
        logging.disable(shown)
    return model
