"""What the rows of a table tell, before any file is opened: counts, gaps, repeats, captions, balance, splits."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusemix.data.items import Items, Rows
from fusemix.data.pairs import SPLITS, Pairs
from fusemix.errors import DataError, choices
from fusemix.inspection.findings import Concern, Finding, Severity

MANY = 0.05  # share of the rows above which repeated captions are a warning, and no note any more
LONG = 190  # words, see `MEANING`
FEW_VALUES = 50  # a column of at most so many different values is one of classes or sources
ROWS_PER_VALUE = 5  # and has on average at least so many rows of each
_GAP = re.compile(r"[\W_]+")


def look_at_rows(pairs: Pairs, by: Sequence[str] = ()) -> list[Finding]:
    """Look at everything that needs no file.

    Args:
        pairs: rows and items.
        by: columns whose balance is wanted; by default those of few values.

    Raises:
        DataError: there is no such column.
    """
    found = [*_counts(pairs), *_unread(pairs), *_repeated_rows(pairs), *_straddling_items(pairs)]
    found += _straddling_groups(pairs)
    for items in pairs.items.values():
        found += _empty_cells(pairs, items)
        if items.kind == "text":
            found += [*_lengths(pairs, items), *_alike(pairs, items), *_repeated_captions(pairs, items)]
    return [*found, *_balance(pairs, by)]


def first_rows(pairs: Pairs, name: str) -> Rows:
    """Return for each item of a modality (n,) the first row that it occurs in; -1 for one that has none."""
    first = np.full(len(pairs.items[name]), -1)
    found, where = np.unique(pairs.rows[name], return_index=True)
    first[found[found >= 0]] = where[found >= 0]
    return first


def share(count: int, total: int) -> str:
    """Say a part of a whole, as "12 of 3,000 (0.40 %)"."""
    percent = 100 * count / max(1, total)
    return f"{count:,} of {total:,} ({percent:.{0 if percent >= 10 or not percent else 1 if percent >= 1 else 2}f} %)"


def listed(words: Sequence[str]) -> str:
    """Join words as "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _counts(pairs: Pairs) -> Iterator[Finding]:
    sizes = [f"{len(items):,} distinct {name} items ({items.kind})" for name, items in pairs.items.items()]
    figures: dict[str, float] = {name: len(items) for name, items in pairs.items.items()}
    yield Finding("counts", "note", "", len(pairs), f"{len(pairs):,} rows of {listed(sizes)}", figures=figures)
    names, codes = _codes(pairs.splits)
    counts = np.bincount(codes).tolist()
    groups = [len(np.unique(pairs.groups[codes == code])) for code in range(len(names))]
    parts = [f"{name} {c:,} rows in {g:,} groups" for name, c, g in zip(names, counts, groups, strict=True)]
    figures = dict(zip(names, counts, strict=True))
    yield Finding("splits", "note", "", len(names), ", ".join(parts), figures=figures)


def _unread(pairs: Pairs) -> Iterator[Finding]:
    if pairs.problems:
        concerns = [Concern(message=f"{p.id}: {p.reason}: {p.message}") for p in pairs.problems]
        count = len(concerns)
        yield Finding("unread", "problem", "", count, f"{count:,} could not be read", concerns)


def _empty_cells(pairs: Pairs, items: Items) -> Iterator[Finding]:
    empty = np.flatnonzero(pairs.rows[items.name] < 0).tolist()
    if empty:
        concerns = [Concern(row, message=f"no {items.name}") for row in empty]
        sentence = f"{share(len(empty), len(pairs))} rows have no {items.name}"
        yield Finding("empty cell", "warning", items.name, len(empty), sentence, concerns)


