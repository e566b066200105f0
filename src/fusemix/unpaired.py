"""Items without partners, as a user gives them: which of them may be learned from."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fusemix.data.latents import ItemLatents, Latents
from fusemix.errors import DataError
from fusemix.state import Side


def without_partners(
    given: Latents | Sequence[Latents] | Mapping[str, ArrayLike], train: Latents
) -> dict[str, list[ItemLatents]]:
    """Return items without partners, by modality.

    Args:
        given: arrays by modality; or latents of one or more modalities, of whose splits val and test nothing is taken.
        train: the pairs that they go with.

    Raises:
        DataError: no modality of the pairs, no items, latents of another shape, or values that are not finite.
        MismatchError: latents of another encoder.
    """
    found: dict[str, list[ItemLatents]] = {}
    if isinstance(given, Mapping):
        given = [Latents.from_arrays("arrays", **{name: array}) for name, array in given.items()]
    for latents in [given] if isinstance(given, Latents) else given:
        if not isinstance(latents, Latents):
            raise DataError(
                f"unpaired: wanted Latents, or arrays by modality such as unpaired={{{train.modalities[0]!r}: array}}, "
                f"got {type(latents).__name__}"
            )
        allowed = latents.take(~np.isin(latents.splits, ("val", "test")))
        names = [name for name in allowed.modalities if name in train.modalities]
        if not names:
            raise DataError(
                f"unpaired: wanted items of {' or '.join(train.modalities)}, got {' and '.join(latents.modalities)}"
            )
        for name in names:
            Side.of(train.items[name]).check(allowed.items[name])
            found.setdefault(name, []).append(allowed[name])
    kept = {name: parts for name, parts in found.items() if any(map(len, parts))}
    if found and not kept:
        raise DataError(
            "unpaired: no item is left beside those of the splits val and test, from which nothing is learned"
        )
    return kept
