"""Frozen image encoders from a transformers folder or hub id."""

from collections.abc import Sequence
from typing import Any

import torch

from fusemix.encoders.base import Latent
from fusemix.encoders.huggingface import (
    Checkpoint,
    choose_device,
    choose_precision,
    describe_processor,
    load_model,
    model_facts,
)
from fusemix.encoders.pooling import choose, family_of, pool, show_layers
from fusemix.errors import EncoderError

# Processors that transformers wrote for torchvision only, and the one of the same arithmetic that needs PIL alone.
WITHOUT_TORCHVISION = {"DINOv3ViTImageProcessor": "ViTImageProcessorPil"}


class ImageEncoder:
    """PIL images to latents through AutoImageProcessor (PIL path) and AutoModel.

    Args:
        spec: folder, hub id, or `id@revision`; of a two-tower model its vision tower is used.
        pooling: as "mean", "mean@-2" or "mean+mean@0", see `pooling.split`; None is the default of the architecture.
        precision: "float32", "bfloat16" or "float16"; None chooses by the device.

    Raises:
        EncoderError: it does not load.
    """

    takes = "image"
    batch_size = 32

    def __init__(self, spec: str, *, pooling: str | None = None, precision: str | None = None) -> None:
        checkpoint = Checkpoint.of(spec)
        self.device = choose_device()
        self.model = load_model(checkpoint, "image", choose_precision(precision, self.device)).to(self.device)
        if self.model.config.model_type == "vit_mae":  # it hides most of each picture, at random, even in eval mode
            self.model.embeddings.random_masking = lambda tokens, noise=None: (tokens, None, None)
        self.processor = _load_processor(checkpoint)
        family = family_of(self.model.config)
        own = "mean" if getattr(self.model, "pooler", None) is None else "pooler"
        self.pooling = choose(pooling, family.poolings if family else (), own, checkpoint.name)
        self.options = show_layers(self.pooling)
        self.special = family.special if family else 0
        self.source = checkpoint.source
        self.fingerprint: dict[str, Any] = {
            **model_facts(self.model, checkpoint, "image"),
            "preprocessing": describe_processor(self.processor),
            "pooling": self.pooling,
        }

    @torch.inference_mode()
    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n RGB images to (n, D)."""
        batch = self.processor(images=list(items), return_tensors="pt").to(self.device, self.model.dtype)
        mask = batch.get("pixel_attention_mask")  # of models that take pictures of any shape
        latents: Latent = pool(self.model(**batch, **self.options), self.pooling, mask, self.special).cpu().numpy()
        return latents


def _load_processor(checkpoint: Checkpoint) -> Any:
    """Load the PIL version of an image processor, so that latents do not depend on what else is installed."""
    import transformers

    settings = checkpoint.read_json("preprocessor_config.json") or {}
    if not settings and checkpoint.is_folder and checkpoint.find("processor_config.json") is None:
        raise EncoderError(
            f"{checkpoint.place} has no preprocessor_config.json, which says how pictures are prepared; "
            "save the image processor of the model there too"
        )
    substitute = WITHOUT_TORCHVISION.get(str(settings.get("image_processor_type")).removesuffix("Fast"))
    if substitute:
        return checkpoint.load(getattr(transformers, substitute))
    return checkpoint.load(transformers.AutoImageProcessor, backend="pil")