def _repeated_rows(pairs: Pairs) -> Iterator[Finding]:
    keys = np.stack(list(pairs.rows.values()), axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    original = first[inverse.ravel()]  # of some versions of numpy it is (N, 1)
    again = np.flatnonzero((original != np.arange(len(keys))) & (keys >= 0).all(axis=1)).tolist()
    if again:
        concerns = [Concern(row, other_row=int(original[row]), message="the same pair") for row in again]
        sentence = f"{share(len(again), len(pairs))} rows repeat an earlier row whole"
        yield Finding("repeated row", "warning", "", len(again), sentence, concerns)


def _codes(splits: NDArray[np.str_]) -> tuple[list[str], Rows]:
    """Return the names of the splits, train, val and test first, and which of them each row is in (N,)."""
    names, codes = np.unique(splits, return_inverse=True)
    order = sorted(range(len(names)), key=lambda i: (SPLITS.index(names[i]) if names[i] in SPLITS else 3, names[i]))
    return names[order].tolist(), np.argsort(order)[codes]


def _straddling(keys: Rows, codes: Rows) -> Rows:
    """Return the keys that occur in more than one split."""
    both = np.unique(np.stack([keys, codes], axis=1)[keys >= 0], axis=0)
    found, counts = np.unique(both[:, 0], return_counts=True)
    return found[counts > 1]


def _across(pairs: Pairs, keys: Rows, straddling: Rows, name: str | None = None, what: str = "in") -> Iterator[Concern]:
    """Show each straddling key by one row of the first of its splits and one of the next."""
    names, codes = _codes(pairs.splits)
    rows = np.flatnonzero(np.isin(keys, straddling))
    rows = rows[np.argsort(keys[rows], kind="stable")]
    for mine in np.split(rows, np.flatnonzero(np.diff(keys[rows])) + 1):
        different = np.unique(codes[mine], return_index=True)[1]
        a, b = (int(mine[i]) for i in np.sort(different)[:2])
        item = (name, int(keys[a])) if name else None
        yield Concern(a, item, b, message=f"{what} {listed([names[c] for c in np.unique(codes[mine])])}")


def _straddling_items(pairs: Pairs) -> Iterator[Finding]:
    _, codes = _codes(pairs.splits)
    for name, items in pairs.items.items():
        straddling = _straddling(pairs.rows[name], codes)
        if len(straddling):
            rows = int(np.isin(pairs.rows[name], straddling).sum())
            few: Severity = "warning" if rows > MANY * len(pairs) else "note"
            severity = few if items.kind == "text" else "problem"
            sentence = f"{share(len(straddling), len(items))} {name} items are in more than one split ({rows:,} rows)"
            concerns = list(_across(pairs, pairs.rows[name], straddling, name))
            yield Finding("straddling item", severity, name, len(straddling), sentence, concerns)


def _straddling_groups(pairs: Pairs) -> Iterator[Finding]:
    """Tell the groups in several splits, but for those that an item in several splits tells already."""
    _, codes = _codes(pairs.splits)
    straddling = _straddling(pairs.groups, codes)
    for name, items in pairs.items.items():
        if items.kind != "text":
            told = np.isin(pairs.rows[name], _straddling(pairs.rows[name], codes))
            straddling = np.setdiff1d(straddling, pairs.groups[told])
    if len(straddling):
        total = len(np.unique(pairs.groups))
        sentence = f"{share(len(straddling), total)} groups are in more than one split"
        concerns = list(_across(pairs, pairs.groups, straddling, what="its group is in"))
        yield Finding("straddling group", "problem", "", len(straddling), sentence, concerns)


def _lengths(pairs: Pairs, items: Items) -> Iterator[Finding]:
    words = np.array([len(value.split()) for value in items.values])
    characters = np.array([len(value) for value in items.values])
    parts: list[str] = []
    figures: dict[str, float] = {}
    for what, lengths in (("words", words), ("characters", characters)):
        low, middle, high, most = (int(v) for v in np.quantile(lengths, [0, 0.5, 0.95, 1], method="lower"))
        parts.append(f"{low:,} to {most:,} {what} (median {middle:,}, 95 % up to {high:,})")
        figures |= {f"{what}_min": low, f"{what}_median": middle, f"{what}_p95": high, f"{what}_max": most}
    yield Finding("caption length", "note", items.name, len(items), ", ".join(parts), figures=figures)
    first = first_rows(pairs, items.name)
    long = np.flatnonzero(words > LONG)
    if len(long):
        order = long[np.argsort(-words[long], kind="stable")].tolist()
        concerns = [_text(items, first, i, float(words[i]), f"{words[i]:,} words") for i in order]
        sentence = f"{share(len(long), len(items))} texts have more than {LONG} words"
        yield Finding("long caption", "warning", items.name, len(long), sentence, concerns)


def _text(items: Items, first: Rows, i: int, score: float | None, message: str) -> Concern:
    return Concern(int(first[i]), (items.name, i), score=score, message=message)


def _alike(pairs: Pairs, items: Items) -> Iterator[Finding]:
    first = first_rows(pairs, items.name)
    alike: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(items.values):
        alike[_GAP.sub(" ", value.casefold()).strip()].append(i)
    wordless = alike.pop("", [])
    if wordless:
        concerns = [_text(items, first, i, None, "no word in it") for i in wordless]
        sentence = f"{share(len(wordless), len(items))} texts have neither a letter nor a digit"
        yield Finding("wordless caption", "warning", items.name, len(wordless), sentence, concerns)
    several = [same for same in alike.values() if len(same) > 1]
    if several:
        concerns = [
            Concern(int(first[i]), (items.name, i), int(first[same[0]]), (items.name, same[0]))
            for same in several
            for i in same[1:]
        ]
        severity: Severity = "warning" if len(concerns) > MANY * len(items) else "note"
        sentence = f"{share(len(concerns), len(items))} texts differ from another only in case, punctuation or space"
        yield Finding("alike captions", severity, items.name, len(concerns), sentence, concerns)


def _repeated_captions(pairs: Pairs, items: Items) -> Iterator[Finding]:
    """Tell the texts that stand beside several items of another modality; of one that is no text, if there is one."""
    others = [name for name in pairs.items if name != items.name]
    other = next((name for name in others if pairs.items[name].kind != "text"), others[0])
    keys = np.stack([pairs.rows[items.name], pairs.rows[other]], axis=1)
    texts, counts = np.unique(np.unique(keys[(keys >= 0).all(axis=1)], axis=0)[:, 0], return_counts=True)
    repeated, counts = texts[counts > 1], counts[counts > 1]
    if len(repeated):
        rows = int(np.isin(keys[:, 0], repeated).sum())
        first = first_rows(pairs, items.name)
        concerns = [
            _text(items, first, int(repeated[k]), float(counts[k]), f"beside {counts[k]:,} different {other} items")
            for k in np.argsort(-counts, kind="stable").tolist()
        ]
        severity: Severity = "warning" if rows > MANY * len(pairs) else "note"
        sentence = f"{len(repeated):,} texts stand beside several {other} items, in {share(rows, len(pairs))} rows"
        yield Finding("repeated caption", severity, items.name, len(repeated), sentence, concerns)


def _balance(pairs: Pairs, by: Sequence[str]) -> Iterator[Finding]:
    for name in by:
        if name not in pairs.table.column_names:
            raise DataError(f"no column {name!r} to balance by; {choices(name, pairs.table.column_names)}")
    for name in by or pairs.table.column_names:
        column = pairs.table[name]
        if by or _is_of_classes(column, pairs):
            yield from _values(pairs, name, column.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False))


