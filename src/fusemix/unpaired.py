"""Items without partners, as a user gives them: which of them may be learned from."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fusemix.data.latents import ItemLatents, Latents
from fusemix.errors import DataError
from fusemix.state import Side


def without_partners(
    given: Sequence[Latents] | Mapping[str, ArrayLike], train: Latents, val: Latents | None
) -> dict[str, list[ItemLatents]]:
    """Return items without partners, by modality.

    Args:
        given: arrays by modality; or latents of one or more modalities, of whose splits val and test nothing is taken,
            and no item that is in `val`.
        train: the pairs that they go with.
        val: pairs to choose by.

    Raises:
        DataError: no modality of the pairs, latents of another shape, or values that are not finite.
        MismatchError: latents of another encoder.
    """
    found: dict[str, list[ItemLatents]] = {}
    if isinstance(given, Mapping):
        given = [Latents.from_arrays("arrays", **{name: array}) for name, array in given.items()]
    for latents in given:
        allowed = latents.take(~np.isin(latents.splits, ("val", "test")))
        names = [name for name in allowed.modalities if name in train.modalities]
        if not names:
            raise DataError(
                f"unpaired: wanted items of {' or '.join(train.modalities)}, got {' and '.join(latents.modalities)}"
            )
        for name in names:
            Side.of(train.items[name]).check(allowed.items[name])
            found.setdefault(name, []).append(_unseen(allowed[name], val))
    return {name: parts for name, parts in found.items() if any(map(len, parts))}


def latents_of(items: Mapping[str, Sequence[ItemLatents]]) -> dict[str, Tensor]:
    """Return the latents (n, D) of each modality in one tensor, float32."""
    return {name: torch.cat([each.rows.whole().cpu().float() for each in parts]) for name, parts in items.items()}


def _unseen(items: ItemLatents, val: Latents | None) -> ItemLatents:
    """Leave out items that are among those one chooses by."""
    judges = set() if val is None or items.modality not in val.items else set(val[items.modality].ids)
    keep = [row for row, id_ in enumerate(items.ids) if id_ not in judges]
    return items.select(np.array(keep, dtype=np.int64))
