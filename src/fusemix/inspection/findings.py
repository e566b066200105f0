"""Findings: what an inspection can find, and the rows and items that a finding is about."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

Severity = Literal["problem", "warning", "note"]
"""problem: mend it before going on. warning: look at it. note: good to know."""

SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")

Kind = Literal[
    "unread", "missing file", "broken item", "straddling item", "straddling group", "bad latent",
    "empty cell", "same content", "repeated row", "repeated caption", "alike captions", "wordless caption",
    "long caption", "blank item", "absent value", "leak", "mislabelled", "near duplicate", "shared latent", "outlier",
    "constant dimension", "coverage", "counts", "splits", "caption length", "balance", "media", "diversity",
]  # fmt: skip
"""What a finding is about: a closed set, and of one severity the order in which findings are told."""

KINDS: tuple[Kind, ...] = get_args(Kind)

MEANING: dict[Kind, str] = {
    "unread": "The reader had to leave these out; they have no row, or leave a cell empty.",
    "missing file": "The table names files that are not there. Mend the names, or give the folder as --root.",
    "broken item": "These do not decode, so an extraction records them as failed and leaves their rows out.",
    "straddling item": "What was trained on is measured on: the figures on held-out data come out too good. Split by a "
    "group that keeps these together.",
    "straddling group": "Rows of one group are trained on and measured on. Give --group without a split column, or "
    "mend the split column.",
    "bad latent": "Latents that are zero, NaN or infinite carry nothing and spoil what is fitted on them. Look at the "
    "items, and at the encoder.",
    "empty cell": "Rows with an empty cell make no pair and are left out.",
    "same content": "One thing under several names counts twice, and is its own wrong answer in a search.",
    "repeated row": "The same pair twice weighs twice.",
    "repeated caption": "Captions that stand beside several different items: no search can tell those apart, and a "
    "batch that holds two of them calls a right answer wrong.",
    "alike captions": "Captions that are the same but for case, punctuation or space; to the encoder they are nearly "
    "or exactly one.",
    "wordless caption": "Captions without a letter or a digit say nothing.",
    "long caption": "Text encoders cut what is longer than their window: about 55 words in CLIP, 190 in MiniLM.",
    "blank item": "Pictures of one colour and silent sounds are often placeholders.",
    "absent value": "Values that are held out for measuring, but never trained on.",
    "leak": "Held-out items that the encoder hardly tells from an item that is trained on, of another group.",
    "mislabelled": "Pairs whose two sides agree no better than strangers, judged by an alignment (CCA) that was fitted "
    "without them. Look at them, worst first.",
    "near duplicate": "Items that the encoder hardly tells apart: crops, copies in other quality, frames of one film.",
    "shared latent": "Different items with one and the same latent: nothing that is fitted can tell them apart.",
    "outlier": "Items far from all others: other kinds of pictures, noise, placeholders, wrong files.",
    "constant dimension": "Dimensions that have one value everywhere carry nothing; a few do no harm.",
    "coverage": "How much of the held-out data lies where there are training data.",
    "counts": "Rows and distinct items.",
    "splits": "Rows and groups by split.",
    "caption length": "Words and characters of the captions.",
    "balance": "Rows by value.",
    "media": "What was decoded.",
    "diversity": "How many different items the set is worth.",
}


class Concern(NamedTuple):
    """One row, item or pair that a finding is about; what does not apply is None.

    Attributes:
        row: of the table, from 0.
        item: modality and number of the item, see `Pairs.items`.
        other_row: of the table, from 0.
        other: modality and number of the other item.
        score: a number that ranks the concerns of a finding; the finding says what it is.
        message: what is to be said of it.
    """

    row: int | None = None
    item: tuple[str, int] | None = None
    other_row: int | None = None
    other: tuple[str, int] | None = None
    score: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: of a closed set.
        severity: how much it matters.
        modality: the user's word; several as "image+text"; "" for the table as a whole.
        count: rows or items concerned.
        sentence: what was found, with its numbers.
        concerns: the rows and items, worst first.
        figures: the numbers of the sentence, by name.
    """

    kind: Kind
    severity: Severity
    modality: str
    count: int
    sentence: str
    concerns: list[Concern] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Account:
    """What became of the distinct items of one modality: items = ok + failed + skipped.

    Attributes:
        items: distinct items.
        ok: could be decoded or, where there are latents, encoded.
        failed: could not.
        skipped: not looked at, as only a sample was decoded.
        reasons: of the failed, counted.
        empty_cells: rows without an item.
    """

    items: int
    ok: int
    failed: int
    skipped: int
    reasons: dict[str, int]
    empty_cells: int