def _is_of_classes(column: pa.ChunkedArray, pairs: Pairs) -> bool:
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return False
    count = pc.count_distinct(column).as_py()
    if not 2 <= count <= min(FEW_VALUES, len(pairs) // ROWS_PER_VALUE):
        return False
    codes = column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    together = len(np.unique(np.stack([codes, _codes(pairs.splits)[1]], axis=1), axis=0))
    return bool(together > max(count, len(np.unique(pairs.splits))))  # else it is the split under another name


def _values(pairs: Pairs, name: str, values: NDArray[np.object_]) -> Iterator[Finding]:
    names, codes = _codes(pairs.splits)
    found, inverse = np.unique(values.astype(str), return_inverse=True)
    words = found.tolist()
    counts = np.zeros((len(found), len(names)), dtype=np.int64)
    np.add.at(counts, (inverse, codes), 1)
    totals = counts.sum(axis=1)
    order = np.argsort(-totals, kind="stable").tolist()
    concerns = [
        Concern(score=float(totals[i]), message=f"{name} = {words[i]}: {_by_split(names, counts[i])}") for i in order
    ]
    most, least = order[0], order[-1]
    sentence = (
        f"column {name}: {len(found):,} values, from {words[most]!r} ({totals[most]:,} rows) "
        f"to {words[least]!r} ({totals[least]:,} rows)"
    )
    figures: dict[str, float] = {"values": len(found), "most": int(totals[most]), "least": int(totals[least])}
    yield Finding("balance", "note", "", len(found), sentence, concerns, figures)
    if "train" in names and len(names) > 1:
        absent = [i for i in order if not counts[i, names.index("train")]]
        if absent:
            sentence = f"column {name}: {share(len(absent), len(found))} values are never in train"
            concerns = [c for c, i in zip(concerns, order, strict=True) if i in absent]
            yield Finding("absent value", "warning", "", len(absent), sentence, concerns)


def _by_split(names: list[str], counts: NDArray[np.int64]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in zip(names, counts.tolist(), strict=True) if count)
