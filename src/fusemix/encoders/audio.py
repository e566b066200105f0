"""Frozen audio encoders from a transformers folder or hub id.

A long clip is cut into windows of the length that the network was made for, and their latents are averaged, each
weighted by the sound in it. All of a clip is heard, but for a rest of less than one frame, and none of it by chance.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from fusemix.errors import EncoderError, MissingExtraError, choices
from fusemix.sound import Sound

WAVE_WINDOW = 30.0  # seconds, of networks on the waveform, which take any length; their memory grows with its square
SHORTEST = 0.025  # seconds, one frame of every network here; a shorter clip is filled up with silence
HOP, FRAME = 0.010, 0.025  # seconds, of the spectrogram of AST

Samples = NDArray[np.float32]
Inputs = tuple[dict[str, Tensor], Tensor | None]


class Form(NamedTuple):
    """How a kind of network takes sound.

    Attributes:
        window: samples of its window, from its feature extractor.
        inputs: (model, extractor, windows) to the inputs of the model and the mask (n, T) of its real frames.
        any_length: it costs what the sound lasts, instead of a full window.
        padded: sounds of several lengths can share a batch: the network keeps padding out of the real frames.
    """

    window: Callable[[Any], int]
    inputs: Callable[[Any, Any, list[Samples]], Inputs]
    any_length: bool = False
    padded: bool = True


class AudioEncoder:
    """Sounds of any rate to latents through AutoFeatureExtractor (numpy) and AutoModel.

    Args:
        spec: folder, hub id, or `id@revision`; of a two-tower model its audio tower, of Whisper its encoder.
        pooling: as "mean", "mean@-2" or "mean+mean@0", see `pooling.split`; None is the default of the architecture.
        precision: "float32", "bfloat16" or "float16"; None chooses by the device.

    Raises:
        EncoderError: it does not load, or takes sound in a way that is not known.
    """

    takes = "audio"
    batch_size = 16

    def __init__(self, spec: str, *, pooling: str | None = None, precision: str | None = None) -> None:
        from transformers import AutoFeatureExtractor

        checkpoint = Checkpoint.of(spec)
        self.device = choose_device()
        self.model = load_model(checkpoint, "audio", choose_precision(precision, self.device)).to(self.device)
        model_type = self.model.config.model_type
        if model_type not in FORMS:
            raise EncoderError(f"{spec!r} is a {model_type} model; for audio items {choices(model_type, FORMS)}")
        self.form = FORMS[model_type]
        self.variable_length = self.form.any_length
        self.extractor = checkpoint.load(AutoFeatureExtractor)
        self.rate = int(self.extractor.sampling_rate)
        self.window = self.form.window(self.extractor)
        # A group norm over time mixes the padding into all frames, whatever the network does after it.
        grouped = getattr(self.model.config, "feat_extract_norm", "") == "group"
        self.equal_lengths = grouped or not self.form.padded
        family = family_of(self.model.config)
        self.pooling = choose(pooling, family.poolings if family else (), "mean", checkpoint.name)
        self.options = show_layers(self.pooling)
        self.special = family.special if family else 0
        self.source = checkpoint.source
        self.fingerprint: dict[str, Any] = {
            **model_facts(self.model, checkpoint, "audio"),
            "preprocessing": {**describe_processor(self.extractor), "window": self.window, "resampling": "soxr HQ"},
            "pooling": self.pooling,
        }

    def encode(self, items: Sequence[Sound]) -> Latent:
        """Encode n sounds to (n, D)."""
        windows = [(owner, window) for owner, sound in enumerate(items) for window in self._windows(sound)]
        windows.sort(key=lambda pair: len(pair[1]))  # equal lengths together: less padding
        total, seconds = None, np.zeros(len(items))
        for chunk in self._chunks(windows):
            latents = self._forward([window for _, window in chunk])
            total = np.zeros((len(items), latents.shape[1])) if total is None else total
            for (owner, window), latent in zip(chunk, latents, strict=True):
                total[owner] += len(window) * latent
                seconds[owner] += len(window)
        assert total is not None, "there are items, and each has a window"
        return (total / seconds[:, None]).astype(np.float32)

    def _windows(self, sound: Sound) -> list[Samples]:
        """Resample a sound and cut it into windows, the last one as short as it comes."""
        samples = resample(sound, self.rate)
        shortest = int(np.ceil(SHORTEST * self.rate))
        if len(samples) < shortest:
            samples = np.pad(samples, (0, shortest - len(samples)))
        parts = [samples[start : start + self.window] for start in range(0, len(samples), self.window)]
        if len(parts[-1]) < shortest:  # a rest after full windows
            del parts[-1]
        return parts

    def _chunks(self, windows: list[tuple[int, Samples]]) -> Iterator[list[tuple[int, Samples]]]:
        """Split windows, sorted by length, into batches of a bounded size."""
        start = 0
        for end in range(1, len(windows) + 1):
            full = end - start == self.batch_size or end == len(windows)
            if full or (self.equal_lengths and len(windows[end][1]) != len(windows[start][1])):
                yield windows[start:end]
                start = end

    @torch.inference_mode()
    def _forward(self, windows: list[Samples]) -> NDArray[Any]:
        inputs, mask = self.form.inputs(self.model, self.extractor, windows)
        moved = {
            key: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        mask = None if mask is None else mask.to(self.device)
        latents: NDArray[Any] = (
            pool(self.model(**moved, **self.options), self.pooling, mask, self.special).cpu().numpy()
        )
        return latents


def resample(sound: Sound, rate: int) -> Samples:
    """Bring a sound to another rate: (T,) float32.

    Raises:
        EncoderError: not one channel of samples.
        MissingExtraError: soxr is not installed.
    """
    samples = np.asarray(sound.samples, dtype=np.float32)
    if samples.ndim != 1:
        raise EncoderError(f"wanted a sound of one channel, samples of shape (T,), got {samples.shape}")
    if sound.rate == rate or len(samples) == 0:
        return samples
    try:
        import soxr
    except ModuleNotFoundError as error:
        raise MissingExtraError("soxr", "audio", f"sound of {sound.rate} Hz for an encoder of {rate} Hz") from error
    return np.asarray(soxr.resample(samples, sound.rate, rate), dtype=np.float32)


def _whisper(model: Any, extractor: Any, windows: list[Samples]) -> Inputs:
    batch = extractor(
        windows, sampling_rate=extractor.sampling_rate, padding="max_length", return_attention_mask=True,
        return_tensors="pt",
    )  # fmt: skip
    # Its second convolution keeps every other frame of the spectrogram.
    return {"input_features": batch["input_features"]}, batch["attention_mask"][:, ::2]


def _clap(model: Any, extractor: Any, windows: list[Samples]) -> Inputs:
    batch = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    # A window is never longer than what the network takes. The extractor marks a random one of them all the same.
    longer = torch.zeros(len(windows), 1, dtype=torch.bool)
    return {"input_features": batch["input_features"], "is_longer": longer}, None


def _spectrogram(model: Any, extractor: Any, windows: list[Samples]) -> Inputs:
    batch = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {"input_values": batch["input_values"]}, None


def _wave(model: Any, extractor: Any, windows: list[Samples]) -> Inputs:
    batch = extractor(
        windows, sampling_rate=extractor.sampling_rate, padding=True, return_attention_mask=True, return_tensors="pt"
    )
    values, mask = batch["input_values"], batch["attention_mask"]
    if bool(mask.all()):
        return {"input_values": values}, None
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(values.shape[1])))
    real = model._get_feature_vector_attention_mask(frames, mask)
    return {"input_values": values, "attention_mask": mask}, real


def _wave_window(extractor: Any) -> int:
    return int(WAVE_WINDOW * extractor.sampling_rate)


def _spectrogram_window(extractor: Any) -> int:
    seconds = (int(extractor.max_length) - 1) * HOP + FRAME
    return round(seconds * int(extractor.sampling_rate))


_WAVE = Form(_wave_window, _wave, any_length=True)
_ALONE = _WAVE._replace(padded=False)
FORMS = {
    "audio-spectrogram-transformer": Form(_spectrogram_window, _spectrogram),
    "clap_audio_model": Form(lambda extractor: int(extractor.nb_max_samples), _clap),
    "whisper": Form(lambda extractor: int(extractor.n_samples), _whisper),
    "hubert": _WAVE, "unispeech": _WAVE, "unispeech-sat": _WAVE, "wav2vec2": _WAVE,
    "data2vec-audio": _ALONE, "wav2vec2-conformer": _ALONE, "wavlm": _ALONE,
}  # fmt: skip
