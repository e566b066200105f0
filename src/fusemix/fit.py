"""Train two adapters on latents: FuseMix as published (arXiv 2312.10144, Algorithm 1). No encoder in sight."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusemix.align.adapters import Adapter
from fusemix.align.losses import info_nce
from fusemix.align.metrics import mean_recall
from fusemix.align.mixup import draw_lam, mix
from fusemix.config import FitConfig
from fusemix.data.latents import ItemLatents, Latents
from fusemix.data.store import difference
from fusemix.errors import DataError, FusemixError, MismatchError
from fusemix.progress import Progress

MIN_LR = 1e-6
TEMPERATURES = (0.001, 0.5)
MAX_VALIDATIONS = 50  # a long fit on few pairs would otherwise spend its time validating


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves.

    Attributes:
        adapters: of each modality, on the CPU, in evaluation mode.
        temperature: the learned one.
        history: one record per epoch: epoch, loss, lr, temperature, and val where it was measured.
        best_epoch: the epoch whose weights were kept, from 1.
    """

    adapters: dict[str, Adapter]
    temperature: float
    history: list[dict[str, float]]
    best_epoch: int


@dataclass(frozen=True)
class Sides:
    """Two modalities on the device: latents of the distinct items and the rows that pair them."""

    x: Tensor
    y: Tensor
    rows: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, latents: Latents, modalities: tuple[str, ...], device: torch.device) -> "Sides":
        """Bring the items of these pairs to the device, numbered without gaps."""
        sides, rows = [], []
        for modality in modalities:
            keep, index = np.unique(latents.rows[modality], return_inverse=True)
            sides.append(latents.items[modality].rows.take(keep).to(device))
            rows.append(torch.from_numpy(index).to(device))
        return cls(sides[0], sides[1], (rows[0], rows[1]))


class Adapters(nn.Module):
    """The two adapters, separate and unshared."""

    def __init__(self, dim_x: int, dim_y: int, config: FitConfig) -> None:
        super().__init__()
        self.x = Adapter(dim_x, config)
        self.y = Adapter(dim_y, config)


def check_pairs(latents: Latents) -> None:
    """Refuse pairs that no fit can use.

    Raises:
        DataError: not two modalities, fewer than two pairs, items that are all alike, or latents that are not finite;
            it names the modality or the item.
    """
    if len(latents.modalities) != 2:
        names = ", ".join(latents.modalities)
        count = len(latents.modalities)
        raise DataError(f"a fit joins two modalities, these latents have {count}: {names}; extract two of them")
    if len(latents) < 2:
        raise DataError(f"a contrastive fit needs at least 2 pairs, got {len(latents)}")
    for modality in latents.modalities:
        items = latents[modality]
        _check_finite(items)
        if bool((items.latents == items.latents[0]).all()):
            raise DataError(f"{modality}: all {len(items)} latents are the same, so there is nothing to tell apart")


def check_validation(train: Latents, val: Latents) -> None:
    """Refuse validation pairs that do not go with the training pairs, or that are a test split.

    Raises:
        DataError: a split named test, other modalities, or latents that are not finite.
        MismatchError: latents of another encoder.
    """
    if "test" in val.splits:
        raise DataError("the epoch must not be chosen on a split named 'test': give the validation pairs, or none")
    if set(val.modalities) != set(train.modalities):
        raise DataError(f"validation pairs are of {', '.join(val.modalities)}; wanted {', '.join(train.modalities)}")
    for modality in train.modalities:
        old, new = train.items[modality], val.items[modality]
        differs = difference({**old.encoder, "width": old.rows.shape[1]}, {**new.encoder, "width": new.rows.shape[1]})
        if differs:
            raise MismatchError(f"the {modality} latents of validation come from another encoder: {differs}")
        _check_finite(val[modality])


