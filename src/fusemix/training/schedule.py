"""The learning rate of every step."""

import math

from fusemix.config import FitConfig

MIN_LR = 1e-6


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
