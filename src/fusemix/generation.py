"""Drawing from what was never drawn from: latents that land in the space which conditions a frozen generator.

The paper's last contribution (arXiv 2312.10144): align sounds to the space that conditions a text-to-image
generator, and it draws from sounds with no training of its own. The generator is any pipeline of diffusers that takes
what conditions it as an argument, or a function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from fusemix.data.store import difference
from fusemix.encoders.conditioning import PARTS, condition_texts, describe, load_pipeline
from fusemix.encoders.huggingface import Checkpoint, choose_device, choose_precision
from fusemix.errors import DataError, EncoderError, MismatchError
from fusemix.progress import Progress, silent

Conditions = NDArray[np.float32]
Draw = Callable[[Conditions, Sequence[int]], Sequence[Image]]
"""A generator of one's own: conditions (n, D) and n seeds in, n pictures out."""
SAME = ("condition", "shapes", "weights", "preprocessing")  # whatever the pipeline is called
PIECE = 4  # pictures that are drawn at a time


class Generator:
    """A frozen text-to-image pipeline of diffusers, conditioned from outside.

    Args:
        spec: folder of the pipeline, or a hub id, perhaps `id@revision`. Only safetensors weights are read, and no code
            of the folder is run.
        device: a torch device; None takes CUDA where there is one.
        precision: see `load_encoder`.

    Attributes:
        name: of the pipeline.
        pipeline: of diffusers.

    Raises:
        EncoderError: no pipeline there.
        MissingExtraError: diffusers is not installed.
    """

    def __init__(self, spec: str, device: str | None = None, precision: str | None = None) -> None:
        checkpoint = Checkpoint.of(spec.removeprefix("diffusers:"), "model_index.json")
        where = torch.device(device) if device else choose_device()
        self.name = checkpoint.name
        self.pipeline = load_pipeline(checkpoint, choose_precision(precision, where)).to(where)
        self.pipeline.set_progress_bar_config(disable=True)
        self._facts: dict[str, dict[str, Any]] = {}

    def expects(self, kind: str) -> dict[str, Any]:
        """Return what conditions the pipeline, see `encoders.conditioning.describe`.

        Raises:
            EncoderError: it is not conditioned on items of this kind.
        """
        if getattr(self.pipeline, PARTS.get(kind, ""), None) is None:
            raise EncoderError(f"{self.name} ({type(self.pipeline).__name__}) is not conditioned on {kind} items")
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
                f"({encoder.get('name')}): {differs}; extract with diffusers:{self.name} and fit again"
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
            progress: called after every few pictures.
        """
        given = {"num_inference_steps": steps, "guidance_scale": guidance}
        options = {name: value for name, value in given.items() if value is not None}
        pictures: list[Image] = []
        for start in range(0, len(conditions), PIECE):
            progress("draw", start, len(conditions), "")
            piece = torch.from_numpy(np.asarray(conditions[start : start + PIECE], dtype=np.float32))
            noise = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + PIECE]]
            pictures += self.pipeline(**self._arguments(kind, piece), generator=noise, **options).images
        progress("draw", len(conditions), len(conditions), "")
        return pictures

    def _arguments(self, kind: str, conditions: torch.Tensor) -> dict[str, Any]:
        """Return the arguments by which the pipeline takes conditions, and those of nothing, for guidance."""
        shapes = self.expects(kind)["shapes"]
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        if conditions.shape[1] != sum(sizes):
            raise DataError(f"{self.name} takes conditions of {sum(sizes):,} numbers, got {conditions.shape[1]:,}")
        encoder = getattr(self.pipeline, PARTS[kind])
        parts = {
            name: part.reshape(len(conditions), *shape).to(self.pipeline.device, encoder.dtype)
            for (name, shape), part in zip(shapes.items(), torch.split(conditions, sizes, dim=1), strict=True)
        }
        if kind == "image":
            return {**parts, "prompt": [""] * len(conditions)}
        nothing = condition_texts(self.pipeline, [""] * len(conditions))  # as the pipeline does where no text is given
        return {**parts, **{f"negative_{name}": part for name, part in nothing.items()}}


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
        progress: called after every few pictures.

    Raises:
        DataError: no picture or step, steps or guidance for a function, or a function that gives no pictures.
        EncoderError: no such pipeline.
        MismatchError: the pipeline is conditioned by another encoder.
    """
    if n < 1:
        raise DataError(f"n must be at least 1, got {n}")
    if steps is not None and steps < 1:
        raise DataError(f"steps must be at least 1, got {steps}")
    repeated, seeds = np.repeat(conditions, n, axis=0), [seed + i for i in range(n)] * len(conditions)
    if isinstance(generator, str):
        generator = Generator(generator)
    if isinstance(generator, Generator):
        generator.check(kind, encoder)
        pictures = generator.draw(kind, repeated, seeds, steps, guidance, progress)
    else:
        if steps is not None or guidance is not None:
            raise DataError("steps and guidance are of a pipeline; a function of your own decides for itself")
        pictures = list(generator(repeated, seeds))
        if len(pictures) != len(repeated) or not all(isinstance(picture, Image) for picture in pictures):
            raise DataError(f"the function was to give {len(repeated)} PIL images, one for each condition and seed")
    return [pictures[start : start + n] for start in range(0, len(pictures), n)]
