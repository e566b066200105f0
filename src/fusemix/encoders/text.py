"""Frozen text encoders from a transformers or sentence-transformers folder, or a hub id."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from fusemix.encoders.base import Latent
from fusemix.encoders.huggingface import (
    Checkpoint,
    choose_device,
    choose_precision,
    describe_tokenizer,
    load_model,
    model_facts,
)
from fusemix.encoders.pooling import NAMED, choose, family_of, pool
from fusemix.encoders.sentence import Sentence, read_sentence
from fusemix.errors import EncoderError

# Families trained with a prefix, by a word in their name (their model cards).
PREFIXES = {"e5-small": "query: ", "e5-base": "query: ", "e5-large": "query: "}
MAX_TOKENS = 512


class TextEncoder:
    """Strings to latents through AutoTokenizer and AutoModel: the final hidden states, pooled.

    A plain transformers model is not normalised; a sentence-transformers model gets the layers that it names.

    Args:
        spec: folder, hub id, or `id@revision`; of a two-tower model its text tower is used.
        name: in the fingerprint, if not that of the folder or the hub id.
        pooling: one of `pooling.POOLINGS`; None is what the model was made for.
        precision: "float32", "bfloat16" or "float16"; None chooses by the device.

    Raises:
        EncoderError: it does not load.
    """

    takes = "text"
    batch_size = 64

    def __init__(
        self, spec: str, name: str | None = None, *, pooling: str | None = None, precision: str | None = None
    ) -> None:
        from transformers import AutoTokenizer

        given = Checkpoint.of(spec)
        sentence = read_sentence(given)
        checkpoint = sentence.checkpoint
        self.device = choose_device()
        self.model = load_model(checkpoint, "text", choose_precision(precision, self.device)).to(self.device)
        self.tokenizer = checkpoint.load(AutoTokenizer)
        if not hasattr(self.tokenizer, "pad_token"):
            raise EncoderError(f"{given.place!r}: {type(self.tokenizer).__name__} does not tokenise single texts")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"  # "last" counts real tokens from the left
        if pooling is None and sentence.pooling is None and not given.surely_lacks("modules.json"):
            warnings.warn(
                f"it is not known whether {given.name} has a modules.json, which would tell its pooling: the hub was "
                "not reached and the file is not in the cache; load it once online, or choose the pooling",
                UserWarning,
                stacklevel=2,
            )
        self.pooling = choose(pooling, _known_poolings(sentence, given.name, self.model.config), "mean", given.name)
        self.prefix = sentence.prefix or _by_name(PREFIXES, given.name) or ""
        self.lower = sentence.lower
        self.max_tokens = _max_tokens(sentence, self.tokenizer, self.model.config)
        # SigLIP pools its last token, padding or not, and learned from texts filled up to the full length.
        self.padding: bool | str = "max_length" if self.model.config.model_type.startswith("siglip") else True
        self.layers = sentence.layers.to(self.device)
        self.source = given.source
        self.fingerprint: dict[str, Any] = {
            **model_facts(self.model, checkpoint, "text", name or given.name),
            "preprocessing": describe_tokenizer(self.tokenizer),
            "pooling": self.pooling,
            "prefix": self.prefix,
            "lower": self.lower,
            "max_tokens": self.max_tokens,
            "layers": sentence.facts,
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[str]) -> Latent:
        """Encode n strings to (n, D)."""
        batch = self._tokens(items, padding=self.padding, return_tensors="pt").to(self.device)
        pooled = pool(self.model(**batch), self.pooling, batch.get("attention_mask"))
        latents: Latent = self.layers(pooled).cpu().numpy()
        return latents

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as the model sees it: with the prefix, and cut."""
        return [len(tokens) for tokens in self._tokens(texts)["input_ids"]] if texts else []

    def _tokens(self, texts: Sequence[str], **options: Any) -> Any:
        prepared = [self.prefix + (text.lower() if self.lower else text) for text in texts]
        return self.tokenizer(prepared, truncation=True, max_length=self.max_tokens, **options)


def _known_poolings(sentence: Sentence, name: str, config: Any) -> tuple[str, ...]:
    """What sentence-transformers saved beside the model, else the family by name, else the architecture."""
    named = sentence.pooling or _by_name(NAMED, name)
    if named:
        return (named,)
    family = family_of(config)
    return family.poolings if family else ()


def _by_name(table: dict[str, str], name: str) -> str | None:
    return next((value for word, value in table.items() if word in name.lower()), None)


def _max_tokens(sentence: Sentence, tokenizer: Any, config: Any) -> int:
    """Return the length that texts are cut to: what sentence-transformers saved, else 512, as far as it goes."""
    limits = [
        sentence.max_tokens or MAX_TOKENS, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)
    ]  # fmt: skip
    return min(int(limit) for limit in limits if limit)
