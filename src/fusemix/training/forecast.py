"""What a fit would cost, before it is done: arithmetic, memory and time; and how fast the device can be at all.

A step is matrix products and little else, so its cost is counted in them: FLOPs, of which a multiply-add has two.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fusemix.align.adapters import Adapter
from fusemix.align.tiles import KEEP
from fusemix.config import FitConfig
from fusemix.data.latents import Latents
from fusemix.training.order import Order

MEASURED_SECONDS = 0.2
RANDOM, BEGUN = "begins at random", "begins as a closed form"
PRODUCTS = {"cpu": (1024, 512, 2048, 1), "cuda": (16_384, 1024, 4096, 8)}  # rows, width, inner width; products a sample
WEIGHTS_CHUNK = 512  # rows of logits at least that are in memory at a time


@dataclass(frozen=True)
class Forecast:
    """What the training of a network would cost.

    Attributes:
        network: what it begins as, in words.
        modalities: width D of each.
        pairs: N to train on.
        batch: B, mixed pairs in the loss.
        loaded: pairs that a step loads: 2B with mixing.
        epochs: passes over the pairs.
        steps_per_epoch: equal ones, so that all pairs are used.
        steps: in all.
        parameters: of both adapters.
        flops_per_step: multiply-adds count twice.
        flops: of all steps.
        latent_bytes: latents of all items of the store, of whatever split.
        resident: they fit the memory of the device; else they are read from the disk in blocks.
        memory: bytes by part beside the latents, see `memory`.
        precision: of the products.
        rate: FLOP/s that a plain matrix product reaches on this device, see `matmul_rate`.
        seconds: of all steps.
        validating: seconds of all validations.
    """

    network: str
    modalities: dict[str, int]
    pairs: int
    batch: int
    loaded: int
    epochs: int
    steps_per_epoch: int
    steps: int
    parameters: int
    flops_per_step: float
    flops: float
    latent_bytes: int
    resident: bool
    memory: dict[str, int]
    precision: str
    rate: float
    seconds: float
    validating: float

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for JSON."""
        return asdict(self)


def forecast(
    latents: Latents,
    config: FitConfig,
    device: torch.device,
    precision: str,
    rate: float,
    seconds_per_step: float,
    resident: bool,
    validating: float = 0.0,
    dims: Sequence[int] = (),
) -> Forecast:
    """Say what the training of a network on these pairs would cost.

    Args:
        latents: pairs to train on; two modalities.
        config: all settings.
        device: where it would train.
        precision: "float32", or another that takes two bytes a number.
        rate: FLOP/s of `matmul_rate`.
        seconds_per_step: as it was timed or estimated.
        resident: the latents fit the memory.
        validating: seconds of all validations.
        dims: widths of the coordinates of a closed form, where the network begins as that.
    """
    sides = [latents.items[name] for name in latents.modalities]
    network = BEGUN if dims else RANDOM
    dims = dims or [side.rows.shape[1] for side in sides]
    order = Order.of(len(latents), config)
    batch, steps = order.batch_size, order.steps
    number = 4 if precision == "float32" else 2
    kept = kept_on(device)
    flops = step_flops(config, dims, batch, kept)
    total = flops * steps * config.epochs
    return Forecast(
        network=network,
        modalities={side.modality: side.rows.shape[1] for side in sides},
        pairs=len(latents),
        batch=batch,
        loaded=order.size,
        epochs=config.epochs,
        steps_per_epoch=steps,
        steps=steps * config.epochs,
        parameters=sum(_sizes(config, dim)[1] for dim in _trained(config, dims)),
        flops_per_step=flops,
        flops=total,
        latent_bytes=sum(side.rows.nbytes for side in sides),
        resident=resident,
        memory=memory(config, dims, batch, kept, number, 1 if device.type == "cuda" else number),
        precision=precision,
        rate=rate,
        seconds=steps * config.epochs * seconds_per_step,
        validating=validating,
    )


def kept_on(device: torch.device) -> int:
    """Return the bytes of logits up to which the loss keeps them on a device."""
    return 0 if device.type == "cuda" else KEEP


def step_flops(config: FitConfig, dims: Sequence[int], batch: int, kept: int = KEEP) -> float:
    """Count the FLOPs of the matrix products of one step, forward and backward.

    A weight takes part in three products for each mixed pair: forward, gradient of the input, gradient of the weight;
    in two where its input is the latents, which have no gradient.
    The loss is one product of B x S with S x B forward and two backward; one more for the logits that are not kept but
    computed again.

    Args:
        config: of the adapters.
        dims: widths of the latents x and y.
        batch: B, mixed pairs.
        kept: bytes of logits up to which the loss keeps them from its forward pass, see `kept_on`.
    """
    trained = _trained(config, dims)
    weights = sum(_sizes(config, dim)[0] for dim in trained)
    first = sum(dim * config.block_width(dim) for dim in trained if config.block_width(dim) < dim)
    return (6.0 * weights - 2.0 * first) * batch + (6.0 if 4 * batch**2 <= kept else 8.0) * batch**2 * config.dim


