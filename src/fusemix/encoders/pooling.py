"""How a network's tokens become one latent: what each architecture was made for, and what else can be asked for."""

import re
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusemix.errors import EncoderError, choices

POOLINGS = ("cls", "mean", "last", "pooler")
_PART = re.compile(r"(.+?)(?:@(0|-?[1-9]\d*))?")


class Family(NamedTuple):
    """What is known of an architecture.

    Attributes:
        poolings: that its training or its authors' evaluation used; the first is the default.
        special: tokens before those of the content, which "mean" leaves out (class token, registers).
    """

    poolings: tuple[str, ...]
    special: int = 0


_VIT = Family(("cls", "mean", "cls+mean"), 1)
_POOLER = Family(("pooler", "mean"))
_CLIP = Family(("pooler", "cls+mean"), 1)
_LAST = Family(("last",))
_FRAMES = Family(("mean",))

# By model_type. Everything else: the last token of a decoder, which alone has seen the whole text, and the mean of the
# tokens of another text model; of a picture or a sound the pooler if the model has one, else the mean of its tokens.
FAMILIES = {
    # images
    "altclip_vision_model": _CLIP, "beit": Family(("mean", "cls", "cls+mean"), 1), "blip_vision_model": _CLIP,
    "chinese_clip_vision_model": _CLIP, "clip_vision_model": _CLIP, "convnext": _POOLER, "convnextv2": _POOLER,
    "data2vec-vision": Family(("mean", "cls", "cls+mean"), 1), "deit": Family(("cls", "mean", "cls+mean"), 2),
    "dinov2": _VIT, "dinov2_with_registers": _VIT, "dinov3_convnext": _POOLER, "dinov3_vit": _VIT,
    "metaclip_2_vision_model": _CLIP, "resnet": _POOLER, "siglip_vision_model": _POOLER,
    "siglip2_vision_model": _POOLER, "swin": _POOLER, "swinv2": _POOLER, "vit": _VIT, "vit_mae": _VIT, "vit_msn": _VIT,
    # texts
    "clip_text_model": Family(("pooler",)), "metaclip_2_text_model": Family(("pooler",)),
    "siglip_text_model": Family(("pooler",)), "siglip2_text_model": Family(("pooler",)),
    # sounds
    "audio-spectrogram-transformer": Family(("pooler", "mean", "cls", "cls+mean"), 2), "clap_audio_model": _POOLER,
    "data2vec-audio": _FRAMES, "hubert": _FRAMES, "unispeech": _FRAMES, "unispeech-sat": _FRAMES, "wav2vec2": _FRAMES,
    "wav2vec2-conformer": _FRAMES, "wavlm": _FRAMES, "whisper": _FRAMES,
}  # fmt: skip
# Text models that were trained with one pooling, by a word in their name (their model cards).
NAMED = {
    "arctic-embed": "cls", "bge-": "cls", "e5-base": "mean", "e5-large": "mean", "e5-small": "mean",
    "gte-base-en-v1.5": "cls", "gte-large-en-v1.5": "cls", "mxbai-embed": "cls",
}  # fmt: skip


def family_of(config: Any) -> Family | None:
    """Look up an architecture by its configuration; None if it is not known."""
    family = FAMILIES.get(config.model_type) or (_LAST if _is_decoder(config.model_type) else None)
    registers = int(getattr(config, "num_register_tokens", 0) or 0)
    return family._replace(special=family.special + registers) if family else None


def poolings_of(config: Any, name: str, saved: str | None = None) -> tuple[str, ...]:
    """Return the poolings that a model was made for, the default first; nothing if none is known.

    Args:
        config: of the network.
        name: of the model.
        saved: what sentence-transformers saved beside it, which goes before all else.
    """
    family = family_of(config)
    named = saved or (by_name(NAMED, name) if family != _LAST else None)
    if named:
        return (named,)
    return family.poolings if family else ()


def _is_decoder(model_type: str | None) -> bool:
    """Tell the networks that write texts word by word, and do nothing else."""
    from transformers.models.auto import modeling_auto as auto

    others = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    writes = model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not any(model_type in names for names in others)
    return writes and model_type != "xlnet"  # it reads in every order


