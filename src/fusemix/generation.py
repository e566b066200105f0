"""Drawing from what was never drawn from: latents that land in the space which conditions a frozen generator.

The paper's last contribution (arXiv 2312.10144): align sounds to the space that conditions a text-to-image
generator, and it draws from sounds with no training of its own. The generator is any pipeline of diffusers that takes
what conditions it as an argument, or a function.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from fusemix.data.store import difference
from fusemix.encoders import ip_adapter
from fusemix.encoders.conditioning import (
    check_kind,
    condition_texts,
    decoder_of,
    describe,
    find_pipeline,
    image_tower,
    load_pipeline,
)
from fusemix.encoders.huggingface import choose_device, choose_precision
from fusemix.errors import DataError, EncoderError, FusemixError, MismatchError
from fusemix.progress import Progress, silent

Conditions = NDArray[np.float32]
Draw = Callable[[Conditions, Sequence[int]], Sequence[Image]]
"""A generator of one's own: conditions (n, D) and n seeds in, n pictures out."""
SAME = ("condition", "shapes", "weights", "preprocessing")  # whatever the pipeline is called
PIECE = 4  # pictures that are drawn at a time
SEEDS = 2**63  # from 0
Noise = list[torch.Generator]


class Generator:
    """A frozen text-to-image pipeline of diffusers, conditioned from outside.

    Args:
        spec: folder of the pipeline, or a hub id, perhaps `id@revision`; `PIPELINE#ADAPTER` with an IP-Adapter, see
            `encoders.ip_adapter`. Only safetensors weights are read, and no code of the folder is run.
        device: a torch device; None takes CUDA where there is one.
        precision: see `load_encoder`.

    Attributes:
        name: of the pipeline.
        source: what loads it again: a hub id is pinned to its commit.
        pipeline: of diffusers.

    Raises:
        EncoderError: no pipeline there.
        MissingExtraError: diffusers is not installed.
    """

    def __init__(self, spec: str, device: str | None = None, precision: str | None = None) -> None:
        where, self._adapter = ip_adapter.split(spec.removeprefix("diffusers:"))
        checkpoint = find_pipeline(where)
        target = torch.device(device) if device else choose_device()
        self.name = checkpoint.name + (f"#{self._adapter}" if self._adapter else "")
        self.source = checkpoint.source + (f"#{self._adapter}" if self._adapter else "")
        self.pipeline = load_pipeline(checkpoint, choose_precision(precision, target), self._adapter).to(target)
        self.pipeline.set_progress_bar_config(disable=True)
        self._prior, self._decoder = getattr(self.pipeline, "prior_pipe", None), decoder_of(self.pipeline)
        self._defaults = {name: each.default for name, each in signature(self._decoder.__call__).parameters.items()}
        self._facts: dict[str, dict[str, Any]] = {}

    def expects(self, kind: str) -> dict[str, Any]:
        """Return what conditions the pipeline, see `encoders.conditioning.describe`.

        Raises:
            EncoderError: it is not conditioned on items of this kind.
        """
        check_kind(self.pipeline, kind, self.name, self._adapter)
        if kind not in self._facts:
            self._facts[kind] = describe(self.pipeline, kind)
        return self._facts[kind]

    def check(self, kind: str, encoder: dict[str, Any]) -> None:
        """Refuse conditions that are made for another encoder than the pipeline's.

        Args:
            kind: of the items that the locked space is made of.
            encoder: fingerprint of the latents of the locked space.

        Raises:
            MismatchError: they differ; it names what does.
        """
        wanted = {key: self.expects(kind)[key] for key in SAME}
        differs = difference(wanted, {key: encoder.get(key) for key in SAME})
        if differs:
            raise MismatchError(
                f"{self.name} is conditioned by another encoder than the model was fitted for "
                f"({encoder.get('name')}): {differs}; extract with diffusers:{self.source} and fit again"
            )

    def draw(
        self, kind: str, conditions: Conditions, seeds: Sequence[int], steps: int | None = None,
        guidance: float | None = None, progress: Progress = silent,
    ) -> list[Image]:  # fmt: skip
        """Draw one picture for each condition.

        Args:
            kind: of the items that the locked space is made of.
            conditions: (n, D) as `FuseMix.condition` gives them.
            seeds: n, of the noise that each picture begins with.
            steps: of the sampler; None is the pipeline's default.
            guidance: scale of classifier-free guidance; None is the pipeline's default.
            progress: called after every step.

        Raises:
            DataError: conditions of another width.
            EncoderError: it is not conditioned on items of this kind, or fails.
        """
        given = torch.from_numpy(np.asarray(conditions, dtype=np.float32))
        return self._pieces(
            lambda some, noise: self._arguments(kind, given[some], guidance), seeds, steps, guidance, progress
        )

    def prompt(
        self, text: str, seeds: Sequence[int], steps: int | None = None, guidance: float | None = None,
        progress: Progress = silent,
    ) -> list[Image]:  # fmt: skip
        """Draw one picture for each seed from words, as the pipeline itself does, whatever else conditions it.

        Raises:
            EncoderError: it draws from images only, or fails.
        """
        if image_tower(self.pipeline) is not None and self._prior is None and not self._adapter:
            raise EncoderError(
                f"{self.name} ({type(self.pipeline).__name__}) draws from images: give a file, not words"
            )
        with self._without_adapter():
            return self._pieces(
                lambda some, noise: self._of_words([text] * len(noise), noise, guidance),
                seeds,
                steps,
                guidance,
                progress,
            )

    def sampler(self, steps: int | None, guidance: float | None) -> dict[str, Any]:
        """Return steps and guidance as they are used, with the defaults of the pipeline."""
        given = {"num_inference_steps": steps, "guidance_scale": guidance}
        return {name: self._defaults.get(name) if value is None else value for name, value in given.items()}

    def _pieces(
        self, arguments: Callable[[slice, Noise], dict[str, Any]], seeds: Sequence[int], steps: int | None,
        guidance: float | None, progress: Progress,
    ) -> list[Image]:  # fmt: skip
        """Draw a picture for each seed, a few at a time."""
        sampler, pictures = self.sampler(steps, guidance), list[Image]()
        for start in range(0, len(seeds), PIECE):
            some = slice(start, start + PIECE)
            # On the CPU: the same noise on every device.
            noise = [torch.Generator().manual_seed(seed) for seed in seeds[some]]

            def told(step: int, start: int = start) -> None:
                progress("draw", start, len(seeds), f"step {step + 1} of {sampler['num_inference_steps']}")

            try:
                given = arguments(some, noise)
                pictures += self._decoder(**given, **sampler, **self._steps(told), generator=noise).images
            except FusemixError:
                raise
            except Exception as error:  # only diffusers knows what its pipelines raise
                reason = (str(error).strip().splitlines() or [""])[0]
                name = f"{self.name} ({type(self.pipeline).__name__})"
                raise EncoderError(f"{name} could not draw: {type(error).__name__}: {reason}") from error
        progress("draw", len(seeds), len(seeds), "")
        return pictures

    def _steps(self, told: Callable[[int], None]) -> dict[str, Any]:
        """Return the argument by which the pipeline tells every step."""

        def after(pipeline: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            told(step)
            return values

        if "callback_on_step_end" in self._defaults:
            return {"callback_on_step_end": after}
        return {"callback": lambda step, time, latents: told(step)} if "callback" in self._defaults else {}

    def _of_words(self, texts: list[str], noise: Noise, guidance: float | None) -> dict[str, Any]:
        """Return the arguments by which the decoder takes words, or what the pipeline's prior makes of them."""
        if self._prior is not None:
            embeds, nothing = self._prior(prompt=texts, generator=noise, return_dict=False)
            return {"image_embeds": embeds, "negative_image_embeds": nothing}
        if not self._adapter:
            return {"prompt": texts}
        nothing = torch.zeros(len(texts), *self.expects("image")["shapes"]["image_embeds"])
        return {"prompt": texts, **self._beside(nothing, guidance)}

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        """Let an IP-Adapter count nothing."""
        if self._adapter:
            self.pipeline.set_ip_adapter_scale(0.0)
        try:
            yield
        finally:
            if self._adapter:
                self.pipeline.set_ip_adapter_scale(1.0)

    def _arguments(self, kind: str, conditions: torch.Tensor, guidance: float | None) -> dict[str, Any]:
        """Return the arguments by which the pipeline takes conditions, and those of nothing, for guidance."""
        shapes = self.expects(kind)["shapes"]
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        count = len(conditions)
        if conditions.shape[1] != sum(sizes):
            raise DataError(f"{self.name} takes conditions of {sum(sizes):,} numbers, got {conditions.shape[1]:,}")
        parts = {
            name: part.reshape(count, *shape).to(self.pipeline.device, self.pipeline.dtype)
            for (name, shape), part in zip(shapes.items(), torch.split(conditions, sizes, dim=1), strict=True)
        }
        if kind == "text":
            # As the pipeline does where no text is given.
            zeros = getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False)
            empty = condition_texts(self.pipeline, [""] * count)
            nothing = {name: torch.zeros_like(part) for name, part in empty.items()} if zeros else empty
            return {**parts, **{f"negative_{name}": part for name, part in nothing.items()}}
        if self._adapter:
            return {"prompt": [""] * count, **self._beside(parts["image_embeds"], guidance)}
        if self._prior is not None:
            with torch.inference_mode():
                return {**parts, "negative_image_embeds": self._prior.get_zero_embed(count)}
        return {**parts, "prompt": [""] * count}

    def _beside(self, embeddings: torch.Tensor, guidance: float | None) -> dict[str, Any]:
        """Return embeddings (n, D) as an IP-Adapter takes them: under guidance, zeros for nothing come first."""
        embeddings = embeddings.to(self.pipeline.device, self.pipeline.dtype)[:, None]
        guided = guidance is None or guidance > 1
        both = [torch.zeros_like(embeddings), embeddings] if guided else [embeddings]
        return {"ip_adapter_image_embeds": [torch.cat(both)]}