def _check_finite(items: ItemLatents) -> None:
    bad = ~items.latents.isfinite().all(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        count = int(bad.sum())
        raise DataError(f"{items.modality}: the latent of {items.ids[row]!r} is NaN or infinite ({count} such items)")


def fit_adapters(
    train: Latents, val: Latents | None, config: FitConfig, device: torch.device, progress: Progress
) -> Fitted:
    """Train one adapter per modality with the contrastive loss on mixed latents.

    Args:
        train: pairs to train on; two modalities.
        val: pairs that choose the epoch by mean recall both ways; None keeps the last epoch.
        config: all settings.
        device: where to train.
        progress: called after every step.

    Raises:
        DataError: pairs that cannot be fitted, or validation on a test split.
    """
    check_pairs(train)
    if val is not None:
        check_validation(train, val)
    sides = Sides.of(train, train.modalities, device)
    held = Sides.of(val, train.modalities, device) if val is not None else None
    # The caller's random state is not ours to move.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        adapters = Adapters(sides.x.shape[1], sides.y.shape[1], config).to(device)
        if config.standardize:
            adapters.x.standardize(sides.x.float())
            adapters.y.standardize(sides.y.float())
        temperature, history, best = _train(adapters, sides, held, config, progress)
    first, second = train.modalities
    kept = {first: adapters.x.cpu().eval(), second: adapters.y.cpu().eval()}
    return Fitted(kept, temperature, history, best)


def _train(
    adapters: Adapters, sides: Sides, held: Sides | None, config: FitConfig, progress: Progress
) -> tuple[float, list[dict[str, float]], int]:
    """Run all epochs and leave the best weights in `adapters`; return temperature, history and the best epoch."""
    rng = np.random.default_rng(config.seed)
    temperature = nn.Parameter(torch.tensor(config.temperature, device=sides.x.device))
    optimizer = _optimizer(adapters, temperature, config)
    pairs = len(sides.rows[0])
    steps = len(list(batches(pairs, config, np.random.default_rng(0))))
    every = -(-config.epochs // MAX_VALIDATIONS)
    history: list[dict[str, float]] = []
    best: tuple[float, int, dict[str, Any], float] = (-1.0, 0, {}, 0.0)
    for epoch in range(config.epochs):
        adapters.train()
        losses = torch.zeros(steps, device=sides.x.device)
        for i, batch in enumerate(batches(pairs, config, rng)):
            step = epoch * steps + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps)
            losses[i] = _step(adapters, temperature, sides, batch, config, rng, optimizer)
            progress("fit", step + 1, steps * config.epochs, _note(history))
        record = {"epoch": epoch + 1.0, "loss": float(losses.mean()), "lr": learning_rate(config, step, steps)}
        record["temperature"] = temperature.item()
        if not math.isfinite(record["loss"]):
            raise FusemixError(f"the loss became {record['loss']} in epoch {epoch + 1}: lower lr (now {config.lr:g})")
        history.append(record)
        last = epoch + 1 == config.epochs
        if held is not None and (last or (epoch + 1) % every == 0):
            record["val"] = validate(adapters, held)
            if record["val"] > best[0]:
                weights = {name: value.clone() for name, value in adapters.state_dict().items()}
                best = (record["val"], epoch + 1, weights, record["temperature"])
    if held is None:
        return history[-1]["temperature"], history, config.epochs
    adapters.load_state_dict(best[2])
    return best[3], history, best[1]


def _step(
    adapters: Adapters,
    temperature: nn.Parameter,
    sides: Sides,
    batch: Tensor,
    config: FitConfig,
    rng: np.random.Generator,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """One step on the pairs `batch`; return the loss."""
    rows_x, rows_y = (rows[batch] for rows in sides.rows)
    x, y = sides.x[rows_x].float(), sides.y[rows_y].float()
    if config.alpha > 0:
        lam = draw_lam(config.alpha, rng)  # ONE lam for the whole batch and for both modalities
        x, y = mix(x, lam), mix(y, lam)
    loss = info_nce(adapters.x(x), adapters.y(y), temperature)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        temperature.clamp_(*TEMPERATURES)
    return loss.detach()


def batches(pairs: int, config: FitConfig, rng: np.random.Generator) -> Iterator[Tensor]:
    """Deal all pairs in random order; what does not fill a batch waits for the next epoch.

    With mixing a batch loads 2B pairs and halves them. A batch never loads more pairs than there are, and at least
    two are contrasted: the order starts again from its beginning when there are fewer than that.
    """
    factor = 2 if config.alpha > 0 else 1
    size = max(2, min(config.batch_size, pairs // factor)) * factor
    order = np.resize(rng.permutation(pairs), max(pairs, size))
    for start in range(0, len(order) - size + 1, size):
        yield torch.from_numpy(order[start : start + size])


def learning_rate(config: FitConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine down to 1e-6.

    "epoch", as released: the warm-up lies inside the first epoch, then the rate is set once per epoch. "step": the
    rate changes at every step, and the warm-up is at most a tenth of all steps, so that a short fit reaches its peak.
    """
    total = steps_per_epoch * config.epochs
    warmup = config.warmup_steps if config.schedule == "epoch" else min(config.warmup_steps, total // 10)
    warm = min(1.0, step / warmup) if warmup else 1.0
    epoch = step // steps_per_epoch
    if config.schedule == "epoch":
        share = warm if epoch == 0 else _cosine(epoch / config.epochs)
    else:
        share = warm * _cosine(max(0, step - warmup) / max(1, total - warmup))
    return MIN_LR + (config.lr - MIN_LR) * share


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _optimizer(adapters: Adapters, temperature: nn.Parameter, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    parameters = [*adapters.parameters(), temperature]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)


@torch.inference_mode()
def validate(adapters: Adapters, held: Sides) -> float:
    """Mean recall both ways on the held-out pairs, unmixed."""
    adapters.eval()
    x, y = embed(adapters.x, held.x), embed(adapters.y, held.y)
    return mean_recall(x, y, (held.rows[0].cpu().numpy(), held.rows[1].cpu().numpy()))


@torch.inference_mode()
def embed(adapter: Adapter, latents: Tensor) -> Tensor:
    """Embed latents (N, D) of any precision in blocks: (N, S) on the adapter's device."""
    blocks = [adapter(block.to(adapter.shift.device).float()) for block in torch.split(latents, 4096)]
    return torch.cat(blocks)


def _note(history: list[dict[str, float]]) -> str:
    """Say how it goes, for the progress bar."""
    if not history:
        return ""
    measured = [record["val"] for record in history if "val" in record]
    return f"loss {history[-1]['loss']:.3f}" + (f"  val recall {measured[-1]:.1f}" if measured else "")
