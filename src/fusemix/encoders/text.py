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
from fusemix.encoders.pooling import choose, pool, poolings_of, show_layers
from fusemix.encoders.sentence import read_sentence
from fusemix.encoders.tokens import Tokens


class TextEncoder:
    """Strings to latents through AutoTokenizer and AutoModel: the final hidden states, pooled.

    A plain transformers model is not normalised; a sentence-transformers model gets the layers that it names.

    Args:
        spec: folder, hub id, or `id@revision`; of a two-tower model its text tower is used.
        name: in the fingerprint, if not that of the folder or the hub id.
        pooling: as "mean", "mean@-2" or "mean+mean@0", see `pooling.split`; None is what the model was made for.
        precision: "float32", "bfloat16" or "float16"; None chooses by the device.

    Raises:
        EncoderError: it does not load.
    """

    takes = "text"
    batch_size = 64

    def __init__(
        self, spec: str, name: str | None = None, *, pooling: str | None = None, precision: str | None = None
    ) -> None:
        given = Checkpoint.of(spec)
        sentence = read_sentence(given)
        checkpoint = sentence.checkpoint
        self.device = choose_device()
        self.model = load_model(checkpoint, "text", choose_precision(precision, self.device)).to(self.device)
        self.tokens = Tokens(checkpoint, sentence, given.name, self.model.config)
        if pooling is None and sentence.pooling is None and not given.surely_lacks("modules.json"):
            warnings.warn(
                f"it is not known whether {given.name} has a modules.json, which would tell its pooling: the hub was "
                "not reached and the file is not in the cache; load it once online, or choose the pooling",
                UserWarning,
                stacklevel=2,
            )
        known = poolings_of(self.model.config, given.name, sentence.pooling)
        self.pooling = choose(pooling, known, "mean", name or given.name)
        sentence.check(self.pooling, name or given.name)
        self.options = show_layers(self.pooling)
        self.layers = sentence.layers.to(self.device)
        self.lengths = self.tokens.lengths
        self.source = given.source
        self.fingerprint: dict[str, Any] = {
            **model_facts(self.model, checkpoint, "text", name or given.name),
            "preprocessing": describe_tokenizer(self.tokens.tokenizer),
            "pooling": self.pooling,
            **self.tokens.facts,
            "layers": sentence.facts,
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[str]) -> Latent:
        """Encode n strings to (n, D)."""
        batch = self.tokens.batch(items, "pt").to(self.device)
        pooled = pool(self.model(**batch, **self.options), self.pooling, batch.get("attention_mask"))
        latents: Latent = self.layers(pooled).cpu().numpy()
        return latents
