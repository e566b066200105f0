"""What a study's largest fit cost, beside what is published of other systems."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """One line of the table; None where nobody said.

    Attributes:
        system: its name.
        parameters: that were trained.
        flops: of the training, encoders left out.
        pairs: trained on.
        device_hours: of the training.
        device: whose hours.
        reached: R@1 text->image / image->text, on Flickr30k (1,000 test images) for published systems.
        source: where the figures are from, and how sure.
    """

    system: str
    parameters: float | None
    flops: float | None
    pairs: float
    device_hours: float | None
    device: str
    reached: str
    source: str


PUBLISHED = (
    Cost("CLIP ViT-L/14", 428e6, None, 400e6, 12 * 24 * 256, "V100", "68.7 / 88.0", "arXiv 2103.00020: 12 days on 256"),
    Cost(
        "FuseMix, DINOv2-g + BGE", 110.4e6, 0.93e18, 5e6, 12 * 24 * 256 / 600, "V100", "71.2 / 84.8",
        "arXiv 2312.10144: 600 times fewer GPU days than CLIP; parameters, FLOPs reckoned from its settings",
    ),
    Cost("SAIL, DINOv2-L + NV-Embed-2", None, None, 23e6, 5, "A100", "75.7 / 87.6", "arXiv 2412.04616: about 5 hours"),
    Cost("freeze-align", None, None, 20e6, 8 * 50, "A100", "74.2 / 87.5", "arXiv 2409.19425: 8 for about 50 hours"),
    Cost("ShareLock", None, None, 563e3, 1, "GPU", "", "arXiv 2410.07173: under an hour, 10 with the latents"),
)  # fmt: skip
HEAD = ("system", "parameters", "FLOPs", "pairs", "device-hours", "device", "R@1", "source")


def own_cost(done: Iterable[Mapping[str, Any]], device: str) -> Cost | None:
    """Return what the largest fit of adapters cost: the mean over its seeds; None where there is none.

    Args:
        done: figures of trials, see `trials.run_trial`.
        device: whose seconds they are.
    """
    fits = [figures for figures in done if "flops" in figures]
    if not fits:
        return None
    most = max(figures["pairs"] for figures in fits)
    # Of all fits on so many pairs those that reach most: the settings that one would take.
    best = max((figures for figures in fits if figures["pairs"] == most), key=lambda figures: figures["R@1"])
    ways = [name for name in best if name.startswith("R@1 ")]
    reached = " / ".join(f"{best[name]:.1f}" for name in ways)
    ways_said = ", ".join(name.removeprefix("R@1 ") for name in ways)
    return Cost(
        "this study, its largest fit", best["parameters"], best["flops"], best["pairs"], best["seconds"] / 3600, device,
        reached, f"trials.jsonl; R@1 of {ways_said} on this study's own pairs, not comparable with the others",
    )  # fmt: skip


def table(own: Cost | None) -> list[list[str]]:
    """Return the rows of the table as text, HEAD first."""
    costs = ([own] if own is not None else []) + list(PUBLISHED)
    return [list(HEAD), *([_cell(value) for value in cost] for cost in costs)]


def _cell(value: float | str | None) -> str:
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
