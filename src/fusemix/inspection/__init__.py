"""Inspect: what is wrong with data, before a model sees them and once there are latents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusemix.data.pairs import Pairs, read_pairs, require_files
from fusemix.encoders.function import load_function
from fusemix.errors import DataError, choices
from fusemix.inspection.files import account, contents, decode_items, failures, same_content
from fusemix.inspection.findings import KINDS, SEVERITIES, Account, Concern, Finding
from fusemix.inspection.result import Inspection
from fusemix.inspection.rows import look_at_rows
from fusemix.inspection.sources import is_latents, open_kept
from fusemix.progress import Progress, silent

__all__ = ["Account", "Concern", "Finding", "Inspection", "inspect"]


def inspect(
    source: str | Path,
    *,
    group: str | None = None,
    split: str | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    decode: Mapping[str, str | Callable[..., Any]] | None = None,
    sample: int | None = None,
    by: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress = silent,
    **columns: str,
) -> Inspection:
    """Find out what is wrong with data.

    Of raw data no model is loaded: rows, splits, captions and balance are counted, and every file is decoded as
    `extract` would. Of a folder of latents the files are not decoded again; what the latents tell comes on top. All
    splits are looked at, and nothing is chosen by what is found.

    Args:
        source: what `read_pairs` takes, or a folder that `extract` wrote.
        group: see `read_pairs`; of a folder of latents the pairs are what they are.
        split: see `read_pairs`.
        root: see `read_pairs`.
        seed: of a random split.
        decode: modality=your own decoder, see `extract`.
        sample: decode only so many items of each modality, spread evenly; None for all.
        by: columns whose balance is wanted; by default those of few values.
        out: folder to write report.html and inspect.parquet to.
        progress: called after every item.
        **columns: see `read_pairs`.

    Raises:
        DataError: as `read_pairs`; or columns and splits that are given for a folder of latents.
        StoreError: as `open_latents`.
        MissingExtraError: a library that decodes these files is not installed.
    """
    if sample is not None and sample < 1:
        raise DataError(f"sample must be at least 1, got {sample}")
    if is_latents(source):
        given = {"group": group, "split": split, "root": root, "decode": decode, "sample": sample, **columns}
        for name in [name for name, value in given.items() if value is not None]:
            raise DataError(f"{source} holds latents, whose pairs are settled; leave out {name}")
        found = _inspect_latents(Path(source), by, progress)
    else:
        pairs = read_pairs(source, group=group, split=split, root=root, seed=seed, **columns)
        found = _inspect_raw(str(source), pairs, by, decode or {}, sample, progress)
    if out is not None:
        found.save(out)
    return found


def _inspect_raw(
    source: str,
    pairs: Pairs,
    by: Sequence[str],
    decode: Mapping[str, str | Callable[..., Any]],
    sample: int | None,
    progress: Progress,
) -> Inspection:
    for name in decode:
        if name not in pairs.items:
            raise DataError(f"a decoder is given for {name!r}, which is no modality; {choices(name, pairs.items)}")
    accounts, found = {}, look_at_rows(pairs, by)
    for items in pairs.items.values():
        require_files(items)
    for name, items in pairs.items.items():
        own = decode.get(name)
        function = load_function(own).function if isinstance(own, str) else own
        decoded = decode_items(items, function, sample, progress)
        accounts[name] = account(pairs, name, len(decoded.looked), decoded.failed)
        found += [*failures(pairs, name, decoded.failed), *contents(pairs, name, decoded)]
        found += same_content(pairs, name, progress)
    return Inspection(source, pairs, accounts, list(_in_order(found)), False)


def _inspect_latents(folder: Path, by: Sequence[str], progress: Progress) -> Inspection:
    from fusemix.inspection.vectors import look_at_latents

    kept = open_kept(folder)
    pairs, accounts, found = kept.pairs, {}, look_at_rows(kept.pairs, by)
    for name, items in pairs.items.items():
        accounts[name] = account(pairs, name, len(items), kept.failed[name])
        found += [*failures(pairs, name, kept.failed[name]), *same_content(pairs, name, progress)]
    found += look_at_latents(kept, progress)
    return Inspection(str(folder), pairs, accounts, list(_in_order(found)), True)


def _in_order(found: Sequence[Finding]) -> Iterator[Finding]:
    """Put the worst first, and of one severity in the order of the kinds."""
    yield from sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), KINDS.index(finding.kind)))
