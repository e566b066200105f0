"""Conditions on the columns of items, as "price < 20": text in, a mask out."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusemix.errors import DataError, choices

_COMPARED = {
    "=": "equal", "==": "equal", "!=": "not_equal", "<>": "not_equal",
    "<=": "less_equal", ">=": "greater_equal", "<": "less", ">": "greater",
}  # fmt: skip
_HOW = r"<=|>=|!=|<>|==|[=<>~]"
_REST = re.compile(rf"\s*(?P<how>{_HOW})\s*(?P<value>.*)", re.DOTALL)  # of a condition, after its column
_QUOTED = re.compile(r"""(['"])(?P<inner>((?!\1).)*)\1""", re.DOTALL)
_NUMBER = r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"


def mask(table: pa.Table, where: Sequence[str]) -> NDArray[np.bool_]:
    """Say which rows fulfil every condition.

    Args:
        table: N rows.
        where: conditions "COLUMN HOW VALUE"; HOW is one of = != < <= > >= and ~, which is true of a text that contains
            the value, in upper or lower case; quotes around the value are left out. A row without a value fulfils none
            but !=. A column of texts, as a CSV file has no others, is put in order as numbers where the value and one
            cell at least are some; a cell that is none, as one that is empty, then counts as one without a value. Where
            all cells are numbers the value must be one.

    Returns:
        (N,) bool.

    Raises:
        DataError: a condition of another form, a column that is not there, or a value that does not go with it.
    """
    held = np.ones(len(table), dtype=bool)
    for condition in [where] if isinstance(where, str) else where:
        held &= _holds(table, condition)
    return held


def _holds(table: pa.Table, condition: str) -> NDArray[np.bool_]:
    # A name may hold any sign, so a column that is there decides before the first sign does.
    text = condition.strip()
    for name in sorted(table.column_names, key=lambda each: (len(each.strip()), -len(each)), reverse=True):
        rest = _REST.fullmatch(text.removeprefix(name.strip())) if text.startswith(name.strip()) else None
        if rest is not None:
            return _compare(table[name], name, rest["how"], rest["value"])
    wanted = re.split(_HOW, text, maxsplit=1)
    if len(wanted) < 2:
        raise DataError(f"{condition!r} is no condition; write it as COLUMN = VALUE, with one of = != < <= > >= ~")
    raise DataError(f"no column {wanted[0].strip()!r}; {choices(wanted[0].strip(), table.column_names)}")


def _compare(column: pa.ChunkedArray, name: str, how: str, value: str) -> NDArray[np.bool_]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    compared = _COMPARED.get(how)
    quoted = _QUOTED.fullmatch(value)
    value = quoted["inner"] if quoted else value
    if compared is None and not value:
        raise DataError(f"'{name} ~' says no text to look for; write it as COLUMN ~ TEXT")
    ordered = how[0] in "<>" and compared != "not_equal"
    if ordered and not re.fullmatch(_NUMBER, value) and _all_numbers(column):
        raise DataError(f"column {name!r} holds numbers, and {value!r} is none; give every condition by itself")
    if pa.types.is_null(kind) or not len(column):
        return np.full(len(column), compared == "not_equal")
    try:
        if compared is None:
            held = pc.match_substring(pc.cast(column, pa.large_string()), value, ignore_case=True)
        else:
            held = getattr(pc, compared)(*_comparable(column, value, ordered))
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"column {name!r} holds {kind}, and {value!r} is no such value") from error
    return np.asarray(held.fill_null(compared == "not_equal"), dtype=bool)


def _comparable(column: pa.ChunkedArray, value: str, ordered: bool) -> tuple[pa.ChunkedArray, pa.Scalar]:
    """Read a value as the column's type; numbers are compared as numbers, whatever their width."""
    kind = column.type
    if pa.types.is_integer(kind) and (whole := _whole(value, kind)) is not None:
        return column, whole
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pc.cast(column, pa.float64(), safe=False), pa.scalar(float(value))
    if pa.types.is_boolean(kind) and value.lower() in ("true", "false", "yes", "no", "1", "0"):
        return column, pa.scalar(value.lower() in ("true", "yes", "1"))
    if ordered and re.fullmatch(_NUMBER, value) and (numbers := _numbers(column)) is not None:
        return numbers, pa.scalar(float(value))
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            return column, pc.assume_timezone(pa.scalar(value).cast(pa.timestamp(kind.unit)), kind.tz)
        except pa.ArrowInvalid:  # it says its own zone
            pass
    return column, pa.scalar(value).cast(kind)


def _whole(value: str, kind: pa.DataType) -> pa.Scalar | None:
    """Read a whole number, which a float would round beyond 2 ** 53; None of another, or of one too large."""
    try:
        return pa.scalar(int(re.sub(r"\.0*$", "", value)), kind)
    except (ValueError, OverflowError, pa.ArrowException):
        return None


def _all_numbers(column: pa.ChunkedArray) -> bool:
    """Tell whether these are texts, and every one that is not empty is a number."""
    numbers = _numbers(column)
    if numbers is None:
        return False
    filled = pc.not_equal(pc.utf8_trim_whitespace(pc.cast(column, pa.large_string())), "")
    return bool(pc.sum(filled).as_py() == len(numbers) - numbers.null_count)


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Read texts as numbers, null where one is none; None where all are, and of what holds no texts."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return None
    texts = pc.utf8_trim_whitespace(pc.cast(column, pa.large_string()))
    some = pc.match_substring_regex(texts, f"^{_NUMBER}$")
    return pc.cast(pc.if_else(some, texts, None), pa.float64()) if pc.any(some).as_py() else None
