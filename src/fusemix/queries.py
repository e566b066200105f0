"""Raw items that come to a fitted model: which modality they are, and the one encoder that may encode them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fusemix.data.decoding import call_decoder
from fusemix.data.images import load_image
from fusemix.data.items import SUFFIXES, located
from fusemix.data.media import ItemError, Source, path_or_bytes
from fusemix.data.sounds import load_sound
from fusemix.data.store import difference
from fusemix.data.videos import load_frames
from fusemix.encoders import Encoder, encode_batch, load_encoder, runs_code
from fusemix.encoders.base import Latent
from fusemix.encoders.canaries import check_canaries
from fusemix.encoders.function import FunctionEncoder, load_function
from fusemix.errors import DataError, EncoderError, MismatchError
from fusemix.sound import Sound
from fusemix.state import Side

MEDIA = ("audio", "file", "image", "video")  # kinds of items that are files
_LOADERS: dict[str, Callable[[Source], Any]] = {
    "image": load_image, "audio": load_sound, "video": load_frames, "file": path_or_bytes,
}  # fmt: skip


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


class QueryEncoder:
    """What encodes the raw items of one modality of a model: the encoder, and the user's decoder if there is one.

    Args:
        modality: the user's word.
        side: what the model knows of it.
        canaries: what the encoder made of its canary items, (16, D), or None.
    """

    def __init__(self, modality: str, side: Side, canaries: Tensor | None) -> None:
        self.modality, self.side, self.canaries = modality, side, canaries
        self._encoder: Encoder | None = None
        self._decoder: Callable[[Any], Any] | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder; that of the model unless `use` was given another."""
        if self._encoder is None:
            self.use(None, None)
            assert self._encoder is not None
        return self._encoder

    def use(self, encoder: Any, decode: Any) -> None:
        """Take an encoder and a decoder, and hold them to those that the model was fitted on.

        The encoder is loaded with the pooling and in the precision of that one, whatever this device would choose.

        Args:
            encoder: anything `load_encoder` takes; None is the one that the model names.
            decode: a function or its name, of a modality that was extracted with one; None leaves it as it is.

        Raises:
            EncoderError: one does not load, or only by running code that a folder names.
            MismatchError: one is another; the message names the field.
        """
        if decode is not None:
            decoder = load_function(decode) if isinstance(decode, str) else FunctionEncoder(decode)
            self._hold("decoder", self.side.decode, decoder.fingerprint)
            self._decoder = decoder.function
        spec = encoder if encoder is not None else self._trusted_source()
        pooling, precision = self.side.encoder.get("pooling"), self.side.encoder.get("dtype")
        loaded = load_encoder(spec, self.side.kind, pooling=pooling, precision=precision)
        self._hold("encoder", self.side.encoder, loaded.fingerprint)
        if self.canaries is not None:
            check_canaries(loaded, self.canaries)
        self._encoder = loaded

    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n raw items, files or what is decoded already, to (n, D).

        Raises:
            DataError: a file that cannot be used, or an item that the encoder refuses.
            EncoderError: the encoder does not load, or the files need the user's decoder.
        """
        size = self.encoder.batch_size
        raw = [self._decode(item) for item in items]
        parts = [encode_batch(self.encoder, raw[i : i + size]) for i in range(0, len(raw), size)]
        for item, latent in zip(items, (row for part in parts for row in part), strict=True):
            if not len(latent) or not np.isfinite(latent).all():
                raise DataError(f"{item}: the encoder of {self.modality!r} gave no latent for it")
        return np.concatenate(parts)

    def _decode(self, item: Any) -> Any:
        form = self.side.kind if self.encoder.takes == "any" else self.encoder.takes
        if form == "text" or not isinstance(item, (str, Path)):
            return item
        try:
            source = located(Path(item))
            return _LOADERS[form](source) if self.side.decode is None else self._decode_as_the_user(source)
        except ItemError as error:
            raise DataError(f"{item}: {error.reason}: {error}") from error

    def _decode_as_the_user(self, source: Source) -> Any:
        assert self.side.decode is not None
        if self._decoder is None:
            raise EncoderError(
                f"the {self.modality} files were decoded by {self.side.decode['name']}; name this decoder: "
                f"--decode {self.modality}=FUNCTION, or model.use_encoder({self.modality!r}, decode=FUNCTION)"
            )
        return call_decoder(self._decoder, path_or_bytes(source))

    def _hold(self, what: str, fitted: Any, given: Any) -> None:
        differs = difference(fitted, given)
        if differs:
            raise MismatchError(
                f"this is not the {what} of {self.modality!r} that the model was fitted on: {differs.lstrip()}"
            )

    def _trusted_source(self) -> str:
        """Return how to load the encoder again, if that runs no code which a folder names."""
        source, name = self.side.source, self.modality
        if self.side.encoder.get("loader") == "vectors" or source == "":
            raise EncoderError(f"the latents of {name!r} were given ready-made, so raw {name} items cannot be encoded")
        if runs_code(source):
            raise EncoderError(
                f"{name!r} was encoded by {source}; a saved model never runs code by itself: "
                f"name the encoder yourself (search --{name} {source}, serve --encoder {name}={source}, or use_encoder)"
            )
        return source
