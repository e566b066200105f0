"""The fusion adapter: the small trained network that maps one latent space into the shared one.

Residual inverted-bottleneck MLP as in the released code (arXiv 2312.10144, section 5; `docs/method.md`): L blocks
x <- x + W2 dropout(gelu(W1 LN(x))) of width D and inner width 4D, then LN and a linear map to S, then unit norm. With
little data the blocks are narrower than D, behind a linear map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.align.augment import GaussianNoise, RandomQuantization
from fusemix.align.closed_form import ClosedForm
from fusemix.align.dropout import Dropout
from fusemix.align.prior import posterior_mean
from fusemix.config import FitConfig

MOST_GAIN = 3.0  # in spread, that a landing is given at the end: what hardly moves is not blown up into noise


class Block(nn.Module):
    """One pre-LN residual block of width W."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.dropout = Dropout(dropout)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W) -> (B, W)."""
        residual: Tensor = self.down(self.dropout(F.gelu(self.up(self.norm(x)))))
        return x + residual


class AnyAdapter(nn.Module):
    """What takes the latents (B, D) of one side into the shared space.

    They are shifted and scaled by the buffers `shift` and `scale`: 0 and 1 unless `standardize` sets them. That is
    affine, and the weights of a mix sum to one, so it makes no difference whether latents are standardised before or
    after they are mixed: FuseMix still mixes raw latents.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    @property
    def numbers(self) -> int:
        """How many numbers were learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Take shift and scale from mean and deviation (D,) of the training latents, one row per distinct item.

        The deviation of each dimension is floored at a tenth of the mean deviation, so that a nearly constant
        dimension is not blown up into noise.
        """
        floor = deviation.mean().clamp(min=1e-6) / 10
        self.shift.copy_(mean)
        self.scale.copy_(1 / torch.maximum(deviation, floor))

    def embeds_like(self, other: "AnyAdapter") -> bool:
        """Tell whether another adapter is the same, bit for bit."""
        mine, theirs = self.state_dict(), other.state_dict()
        alike = type(self) is type(other) and mine.keys() == theirs.keys()
        return alike and all(torch.equal(mine[name], theirs[name]) for name in mine)

    def land(self, latents: Tensor) -> Tensor:
        """Map latents into the shared space, of whatever length: (B, D) -> (B, S), float32."""
        raise NotImplementedError

    def condition(self, latents: Tensor) -> Tensor:
        """Map latents to what conditions a generator: (B, D) -> (B, S), float32."""
        return self.land(latents)

    def forward(self, latents: Tensor) -> Tensor:
        """Embed latents: (B, D) -> (B, S), unit norm."""
        return F.normalize(self.land(latents), dim=-1)


def _augment(config: FitConfig) -> nn.Sequential:
    """Return what is done to standardised latents while training."""
    return nn.Sequential(
        RandomQuantization(config.quantize), GaussianNoise(config.noise), Dropout(config.input_dropout)
    )


def _rotation(wide: int, narrow: int) -> nn.Linear:
    """Return a map to fewer numbers that begins as part of a random rotation: deviations of 1 stay 1 in the mean."""
    map_ = nn.Linear(wide, narrow)
    nn.init.orthogonal_(map_.weight)
    nn.init.zeros_(map_.bias)
    return map_


class Adapter(AnyAdapter):
    """The trained network of one side."""

    def __init__(self, latent_dim: int, config: FitConfig) -> None:
        super().__init__(latent_dim)
        self.augment = _augment(config)
        width = config.block_width(latent_dim)
        self.narrow = nn.Identity() if width == latent_dim else _rotation(latent_dim, width)
        self.blocks = nn.Sequential(*(Block(width, config.expansion, config.dropout) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, config.dim)

    def land(self, latents: Tensor) -> Tensor:
        """Map latents into the shared space, of whatever length: (B, D) -> (B, S), float32.

        Lengths are float32 also under autocast: half precision loses small ones.
        """
        # What flows past the blocks stays float32, whatever a product before them is computed in.
        x = self.blocks(self.narrow(self.augment((latents - self.shift) * self.scale)).float())
        landed: Tensor = self.project(self.norm(x)).float()
        return landed


class Landing(Adapter):
    """An adapter into a locked space, in whose units it speaks.

    Attributes:
        center, spread: (S,) mean and deviation of the latents of the locked space.
        known, temperature: (M, S) real latents of the locked space, and the learned temperature, for `posterior_mean`;
            None until they are given, or where there is no prior.
        offset, gain: (S,) and scalar, of the conditions that `posterior_mean` gives.
    """

    center: Tensor
    spread: Tensor
    known: Tensor | None
    temperature: Tensor | None
    offset: Tensor
    gain: Tensor

    def __init__(self, latent_dim: int, config: FitConfig) -> None:
        super().__init__(latent_dim, config)
        self.register_buffer("center", torch.zeros(config.dim))
        self.register_buffer("spread", torch.ones(config.dim))
        self.register_buffer("known", None)
        self.register_buffer("temperature", None)
        self.register_buffer("offset", torch.zeros(config.dim))
        self.register_buffer("gain", torch.ones(()))

    def aim(self, mean: Tensor, deviation: Tensor) -> None:
        """Take center and spread from mean and deviation (S,) of the training latents of the locked space."""
        self.center.copy_(mean)
        self.spread.copy_(deviation)

    def remember(self, known: Tensor, temperature: Tensor) -> None:
        """Draw conditions towards real latents (M, S) of the locked space, with the learned temperature."""
        self.known, self.temperature = known.float(), temperature.float()

    def settle(self, landed: Tensor) -> None:
        """Give what lands the mean and the spread of the locked space, see `match`.

        Args:
            landed: (N, S) where the training items land.
        """
        gain, offset = match(landed, self.center, self.spread.square().sum())
        self.center.mul_(gain).add_(offset)
        self.spread.mul_(gain)

    def settle_conditions(self, conditions: Tensor) -> None:
        """Give conditions (N, S) of the training items the mean and the spread of the real latents, see `match`."""
        assert self.known is not None, "remember comes first"
        gain, offset = match(conditions, self.known.mean(dim=0), self.known.var(dim=0, unbiased=False).sum())
        self.gain.copy_(gain)
        self.offset.copy_(offset)

    def land(self, latents: Tensor) -> Tensor:
        """Map latents into the locked space, in its own units: (B, D) -> (B, S), float32."""
        return self.center + self.spread * super().land(latents)

    def condition(self, latents: Tensor) -> Tensor:
        """Land, and go to what the landing means among real latents: (B, D) -> (B, S), float32."""
        landed = self.land(latents)
        if self.known is None:
            return landed
        assert self.temperature is not None, "remember gives both"
        return self.offset + self.gain * posterior_mean(landed, self.known, self.temperature)


def match(found: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gain and the offset, one for all, that give guesses the mean and the spread of a space.

    A guess with the least squared error shrinks towards the mean, the more so the less can be known; and a generator
    that is conditioned on what is shorter than all it knows draws something vague.

    Args:
        found: (N, S) guesses for the training items.
        mean: (S,) of the space.
        variance: of the space, summed over its dimensions.
    """
    spread = found.var(dim=0, unbiased=False).sum()
    gain = (variance / spread.clamp(min=1e-12)).sqrt().clamp(1 / MOST_GAIN, MOST_GAIN)
    return gain, mean - gain * found.mean(dim=0)


