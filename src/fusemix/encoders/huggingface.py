"""Frozen text and image encoders from a transformers folder or hub id.

Only safetensors weights are read and no code of the model's folder is ever run. Images go through the PIL
preprocessing of transformers, so torchvision is not needed.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fusemix.encoders.base import Latent, hash_json
from fusemix.errors import EncoderError

# Which token stands for an image, by model_type. Everything else: the model's own pooler, or the mean of its tokens.
IMAGE_POOLING = {
    "beit": "mean", "clip_vision_model": "pooler", "convnext": "pooler", "convnextv2": "pooler",
    "data2vec-vision": "mean", "deit": "cls", "dinov2": "cls", "dinov2_with_registers": "cls", "dinov3_vit": "cls",
    "resnet": "pooler", "siglip_vision_model": "pooler", "siglip2_vision_model": "pooler", "swin": "pooler",
    "swinv2": "pooler", "vit": "cls", "vit_mae": "cls",
}  # fmt: skip
# Text models whose tokens see only what came before them: the last token has seen it all.
DECODERS = (
    "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "phi3", "qwen2", "qwen3",
)  # fmt: skip
# Families trained with another pooling or with a prefix, by a word in their name (their model cards).
TEXT_POOLING = {
    "arctic-embed": "cls", "bge-": "cls", "gte-base-en-v1.5": "cls", "gte-large-en-v1.5": "cls", "mxbai-embed": "cls",
}  # fmt: skip
TEXT_PREFIX = {"e5-small": "query: ", "e5-base": "query: ", "e5-large": "query: "}
MAX_TOKENS = 512


class TextEncoder:
    """Strings to latents through AutoTokenizer and AutoModel; the final hidden states, pooled, not normalised."""

    takes = "text"
    batch_size = 64

    def __init__(self, source: str, name: str | None = None) -> None:
        from transformers import AutoTokenizer

        self.source = _place(source)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = _load_model(source, "text_model").to(self.device)
        self.tokenizer = _load(AutoTokenizer, source)
        self.model_type: str = self.model.config.model_type
        self.pooling = _text_pooling(source, self.model_type)
        self.prefix = next((prefix for word, prefix in TEXT_PREFIX.items() if word in _name(source).lower()), "")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"  # "last" counts real tokens from the left
        self.max_tokens = _max_tokens(source, self.tokenizer, self.model.config)
        # SigLIP pools its last token, padding or not, and learned from texts filled up to the full length.
        self.padding: bool | str = "max_length" if self.model_type.startswith("siglip") else True
        self.fingerprint: dict[str, Any] = {
            **_model_facts(self.model, source, name),
            "preprocessing": sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16],
            "pooling": self.pooling,
            "prefix": self.prefix,
            "max_tokens": self.max_tokens,
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[str]) -> Latent:
        """Encode n strings to (n, D)."""
        batch = self.tokenizer(
            [self.prefix + text for text in items],
            padding=self.padding, truncation=True, max_length=self.max_tokens, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        output = self.model(**batch)
        latents: Latent = _pool(output, self.pooling, batch.get("attention_mask")).float().cpu().numpy()
        return latents


class ImageEncoder:
    """PIL images to latents through AutoImageProcessor (PIL path) and AutoModel."""

    takes = "image"
    batch_size = 32

    def __init__(self, source: str) -> None:
        from transformers import AutoImageProcessor

        self.source = _place(source)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = _load_model(source, "vision_model").to(self.device)
        self.processor = _load(AutoImageProcessor, source, backend="pil")
        self.pooling = IMAGE_POOLING.get(self.model.config.model_type, "pooler")
        self.fingerprint: dict[str, Any] = {
            **_model_facts(self.model, source, None),
            "preprocessing": hash_json(self.processor.to_dict()),
            "pooling": self.pooling,
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n RGB images to (n, D)."""
        batch = self.processor(images=list(items), return_tensors="pt").to(self.device)
        output = self.model(**batch)
        latents: Latent = _pool(output, self.pooling, None).float().cpu().numpy()
        return latents


