"""What the files tell that a table names: missing, broken, the same under several names, blank; and what they hold."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.data.decoding import Decoders
from fusemix.data.items import Items
from fusemix.data.media import ItemError, Source, Span, is_file, opened
from fusemix.data.pairs import Pairs
from fusemix.inspection.findings import Account, Concern, Finding
from fusemix.inspection.rows import first_rows, listed, share
from fusemix.inspection.sources import Failed
from fusemix.progress import Progress, silent
from fusemix.sound import Sound

AHEAD = 32  # items that are decoded while one is looked at
SILENCE = 1e-4  # of the largest possible sample: -80 dB
FORMS = {"image": "image", "audio": "audio", "video": "video", "file": "file"}
FACTS = {"image": ("pixels wide", "pixels high"), "audio": ("seconds", "Hz"), "video": ("frames", "pixels high")}


@dataclass
class Decoded:
    """What decoding the items of one modality told.

    Attributes:
        looked: numbers of the items that were looked at.
        failed: those that cannot be used, and why.
        facts: two numbers of each that can be, see FACTS.
        blank: pictures of one colour and silent sounds.
    """

    looked: list[int]
    failed: dict[int, Failed] = field(default_factory=dict)
    facts: list[tuple[float, float]] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)


def decode_items(
    items: Items, own: Callable[[Any], Any] | None = None, sample: int | None = None, progress: Progress = silent
) -> Decoded:
    """Decode the items of a modality as an extraction does, and keep nothing of them.

    Of files, those that are not there are found in any case, however small the sample. Texts and vectors are looked at
    as they are: a text of more than a million characters and a vector with NaN fail as they do in an extraction.

    Args:
        items: of any kind.
        own: the user's decoder of a Path or bytes.
        sample: decode only so many, spread evenly; None for all.
        progress: called after every item.

    Raises:
        MissingExtraError: a library that decodes this kind is not installed.
    """
    count = len(items)
    if items.kind == "text" or items.vectors is not None:
        return Decoded(list(range(count)), _unfit(items))
    missing = {i: failed for i in range(count) if (failed := _missing(items.source(i))) is not None}
    spread = np.unique(np.linspace(0, count - 1, min(count, sample or count)).astype(int)).tolist()
    places = [i for i in spread if i not in missing]
    found = Decoded(sorted({*places, *missing}), missing)
    with Decoders() as decoders:
        for done, (i, future) in enumerate(_ahead(decoders, items, own, places), 1):
            try:
                _note(found, i, future.result())
            except ItemError as error:
                found.failed[i] = Failed(error.reason, str(error))
            decoders.let_go(i)
            progress(f"decode {items.name}", done, len(places))
    return found


def account(pairs: Pairs, name: str, looked: int, failed: Mapping[int, Failed]) -> Account:
    """Account for every item of a modality."""
    items = len(pairs.items[name])
    reasons = dict(Counter(failure.reason for failure in failed.values()).most_common())
    empty = int((pairs.rows[name] < 0).sum())
    return Account(items, looked - len(failed), len(failed), items - looked, reasons, empty)


def failures(pairs: Pairs, name: str, failed: Mapping[int, Failed]) -> Iterator[Finding]:
    """Tell what is missing and what is broken."""
    first, items = first_rows(pairs, name), pairs.items[name]
    for missing in (True, False):
        concerns = [
            Concern(int(first[i]), (name, i), message=f"{failure.reason}: {failure.message}")
            for i, failure in sorted(failed.items())
            if (failure.reason == "missing") == missing
        ]
        if not concerns:
            continue
        reasons = Counter(failure.reason for failure in failed.values() if failure.reason != "missing").most_common()
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        sentence = f"{share(len(concerns), len(items))} {name} items " + (
            "are files that are not there" if missing else f"cannot be used: {why}"
        )
        yield Finding("missing file" if missing else "broken item", "problem", name, len(concerns), sentence, concerns)


def contents(pairs: Pairs, name: str, decoded: Decoded) -> Iterator[Finding]:
    """Tell what the decoded items hold: blank ones, and the sizes of all."""
    items, usable = pairs.items[name], len(decoded.looked) - len(decoded.failed)
    if decoded.blank:
        first = first_rows(pairs, name)
        what = "silent" if items.kind == "audio" else "of one colour"
        concerns = [Concern(int(first[i]), (name, i), message=what) for i in decoded.blank]
        sentence = f"{share(len(concerns), usable)} decoded {name} items are {what}"
        yield Finding("blank item", "warning", name, len(concerns), sentence, concerns)
    if decoded.facts:
        parts: list[str] = []
        figures: dict[str, float] = {}
        for what, numbers in zip(FACTS[items.kind], np.array(decoded.facts).T, strict=True):
            low, middle, high = (float(v) for v in np.quantile(numbers, [0, 0.5, 1]))
            same = low == high
            parts.append(f"{low:,.6g} {what}" if same else f"{low:,.4g} to {high:,.4g} {what} (median {middle:,.4g})")
            figures |= {f"{what} min": low, f"{what} median": middle, f"{what} max": high}
        sentence = f"{share(usable, len(items))} items decoded: {listed(parts)}"
        yield Finding("media", "note", name, usable, sentence, figures=figures)


def same_content(pairs: Pairs, name: str, progress: Progress = silent) -> Iterator[Finding]:
    """Tell the files that are byte for byte the same under several names; only files of one size are read."""
    items = pairs.items[name]
    if items.kind in ("text", "vector"):
        return
    several = list(_same_bytes(items, progress))
    if not several:
        return
    first = first_rows(pairs, name)
    splits = {int(i): pairs.splits[row] for i, row in enumerate(first.tolist())}
    concerns, across = [], 0
    for same in several:
        where = sorted({str(splits[i]) for i in same})
        across += len(where) > 1
        message = f"one of {len(same)}; in {listed(where)}"
        concerns += [
            Concern(int(first[b]), (name, b), int(first[same[0]]), (name, same[0]), float(len(where)), message)
            for _, b in pairwise(same)
        ]
    concerns.sort(key=lambda concern: -(concern.score or 0))
    concerns = [concern._replace(score=None) for concern in concerns]
    told = f"; {across:,} of these contents are in more than one split" if across else ""
    sentence = f"{share(len(concerns), len(items))} {name} files have the content of another{told}"
    figures: dict[str, float] = {"contents": len(several), "across splits": across}
    severity = "problem" if across else "warning"
    yield Finding("same content", severity, name, len(concerns), sentence, concerns, figures)  # type: ignore[arg-type]


def _unfit(items: Items) -> dict[int, Failed]:
    if items.vectors is None:
        limit = 1_000_000  # as an extraction has it
        long = [i for i, value in enumerate(items.values) if len(value) > limit]
        return {i: Failed("too long", f"{len(items.values[i]):,} characters, the limit is {limit:,}") for i in long}
    bad = [i for i, vector in enumerate(items.vectors) if not np.isfinite(vector).all()]
    return {i: Failed("not finite", "NaN or infinity in the vector") for i in bad}


def _missing(source: Source) -> Failed | None:
    path = source.path if isinstance(source, Span) else source
    # What is there and no file, as a folder or a disk that refuses, is left to the decoder to name.
    if isinstance(path, Path) and not is_file(path) and not _exists(path):
        return Failed("missing", f"no file {path}")
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _ahead(
    decoders: Decoders, items: Items, own: Callable[[Any], Any] | None, places: list[int]
) -> Iterator[tuple[int, "Future[Any]"]]:
    """Decode a few items ahead of the one that is looked at."""
    waiting: deque[tuple[int, Future[Any]]] = deque()
    for i in places:
        source = items.source(i)
        future = decoders.submit(FORMS[items.kind], source, i) if own is None else decoders.submit_call(own, source, i)
        waiting.append((i, future))
        if len(waiting) > AHEAD:
            decoders.take_turn(waiting[0][0])
            yield waiting.popleft()
    while waiting:
        decoders.take_turn(waiting[0][0])
        yield waiting.popleft()


def _note(found: Decoded, i: int, value: Any) -> None:
    """Note what one decoded item is like; of what the user's own decoder gives, nothing is known."""
    if isinstance(value, Sound):
        found.facts.append((len(value.samples) / value.rate, value.rate))
        if float(np.abs(value.samples).max()) < SILENCE:
            found.blank.append(i)
    elif isinstance(value, list) and value and hasattr(value[0], "height"):
        found.facts.append((len(value), value[0].height))
    elif hasattr(value, "getextrema"):
        found.facts.append((value.width, value.height))
        if all(low == high for low, high in value.getextrema()):
            found.blank.append(i)


def _same_bytes(items: Items, progress: Progress) -> list[list[int]]:
    """Return the items of equal content, for each content that several have."""
    sizes = defaultdict(list)
    for i in range(len(items)):
        # What was embedded in a table has no file any more once it is latents, and may have no name.
        size = _size(items.source(i)) if items.values[i] is not None or items.content is not None else 0
        if size:  # empty files are broken, and no copies of one another
            sizes[size].append(i)
    alike = [i for same in sizes.values() if len(same) > 1 for i in same]
    found = defaultdict(list)
    for done, i in enumerate(alike, 1):
        try:
            with opened(items.source(i)) as file:
                found[_hash(file)].append(i)
        except ItemError:  # told by the decoder
            pass
        progress(f"compare {items.name}", done, len(alike))
    return [same for same in found.values() if len(same) > 1]


def _size(source: Source) -> int:
    if isinstance(source, bytes):
        return 0  # embedded files are told apart by their content already
    if isinstance(source, Span):
        return source.size
    try:
        return source.stat().st_size if source.is_file() else 0
    except (OSError, ValueError):
        return 0


def _hash(file: Any) -> bytes:
    digest = blake2b(digest_size=16)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.digest()
