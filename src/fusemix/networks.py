"""The networks of a fit: one that begins at random, one that begins as a closed form; until when, and at what cost."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fusemix.align.closed_form import ClosedForm
from fusemix.config import FitConfig
from fusemix.data.latents import Latents
from fusemix.fit import Fitted, fit_adapters, within
from fusemix.progress import Progress
from fusemix.training.forecast import step_flops
from fusemix.training.journal import Track


def alone(config: FitConfig) -> FitConfig:
    """Return the settings of the network that begins at random."""
    return replace(config, adapter="mlp", refine=False)


def beginning(config: FitConfig, start: ClosedForm) -> FitConfig:
    """Return the settings of the network that begins as a closed form: all of it is as wide as that."""
    return replace(alone(config), dim=start.map_x.shape[1], width=0)


@dataclass
class Networks:
    """How to train the networks of a fit, and until when.

    Attributes:
        config, device, progress, out, track: see `fuse.fuse`.
        begun: when the clock of `config.minutes` began.
    """

    config: FitConfig
    device: torch.device
    progress: Progress
    out: Path | None
    track: Track | None
    begun: float = field(default_factory=time.monotonic)

    def train(
        self, train: Latents, val: Latents | None, least: int, start: ClosedForm | None = None
    ) -> tuple[Fitted | None, FitConfig]:
        """Train for as many epochs as there is time for, and at least so many; None where that is none.

        Where a network that begins as a closed form comes next, it has its share of the time: that of its work.
        """
        whole = settings = alone(self.config)
        if whole.minutes:
            left = 60 * whole.minutes - (time.monotonic() - self.begun)
            if start is not None:
                second = beginning(whole, start)
                mine = step_flops(whole, [len(start.shift_x), len(start.shift_y)], 1)
                left *= mine / (mine + step_flops(second, [second.dim] * 2, 1))
            epochs = max(least, within(left, train, val, whole, self.device, self.out))
            if not epochs:
                return None, whole
            settings = replace(whole, epochs=epochs)
        trained = fit_adapters(train, val, settings, self.device, self.progress, out=self.out, track=self.track)
        if settings.epochs < whole.epochs:
            some = f"{settings.epochs} of {whole.epochs} epochs"
            cut = f"trained for {some}: more would take over {whole.minutes:g} minutes"
            trained = replace(trained, notes=[*trained.notes, cut])
        return trained, settings

    def refine(self, train: Latents, val: Latents | None, start: ClosedForm, settings: FitConfig) -> Fitted:
        """Train a network that begins as a closed form, in the width of that; it keeps nothing on the disk."""

        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            self.progress("refine cca" if stage == "fit" else stage, done, total, note)

        return fit_adapters(train, val, beginning(settings, start), self.device, progress, start=start)