class Locked(AnyAdapter):
    """The side that is locked: its latents are the shared space, and nothing is trained."""

    def embeds_like(self, other: AnyAdapter) -> bool:
        """Tell whether the other one, too, leaves latents as they are; shift and scale are not looked at."""
        return isinstance(other, Locked)

    def land(self, latents: Tensor) -> Tensor:
        """Return the latents as they are, float32."""
        return latents.float()


class Linear(AnyAdapter):
    """What a closed form learned for one side: a shift and a linear map.

    Args:
        shift: (D,) training mean.
        map: (D, S).
    """

    map: Tensor

    def __init__(self, shift: Tensor, map: Tensor) -> None:
        super().__init__(len(shift))
        self.shift.copy_(shift)
        self.register_buffer("map", map.float().clone())

    @property
    def numbers(self) -> int:
        """How many numbers were learned."""
        return self.map.numel()

    def land(self, latents: Tensor) -> Tensor:
        """Map latents into the shared space, of whatever length: (B, D) -> (B, S), float32."""
        return (latents.float() - self.shift) @ self.map


class Refined(AnyAdapter):
    """A closed form, and a small network that learns what to add to it: z + turn(z) + what the blocks add, of width S.

    It begins as the closed form itself, for what is added begins at 0, and weight decay draws it back there. The form
    is affine, so that mixed latents are mixed coordinates: FuseMix still mixes raw latents.

    Attributes:
        map: (D, S) of the closed form.
    """

    map: Tensor

    def __init__(self, latent_dim: int, config: FitConfig) -> None:
        super().__init__(latent_dim)
        self.register_buffer("map", torch.zeros(latent_dim, config.dim))
        self.augment = _augment(config)
        self.blocks = nn.Sequential(*(Block(config.dim, config.expansion, config.dropout) for _ in range(config.depth)))
        self.turn = nn.Linear(config.dim, config.dim, bias=False)
        for weight in (self.turn.weight, *(p for name, p in self.blocks.named_parameters() if ".down." in name)):
            nn.init.zeros_(weight)

    @property
    def numbers(self) -> int:
        """How many numbers were learned."""
        return self.map.numel() + super().numbers

    def begin(self, shift: Tensor, map: Tensor) -> None:
        """Take over a closed form: shift (D,) and map (D, S), whose coordinates have a deviation of about 1."""
        self.shift.copy_(shift)
        self.map.copy_(map)

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Leave the latents to the closed form, which knows their units."""

    def land(self, latents: Tensor) -> Tensor:
        """Map latents into the shared space, of whatever length: (B, D) -> (B, S), float32."""
        z = self.augment(((latents - self.shift) @ self.map).float())  # what flows past the blocks stays float32
        refined: Tensor = (self.blocks(z) + self.turn(z)).float()
        return refined


class Joined(AnyAdapter):
    """Two adapters of one side, whose scores add up: their embeddings stand side by side.

    Args:
        parts: of the same latents.
        shares: (2,) what each counts in a score, in [0, 1] and 1 in all.
    """

    shares: Tensor

    def __init__(self, parts: Sequence[AnyAdapter], shares: Tensor) -> None:
        super().__init__(len(parts[0].shift))
        self.parts = nn.ModuleList(parts)
        self.register_buffer("shares", shares.float().clone())

    @property
    def numbers(self) -> int:
        """How many numbers were learned."""
        return sum(part.numbers for part in self.each)

    @property
    def each(self) -> list[AnyAdapter]:
        """Both adapters."""
        return [part for part in self.parts if isinstance(part, AnyAdapter)]

    def land(self, latents: Tensor) -> Tensor:
        """Embed by each, (B, D) -> (B, S1 + S2), unit norm: a cosine is the weighted sum of theirs."""
        weights = self.shares.sqrt()
        return torch.cat([weight * part(latents) for weight, part in zip(weights, self.each, strict=True)], dim=1)


def make_adapters(dims: Sequence[int], config: FitConfig) -> list[AnyAdapter]:
    """Return the adapters of both sides, untrained.

    Args:
        dims: widths of the latents x and y.
        config: all settings; `lock` says which side stays as it is.
    """
    free = Adapter if config.lock == "none" else Landing
    return [Locked(dim) if side == config.lock else free(dim, config) for side, dim in zip("xy", dims, strict=True)]


def refining(form: ClosedForm, config: FitConfig) -> list[AnyAdapter]:
    """Return the adapters of both sides that begin as a closed form, whose coordinates have a deviation of about 1."""
    sides = []
    for shift, map_ in ((form.shift_x, form.map_x), (form.shift_y, form.map_y)):
        sides.append(Refined(len(shift), config))
        sides[-1].begin(shift, map_)
    return [*sides]


def adapter_of(tensors: dict[str, Tensor], latent_dim: int, config: FitConfig, foreign: bool = False) -> AnyAdapter:
    """Return the adapter that a `state_dict` is of; the tensors say what it is.

    Args:
        tensors: its parameters and buffers.
        latent_dim: D.
        config: settings of the fit, to which a network must be true.
        foreign: it came from a fit of other settings.

    Raises:
        KeyError, RuntimeError: tensors of no adapter of such latents and settings.
    """
    if "shares" in tensors:
        parts = [
            {k.removeprefix(f"parts.{i}."): v for k, v in tensors.items() if k.startswith(f"parts.{i}.")} for i in "01"
        ]
        return Joined([adapter_of(part, latent_dim, config, foreign) for part in parts], tensors["shares"])
    if "map" in tensors and "turn.weight" not in tensors:
        if len(tensors["map"]) != latent_dim:
            raise RuntimeError(f"a map of latents of {len(tensors['map'])} numbers, not of {latent_dim}")
        return Linear(tensors["shift"], tensors["map"])
    if set(tensors) == {"shift", "scale"}:
        adapter: AnyAdapter = Locked(latent_dim)
    else:
        sizes = _sizes(tensors)
        made = config.changed({"width": 0} | sizes if foreign else sizes)
        if not foreign and made != (config.changed({"dim": made.dim}) if "map" in tensors else config):
            raise RuntimeError(f"a network of {sizes}, which are not its settings")
        network = Refined if "map" in tensors else Landing if "center" in tensors else Adapter
        adapter = network(latent_dim, made)
    if isinstance(adapter, Landing) and "known" in tensors:
        adapter.remember(tensors["known"], tensors["temperature"])
    adapter.load_state_dict(tensors, strict=True)
    return adapter


def _sizes(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Return the settings that say how large a network is, from its tensors."""
    depth = sum(name.endswith(".up.weight") for name in tensors)
    last = tensors["turn.weight"] if "turn.weight" in tensors else tensors["project.weight"]
    sizes = {"depth": depth, "dim": len(last)}
    if "narrow.weight" in tensors:
        sizes["width"] = len(tensors["narrow.weight"])
    if depth:
        inner, width = tensors["blocks.0.up.weight"].shape
        sizes["expansion"] = inner // width
    return sizes