def _pool(output: Any, pooling: str, mask: Tensor | None) -> Tensor:
    """Reduce a model's output to one row per item.

    Args:
        output: with last_hidden_state (n, T, D) and perhaps pooler_output (n, D) or (n, D, 1, 1).
        pooling: "cls", "last", "mean", or "pooler" (falls back to the mean where the model has none).
        mask: (n, T), 1 for real tokens; None when all are real.
    """
    if pooling == "pooler" and getattr(output, "pooler_output", None) is not None:
        pooled: Tensor = output.pooler_output
        return pooled.flatten(1)
    hidden: Tensor = output.last_hidden_state
    if hidden.ndim == 4:  # a convolutional map (n, D, H, W)
        return hidden.mean(dim=(2, 3))
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _text_pooling(source: str, model_type: str) -> str:
    """What sentence-transformers saved beside the model, else the family by name, else the architecture."""
    saved = Path(source) / "1_Pooling" / "config.json"
    if saved.is_file():
        modes = json.loads(saved.read_text(encoding="utf-8"))
        mode = modes.get("pooling_mode")
        old = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
        chosen = [word for word, key in old.items() if modes.get(f"pooling_mode_{key}") or mode == word]
        if chosen:
            return chosen[0].removesuffix("token")
    for word, pooling in TEXT_POOLING.items():
        if word in _name(source).lower():
            return pooling
    if model_type in ("clip_text_model", "siglip_text_model"):
        return "pooler"
    return "last" if model_type in DECODERS else "mean"


def _max_tokens(source: str, tokenizer: Any, config: Any) -> int:
    """Return the length that texts are cut to: what sentence-transformers saved, else the model's own, at most 512."""
    saved = Path(source) / "sentence_bert_config.json"
    limits = [MAX_TOKENS, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    if saved.is_file():
        limits.append(json.loads(saved.read_text(encoding="utf-8")).get("max_seq_length"))
    return min(int(limit) for limit in limits if limit)


def _load_model(source: str, tower: str) -> Any:
    """Load a model frozen, in float32; of a two-tower model only the tower asked for.

    Raises:
        EncoderError: it does not load, or some of its weights are not in the folder and would be random.
    """
    from transformers import AutoModel

    model, report = _load(AutoModel, source, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if hasattr(model, "vision_model") and hasattr(model, "text_model"):
        model = getattr(model, tower)
        missing = [key.removeprefix(f"{tower}.") for key in missing if key.startswith(f"{tower}.")]
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # checkpoints of classifiers and masked language models have none
    elif missing:
        raise EncoderError(
            f"{source!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}: "
            "they would be random; give a complete checkpoint"
        )
    if model.config.model_type == "vit_mae":  # it hides most of each picture, at random, even in eval mode
        model.embeddings.random_masking = lambda tokens, noise=None: (tokens, None, None)
    return model.eval().requires_grad_(False)


def _load(factory: Any, source: str, **options: Any) -> Any:
    """Load with transformers, without its own progress bar, and say in one line what went wrong."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return factory.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = "folder" if Path(source).is_dir() else "name: no such folder here, so it was looked up on the model hub"
        raise EncoderError(
            f"{source!r} is a {kind}, and {factory.__name__} could not load it: {reason} "
            "(an encoder is a transformers folder or hub id, module:function, a .npy file, or one of hog and minilm)"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _name(source: str) -> str:
    """Return the name of a folder, wherever it lies, or the whole hub id."""
    return Path(source).name if Path(source).is_dir() else source


def _place(source: str) -> str:
    """Return a folder's full path, so that it is found from anywhere, or the hub id."""
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def _model_facts(model: Any, source: str, name: str | None) -> dict[str, Any]:
    digest = sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version")
    }
    return {
        "loader": "transformers",
        "name": name or _name(source),
        "architecture": type(model).__name__,
        "weights": digest.hexdigest()[:16],
        "config": hash_json(config),
        "dtype": "float32",
    }
