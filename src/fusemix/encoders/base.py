"""What an encoder is: a frozen network, or anything else, that turns raw items into latents."""

import json
import sys
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fusemix.errors import EncoderError, FusemixError

Latent = NDArray[np.float32]


@runtime_checkable
class Encoder(Protocol):
    """A frozen map from raw items to latents. Any object with these four members and `encode` is one.

    Two more are optional: `lengths(texts) -> list[int]` counts tokens, so that batches hold texts of like length, and
    `variable_length = True` says that a sound costs what it lasts.

    Attributes:
        fingerprint: everything that decides the latents, as plain JSON values, dicts within dicts: name, weights,
            preprocessing, pooling.
        source: what `load_encoder` takes to load it again.
        takes: the raw items it wants: "image" (PIL images), "text" (strings), "audio" (`Sound` of any rate), "video"
            (lists of PIL images), "file" (paths), "vector" (arrays) or "any".
        batch_size: items per call.
    """

    fingerprint: dict[str, Any]
    source: str
    takes: str
    batch_size: int

    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n items to (n, D) float32."""
        ...


def encode_batch(encoder: Encoder, items: Sequence[Any]) -> Latent:
    """Encode one batch and hold the result to the contract.

    Raises:
        EncoderError: it raised, or gave not one row of numbers per item.
    """
    name = encoder.fingerprint.get("name", encoder.source)
    try:
        answer = encoder.encode(items)
    except FusemixError:
        raise
    except Exception as error:
        if out_of_memory(error):  # the caller answers with smaller batches
            raise
        raise EncoderError(f"the encoder {name} raised {type(error).__name__}: {error}") from error
    return as_latents(answer, len(items), name)


def as_latents(answer: Any, count: int, name: str) -> Latent:
    """Hold what an encoder answered to the contract: (count, D) float32.

    Raises:
        EncoderError: not one row of numbers per item.
    """
    try:
        latents = np.asarray(answer, dtype=np.float32)
    except (TypeError, ValueError) as error:
        rows = answer if isinstance(answer, list) else []
        lengths = sorted({len(row) for row in rows if hasattr(row, "__len__") and not isinstance(row, str)})
        why = f"the rows have {' and '.join(map(str, lengths))} numbers" if len(lengths) > 1 else str(error)
        raise EncoderError(f"{name}: wanted {count} rows of numbers for {count} items; {why}") from error
    if latents.ndim != 2 or len(latents) != count:
        raise EncoderError(f"{name}: wanted an array of shape ({count}, D) for {count} items, got {latents.shape}")
    return latents


def out_of_memory(error: BaseException) -> bool:
    """Tell whether the device has too little memory; torch need not be loaded for it."""
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def hash_json(value: Any) -> str:
    """Hash plain settings, whatever the order of their keys."""
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