def check_seeds(seed: int, n: int) -> None:
    """Refuse seeds that no random state can have."""
    if not 0 <= seed <= SEEDS - n:
        raise DataError(f"a seed is a number from 0 and below 2^63, got {seed}")


def generate(
    generator: "str | Generator | Draw", kind: str, encoder: dict[str, Any], conditions: Conditions, n: int, seed: int,
    steps: int | None, guidance: float | None, progress: Progress,
) -> list[list[Image]]:  # fmt: skip
    """Draw n pictures for each condition, with the seeds seed, seed + 1, ..., the same for all conditions.

    Args:
        generator: a pipeline, what loads one, or a function, see `Draw`.
        kind: of the items of the locked modality.
        encoder: fingerprint of its latents.
        conditions: (m, D).
        n: pictures of each.
        seed: of the first.
        steps: of the sampler.
        guidance: of a pipeline.
        progress: called after every step.

    Raises:
        DataError: no picture, step or seed; steps or guidance for a function, or one that fails or gives no pictures.
        EncoderError: no such pipeline, or it fails.
        MismatchError: the pipeline is conditioned by another encoder.
    """
    if n < 1:
        raise DataError(f"n must be at least 1, got {n}")
    if steps is not None and steps < 1:
        raise DataError(f"steps must be at least 1, got {steps}")
    check_seeds(seed, n)
    repeated, seeds = np.repeat(conditions, n, axis=0), [seed + i for i in range(n)] * len(conditions)
    if isinstance(generator, str):
        generator = Generator(generator, precision=encoder.get("dtype"))
    if isinstance(generator, Generator):
        generator.check(kind, encoder)
        pictures = generator.draw(kind, repeated, seeds, steps, guidance, progress)
    else:
        if steps is not None or guidance is not None:
            raise DataError("steps and guidance are of a pipeline; a function of your own decides for itself")
        try:
            pictures = list(generator(repeated, seeds))
        except Exception as error:  # a stranger's code
            raise DataError(f"the function that draws failed: {type(error).__name__}: {error}") from error
        if len(pictures) != len(repeated) or not all(isinstance(picture, Image) for picture in pictures):
            raise DataError(f"the function was to give {len(repeated)} PIL images, one for each condition and seed")
    return [pictures[start : start + n] for start in range(0, len(pictures), n)]
