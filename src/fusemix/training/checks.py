"""What is looked at before a fit begins: pairs that cannot be fitted are refused, and what is odd is said."""

from fusemix.data.health import Health, examine
from fusemix.data.latents import ItemLatents, Latents
from fusemix.data.store import difference
from fusemix.errors import DataError, MismatchError


def check_pairs(latents: Latents) -> dict[str, Health]:
    """Refuse pairs that no fit can use; return what was found in the latents of each modality.

    Raises:
        DataError: not two modalities, fewer than two pairs, items that are all alike, or latents that are not finite;
            it names the modality or the item.
    """
    if len(latents.modalities) != 2:
        names = ", ".join(latents.modalities)
        count = len(latents.modalities)
        raise DataError(f"a fit joins two modalities, these latents have {count}: {names}; name two of them")
    if len(latents) < 2:
        raise DataError(f"a contrastive fit needs at least 2 pairs, got {len(latents)}")
    found = {}
    for modality in latents.modalities:
        items = latents[modality]
        found[modality] = _check_finite(items)
        if len(found[modality].constant) == items.rows.shape[1]:
            raise DataError(f"{modality}: all {len(items)} latents are the same, so there is nothing to tell apart")
    return found


def check_validation(train: Latents, val: Latents) -> dict[str, Health]:
    """Refuse validation pairs that do not go with the training pairs, or that are a test split.

    Raises:
        DataError: a split named test, other modalities, or latents that are not finite.
        MismatchError: latents of another encoder.
    """
    if "test" in val.splits:
        raise DataError("the epoch must not be chosen on a split named 'test': give the validation pairs, or none")
    if set(val.modalities) != set(train.modalities):
        raise DataError(f"validation pairs are of {', '.join(val.modalities)}; wanted {', '.join(train.modalities)}")
    found = {}
    for modality in train.modalities:
        old, new = train.items[modality], val.items[modality]
        differs = difference({**old.encoder, "width": old.rows.shape[1]}, {**new.encoder, "width": new.rows.shape[1]})
        if differs:
            raise MismatchError(f"the {modality} latents of validation come from another encoder: {differs}")
        found[modality] = _check_finite(val[modality])
    return found


def _check_finite(items: ItemLatents) -> Health:
    health = examine(items)
    if len(health.not_finite):
        first, count = health.names["not_finite"][0], len(health.not_finite)
        raise DataError(f"{items.modality}: the latent of {first!r} is NaN or infinite ({count} such items)")
    return health
