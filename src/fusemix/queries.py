"""Raw items that come to a fitted model: which modality they are, and the one encoder that may encode them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fusemix.data.images import load_image
from fusemix.data.items import SUFFIXES, located
from fusemix.data.media import ItemError, Source
from fusemix.data.sounds import load_sound
from fusemix.data.store import difference
from fusemix.data.videos import load_frames
from fusemix.encoders import Encoder, load_encoder, runs_code
from fusemix.encoders.canaries import check_canaries
from fusemix.errors import DataError, EncoderError, MismatchError
from fusemix.sound import Sound
from fusemix.state import Side

MEDIA = ("audio", "file", "image", "video")  # kinds of items that are files
_LOADERS: dict[str, Callable[[Source], Any]] = {"image": load_image, "audio": load_sound, "video": load_frames}


def modality_of(item: Any, sides: Mapping[str, Side]) -> str:
    """Find the modality that takes an item of this type.

    A str is text, a Path a file (of the kind that its suffix tells, where several could take it), a PIL image an image,
    a Sound audio, and a list of PIL images a video.

    Raises:
        DataError: none or several do.
    """
    from PIL.Image import Image

    takers = {str: ("text",), Path: MEDIA, Image: ("image",), Sound: ("audio",), list: ("video",)}
    kinds = next((kinds for type_, kinds in takers.items() if isinstance(item, type_)), ())
    found = [name for name, side in sides.items() if side.kind in kinds]
    if len(found) > 1 and isinstance(item, Path):
        found = [name for name in found if sides[name].kind == SUFFIXES.get(item.suffix.lower())]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{name} ({side.kind})" for name, side in sides.items())
    raise DataError(
        f"cannot tell which modality a {type(item).__name__} is: a str is text, a Path is a file, a PIL image is an "
        f"image, a Sound is audio, a list of images is a video, and the model has {known}; say modality= (--from)"
    )


def decode(item: Any, kind: str, encoder: Encoder) -> Any:
    """Return what an encoder gets for an item of a kind: a file is decoded, what is decoded already passes.

    Raises:
        DataError: a file that cannot be used.
    """
    form = kind if encoder.takes == "any" else encoder.takes
    if form not in _LOADERS or not isinstance(item, (str, Path)):
        return item
    try:
        return _LOADERS[form](located(Path(item)))
    except ItemError as error:
        raise DataError(f"{item}: {error.reason}: {error}") from error


def trusted_source(modality: str, side: Side) -> str:
    """Return how to load the encoder of a modality again, if that runs no code which a folder names.

    Raises:
        EncoderError: there is no encoder, or it is the user's own code.
    """
    if side.encoder.get("loader") == "vectors" or side.source == "":
        raise EncoderError(
            f"the latents of {modality!r} were given ready-made, so raw {modality} items cannot be encoded"
        )
    if runs_code(side.source):
        raise EncoderError(
            f"{modality!r} was encoded by {side.source}; a saved model never runs code by itself: "
            f"name the encoder yourself (--{modality} {side.source}, or model.use_encoder)"
        )
    return side.source


def matching_encoder(modality: str, side: Side, spec: Any, canaries: Tensor | None) -> Encoder:
    """Load an encoder and hold it to the fingerprint and the canaries that the model was fitted on.

    It is loaded with the pooling and in the precision of that encoder, whatever this device would choose by itself.

    Raises:
        MismatchError: it is another one; the message names the field.
    """
    pooling, precision = side.encoder.get("pooling"), side.encoder.get("dtype")
    encoder = load_encoder(spec, side.kind, pooling=pooling, precision=precision)
    differs = difference(side.encoder, encoder.fingerprint)
    if differs:
        raise MismatchError(f"this is not the encoder of {modality!r} that the model was fitted on: {differs}")
    if canaries is not None:
        check_canaries(encoder, canaries)
    return encoder
