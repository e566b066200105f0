"""Fit a new modality into the space of a model that is there, by pairs with a modality that the model knows.

What the model makes of the known modality is the target, and stays as it is, bit for bit: so every index of that space
stays valid, and pictures find sounds that never met, by the texts that lie between. The price is that the space cannot
move towards the newcomer (docs/results.md, "More than two modalities").
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fusemix.align.adapters import AnyAdapter, Locked
from fusemix.config import FitConfig
from fusemix.data.latents import Latents
from fusemix.data.rows import LatentRows
from fusemix.errors import DataError
from fusemix.fit import too_wide
from fusemix.fuse import Fused, folds_of, fuse
from fusemix.progress import Progress
from fusemix.state import Side
from fusemix.training.checks import check_validation
from fusemix.training.journal import Track
from fusemix.training.validation import embed

ABLE = ("auto", "mlp", "ridge")


@dataclass(frozen=True)
class Target:
    """The space of a model that is there.

    Attributes:
        sides: what it knows of each modality.
        adapters: what embeds each.
    """

    sides: Mapping[str, Side]
    adapters: Mapping[str, AnyAdapter]

    def hub(self, train: Latents) -> str:
        """Return the one modality of these pairs that is in the space.

        Raises:
            DataError: none or both are, or there are not two.
            MismatchError: latents of another encoder.
        """
        known = [name for name in train.modalities if name in self.sides]
        if len(train.modalities) != 2 or len(known) != 1:
            raise DataError(
                f"onto wants pairs of one modality that the model has ({', '.join(self.sides)}) and of one that is new "
                f"to it, got {', '.join(train.modalities)}"
            )
        locked = [name for name, adapter in self.adapters.items() if isinstance(adapter, Locked)]
        if locked:
            raise DataError(
                f"the model locks {locked[0]}: fit pairs of that with lock={locked[0]!r} to land in the same space"
            )
        self.sides[known[0]].check(train.items[known[0]])
        return known[0]

    def landed(self, latents: Latents) -> Latents:
        """Return pairs of `hub_last` whose second modality is embedded already: (N, S), unit norm."""
        new, hub = latents.items.values()
        embedded = LatentRows.of(embed(self.adapters[hub.modality], hub.rows))
        return replace(latents, items={new.modality: new, hub.modality: replace(hub, rows=embedded)})


def hub_last(latents: Latents, hub: str) -> Latents:
    """Return the same pairs, the modality that is new to the space first."""
    names = sorted(latents.modalities, key=lambda name: name == hub)
    items, rows = {name: latents.items[name] for name in names}, {name: latents.rows[name] for name in names}
    return replace(latents, items=items, rows=rows)


@dataclass(frozen=True)
class Onto:
    """A fit into a space that is there: `fuse` takes it as one into a modality that is locked.

    Attributes:
        target: the space.
        hub: the modality that it has.
        pairs: to train on, the new modality first.
        train, val: pairs to train on and to choose by, whose second modality is embedded already.
        config: all settings.
    """

    target: Target
    hub: str
    pairs: Latents
    train: Latents
    val: Latents | None
    config: FitConfig

    @classmethod
    def of(cls, train: Latents, val: Latents | None, target: Target, config: FitConfig, dim: int | None) -> "Onto":
        """Embed what the space has.

        Args:
            train: pairs to train on; two modalities, of which the space has one.
            val: pairs to choose by, see `fuse`.
            target: the space.
            config: all settings.
            dim: width of the space, if somebody asked for one.

        Raises:
            DataError, MismatchError: pairs or settings that do not go with the space.
        """
        hub = target.hub(train)
        if val is not None:
            check_validation(train, val)
        pairs = hub_last(train, hub)
        landed = target.landed(pairs)
        width = landed.items[hub].rows.shape[1]
        if config.adapter not in ABLE:
            raise DataError(f"onto takes adapter {', '.join(ABLE[:-1])} or {ABLE[-1]}, not {config.adapter!r}")
        if dim not in (None, width):
            raise DataError(f"the space of the model is {width} wide, dim={dim} contradicts: leave dim out")
        # No generator is conditioned on such a space, so there is nothing to be drawn towards.
        settings = config.changed({"lock": "y", "dim": width, "prior": 0, "refine": False})
        held = target.landed(hub_last(val, hub)) if val is not None else None
        return cls(target, hub, pairs, landed, held, settings)


def fuse_onto(
    onto: Onto, device: torch.device, progress: Progress, *, out: Path | None = None, track: Track | None = None
) -> Fused:
    """Fit the new modality by ridge or by a network, whichever validation likes best.

    Args:
        onto: what to fit.
        device: where to train.
        progress: called as it goes.
        out: see `fit.fit_adapters`.
        track: see `fit.fit_adapters`.

    Raises:
        DataError, DivergedError, MismatchError, StoreError: see `fit.fit_adapters`.
    """
    fused = fuse(onto.train, onto.val, onto.config, device, progress, unpaired={}, out=out, track=track)
    # The baselines are free to choose their space.
    folds = None if too_wide(onto.pairs) else folds_of(onto.pairs, onto.config.seed)
    adapters = {**fused.adapters, onto.hub: onto.target.adapters[onto.hub]}
    return replace(fused, adapters=adapters, config=replace(fused.config, lock="none"), folds=folds, onto=onto.hub)
