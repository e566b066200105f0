"""What conditions a text-to-image pipeline, as an encoder: its own text or image encoder, used as it uses it.

Latents of `diffusers:PATH` are exactly what the pipeline would compute itself, so an adapter that learns to land among
them speaks to the generator. A sequence of tokens is one latent, flattened; beside it lies what the pipeline pools.

Only the encoders of the pipeline are loaded, from safetensors; no code of its folder is run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusemix.encoders import ip_adapter
from fusemix.encoders.base import Latent
from fusemix.encoders.huggingface import (
    Checkpoint,
    choose_device,
    choose_precision,
    describe_processor,
    describe_tokenizer,
    hash_weights,
    refuse_other_weights,
)
from fusemix.errors import EncoderError, MissingExtraError

# What `encode_prompt` returns, in its order, by how many things it returns.
RETURNED = {2: ("prompt_embeds", "negative"), 4: ("prompt_embeds", "negative", "pooled_prompt_embeds", "negative")}
# What encodes images in a pipeline, and what prepares them, by its own names.
IMAGE_TOWERS = (("image_encoder", "feature_extractor"), ("prior_image_encoder", "prior_image_processor"))
HEAVY = ("unet", "transformer", "vae", "safety_checker", "prior", "prior_prior")
WEIGHTS = ("model", "diffusion_pytorch_model")  # what files of weights are called by either library
FORMS = "the folder of a pipeline or its hub id, perhaps followed by #IP-ADAPTER"
LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline may be made of


class ConditioningEncoder:
    """Texts to what `encode_prompt` makes of them, or images to the projected embeddings of the image encoder.

    Args:
        spec: folder of a diffusers pipeline, or a hub id, perhaps `id@revision`; `PIPELINE#ADAPTER` with an IP-Adapter.
        kind: "text" or "image".
        precision: see `load_encoder`.

    Attributes:
        shapes: of the parts of a condition, in the order in which they are flattened, by the name of the argument that
            the pipeline takes them by.

    Raises:
        EncoderError: no pipeline there, or it has no encoder for this kind.
        MissingExtraError: diffusers is not installed.
    """

    def __init__(self, spec: str, kind: str, precision: str | None = None) -> None:
        where, adapter = ip_adapter.split(spec)
        checkpoint = find_pipeline(where)
        self.takes, self.batch_size = kind, 32
        self.source = f"diffusers:{checkpoint.source}" + (f"#{adapter}" if adapter else "")
        self._device = choose_device()
        dtype = choose_precision(precision, self._device)
        self.pipeline = load_pipeline(checkpoint, dtype, adapter, without=HEAVY).to(self._device)
        check_kind(self.pipeline, kind, spec, adapter)
        self.fingerprint: dict[str, Any] = {
            "loader": "diffusers",
            "name": checkpoint.name,
            "revision": checkpoint.commit or checkpoint.revision,
            **describe(self.pipeline, kind),
        }

    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n items to (n, D): all numbers of a condition, one part after the other."""
        parts = (
            condition_texts(self.pipeline, items) if self.takes == "text" else condition_images(self.pipeline, items)
        )
        latents: Latent = torch.cat([part.float().flatten(1) for part in parts.values()], dim=1).cpu().numpy()
        return latents


def find_pipeline(spec: str) -> Checkpoint:
    """Find a pipeline of diffusers; an EncoderError where there is none."""
    return Checkpoint.of(spec, "model_index.json", "pipeline of diffusers", FORMS)


def decoder_of(pipeline: Any) -> Any:
    """Return what draws: Kandinsky is two pipelines, from words to an image embedding, and from that to a picture."""
    return getattr(pipeline, "decoder_pipe", pipeline)


def image_tower(pipeline: Any) -> tuple[Any, Any] | None:
    """Return what encodes images in a pipeline, and what prepares them; None if it has none."""
    for names in IMAGE_TOWERS:
        encoder, processor = (getattr(pipeline, name, None) for name in names)
        if encoder is not None and processor is not None:
            return encoder, processor
    return None


def check_kind(pipeline: Any, kind: str, name: str, adapter: str | None) -> None:
    """Refuse a kind of items that a pipeline takes no latents of, by an argument of its own.

    Raises:
        EncoderError: it is conditioned on others, or on nothing from outside.
    """
    takes = signature(decoder_of(pipeline).__call__).parameters
    has = None
    if adapter or ("image_embeds" in takes and image_tower(pipeline)):
        has = "image"
    elif "prompt_embeds" in takes and getattr(pipeline, "text_encoder", None) is not None:
        has = "text"
    if kind != has:
        found = f"it is conditioned on {has} items" if has else "it takes no latents that it has an encoder for"
        raise EncoderError(f"{name} ({type(pipeline).__name__}) is not conditioned on {kind} items: {found}")


