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
    """

    takes = "video"

    def __init__(self, image: Encoder) -> None:
        assert image.takes == "image", "wrapped by load_encoder only where it fits"
        self.image = image
        self.source = image.source
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
        latents = np.concatenate([encode_batch(self.image, frames[i : i + step]) for i in range(0, len(frames), step)])
        ends = np.cumsum(counts)
        return np.stack([latents[end - count : end].mean(axis=0) for end, count in zip(ends, counts, strict=True)])
