"""Several encoders of the same items as one: their latents side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusemix.encoders.base import Encoder, Latent, encode_batch
from fusemix.errors import EncoderError


class CombinedEncoder:
    """Concatenated latents, as the FuseMix paper uses Whisper and HTS-AT for sound (arXiv 2312.10144).

    Args:
        parts: two or more encoders that take the same items.
        pooling: that all parts with a choice were given; None left them their own.

    Attributes:
        refused: places of the items that a part refused in the last call of `encode`.

    Raises:
        EncoderError: they take different items.
    """

    def __init__(self, parts: Sequence[Encoder], pooling: str | None = None) -> None:
        takes = {part.takes for part in parts} - {"any"}
        if len(takes) > 1:
            each = ", ".join(f"{part.fingerprint['name']} takes {part.takes}" for part in parts)
            raise EncoderError(f"encoders that are combined by + must take the same items; {each}")
        self.parts = list(parts)
        self.takes = takes.pop() if takes else "any"
        self.batch_size = min(part.batch_size for part in parts)
        self.variable_length = any(getattr(part, "variable_length", False) for part in parts)
        self.source = "+".join(part.source for part in parts)
        self.refused: tuple[int, ...] = ()
        self.fingerprint: dict[str, Any] = {
            "loader": "combined",
            "name": "+".join(str(part.fingerprint["name"]) for part in parts),
            **self._choices(pooling),
            "parts": {str(number): part.fingerprint for number, part in enumerate(parts, start=1)},
        }

    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n items to (n, D), D the sum of the parts' widths, in their order."""
        latents = [encode_batch(part, items) for part in self.parts]
        self.refused = tuple(sorted({place for part in self.parts for place in getattr(part, "refused", ())}))
        return np.concatenate(latents, axis=1)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count tokens by the first part that does; characters if none does."""
        for part in self.parts:
            if hasattr(part, "lengths"):
                return list(part.lengths(texts))
        return [len(text) for text in texts]

    def _choices(self, pooling: str | None) -> dict[str, str]:
        """Return what the loader must be told to get these very parts again, on a device of another kind too."""
        found = {}
        if pooling is not None and any(part.fingerprint.get("pooling") == pooling for part in self.parts):
            found["pooling"] = pooling
        precisions = {str(part.fingerprint["dtype"]) for part in self.parts if "dtype" in part.fingerprint}
        if len(precisions) == 1:
            found["dtype"] = precisions.pop()
        return found