def by_name(table: dict[str, str], name: str) -> str | None:
    """Look up what is known of a model by a word in its name."""
    return next((value for word, value in table.items() if word in name.lower()), None)


def choose(asked: str | None, known: tuple[str, ...], fallback: str, name: str) -> str:
    """Choose a pooling.

    Args:
        asked: by the user, see `split`; None for the default.
        known: poolings that the model was made for, the default first; empty if nothing is known.
        fallback: default if nothing is known.
        name: of the model.

    Raises:
        EncoderError: no such pooling.
    """
    if asked is None:
        return known[0] if known else fallback
    parts = split(asked)
    for word, layer in parts:
        if word not in POOLINGS:
            more = "; of a layer: mean@-2 (the last but one), mean@0 (before the first), ...; several: mean+mean@0"
            raise EncoderError(f"{name}: no pooling {asked!r}; {choices(word, POOLINGS)}{more}")
        if word == "pooler" and layer is not None:
            raise EncoderError(f"{name}: no pooling {asked!r}, as the pooler sees the last layer only; use mean or cls")
    if known and not any(set(split(own)) <= set(parts) for own in known):
        warnings.warn(
            f"{name} was made for pooling {known[0]!r}, and is used with {asked!r}; its latents may be much worse",
            UserWarning,
            stacklevel=3,
        )
    return asked


def split(pooling: str) -> list[tuple[str, int | None]]:
    """Split "mean+mean@0" into its parts: each a word, and the place among the hidden states that it pools.

    None is what the network returns, number 0 what enters the first layer, -1 what leaves the last one (before a final
    norm, if there is one).
    """
    found = [_PART.fullmatch(part) for part in pooling.split("+")]
    return [(part[1], None if part[2] is None else int(part[2])) if part else ("", None) for part in found]


def show_layers(pooling: str) -> dict[str, bool]:
    """Return what a model must be told so that its output has what a pooling needs."""
    return {"output_hidden_states": True} if any(layer is not None for _, layer in split(pooling)) else {}


def pool(output: Any, pooling: str, mask: Tensor | None = None, special: int = 0) -> Tensor:
    """Reduce a model's output to one row per item.

    Args:
        output: with last_hidden_state (n, T, D) or (n, D, H, W), and perhaps pooler_output (n, D) or (n, D, 1, 1), and
            hidden_states, one for each layer and one before them.
        pooling: words of POOLINGS, perhaps of layers, side by side, see `split`.
        mask: (n, T), 1 for real tokens, which come first; None when all are real.
        special: tokens that "mean" leaves out.

    Returns:
        (n, D) float32, D for each part.

    Raises:
        EncoderError: the model has no pooler, no tokens, or no such layer.
    """
    return torch.cat([_pool(output, word, layer, mask, special) for word, layer in split(pooling)], dim=1)


def _pool(output: Any, word: str, layer: int | None, mask: Tensor | None, special: int) -> Tensor:
    if word == "pooler":
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise EncoderError("this model has no pooler of its own; choose the pooling mean or cls")
        return torch.as_tensor(pooled).float().flatten(1)
    hidden: Tensor = (output.last_hidden_state if layer is None else _layer(output, layer)).float()
    if hidden.ndim == 4:  # a convolutional map
        if word != "mean":
            raise EncoderError(f"this model has a map and no tokens, so no pooling {word!r}; choose mean or pooler")
        return hidden.mean(dim=(2, 3))
    if word == "cls":
        return hidden[:, 0]
    if word == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), _last(hidden, mask)]
    return _mean(hidden[:, special:], None if mask is None else mask[:, special:])


def _layer(output: Any, layer: int) -> Tensor:
    states = getattr(output, "hidden_states", None)
    if not states:
        raise EncoderError(f"this model does not show its layers, so no pooling of layer {layer}; leave out the @")
    if not -len(states) <= layer < len(states):
        raise EncoderError(
            f"this model has no layer {layer}: it has {len(states) - 1}, which are @1 to @{len(states) - 1} or "
            f"@-{len(states) - 1} to @-1, and @0 before them"
        )
    return torch.as_tensor(states[layer])


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
    return (mask.sum(dim=1) - 1).clamp(min=0)


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
