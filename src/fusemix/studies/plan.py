"""What a study consists of: arms, each a trial per seed. Arms of different studies share a trial that is the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from fusemix.data.latents import Latents
from fusemix.errors import DataError, choices
from fusemix.studies.trials import Trial

FUSEMIX, PLAIN = "FuseMix", "no mixing"
WRONG = (0.0, 0.1, 0.2, 0.4)  # shares of pairs that get a wrong partner
SMALLEST = 100  # pairs of the smallest size
FACTOR = 4  # between two sizes
SHARE = 3  # a subset chosen for diversity is at most a third of the pool: of all there is nothing to choose
LARGEST_PICK = 4000  # by diversity, whose cost grows with the square of it


@dataclass(frozen=True)
class Arm:
    """One point of one curve, for one seed.

    Attributes:
        study: of STUDIES.
        variant: the name of the curve.
        x: where the point lies on the axis of the study: a number, or a word.
        trial: what is computed.
    """

    study: str
    variant: str
    x: float | str
    trial: Trial


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        studies: of STUDIES, in order.
        sizes: numbers of pairs of the quantity study, rising.
        pairs: that the other studies train on.
        seeds: how many.
        steps: of every fit; 0 is the recipe's.
        source: column whose values are compared; None for none.
        sources: its values.
        modalities: of the latents.
        swaps: names of the further folders of latents.
    """

    studies: tuple[str, ...]
    sizes: tuple[int, ...]
    pairs: int
    seeds: int
    steps: int
    source: str | None
    sources: dict[str, int]
    modalities: tuple[str, ...]
    swaps: tuple[str, ...]

    def arms(self) -> list[Arm]:
        """Return all arms; those of the first seed come first, so that a first picture is there early."""
        found = [arm for seed in range(self.seeds) for name in self.studies for arm in STUDIES[name](self, seed)]
        return list(dict.fromkeys(found))

    def picks(self) -> list[str]:
        """Return the ways of choosing by diversity that are asked for."""
        if "diversity" not in self.studies:
            return []
        return [f"diversity on {name}" for name in (*self.modalities, "both")]

    def picked_sizes(self) -> list[int]:
        """Return the sizes at which diversity is compared."""
        most = min(self.sizes[-1] // SHARE, LARGEST_PICK)
        return [size for size in self.sizes if size <= most] or [max(2, most)]


def make_plan(
    pool: Latents, only: Sequence[str] | None, sizes: Sequence[int] | None, pairs: int | None, seeds: int,
    steps: int | None, source: str | None, swaps: Sequence[str],
) -> Plan:  # fmt: skip
    """Fill in what was not asked for.

    Raises:
        DataError: a study, size or column that there is not; it says what there is.
    """
    for name in only or ():
        if name not in STUDIES:
            raise DataError(f"no study {name!r}; {choices(name, STUDIES)}")
    wanted = tuple(name for name in STUDIES if not only or name in only)
    if only and "encoders" in only and not swaps:
        raise DataError("the study of encoders compares folders of latents of the same pairs: name a second one")
    if source is not None and source not in pool.table.column_names:
        raise DataError(f"no column {source!r} in these latents; {choices(source, pool.table.column_names)}")
    if seeds < 1:
        raise DataError(f"seeds must be at least 1, got {seeds}")
    for size in (*(sizes or ()), *([pairs] if pairs is not None else [])):
        if not 2 <= size <= len(pool):
            raise DataError(f"{size:,} pairs cannot be trained on: there are {len(pool):,}, and a fit takes 2 at least")
    return Plan(
        wanted, tuple(sorted(set(sizes))) if sizes else _sizes(len(pool)), pairs or min(len(pool), 5000), seeds,
        steps or 0, source, _sources(pool, source), pool.modalities, tuple(swaps),
    )  # fmt: skip


def _sizes(most: int) -> tuple[int, ...]:
    """All pairs, a quarter of them, a sixteenth, and so on."""
    sizes = [most]
    while sizes[-1] // FACTOR >= SMALLEST:
        sizes.append(sizes[-1] // FACTOR)
    return tuple(reversed(sizes))


def _sources(pool: Latents, source: str | None) -> dict[str, int]:
    if source is None:
        return {}
    values, counts = np.unique([str(value) for value in pool.table[source].to_pylist()], return_counts=True)
    if not 2 <= len(values) <= 12:
        raise DataError(f"column {source!r} has {len(values):,} values in the split train; a comparison takes 2 to 12")
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _trial(plan: Plan, seed: int, pairs: int | None = None, **changes: Any) -> Trial:
    """Return a trial; `settings` as a dict, without what is the recipe's anyway. A closed form takes no steps."""
    settings = tuple(sorted(changes.pop("settings", {}).items()))
    steps = 0 if "method" in changes else plan.steps
    return Trial(pairs or plan.pairs, seed, steps=steps, settings=settings, **changes)


def _quantity(plan: Plan, seed: int) -> list[Arm]:
    arms = []
    for size in plan.sizes:
        arms += [
            Arm("quantity", FUSEMIX, size, _trial(plan, seed, size)),
            Arm("quantity", PLAIN, size, _trial(plan, seed, size, settings={"alpha": 0.0})),
            Arm("quantity", "CCA", size, _trial(plan, seed, size, method="cca")),
        ]
    return arms


def _quality(plan: Plan, seed: int) -> list[Arm]:
    arms = []
    for wrong in WRONG:
        share = 100 * wrong
        arms += [
            Arm("quality", FUSEMIX, share, _trial(plan, seed, wrong=wrong)),
            Arm("quality", PLAIN, share, _trial(plan, seed, wrong=wrong, settings={"alpha": 0.0})),
            Arm("quality", "CCA", share, _trial(plan, seed, wrong=wrong, method="cca")),
        ]
    size = min(plan.sources.values(), default=0)
    for value in plan.sources:
        arms.append(Arm("source", value, size, _trial(plan, seed, size, pick=f"{plan.source}={value}")))
    if plan.sources:
        arms.append(Arm("source", "all of them", size, _trial(plan, seed, size)))
    return arms


def _diversity(plan: Plan, seed: int) -> list[Arm]:
    arms = []
    for size in plan.picked_sizes():
        arms.append(Arm("diversity", "uniform", size, _trial(plan, seed, size)))
        arms += [Arm("diversity", how, size, _trial(plan, seed, size, pick=how)) for how in plan.picks()]
    return arms


def _batch(plan: Plan, seed: int) -> list[Arm]:
    default = _trial(plan, seed).config().batch_size
    sizes = sorted(
        {size for size in (default // 4, default // 2, default, 2 * default, 4 * default) if size <= plan.pairs // 2}
    )
    return [
        Arm("batch", FUSEMIX, size, _trial(plan, seed, settings={} if size == default else {"batch_size": size}))
        for size in sizes
    ]


def _adapter(plan: Plan, seed: int) -> list[Arm]:
    default = _trial(plan, seed).config()
    axes = {"depth": (0, 1, 2, 4), "expansion": (1, 2, 4), "dim": (128, 256, 512, 1024), "dropout": (0.0, 0.3, 0.6)}
    return [
        Arm(name, FUSEMIX, value, _trial(plan, seed, settings={} if value == getattr(default, name) else {name: value}))
        for name, values in axes.items()
        for value in values
    ]


MIXINGS: dict[str, dict[str, Any]] = {
    FUSEMIX: {},
    "a lam per modality": {"mixing": "separate"},
    "a lam per pair": {"mixing": "sample"},
    "spherical mix": {"mixing": "spherical"},
}
NOISES: dict[str, dict[str, Any]] = {
    "Gaussian noise": {"noise": 0.5},
    "randomised quantisation": {"quantize": 8},
    "input dropout": {"input_dropout": 0.3},
}


def _augmentation(plan: Plan, seed: int) -> list[Arm]:
    """Nothing; each alone; FuseMix with each noise; and the noises in pairs. Dropout within the blocks is always on."""
    none: dict[str, Any] = {"alpha": 0.0, "input_dropout": 0.0}
    variants = {"none": none}
    variants |= {name: {"input_dropout": 0.0, **change} for name, change in MIXINGS.items()}
    variants |= {name: {**none, **change} for name, change in NOISES.items()}
    variants |= {f"{FUSEMIX} + {name}": {"input_dropout": 0.0, **change} for name, change in NOISES.items()}
    variants |= {f"{one} + {other}": {**none, **NOISES[one], **NOISES[other]} for one, other in combinations(NOISES, 2)}
    default = _trial(plan, seed).config()
    arms = []
    for name, change in variants.items():
        settings = {key: value for key, value in change.items() if value != getattr(default, key)}
        arms.append(Arm("augmentation", name, plan.pairs, _trial(plan, seed, settings=settings)))
    return arms


def _encoders(plan: Plan, seed: int) -> list[Arm]:
    arms = []
    for place, name in enumerate(plan.swaps):
        arms += [
            Arm("encoders", FUSEMIX, name, _trial(plan, seed, latents=place)),
            Arm("encoders", "CCA", name, _trial(plan, seed, method="cca", latents=place)),
        ]
    return arms if len(plan.swaps) > 1 else []


STUDIES: dict[str, Callable[[Plan, int], list[Arm]]] = {
    "quantity": _quantity,
    "quality": _quality,
    "diversity": _diversity,
    "batch": _batch,
    "adapter": _adapter,
    "augmentation": _augmentation,
    "encoders": _encoders,
}
