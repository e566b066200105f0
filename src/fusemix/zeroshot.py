"""Zero-shot classification: an item gets the class whose name, put into templates, lands nearest to it.

As with CLIP (arXiv 2103.00020, section 3.1.4): the embedding of a class is the mean over the templates of the unit-norm
embeddings of the texts, brought to unit norm again; the score of an item and a class is the cosine of both.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from fusemix.data.latents import ItemLatents, Latents, LateTable
from fusemix.data.rows import LatentRows
from fusemix.errors import DataError
from fusemix.judgement import FIRST, Judgement
from fusemix.progress import Progress, silent
from fusemix.seen import overlap

MARK = "{}"  # where a template has the name
SHOWN = 10  # labels whose numbers are told
STRANGERS = 5  # truths that are no class, told in an error
_SCORES_PER_BLOCK, _TEXTS_PER_BLOCK = 1 << 24, 1 << 10


class Embedder(Protocol):
    """What class names need of a model."""

    def embed(self, items: Sequence[Any], modality: str | None = None) -> Any:
        """Embed raw items, (n, S) unit norm."""
        ...


@dataclass(frozen=True)
class Classification:
    """Labels of N items, best first; prints as a summary.

    Attributes:
        names: C classes.
        places: (N, k) int64, the k best classes as places in `names`, falling by score.
        scores: (N, k) cosines.
        probabilities: (N, k), softmax of the C cosines over the temperature; None where no temperature was given.
        judgement: how often the labels are right; None where no truth was given.
        notes: what a reader must know before believing the numbers.
    """

    names: list[str]
    places: Tensor
    scores: Tensor
    probabilities: Tensor | None
    judgement: Judgement | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def labels(self) -> list[str]:
        """N names, the best of each item."""
        return [self.names[place] for place in self.places[:, 0].tolist()]

    @property
    def counts(self) -> dict[str, int]:
        """How many items have each label, most first."""
        return dict(Counter(self.labels).most_common())

    def table(self) -> pa.Table:
        """Return N rows of label, score and probability, then label_2, score_2, probability_2 and so on to k."""
        columns: dict[str, Any] = {}
        names = pa.array(self.names, pa.string())
        for i in range(self.places.shape[1]):
            end = f"_{i + 1}" if i else ""
            columns[f"label{end}"] = names.take(pa.array(self.places[:, i].numpy()))
            columns[f"score{end}"] = self.scores[:, i].numpy()
            if self.probabilities is not None:
                columns[f"probability{end}"] = self.probabilities[:, i].numpy()
        return pa.table(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: everything but the labels of each item."""
        judged = self.judgement.to_dict() if self.judgement is not None else None
        counts = {"items": len(self), "classes": self.names, "labels": self.counts}
        return {**counts, "judgement": judged, "notes": self.notes}

    def __str__(self) -> str:
        head = f"{_number(len(self), 'item')} among {len(self.names):,} classes"
        if self.judgement is not None:
            judged, without = self.judgement.judged, self.judgement.unlabelled
            parts = [f"{head}: {judged:,} judged + {without:,} without a truth", str(self.judgement)]
        else:
            counts = list(self.counts.items())
            parts = [f"{head}; no truth was given, so nothing is judged"]
            parts += [f"{count:>6,} x {name}" for name, count in counts[:SHOWN]]
            parts += [f"and {_number(len(counts) - SHOWN, 'label')} more"] if len(counts) > SHOWN else []
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])


