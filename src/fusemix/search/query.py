"""Queries: terms of any kind, added and subtracted in the shared space, and the words that write them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusemix.data.items import SUFFIXES
from fusemix.data.media import is_file
from fusemix.errors import DataError

VECTOR = ".npy"
_TERM = re.compile(
    r"""\s*(?P<sign>[+-]?)\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?
    (?P<id>id:)?(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>\S+))(?=\s|$)""",
    re.VERBOSE,
)


class ItemId(NamedTuple):
    """An item that is in the index already.

    Attributes:
        id: its key.
        modality: of the item; None where one modality only has an item of this id.
    """

    id: str
    modality: str | None = None


@dataclass(frozen=True)
class Term:
    """One part of a query.

    Attributes:
        value: a raw item (text, Path, PIL image, Sound, list of PIL images), an ItemId, or a vector: (S,) numbers of
            the shared space, or (D,) of a latent where `modality` is said.
        modality: what a raw item is, where its type does not tell; or of the latent.
        weight: how much it counts; below zero it is subtracted.
    """

    value: Any
    modality: str | None = None
    weight: float = 1.0


def terms_of(query: Any, modality: str | None) -> list[Term]:
    """Return a query of one part, or of several, as its terms."""
    are_terms = isinstance(query, list) and bool(query) and all(isinstance(term, Term) for term in query)
    return query if are_terms else [Term(query, modality)]


def parse(text: str, modality: str | None = None) -> list[Term]:
    """Read a query as one types it: words, a file, id:ITEM, or several of them as "photo.jpg - 'day' + 'night'".

    In arithmetic, words stand in quotes; text in which nothing is quoted, a file or an item is text as a whole. A .npy
    file is a vector. An id that holds spaces stands in quotes, too, as id:'my photo.jpg', unless it stands alone.

    Args:
        text: the query.
        modality: what files and texts in it are, where their names do not tell.

    Raises:
        DataError: an empty query, a file that is not there, or arithmetic over words without quotes.
    """
    word = text.strip()
    if is_file(Path(text)):
        return [_term(text, 1.0, modality)]
    parts = _parts(word)
    if not word or any(not part.strip() for _, part, _ in parts or ()):
        raise DataError("nothing to search for: the query is empty")
    if parts is None:
        alone = word.startswith("id:") or (" " not in word and modality is None and _is_special(word))
        return [_term(word, 1.0, modality) if alone else Term(text, modality)]
    return [Term(word, modality, weight) if quoted else _term(word, weight, modality) for weight, word, quoted in parts]


def _parts(text: str) -> list[tuple[float, str, bool]] | None:
    """Cut arithmetic into (weight, word, quoted); None of what is plain text."""
    found: list[tuple[float, str, bool]] = []
    place = 0
    while place < len(text):
        match = _TERM.match(text, place)
        if match is None or (found and not match["sign"]):
            return None
        word = next(word for word in (match["single"], match["double"], match["bare"]) if word is not None)
        weight = float(match["number"] or 1) * (-1 if match["sign"] == "-" else 1)
        found.append((weight, (match["id"] or "") + word, match["bare"] is None and not match["id"]))
        place = match.end()
    special = [quoted or _is_special(word) for _, word, quoted in found]
    if not any(special) or found == [(1.0, text, False)]:
        return None
    for (_, word, _), known in zip(found, special, strict=True):
        if not known:
            raise DataError(f"{word!r} in the query: no such file; words in arithmetic stand in quotes, as '{word}'")
    return found


def _is_special(word: str) -> bool:
    """Tell whether a word is an item, a file that is there, or the name of a file of media."""
    return word.startswith("id:") or is_file(Path(word)) or Path(word).suffix.lower() in {*SUFFIXES, VECTOR}


def _term(word: str, weight: float, modality: str | None) -> Term:
    if word.startswith("id:"):
        return Term(ItemId(word.removeprefix("id:"), modality), None, weight)
    if Path(word).suffix.lower() == VECTOR:
        return Term(_vector(Path(word)), modality, weight)
    return Term(Path(word), modality, weight)


def _vector(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path}: no array of numbers ({error})") from error
    return array


def combine(weights: Sequence[float], vectors: Sequence[NDArray[Any]], dim: int) -> NDArray[np.float32]:
    """Add up vectors (S + M,) with their weights, and give the first S numbers of the sum, `dim` of them, unit norm.

    Raises:
        DataError: the terms cancel, so that nothing is left to search for, or a weight is no number.
    """
    if not np.isfinite(weights).all():
        raise DataError(f"a term of the query has the weight {next(w for w in weights if not np.isfinite(w))}")
    total = np.zeros(len(vectors[0]), dtype=np.float64)
    for weight, vector in zip(weights, vectors, strict=True):
        total += weight * vector.astype(np.float64)
    length = np.linalg.norm(total[:dim])
    if not length > 1e-6 * np.abs(weights).sum():
        raise DataError("the terms of the query cancel each other, so nothing is left to search for")
    return (total / length).astype(np.float32)


def numbers(vector: Any, width: int, what: str, hint: str = "") -> NDArray[np.float64]:
    """Read finite numbers, (width,) or (1, width).

    Raises:
        DataError: another shape, or numbers that are none or not finite.
    """
    array = np.asarray(vector)
    if array.dtype.kind not in "fiu" or array.shape not in ((width,), (1, width)):
        raise DataError(f"{what}: wanted {width} numbers, got {array.dtype} of shape {array.shape}{hint}")
    with np.errstate(over="ignore"):
        if not np.isfinite(array.astype(np.float32)).all():
            raise DataError(f"{what}: the numbers must be finite")
    return array.astype(np.float64).ravel()


def unit(vector: Any, width: int) -> NDArray[np.float32]:
    """Read a vector (S,) or (1, S) of the shared space, and give it unit norm.

    Raises:
        DataError: another shape, or numbers that are not finite or all zero.
    """
    array = numbers(vector, width, "a vector of the shared space", "; of a latent say the modality (--from)")
    length = np.linalg.norm(array)
    if not length:
        raise DataError("a vector of the shared space: the numbers must not all be zero")
    found: NDArray[np.float32] = (array / length).astype(np.float32)
    return found