def memory(
    config: FitConfig, dims: Sequence[int], batch: int, kept: int = KEEP, number: int = 4, mask: int = 4
) -> dict[str, int]:
    """Return the bytes that a step needs on the device at its peak, by part, beside the latents.

    Args:
        config: of the adapters.
        dims: widths of the latents x and y.
        batch: B, mixed pairs.
        kept: bytes of logits up to which the loss keeps them.
        number: bytes of a number in the matrix products: 4, or 2 in half precision. Weights and what belongs to them
            are float32 always.
        mask: bytes of a unit in a dropout mask: 1 on CUDA, as many as a number on the CPU.
    """
    trained = _trained(config, dims)
    inner = config.expansion * max(map(config.block_width, trained))
    weights = 4 * sum(_sizes(config, dim)[1] for dim in trained)
    logits = 4 * batch**2 if 4 * batch**2 <= kept else WEIGHTS_CHUNK * number * batch
    return {
        "weights": weights,
        "gradients": weights,
        "AdamW moments": 2 * weights,
        "best weights": weights,
        "batch": 4 * batch * sum(dims),
        "activations": batch * sum(activation_bytes(config, dim, number, mask) for dim in trained),
        # The backward pass holds the gradient of an inner layer as it came and as it goes on.
        "passing gradients": 2 * number * batch * inner * min(config.depth, 1),
        "loss": logits + 2 * 4 * batch * config.dim,  # and the gradients of both embeddings
    }


def activation_bytes(config: FitConfig, dim: int, number: int = 4, mask: int = 4) -> int:
    """Return the bytes that autograd keeps of one adapter for each mixed pair, until the backward pass has used them.

    A compiled adapter keeps less: it computes again what is cheap.

    Args:
        config: of the adapter.
        dim: D, width of its latents.
        number: bytes of a number in the matrix products, 4 or 2.
        mask: bytes of a unit in a dropout mask.
    """
    width = config.block_width(dim)
    inner = config.expansion * width
    # What flows past the blocks stays float32: inputs of the norms, and at the end what has its length taken. Only
    # matrix products and what lies between two of them are in half precision: their inputs, and that of the GELU.
    begin = number * dim if width < dim else 0
    block = 4 * width + number * (width + 2 * inner) + (mask * inner if config.dropout > 0 else 0)
    end = 4 * width + number * width + 4 * (2 * config.dim + 3)
    return begin + config.depth * block + end + 4 * 2 * (config.depth + 1)  # and mean and deviation of each norm


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure how many FLOP/s a matrix product of an adapter's shape reaches: the most that a step can.

    Takes about 0.2 seconds. On CUDA, float32 is TF32 where torch is set so.
    """
    rows, width, inner, count = PRODUCTS.get(device.type, PRODUCTS["cuda"])
    # Random numbers, from a stream of their own: equal ones would spare a GPU so much power that it runs faster.
    rng = torch.Generator(device).manual_seed(0)
    x, w = (torch.randn(*shape, device=device, dtype=dtype, generator=rng) for shape in ((rows, width), (width, inner)))
    out = torch.empty(rows, inner, device=device, dtype=dtype)

    def sample() -> float:
        started = time.perf_counter()
        for _ in range(count):  # several, so that the start of a kernel does not weigh
            torch.mm(x, w, out=out)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    sample()  # the first pays for warming up
    seconds = [sample()]
    while sum(seconds) < MEASURED_SECONDS or len(seconds) < 3:
        seconds.append(sample())
    return count * 2.0 * rows * width * inner / min(seconds)  # the fastest: what else ran is no limit of the device


def _trained(config: FitConfig, dims: Sequence[int]) -> list[int]:
    """Return the widths of the latents that have a trained adapter."""
    return [dim for side, dim in zip("xy", dims, strict=True) if side != config.lock]


def _sizes(config: FitConfig, dim: int) -> tuple[int, int]:
    """Return how many numbers the matrices of an adapter hold, and how many all its parameters do."""
    with torch.device("meta"):  # shapes alone
        parameters = list(Adapter(dim, config).parameters())
    return sum(p.numel() for p in parameters if p.ndim == 2), sum(p.numel() for p in parameters)
