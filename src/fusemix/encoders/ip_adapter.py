"""IP-Adapters: cross-attention on an image embedding beside that on words, for the Stable Diffusion family.

Of the adapters of arXiv 2308.06721 those that are given one pooled CLIP embedding. Others look at all patches of an
image, which is nothing that a sound could land in.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fusemix.encoders.huggingface import Checkpoint, refuse_other_weights
from fusemix.errors import EncoderError

POOLED = "image_proj.proj.weight"  # maps an embedding to a few tokens


def split(spec: str) -> tuple[str, str | None]:
    """Return the pipeline and the IP-Adapter that `PIPELINE#ADAPTER` names; None where it names only a pipeline.

    A file is given by its full path, so that it is found from anywhere.
    """
    pipeline, _, adapter = (spec, "", "") if Path(spec).is_dir() else spec.partition("#")
    return pipeline, (str(Path(adapter).resolve()) if Path(adapter).is_file() else adapter) or None


def attach(pipeline: Any, spec: str) -> None:
    """Give a pipeline an IP-Adapter, the image encoder that it was made for, and what prepares images.

    Of a pipeline that was loaded without its UNet only the encoder is added.

    Args:
        pipeline: of diffusers.
        spec: a .safetensors file, or `owner/name/path/file.safetensors` on the hub; `image_encoder` is beside it.

    Raises:
        EncoderError: no such adapter, one of another kind, or for another pipeline or image encoder.
    """
    import transformers

    name = f"{spec!r} on {type(pipeline).__name__}"
    if not (hasattr(pipeline, "load_ip_adapter") and hasattr(pipeline, "encode_prompt")):
        raise EncoderError(f"{name}: such a pipeline takes no IP-Adapter")
    file, beside = _find(spec)
    weights = _read(file)
    refuse_other_weights(beside, "model.safetensors.index.json")
    encoder, report = beside.load(
        transformers.CLIPVisionModelWithProjection, use_safetensors=True, dtype=pipeline.dtype, output_loading_info=True
    )
    if report["missing_keys"]:
        lacks = sorted(report["missing_keys"])
        raise EncoderError(f"{name}: the image encoder beside it lacks {lacks[0]}, which would be random")
    wants, makes = weights[POOLED].shape[1], encoder.config.projection_dim
    if wants != makes:
        raise EncoderError(
            f"{spec!r} takes embeddings of {wants:,} numbers, and the image encoder beside it makes {makes:,}"
        )
    if pipeline.feature_extractor is None:
        side = encoder.config.image_size
        processor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        pipeline.register_modules(feature_extractor=processor)
    pipeline.register_modules(image_encoder=encoder.eval().requires_grad_(False))
    if pipeline.unet is None:
        return
    parts = {
        part: {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }
    try:
        pipeline.load_ip_adapter(parts, subfolder="", weight_name="", image_encoder_folder=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise EncoderError(f"{name}: the adapter is for another pipeline: {str(error).splitlines()[0]}") from error


def _find(spec: str) -> tuple[Path, Checkpoint]:
    """Return the file of an adapter, and where the image encoder beside it lies."""
    if not spec.endswith(".safetensors"):
        raise EncoderError(f"no IP-Adapter {spec!r}: wanted a .safetensors file, or owner/name/.../file.safetensors")
    if Path(spec).is_file():
        return Path(spec), Checkpoint(str(Path(spec).resolve().parent), subfolder="image_encoder")
    *folders, file = spec.split("/")
    place, _, revision = "/".join(folders[:2]).partition("@")
    hub = Checkpoint(place, revision or None, "/".join(folders[2:]), file)
    found = hub.find(file) if len(folders) >= 2 else None
    if found is None:
        raise EncoderError(
            f"no IP-Adapter {spec!r}: no such file in {Path.cwd()}, and none on the hub (or it was not reached)"
        )
    return found, Checkpoint(place, hub.revision, "/".join([*folders[2:], "image_encoder"]))


def _read(file: Path) -> dict[str, Any]:
    """Read the weights of an adapter of pooled embeddings."""
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{file} is damaged: {error}") from error
    if POOLED not in weights:
        raise EncoderError(
            f"{file} is no IP-Adapter of pooled image embeddings, as ip-adapter_sd15.safetensors is one: "
            f"it lacks {POOLED}"
        )
    return weights