def describe(pipeline: Any, kind: str) -> dict[str, Any]:
    """Return all that decides what conditions a pipeline, and in what shape it takes it.

    Of the name of the pipeline nothing: many generators are conditioned by the same encoder, and what lands among its
    latents speaks to each of them.
    """
    if kind == "text":
        texts = [getattr(pipeline, f"text_encoder{n}", None) for n in ("", "_2", "_3")]
        encoders = [each for each in texts if each is not None]
        tokenizers = [getattr(pipeline, f"tokenizer{n}", None) for n in ("", "_2", "_3")]
        preprocessing = {
            str(place): {**describe_tokenizer(each), "length": each.model_max_length}
            for place, each in enumerate(tokenizers)
            if each is not None
        }
        example = condition_texts(pipeline, ["a"])
    else:
        from PIL import Image

        tower = image_tower(pipeline)
        assert tower is not None, "check_kind comes first"
        encoders, preprocessing = [tower[0]], describe_processor(tower[1])
        example = condition_images(pipeline, [Image.new("RGB", (8, 8))])
    return {
        "condition": "+".join(example),
        "shapes": {name: list(part.shape[1:]) for name, part in example.items()},
        "dtype": str(encoders[0].dtype).removeprefix("torch."),
        "weights": "+".join(hash_weights(each) for each in encoders),
        "preprocessing": preprocessing,
    }


@torch.inference_mode()
def condition_texts(pipeline: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return what a pipeline makes of texts, by the name of the argument that it takes it by: (n, ...) each."""
    unknown = f"{type(pipeline).__name__} encodes texts in a way that is not known here"
    try:
        with _quiet():  # a pipeline would print what it cuts off of every long text
            found = pipeline.encode_prompt(
                prompt=list(texts), device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
    except (AttributeError, TypeError) as error:  # arguments of its own
        raise EncoderError(f"{unknown}: {error}") from error
    names = RETURNED.get(len(found), ())
    parts = {name: part for name, part in zip(names, found, strict=False) if name != "negative"}
    if not parts or not all(isinstance(part, Tensor) for part in parts.values()):
        raise EncoderError(unknown)
    return parts


@torch.inference_mode()
def condition_images(pipeline: Any, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return the projected embeddings (n, D) that a pipeline's image encoder makes of images."""
    tower = image_tower(pipeline)
    assert tower is not None, "check_kind comes first"
    encoder, processor = tower
    pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    return {"image_embeds": encoder(pixels.pixel_values.to(encoder.device, encoder.dtype)).image_embeds}


def load_pipeline(
    checkpoint: Checkpoint, dtype: torch.dtype, adapter: str | None = None, without: Sequence[str] = ()
) -> Any:
    """Load a diffusers pipeline, or only some of its parts, perhaps with an IP-Adapter, without its progress bars.

    Raises:
        EncoderError: it does not load, or only by running code of its folder, or the adapter is not for it.
        MissingExtraError: diffusers is not installed.
    """
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise MissingExtraError("diffusers", "generate", "a text-to-image pipeline") from error
    index = checkpoint.read_json("model_index.json") or {}
    _refuse_code(checkpoint, index, diffusers)
    for part, made in index.items():
        for name in WEIGHTS if isinstance(made, list) and part not in without else ():
            refuse_other_weights(replace(checkpoint, subfolder=part), f"{name}.safetensors.index.json")
    absent = {name: None for name in without if name in index}
    with _quiet():
        pipeline = checkpoint.load(diffusers.DiffusionPipeline, dtype=dtype, use_safetensors=True, **absent)
        if adapter is not None:
            ip_adapter.attach(pipeline, adapter)
        return pipeline


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back progress bars and remarks of both libraries."""
    import diffusers
    import transformers

    libraries = [library.utils.logging for library in (diffusers, transformers)]
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            (library.enable_progress_bar if bar else library.disable_progress_bar)()


def _refuse_code(checkpoint: Checkpoint, index: dict[str, Any], diffusers: Any) -> None:
    """Hold a pipeline to classes of the two libraries: its folder may name modules of its own, which would be run.

    Raises:
        EncoderError: it names another class.
    """
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str) or not hasattr(diffusers, name):
        raise EncoderError(f"{checkpoint.place!r} is no pipeline of diffusers {diffusers.__version__}, but {name!r}")
    for part, made in index.items():
        if isinstance(made, list) and made[:1] and made[0] not in (None, *LIBRARIES, *_own_modules(diffusers)):
            raise EncoderError(f"{checkpoint.place!r}: its {part} is code of its own ({made[0]!r}), which is not run")


def _own_modules(diffusers: Any) -> list[str]:
    """Return the folders of pipelines inside of diffusers, by which some of their parts are named."""
    return [path.name for path in (Path(diffusers.__file__).parent / "pipelines").iterdir() if path.is_dir()]
