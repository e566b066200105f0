"""Videos through any image encoder: the mean of the latents of their frames."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusemix.encoders.base import Encoder, Latent, encode_batch
from fusemix.errors import EncoderError


class VideoEncoder:
    """Lists of frames to latents.

    Args:
        image: encodes the frames, at most its own batch size of them at once.

    Attributes:
        refused: places of the videos of the last call to `encode` of which it refused a frame.
    """

    takes = "video"

    def __init__(self, image: Encoder) -> None:
        assert image.takes == "image", "wrapped by load_encoder only where it fits"
        self.image = image
        self.source = image.source
        self.refused: list[int] = []
        self.batch_size = max(1, image.batch_size // 8)
        self.fingerprint: dict[str, Any] = {
            "loader": "video",
            "name": image.fingerprint["name"],
            **{key: image.fingerprint[key] for key in ("pooling", "dtype") if key in image.fingerprint},
            "frames": "mean",
            "image": image.fingerprint,
        }

    def encode(self, items: Sequence[Sequence[Any]]) -> Latent:
        """Encode n lists of RGB images to (n, D).

        Raises:
            EncoderError: a video without a frame.
        """
        counts = [len(frames) for frames in items]
        if 0 in counts:
            raise EncoderError(f"{self.fingerprint['name']}: video {counts.index(0) + 1} of the batch has no frame")
        frames = [frame for video in items for frame in video]
        step = self.image.batch_size
        parts, refused = [], []
        for start in range(0, len(frames), step):
            parts.append(encode_batch(self.image, frames[start : start + step]))
            refused += [start + place for place in getattr(self.image, "refused", ())]
        # A part in which all frames were refused may not know its width.
        width = max(part.shape[1] for part in parts)
        parts = [part if part.shape[1] else np.full((len(part), width), np.nan, np.float32) for part in parts]
        latents, ends = np.concatenate(parts), np.cumsum(counts)
        self.refused = sorted({int(np.searchsorted(ends, place, side="right")) for place in refused})
        return np.stack([latents[end - count : end].mean(axis=0) for end, count in zip(ends, counts, strict=True)])
