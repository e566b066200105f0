"""From the latents of one encoder to those of another, so that a gallery need not be encoded again.

Two encoders of the same things differ mostly by a rotation (arXiv 2602.17584 finds it for CLIP-like models), and a
rotation is learned from few items, without pairs. `docs/recall.md` has how much recall it keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusemix.align.closed_form import procrustes
from fusemix.align.moments import moments
from fusemix.align.neighbours import nearest
from fusemix.data.latents import ItemLatents, Latents
from fusemix.data.rows import LatentRows
from fusemix.errors import DataError

FEWEST = 10  # items that both encoders have encoded
HELD_SHARE = 0.2  # of them, to see what a map keeps that has not seen them


@dataclass(frozen=True)
class Rotation:
    """Orthogonal Procrustes with one scale: new = (old - shift) @ turn + offset.

    Attributes:
        shift: (D,) mean of the old latents.
        turn: (D, E).
        offset: (E,) mean of the new ones.
    """

    shift: Tensor
    turn: Tensor
    offset: Tensor

    @classmethod
    def fit(cls, old: Tensor, new: Tensor) -> "Rotation":
        """Fit to old (N, D) and new latents (N, E) of the same items."""
        rows = np.arange(len(old))
        m = moments(old, new, (rows, rows))
        form = procrustes(m)
        turn = form.map_x @ form.map_y.T
        turned = turn.double()
        scale = float((turned * m.xy).sum() / (turned * (m.xx @ turned)).sum().clamp(min=1e-12))
        return cls(form.shift_x, scale * turn, form.shift_y)

    def __call__(self, latents: Tensor) -> Tensor:
        """Map old latents (N, D) to (N, E), float32."""
        return (latents.float() - self.shift) @ self.turn + self.offset


@dataclass(frozen=True)
class Migration:
    """What was learned of two encoders of the same items.

    Attributes:
        old, new: latents by the old and by the new encoder.
        rotation: of all items that both have.
        trial: of four fifths of them.
        held: the others, as rows of `old` and of `new`, (H,) each.
        shared: how many items both have.
        found: share of held-out items whose mapped latent is nearest to their own new latent, among those of all
            held-out items, in [0, 1].
    """

    old: ItemLatents
    new: ItemLatents
    rotation: Rotation
    trial: Rotation
    held: tuple[NDArray[np.int64], NDArray[np.int64]]
    shared: int
    found: float

    def items(self) -> ItemLatents:
        """Return the old items as if the new encoder had encoded them."""
        return self._as_new(self.old, torch.cat([self.rotation(block) for block in self.old.rows.blocks()]))

    def held_out(self, pairs: Latents) -> tuple[Latents, Latents]:
        """Return the pairs of items that the trial has not seen: as the new encoder has them, and mapped by the trial.

        Args:
            pairs: those that `new` is of.
        """
        name, (old, new) = self.new.modality, self.held
        part = pairs.take(np.isin(pairs.rows[name], new))
        place = np.searchsorted(new, part.rows[name])
        native = self.new.select(new)
        mapped = self._as_new(native, self.trial(self.old.rows.take(old)))
        rows = {**part.rows, name: place}
        encoded, moved = (replace(part, items={**part.items, name: each}, rows=rows) for each in (native, mapped))
        return encoded, moved

    def _as_new(self, items: ItemLatents, latents: Tensor) -> ItemLatents:
        new = self.new
        return replace(
            items, rows=LatentRows.of(latents), encoder=new.encoder, source=new.source, decode=new.decode,
            canaries=new.canaries,
        )  # fmt: skip


def migrate(old: ItemLatents, new: ItemLatents, seed: int = 0) -> Migration:
    """Learn how the latents of a new encoder follow from those of an old one.

    Args:
        old: items that the old encoder has encoded, such as a whole gallery.
        new: items of which the new encoder has encoded at least some that `old` has, too; they are known by their ids.
        seed: deals the items that the trial does not see.

    Raises:
        DataError: too few items that both have.
    """
    row_of = {id_: row for row, id_ in enumerate(old.ids)}
    both = [(row_of[id_], row) for row, id_ in enumerate(new.ids) if id_ in row_of]
    if len(both) < FEWEST:
        raise DataError(
            f"{len(both)} items have latents by both encoders, at least {FEWEST} are wanted, better as many as a "
            f"latent has numbers ({old.rows.shape[1]:,}); extract some of the same {old.modality} items with the new "
            "encoder"
        )
    rows = np.array(both, dtype=np.int64)
    held = np.zeros(len(rows), dtype=bool)
    held[np.random.default_rng(seed).permutation(len(rows))[: max(2, round(HELD_SHARE * len(rows)))]] = True
    a, b = old.rows.take(rows[:, 0]), new.rows.take(rows[:, 1])
    trial = Rotation.fit(a[~held], b[~held])
    mapped, native = trial(a[held]) - trial.offset, b[held].float() - trial.offset
    found = (nearest(mapped, native, 1)[1][:, 0] == torch.arange(len(native))).float().mean()
    rest = rows[held][:, 0], rows[held][:, 1]
    return Migration(old, new, Rotation.fit(a, b), trial, rest, len(rows), float(found))


class Evaluates(Protocol):
    """What `kept` needs of a model."""

    def evaluate(self, latents: Latents) -> Any:
        """Measure retrieval, see `FuseMix.evaluate`."""


def kept(model: Evaluates, migration: Migration, pairs: Latents) -> Mapping[str, tuple[float, float]]:
    """Return R@1 of each direction on held-out items in percent: of the new encoder itself, and of mapped latents.

    Nothing where no pair is of held-out items.
    """
    encoded_pairs, moved_pairs = migration.held_out(pairs)
    if not len(encoded_pairs):
        return {}
    encoded, moved = (model.evaluate(each).retrieval for each in (encoded_pairs, moved_pairs))
    return {way: (encoded[way].recall[1], moved[way].recall[1]) for way in encoded}
