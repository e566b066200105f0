"""What sentence-transformers saves beside a text model: its pooling, its limits and the layers after the pooling.

The files are read as plain settings. Only layers that are written here are accepted, and nothing is imported by name.
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fusemix.encoders.huggingface import Checkpoint, hash_weights, plain
from fusemix.errors import EncoderError, choices

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "SiLU": nn.SiLU, "Sigmoid": nn.Sigmoid,
}  # fmt: skip
POOLING_WORDS = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}


@dataclass
class Sentence:
    """How a sentence-transformers model goes from a text to its latent, around the network itself.

    Attributes:
        checkpoint: of the network.
        pooling: as `pooling.split` reads it, or None if nothing is said.
        prefix: put before every text.
        lower: lower-case every text.
        max_tokens: texts are cut to this length; None if nothing is said.
        layers: after the pooling, in float32.
        facts: of those layers.
    """

    checkpoint: Checkpoint
    pooling: str | None = None
    prefix: str = ""
    lower: bool = False
    max_tokens: int | None = None
    layers: nn.Sequential = field(default_factory=nn.Sequential)
    facts: dict[str, Any] = field(default_factory=dict)

    def check(self, pooling: str, name: str) -> None:
        """Refuse more or fewer poolings side by side than the layers that come next were made for.

        Args:
            pooling: that was chosen.
            name: of the model.

        Raises:
            EncoderError: the layers take no such row.
        """
        own = self.pooling or "mean"
        if len(self.layers) and pooling.count("+") != own.count("+"):
            after = ", ".join(self.facts)
            raise EncoderError(
                f"{name}: no pooling {pooling!r}, as the layers after it ({after}) take as many parts as {own!r} has"
            )


def read_sentence(checkpoint: Checkpoint) -> Sentence:
    """Read modules.json and what it names; a plain transformers model gives an empty answer.

    Raises:
        EncoderError: a module that fusemix does not know, or a setting that it cannot follow.
    """
    modules = checkpoint.read_json("modules.json")
    if modules is None:
        sentence = Sentence(checkpoint)
        _read_transformer(sentence)
        sentence.pooling = _read_pooling(checkpoint, "1_Pooling")
        return sentence
    found = [(_kind(module, checkpoint), str(module.get("path", ""))) for module in modules]
    kinds = [kind for kind, _ in found]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise EncoderError(f"{checkpoint.place!r}: wanted Transformer, Pooling and then other modules, got {kinds}")
    sentence = Sentence(Checkpoint(checkpoint.place, checkpoint.revision, found[0][1]))
    _read_transformer(sentence)
    _read_prompt(sentence, checkpoint)
    sentence.pooling = _read_pooling(checkpoint, found[1][1])
    # Cosines are the same without a last Normalize, and the length of a latent says something an adapter can use.
    while found[-1][0] == "Normalize":
        found.pop()
    for number, (kind, path) in enumerate(found[2:], start=2):
        layer, settings = _LAYERS[kind](checkpoint, path)
        sentence.layers.append(layer.eval().requires_grad_(False))
        weights = {"weights": hash_weights(layer)} if any(True for _ in layer.parameters()) else {}
        sentence.facts[f"{number}_{kind}"] = {**plain(settings), **weights}
    return sentence


def _kind(module: dict[str, Any], checkpoint: Checkpoint) -> str:
    """Return the class of a module, if it is one of those that are written here."""
    full = str(module.get("type"))
    package, _, kind = full.split(".")[0], *full.rpartition(".")[1:]
    known = ("Transformer", "Pooling", *_LAYERS)
    path = PurePosixPath(str(module.get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise EncoderError(f"{checkpoint.place!r} names a module outside of its folder: {str(path)!r}")
    if package != "sentence_transformers" or kind not in known:
        raise EncoderError(
            f"{checkpoint.place!r} needs the module {full!r}, which fusemix does not read; {choices(kind, known)} "
            "(load it with sentence-transformers yourself and give module:function)"
        )
    return kind


def _read_transformer(sentence: Sentence) -> None:
    settings = sentence.checkpoint.read_json("sentence_bert_config.json") or {}
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise EncoderError(f"{sentence.checkpoint.place!r} is made for {task}; wanted a model for feature-extraction")
    sentence.lower = bool(settings.get("do_lower_case"))
    sentence.max_tokens = settings.get("max_seq_length")


def _read_prompt(sentence: Sentence, checkpoint: Checkpoint) -> None:
    settings = checkpoint.read_json("config_sentence_transformers.json") or {}
    name = settings.get("default_prompt_name")
    sentence.prefix = str(settings.get("prompts", {}).get(name, "")) if name else ""


def _read_pooling(checkpoint: Checkpoint, path: str) -> str | None:
    """Read the pooling that a folder names; None if there is no such folder."""
    settings = checkpoint.read_json(f"{path}/config.json")
    if settings is None:
        return None
    named = settings.get("pooling_mode")
    words = [named] if isinstance(named, str) else list(named or [])
    if not words:
        flags = [key.removeprefix("pooling_mode_") for key, on in settings.items() if on is True]
        words = [word for word in flags if f"pooling_mode_{word}" in settings] or ["mean"]
    pooling = "+".join(sorted(POOLING_WORDS.get(word, word) for word in words))
    if pooling not in ("cls", "mean", "cls+mean", "last") or settings.get("include_prompt") is False:
        what = "without the prompt" if pooling in ("cls", "mean", "last") else repr(pooling)
        raise EncoderError(f"{checkpoint.place!r} pools {what}; fusemix knows cls, mean, cls+mean and last")
    return pooling


def _dense(checkpoint: Checkpoint, path: str) -> tuple[nn.Module, dict[str, Any]]:
    settings = _settings(checkpoint, path)
    full = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = full.rpartition(".")[2]
    if not full.startswith("torch.nn.modules.") or name not in ACTIVATIONS:
        raise EncoderError(
            f"{checkpoint.place!r} has the activation {full!r} in {path}; {choices(name, ACTIVATIONS)} of torch.nn"
        )
    weights = _weights(checkpoint, path)
    linear = nn.Linear(weights["linear.weight"].shape[1], len(weights["linear.weight"]), "linear.bias" in weights)
    layer = nn.Sequential()
    layer.add_module("linear", linear)
    layer.add_module("activation", ACTIVATIONS[name]())
    return _filled(layer, weights, f"{checkpoint.place}/{path}"), settings


def _layer_norm(checkpoint: Checkpoint, path: str) -> tuple[nn.Module, dict[str, Any]]:
    settings, weights = _settings(checkpoint, path), _weights(checkpoint, path)
    layer = nn.Sequential()
    layer.add_module("norm", nn.LayerNorm(int(settings["dimension"])))
    return _filled(layer, weights, f"{checkpoint.place}/{path}"), settings


def _normalize(checkpoint: Checkpoint, path: str) -> tuple[nn.Module, dict[str, Any]]:
    return _Normalize(), _settings(checkpoint, path)


class _Normalize(nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(latents, dim=-1)


_LAYERS = {"Dense": _dense, "LayerNorm": _layer_norm, "Normalize": _normalize}


def _settings(checkpoint: Checkpoint, path: str) -> dict[str, Any]:
    """Read a layer's settings, if it maps the pooled latent to a latent and does nothing else."""
    settings: dict[str, Any] = checkpoint.read_json(f"{path}/config.json") or {}
    places = {settings.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if places != {"sentence_embedding"} or settings.get("use_residual"):
        raise EncoderError(
            f"{checkpoint.place!r}: {path} is no plain layer on the sentence embedding (it is {settings})"
        )
    return settings


def _weights(checkpoint: Checkpoint, path: str) -> dict[str, torch.Tensor]:
    file = checkpoint.find(f"{path}/model.safetensors")
    if file is None:
        raise EncoderError(f"{checkpoint.place!r}: {path} has no model.safetensors; pickled weights are never opened")
    return {key: tensor.float() for key, tensor in load_file(file).items()}


def _filled(layer: nn.Module, weights: dict[str, torch.Tensor], place: str) -> nn.Module:
    try:
        layer.load_state_dict(weights)
    except RuntimeError as error:
        raise EncoderError(f"{place}: weights do not fit: {' '.join(str(error).split())}") from error
    return layer
