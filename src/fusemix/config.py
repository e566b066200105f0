"""What a fit was told to do: one frozen dataclass, saved with its result, and the two recipes that fill it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from fusemix.errors import DataError, choices

PRECISIONS = ("auto", "float32", "bfloat16")
MIXINGS = ("shared", "separate", "sample", "spherical")
LOCKS = ("none", "x", "y")
ADAPTERS = ("auto", "mlp", "cca", "ridge", "procrustes", "both")


@dataclass(frozen=True)
class FitConfig:
    """Everything that decides a fit, apart from the latents and the device.

    Attributes:
        adapter: "mlp" is the trained network; "cca", "ridge" and "procrustes" are closed forms; "both" adds up the
            scores of the network and of CCA; "auto" tries all that and keeps what validation likes best (see `fuse`).
        dim: S, width of the shared space that a network lands in.
        depth: residual blocks per adapter; 0 leaves a LayerNorm and one linear map.
        width: of the residual blocks, where latents are wider; 0 is that of the latents, D.
        expansion: inner width of a block, as a multiple of its width.
        refine: "auto" and "both" also train a network that begins as CCA and learns what to add to it, unless the other
            is far ahead of CCA; see `align.adapters.Refined`.
        dropout: probability inside a block, in [0, 1).
        input_dropout: probability that a latent dimension is set to its mean (to 0 without `standardize`), in [0, 1).
        alpha: lam ~ Beta(alpha, alpha); 0 turns mixing off.
        mixing: who shares a lam: "shared", one per batch for both modalities, is FuseMix. The others are what it is
            compared with: "separate", one for each modality; "sample", one per pair; "spherical", one per batch, and
            mixed along the arc between the two latents (see `align.mixup`).
        noise: deviation of Gaussian noise on the latents, in deviations of each dimension (in the latents' own units
            without `standardize`); 0 is none.
        quantize: bins of randomised quantisation (see `align.augment`), at least 2 to leave anything; 0 is none.
        lock: the side whose latents are the shared space as they are, while the other learns to land in it: "x" or "y";
            `dim` is then their width. "none" locks neither.
        regression: weight of the squared error in the loss of a locked fit, see `align.landing`.
        prior: real latents of a locked space, at most, towards which conditions are drawn (see `align.prior`); 0 leaves
            them where they land.
        batch_size: B, pairs that enter the loss; with mixing 2B pairs are loaded and halved. The pairs of an epoch are
            dealt into equal batches, as near to this as they go.
        epochs: passes over the training pairs.
        lr: peak learning rate of AdamW.
        warmup_steps: steps of the linear warm-up.
        schedule: "epoch" sets the cosine once per epoch, as the released code does; "step" follows it smoothly.
        weight_decay: on matrices only.
        temperature: initial value; logits = cosine / temperature, learned and clamped to [0.001, 0.5].
        standardize: shift and scale each latent dimension by its training mean and deviation, inside the adapter.
        patience: stop when so many validations in a row brought no gain; 0 never stops early.
        minutes: that a fit may take: a network is trained for fewer epochs where all would take longer, and not at all
            where a closed form leaves no time; 0 sets no limit.
        precision: of matrix products: "float32", "bfloat16", or "auto", which takes what the device multiplies fastest
            natively; weights, sums and the optimiser are float32.
        seed: of weights, batches, lam and dropout.
    """

    adapter: Literal["auto", "mlp", "cca", "ridge", "procrustes", "both"]
    dim: int
    depth: int
    width: int
    expansion: int
    refine: bool
    dropout: float
    input_dropout: float
    alpha: float
    mixing: Literal["shared", "separate", "sample", "spherical"]
    noise: float
    quantize: int
    lock: Literal["none", "x", "y"]
    regression: float
    prior: int
    batch_size: int
    epochs: int
    lr: float
    warmup_steps: int
    schedule: Literal["epoch", "step"]
    weight_decay: float
    temperature: float
    standardize: bool
    patience: int
    minutes: float
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int

    def __post_init__(self) -> None:
        """Refuse values that no fit can use."""
        for name in ("dim", "expansion", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, got {getattr(self, name)}")
        counts = ("depth", "width", "quantize", "prior", "warmup_steps", "patience")
        for name in (*counts, "alpha", "noise", "regression", "weight_decay", "minutes"):
            if getattr(self, name) < 0:
                raise DataError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"{name} is a probability in [0, 1), got {getattr(self, name)}")
        for name, known in (("adapter", ADAPTERS), ("mixing", MIXINGS), ("lock", LOCKS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise DataError(f"no {name} {getattr(self, name)!r} for a fit; {choices(getattr(self, name), known)}")
        if not self.lr > 0:
            raise DataError(f"lr must be positive, got {self.lr}")

    def block_width(self, latent_dim: int) -> int:
        """Return the width of the residual blocks for latents of `latent_dim` numbers."""
        return min(self.width, latent_dim) if self.width and self.depth else latent_dim

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for JSON."""
        return asdict(self)

    def changed(self, values: Mapping[str, Any]) -> "FitConfig":
        """Return these settings with some of them replaced; an unknown name is an error."""
        _names(values)
        return replace(self, **values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FitConfig":
        """Build a config from saved values; an unknown or a missing key is an error, never a silent default."""
        missing = _names(values) - set(values)
        if missing:
            raise DataError(f"the saved settings lack {', '.join(sorted(missing))}; was the file written by fusemix?")
        return cls(**values)


def _names(given: Iterable[str]) -> set[str]:
    """Return the names of all settings; refuse another one."""
    known = {field.name for field in fields(FitConfig)}
    for name in given:
        if name not in known:
            raise DataError(f"a fit has no setting {name!r}; {choices(name, sorted(known))}")
    return known


def paper(seed: int) -> FitConfig:
    """Return the settings of the released image-text run (layer6ai-labs/fusemix, DINOv2-g and BGE on 5M pairs).

    A batch of 40,960 pairs is halved by mixing; alpha 1 is a uniform lam; raw latents enter the adapters. Meant for
    millions of pairs: on a few thousand its 500 epochs and batch are far from the best, see `scaled`.
    """
    return FitConfig(
        adapter="mlp", dim=512, depth=4, width=0, expansion=4, refine=False, dropout=0.6, input_dropout=0.0, alpha=1.0,
        mixing="shared", noise=0.0, quantize=0, lock="none", regression=1.0, prior=4096, batch_size=20_480, epochs=500,
        lr=1e-3, warmup_steps=100, schedule="epoch", weight_decay=0.1, temperature=0.07, standardize=False, patience=0,
        minutes=0.0, precision="auto", seed=seed,
    )  # fmt: skip


def scaled(pairs: int, seed: int, batch_size: int | None = None, alpha: float = 1.0) -> FitConfig:
    """Return settings that suit the number of training pairs; the default.

    Chosen by trials on held-out *training* photographs and on validation symbols, from 1,000 to 30,000 pairs (figures
    in docs/results.md, "How the default was chosen"; `recipes/flickr8k/choose.py` repeats them). Beyond that it is
    extrapolated towards the published run.

    - Latents are standardised: encoders differ in scale by orders of magnitude, and an adapter that starts from raw
      latents has to learn that first.
    - Input dropout: with few pairs the adapter otherwise leans on single latent dimensions.
    - One block below 100,000 pairs, two below a million, four above: more did not help on little data and cost time.
    - Blocks of at most 512 numbers below 100,000 pairs: latents of 1,280 are brought down to that by one learned map,
      and the fit finds as much in a third of the time.
    - Batch: the power of two nearest to pairs / 128, between 256 and 16,384.
    - Epochs: for 1,000 steps (growing as the root of the pairs above 30,000), between 10 and 200. What a fit needs is
      steps, not passes: 20 passes over 1,000 pairs end before the learning rate has done anything.

    Args:
        pairs: N.
        seed: goes into the settings.
        batch_size: B, if it is given; the epochs follow it.
        alpha: of the mixing; without mixing a step loads B pairs instead of 2B, and the epochs follow that.
    """
    batch_size = batch_size or 2 ** round(math.log2(min(max(pairs / 128, 256), 16_384)))
    loaded = min(batch_size * (2 if alpha > 0 else 1), max(pairs, 1))
    steps = 1000 * max(1.0, pairs / 30_000) ** 0.5
    epochs = min(max(round(steps * loaded / max(pairs, 1)), 10), 200)
    return FitConfig(
        adapter="mlp", dim=512, depth=1 if pairs < 100_000 else 2 if pairs < 1_000_000 else 4,
        width=512 if pairs < 100_000 else 0, expansion=4, refine=False, dropout=0.3, input_dropout=0.3, alpha=alpha,
        mixing="shared", noise=0.0, quantize=0, lock="none", regression=1.0, prior=4096, batch_size=batch_size,
        epochs=epochs, lr=2e-3, warmup_steps=50, schedule="step", weight_decay=0.1, temperature=0.07, standardize=True,
        patience=0, minutes=0.0, precision="auto", seed=seed,
    )  # fmt: skip