def class_embeddings(
    model: Embedder, names: Sequence[str], templates: Sequence[str] = (MARK,), modality: str | None = None,
    progress: Progress = silent,
) -> Tensor:  # fmt: skip
    """Embed classes by their names, (C, S) unit norm: the mean over the templates, see the module.

    Args:
        model: embeds texts; a FuseMix, or anything with its `embed`.
        names: C classes, no two the same.
        templates: texts such as "a photo of a {}"; the name takes the place of every {}.
        modality: which modality of the model the texts are; by default its only one of texts.
        progress: told of the names.

    Raises:
        DataError: fewer than two names, an empty one, two that are the same, a template without {}, or no modality of
            texts.
        EncoderError: the text encoder does not load, or only by running code that a folder names.
    """
    names = _checked(names)
    if isinstance(templates, str) or not templates:
        raise DataError(f'wanted a list of templates such as ["a photo of a {MARK}"], got {templates!r}')
    for template in templates:
        if MARK not in template:
            raise DataError(f'template {template!r} has no {MARK} for the class, as in "a photo of a {MARK}"')
    step, parts = max(1, _TEXTS_PER_BLOCK // len(templates)), []
    for start in range(0, len(names), step):
        block = names[start : start + step]
        texts = [template.replace(MARK, name) for name in block for template in templates]
        each = F.normalize(torch.as_tensor(model.embed(texts, modality)).double(), dim=-1)
        parts.append(F.normalize(each.reshape(len(block), len(templates), -1).mean(dim=1), dim=-1).float())
        progress("class names", start + len(block), len(names))
    return torch.cat(parts)


def zero_shot(
    embeddings: ArrayLike | Tensor, classes: ArrayLike | Tensor, names: Sequence[str],
    truth: Iterable[Any] | None = None, *, k: int = 5, temperature: float | None = None,
) -> Classification:  # fmt: skip
    """Name N items by the nearest of C classes.

    Args:
        embeddings: (N, S) of the items, in any precision.
        classes: (C, S), what `class_embeddings` returns.
        names: C classes, no two the same.
        truth: N true classes by name, such as a column of `index.columns`; null, NaN or blank where it is not known.
        k: best labels to keep of each item; at most C are. Equal scores come in the order of the names.
        temperature: of the fit, `model.facts_["temperature"]`; with it labels also get probabilities.

    Raises:
        DataError: shapes that do not go together, numbers that are not finite, truths that are no class (the message
            has the nearest names) or are all empty, a k below 1, or a temperature that is not positive.
    """
    names, items, wanted = _checked(names), torch.as_tensor(embeddings), torch.as_tensor(classes)
    _check(items, wanted, names, k, temperature)
    right = _places(list(truth), names, len(items)) if truth is not None else None
    keep, wanted = min(max(k, FIRST), len(names)), F.normalize(wanted.float(), dim=-1)
    blocks = torch.split(items, max(1, _SCORES_PER_BLOCK // len(names)))
    found = [_best(block, wanted, keep, temperature) for block in blocks]
    places, scores, shares = (torch.cat(parts) for parts in zip(*found, strict=True))
    judgement = _judge(right, places.numpy(), names) if right is not None else None
    probabilities = shares[:, :k] if temperature is not None else None
    return Classification(names, places[:, :k], scores[:, :k], probabilities, judgement)


def label_of(value: Any) -> str | None:
    """Return what a cell holds as the name of a class; None where it is empty."""
    value = value.as_py() if isinstance(value, pa.Scalar) else value
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return None
    return str(value).strip() or None


def seen_notes(model: Any, items: pa.Table) -> list[str]:
    """Say how many of some items (columns modality and id) a FuseMix was trained on, or chose its epoch by."""
    sides = {}
    for name in model.modalities_:
        own = items.filter(pa.compute.equal(items["modality"], name))
        if len(own):
            late = LateTable(lambda own=own: own)  # type: ignore[misc]
            sides[name] = ItemLatents(name, "", late, LatentRows.of(torch.empty(len(own), 1)))
    rows = {name: np.arange(len(side)) for name, side in sides.items()}
    nothing = np.empty(0, dtype=np.int64)
    return overlap(model.seen_, Latents(sides, rows, nothing, nothing.astype(str), LateTable(lambda: items)))


def _best(block: Tensor, classes: Tensor, keep: int, temperature: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return places, cosines and probabilities (n, keep) of the best classes (C, S) for items (n, S), falling."""
    cosines = F.normalize(block.float(), dim=-1) @ classes.T
    best, places = cosines.topk(min(keep + 1, cosines.shape[1]), dim=1)
    tied = (best[:, 1:] == best[:, :-1]).any(dim=1)  # equal ones come in the order of the names, at the cost of a sort
    places[tied] = cosines[tied].sort(dim=1, descending=True, stable=True).indices[:, : best.shape[1]]
    places = places[:, :keep]
    shares = cosines if temperature is None else (cosines / temperature).softmax(dim=1)
    return places, cosines.gather(1, places), shares.gather(1, places)


def _judge(right: NDArray[np.int64], places: NDArray[np.int64], names: list[str]) -> Judgement:
    """Compare the truth (N,), -1 where there is none, with the best places (N, k)."""
    known = right >= 0
    truth, best = right[known], places[known]
    in_five = int((best[:, :FIRST] == truth[:, None]).any(axis=1).sum()) if len(names) > FIRST else None
    return Judgement(names, truth, best[:, 0], in_five, int((~known).sum()))


def _checked(names: Sequence[str]) -> list[str]:
    """Return the names as a list, if they can be told apart."""
    if isinstance(names, str):
        raise DataError(f"wanted a list of class names, got one str: {names!r}")
    found = [name.strip() if isinstance(name, str) else "" for name in names]
    if len(found) < 2 or not all(found):
        raise DataError(f"wanted two class names or more, none of them empty; got {list(names)}")
    name, count = Counter(found).most_common(1)[0]
    if count > 1:
        raise DataError(f"class {name!r} is named {count} times; name each class once")
    return found


def _check(items: Tensor, classes: Tensor, names: list[str], k: int, temperature: float | None) -> None:
    """Refuse what cannot be compared."""
    if items.ndim != 2 or classes.ndim != 2 or items.shape[1] != classes.shape[1] or len(classes) != len(names):
        wanted = f"wanted embeddings (N, S) and classes ({len(names)}, S), a row for each name"
        raise DataError(f"{wanted}; got {tuple(items.shape)} and {tuple(classes.shape)}")
    if not len(items):
        raise DataError("there are no items to classify")
    for what, rows in (("item", items), ("class", classes)):
        bad = ~rows.sum(dim=1, dtype=torch.float32).isfinite()
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(f"the embedding of {what} {row} holds NaN or infinity, so nothing is near it")
    if k < 1:
        raise DataError(f"k must be at least 1, got {k}")
    if temperature is not None and not 0 < temperature < math.inf:
        raise DataError(f"the temperature must be positive, got {temperature}")


def _places(truth: list[Any], names: list[str], count: int) -> NDArray[np.int64]:
    """Return the place of each truth in the names, (N,); -1 where there is none."""
    if len(truth) != count:
        raise DataError(f"wanted a truth for each of {count:,} items (None where it is not known), got {len(truth):,}")
    labels = [label_of(value) for value in truth]
    place = {name: i for i, name in enumerate(names)}
    strangers = Counter(label for label in labels if label is not None and label not in place)
    if strangers:
        most = [
            f"{label!r} ({_number(n, 'item')}{_near(label, names)})" for label, n in strangers.most_common(STRANGERS)
        ]
        rest = f" and {len(strangers) - STRANGERS:,} more" if len(strangers) > STRANGERS else ""
        raise DataError(
            f"the truth holds what is no class: {', '.join(most)}{rest}; add these to the classes, or empty their cells"
        )
    if not any(labels):
        raise DataError(f"the truth is empty for {'all' if count > 1 else 'the'} {_number(count, 'item')}")
    return np.array([-1 if label is None else place[label] for label in labels], dtype=np.int64)


def _near(label: str, names: list[str]) -> str:
    """Name the class that is written most like a label."""
    folded = {name.casefold(): name for name in names}
    near = get_close_matches(label.casefold(), folded, n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"
