"""Texts to tokens as a text model wants them: prefix, case, length and padding, for a network and a graph alike."""

from collections.abc import Sequence
from typing import Any

from fusemix.encoders.huggingface import Checkpoint
from fusemix.encoders.pooling import by_name
from fusemix.encoders.sentence import Sentence
from fusemix.errors import EncoderError

# Families trained with a prefix, by a word in their name (their model cards).
PREFIXES = {"e5-small": "query: ", "e5-base": "query: ", "e5-large": "query: "}
MAX_TOKENS = 512
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


class Tokens:
    """The tokenizer of a model, and how its texts are prepared.

    Args:
        checkpoint: folder or hub id of the tokenizer.
        sentence: what sentence-transformers saved beside it.
        name: of the model.
        config: of the network: model_type and max_position_embeddings, as far as they are known.
        length: of every text in tokens, where the model takes no other.
        **options: of `Checkpoint.load`.

    Raises:
        EncoderError: it does not load, or does not tokenise single texts.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sentence: Sentence,
        name: str,
        config: Any,
        length: int | None = None,
        **options: Any,
    ) -> None:
        from transformers import AutoTokenizer

        if checkpoint.is_folder and not any(map(checkpoint.find, TOKENIZERS)):
            raise EncoderError(
                f"{checkpoint.place} has no tokenizer, so it takes no texts; if it should, save the tokenizer there too"
            )
        self.tokenizer = checkpoint.load(AutoTokenizer, **options)
        if not hasattr(self.tokenizer, "pad_token"):
            raise EncoderError(f"{checkpoint.place!r}: {type(self.tokenizer).__name__} does not tokenise single texts")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"  # pooling counts real tokens from the left
        # What was tuned for instructions wants none of them before what is searched.
        self.prefix = sentence.prefix or ("" if "-instruct" in name.lower() else by_name(PREFIXES, name)) or ""
        self.lower = sentence.lower
        positions = getattr(config, "max_position_embeddings", None)
        limits = [sentence.max_tokens or MAX_TOKENS, self.tokenizer.model_max_length, positions]
        self.max_tokens = length or min(int(limit) for limit in limits if limit)
        # SigLIP pools its last token, padding or not: it learned from texts of full length, and sees all of each.
        siglip = str(getattr(config, "model_type", "")).startswith("siglip")
        self.padding: bool | str = "max_length" if length or siglip else True
        self.masked = not siglip

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the tokens beside the tokenizer itself."""
        return {"prefix": self.prefix, "lower": self.lower, "max_tokens": self.max_tokens}

    def batch(self, texts: Sequence[str], kind: str) -> Any:
        """Tokenise n texts to arrays (n, T) of a kind, "pt" or "np", filled up to the longest."""
        return self._tokenise(texts, padding=self.padding, return_tensors=kind, return_attention_mask=self.masked)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as the model sees it: with the prefix, and cut."""
        return [len(tokens) for tokens in self._tokenise(texts)["input_ids"]] if texts else []

    def _tokenise(self, texts: Sequence[str], **options: Any) -> Any:
        prepared = [self.prefix + (text.lower() if self.lower else text) for text in texts]
        return self.tokenizer(prepared, truncation=True, max_length=self.max_tokens, **options)
