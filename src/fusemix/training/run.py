"""The state of a fit: what changes from step to step, how it changes, and how it goes through a checkpoint."""

import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from fusemix import durable
from fusemix.align.closed_form import ClosedForm
from fusemix.config import FitConfig
from fusemix.data.health import Health
from fusemix.data.latents import Latents
from fusemix.data.store import difference
from fusemix.errors import DivergedError, MismatchError
from fusemix.ranks import barrier, least, ranks
from fusemix.training import checkpoint
from fusemix.training.feed import BLOCK, fits, open_feed
from fusemix.training.forecast import step_flops
from fusemix.training.interrupt import Interrupts
from fusemix.training.order import Order
from fusemix.training.schedule import learning_rate
from fusemix.training.step import Adapters, Trainer, compiling_pays
from fusemix.training.validation import Sides, validate, validated

NAMED = 5  # ids in a message


class Run:
    """A fit between two steps.

    Everything that is drawn (order, lam, dropout) is a closed formula of the seed and the step. So these few
    attributes, with the weights and the optimiser in `trainer`, are all there is to keep.

    Attributes:
        step: steps done.
        losses: (steps per epoch,) of the epoch that runs; 0 for those to come.
        history: one record per finished epoch: epoch, step, loss, lr, temperature, and val where it was measured.
        best: the record with the best validation; None without validation pairs.
        best_weights: of the adapters then.
        seconds: that the steps took; `earlier` of them before an interruption.
        resident: the latents lie on the device, or in memory.
    """

    def __init__(
        self, train: Latents, val: Latents | None, config: FitConfig, device: torch.device,
        health: dict[str, Health], interrupts: Interrupts, start: ClosedForm | None = None,
    ) -> None:  # fmt: skip
        """Begin.

        Args:
            train: two modalities.
            val: the same two, or None.
            config: all settings.
            device: where to train.
            health: of the latents, by modality; under "val NAME" those of validation.
            interrupts: hold back signals while the state changes.
            start: the closed form that adapters begin as; None begins at random.
        """
        self.pairs, self.config, self.interrupts = train, config, interrupts
        self.val = Sides.of(val, train.modalities, device) if val is not None else None
        self.rank, self.world = ranks()
        self.step, self.seconds, self.earlier = 0, 0.0, 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.best_weights: dict[str, Tensor] = {}
        torch.manual_seed(config.seed)
        dims = [train.items[name].rows.shape[1] for name in train.modalities]
        adapters = Adapters(dims, config, start)
        if start is not None and self.world > 1:  # closed forms of other machines may point the other way
            for tensor in adapters.state_dict().values():
                distributed.broadcast(tensor, 0)
        if config.standardize:
            for side, name in zip(adapters.sides, train.modalities, strict=True):
                side.standardize(health[name].mean, health[name].deviation)
        if adapters.landing is not None:
            target = health[train.modalities["xy".index(config.lock)]]
            adapters.landing.aim(target.mean, target.deviation)
        group = distributed.group.WORLD if self.world > 1 else None
        self.resident = bool(least(fits(train, device)))
        self.order = Order.of(len(train), config, 1 if self.resident else BLOCK)
        flops = step_flops(config, adapters.dims, self.order.batch_size) * self.order.steps * config.epochs
        compiled = compiling_pays(flops, device)
        self.trainer = Trainer(adapters.to(device), config, device, self.rank, group, compiled)
        self.losses = torch.zeros(self.order.steps, device=device)
        self.identity = _identity(train, val, config, health)
        self.feed = open_feed(train, self.order, device, self.rank, self.world, self.resident)

    @property
    def adapters(self) -> Adapters:
        """What is trained."""
        return self.trainer.adapters

    @property
    def place(self) -> int:
        """Steps done in the epoch that runs."""
        return self.step - len(self.history) * self.order.steps

    @property
    def finished(self) -> bool:
        """All epochs are done, or validation has brought no gain for too long."""
        if len(self.history) == self.config.epochs:
            return True
        best = self.best["epoch"] if self.best is not None else 0
        since = sum("val" in record and record["epoch"] > best for record in self.history)
        return 0 < self.config.patience <= since

    def take_step(self) -> None:
        """Do one step."""
        loss = self.trainer.gradients(self.step, self.feed.batch(self.step))
        with self.interrupts.held():
            self.trainer.update(learning_rate(self.config, self.step, self.order.steps))
            self.losses[self.place] = loss
            self.step += 1

    def end_epoch(self) -> dict[str, float]:
        """Look back on an epoch whose steps are all done; return its record."""
        epoch = len(self.history) + 1
        record = {"epoch": epoch, "step": self.step, "loss": self.recent_loss(self.order.steps), **self.rates()}
        if self.val is not None and validated(epoch, self.config.epochs):
            record["val"] = least(validate(self.adapters, self.val))  # which says when to stop
            if math.isnan(record["val"]):
                self._diverged(self.order.steps - 1, "the validation embeddings became NaN after")
        with self.interrupts.held():
            self.history.append(record)
            self.losses.zero_()
            if "val" in record and (self.best is None or record["val"] > self.best["val"]):
                self.best = record
                self.best_weights = {name: value.clone() for name, value in self.adapters.state_dict().items()}
        return record

    def rates(self) -> dict[str, float]:
        """Return lr and temperature of the last step."""
        return {
            "lr": learning_rate(self.config, self.step - 1, self.order.steps),
            "temperature": self.adapters.temperature.item(),
        }

    def recent_loss(self, steps: int) -> float:
        """Return the mean loss of the last steps of this epoch.

        Raises:
            DivergedError: one of them is no number; it names the pairs of its batch.
        """
        done = self.losses[: self.place].cpu()
        if not bool(done.isfinite().all()):
            place = int((~done.isfinite()).nonzero()[0])
            self._diverged(place, f"the loss became {float(done[place])} at")
        return float(done[-steps:].mean()) if len(done) else 0.0

    def _diverged(self, place: int, what: str) -> None:
        step = len(self.history) * self.order.steps + place
        batch = self.order.batch(step)
        ids = {
            name: [self.pairs.items[name].ids[row] for row in self.pairs.rows[name][batch]]
            for name in self.pairs.modalities
        }
        some = ", ".join(" + ".join(map(repr, pair)) for pair in list(zip(*ids.values(), strict=True))[:NAMED])
        more = ", ..." if len(batch) > NAMED else ""
        raise DivergedError(
            f"{what} step {step + 1} (epoch {len(self.history) + 1}) "
            f"on a batch of {len(batch):,} pairs: {some}{more}; lower lr (now {self.config.lr:g})",
            ids,
        )

    def keep_best(self) -> dict[str, float]:
        """Bring the best weights back, where validation chose; return the record of their epoch."""
        if self.best is None:
            return self.history[-1]
        self.adapters.load_state_dict(self.best_weights)
        return self.best

    def save(self, folder: Path) -> None:
        """Write a checkpoint; of several processes one does.

        Raises:
            DivergedError: there is no number worth keeping.
        """
        self.recent_loss(1)
        if self.rank != 0:
            return
        optimizer = self.trainer.optimizer.state_dict()["state"]
        tensors = {
            "losses": self.losses,
            **{f"weights/{name}": value for name, value in self.adapters.state_dict().items()},
            **{f"best/{name}": value for name, value in self.best_weights.items()},
            **{f"optimizer/{i}/{name}": value for i, state in optimizer.items() for name, value in state.items()},
        }
        record = {
            "identity": self.identity, "history": self.history, "best": self.best, "seconds": self.seconds,
            "block": self.order.block, "piece": self.trainer.piece, "recompute": self.trainer.recompute,
        }  # fmt: skip
        checkpoint.write(folder, self.step, tensors, record)

    def restore(self, folder: Path) -> None:
        """Go on from the last checkpoint of the folder, if there is one.

        Raises:
            MismatchError: it belongs to another fit.
            StoreError: it is damaged.
        """
        found = checkpoint.read(folder)
        barrier()  # before one process writes, all have read
        if self.rank == 0:
            durable.remove_leftovers(folder / checkpoint.FOLDER)
        if found is None:
            return
        tensors, record = found
        differs = difference(record["identity"], self.identity)
        if differs:
            raise MismatchError(
                f"{folder} holds a fit that was interrupted, and it is another: {differs}; give another output folder, "
                f"or delete {folder / checkpoint.FOLDER} to start again"
            )
        self.adapters.load_state_dict(_part(tensors, "weights/"))
        self.best_weights = _part(tensors, "best/")
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimizer/").items():
            number, _, name = key.partition("/")
            state.setdefault(int(number), {})[name] = value
        groups = self.trainer.optimizer.state_dict()["param_groups"]
        self.trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.losses.copy_(tensors["losses"])
        self.step, self.history, self.best = record["step"], record["history"], record["best"]
        self.seconds = self.earlier = record["seconds"]
        self.trainer.piece, self.trainer.recompute = record["piece"], record["recompute"]
        if record["block"] != self.order.block:  # more or less memory than before must not change the order
            self.feed.close()
            self.order = Order.of(len(self.pairs), self.config, record["block"])
            device = self.losses.device
            self.feed = open_feed(self.pairs, self.order, device, self.rank, self.world, self.resident)


def _identity(train: Latents, val: Latents | None, config: FitConfig, health: dict[str, Health]) -> dict[str, Any]:
    """Return what must be the same for a fit to go on; when to stop may change."""
    settings = {name: value for name, value in config.to_dict().items() if name not in ("patience", "minutes")}
    return {
        **settings,
        "pairs": _pairs_hash(train),
        "latents": {name: _hash([found.mean.numpy(), found.deviation.numpy()]) for name, found in health.items()},
        "validation pairs": _pairs_hash(val) if val is not None else None,
    }


def _pairs_hash(latents: Latents) -> str:
    return _hash([latents.rows[name] for name in latents.modalities])


def _hash(arrays: list[NDArray[Any]]) -> str:
    return sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
