"""What a probe found: encoders and what they cost, pairs of them in order, and the table that shows both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusemix.align.metrics import CUTOFFS
from fusemix.align.mutual import Mutual
from fusemix.extraction import EncoderSpec

SPLIT = "train"  # test pairs are for the end, and val pairs for the fit
FOLDS = 5
CHEAPER = 1.5  # times, to be worth a line


@dataclass(frozen=True)
class Candidate:
    """One encoder of one modality.

    Attributes:
        modality: the user's word.
        spec: what `extract` takes; None for a column of vectors.
        pooling: what `extract` takes; None is the encoder's own.
        name: short, unique among the candidates of the modality.
        dim: D, width of a latent; 0 if it gave none.
        seconds: to encode 1,000 items on this machine; loading is not counted, and latents that are at hand cost 0.
        disk_bytes: of 1,000 latents in float16.
        failed: items of the sample without a latent.
        why: why it is not in the ranking; "" if it is.
    """

    modality: str
    spec: EncoderSpec | None
    pooling: str | None
    name: str
    dim: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    failed: int = 0
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        spec = str(self.spec) if isinstance(self.spec, str | Path) else self.name
        return {
            "modality": self.modality, "name": self.name, "encoder": spec, "pooling": self.pooling, "dim": self.dim,
            "seconds_per_1000": round(self.seconds, 4), "bytes_per_1000": self.disk_bytes, "failed": self.failed,
            "why": self.why,
        }  # fmt: skip


@dataclass(frozen=True)
class Match:
    """Two encoders together.

    Attributes:
        encoders: of either modality.
        recall: mean R@1, 5 and 10 both ways among held-out pairs, in percent.
        interval: of it, 95 % by the bootstrap over groups.
        behind: 95 % interval of how far it lies behind the first of the ranking, on the same resampled groups.
        mutual: of their neighbourhoods; None where the sample has too few pairs that share nothing.
    """

    encoders: tuple[Candidate, Candidate]
    recall: float
    interval: tuple[float, float]
    behind: tuple[float, float]
    mutual: Mutual | None

    @property
    def as_good_as_first(self) -> bool:
        """Whether this sample cannot tell it from the first."""
        return self.behind[0] <= 0

    @property
    def seconds(self) -> float:
        """To encode 1,000 items of either modality."""
        return sum(encoder.seconds for encoder in self.encoders)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        names = {encoder.modality: encoder.name for encoder in self.encoders}
        mutual = self.mutual and {
            "score": round(self.mutual.score, 5), "score_ci95": [round(end, 5) for end in self.mutual.interval],
            "overlap": round(self.mutual.overlap, 5), "expected": round(self.mutual.expected, 5),
            "z": round(self.mutual.z, 2),
        }  # fmt: skip
        return {
            "encoders": names, "recall": round(self.recall, 3), "recall_ci95": [round(end, 3) for end in self.interval],
            "behind_first_ci95": [round(end, 3) for end in self.behind], "as_good_as_first": self.as_good_as_first,
            "mutual_neighbours": mutual, "seconds_per_1000": round(self.seconds, 4),
        }  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """What `probe` found; prints as a table.

    Attributes:
        pairs: of the sample that every candidate could encode, all of the split train.
        groups: of those.
        gallery: held-out pairs among which the partner is looked for, on average over the folds.
        chance: recall of a random order.
        ranking: the best match first.
        candidates: all encoders, those that could not be judged with the reason.
    """

    pairs: int
    groups: int
    gallery: int
    chance: float
    ranking: tuple[Match, ...]
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> dict[str, Candidate]:
        """The encoders of the first match, by modality."""
        return {encoder.modality: encoder for encoder in self.ranking[0].encoders}

    def table(self) -> list[list[str]]:
        """Return the rows of a table: place, encoders, recall, whether as good as the first, mutual kNN, cost."""
        one, other = self.ranking[0].encoders
        head = ["", one.modality, other.modality, "recall", "95 %", "", "mutual kNN", "95 %", "s / 1,000"]
        rows = [head]
        for place, match in enumerate(self.ranking, start=1):
            a, b = match.encoders
            m = match.mutual
            shared = [f"{m.score:.3f}", _span(m.interval, 3)] if m else ["-", ""]
            equal = "as good" if place > 1 and match.as_good_as_first else ""
            recall = [f"{match.recall:.1f}", _span(match.interval, 1), equal]
            rows.append([str(place), a.name, b.name, *recall, *shared, f"{match.seconds:.3g}"])
        return rows

    def notes(self) -> list[str]:
        """Say what a reader must know beside the table."""
        first = self.ranking[0]
        equal = [match for match in self.ranking if match.as_good_as_first]
        cheapest = min(equal, key=lambda match: match.seconds)
        notes = []
        if cheapest is not first and first.seconds >= CHEAPER * cheapest.seconds > 0:
            names = " and ".join(encoder.name for encoder in cheapest.encoders)
            times = first.seconds / cheapest.seconds
            notes.append(f"{names} are as good as the first within the interval, and {times:.1f} times cheaper to run")
        if any(match.mutual is None for match in self.ranking):
            notes.append("no mutual kNN: too few pairs of the sample share neither an item nor a group")
        return notes

    def caption(self) -> str:
        """Say what was measured, in one or two lines."""
        k = ", ".join(f"@{cutoff}" for cutoff in CUTOFFS)
        return (
            f"{self.pairs:,} pairs of the split {SPLIT!r}, of {self.groups:,} groups. Recall: mean of R{k} both ways, "
            f"in percent, of a CCA on\nheld-out pairs ({FOLDS} folds, about {self.gallery:,} pairs in each; chance is "
            f"{self.chance:.1f}). Mutual kNN: 0 is chance, 1 the same neighbours."
        )

    def costs(self) -> list[list[str]]:
        """Return the rows of a second table: what each encoder that could be judged costs for 1,000 items."""
        rows = [["", "encoder", "dims", "s / 1,000", "MB / 1,000", "failed"]]
        for each in self.candidates:
            if not each.why:
                cost = [f"{each.dim:,}", f"{each.seconds:.3g}", f"{each.disk_bytes / 1e6:.3g}", f"{each.failed:,}"]
                rows.append([each.modality, each.name, *cost])
        return rows

    def __str__(self) -> str:
        out = [f"not judged: {each.modality} {each.name}: {each.why}" for each in self.candidates if each.why]
        notes = [f"note: {note}" for note in self.notes()]
        ranking, costs = _aligned(self.table(), left=(1, 2, 5)), _aligned(self.costs(), left=(0, 1))
        return "\n".join([self.caption(), *ranking, "", *costs, *out, *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "split": SPLIT, "pairs": self.pairs, "groups": self.groups, "folds": FOLDS, "gallery": self.gallery,
            "chance": round(self.chance, 3), "ranking": [match.to_dict() for match in self.ranking],
            "encoders": [candidate.to_dict() for candidate in self.candidates], "notes": self.notes(),
        }  # fmt: skip


def _aligned(cells: list[list[str]], left: tuple[int, ...]) -> list[str]:
    """Write a table, some of its columns flush left."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _span(ends: tuple[float, float], digits: int) -> str:
    return f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
