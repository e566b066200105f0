"""Conditions on the columns of items, as "price < 20": text in, a mask out."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusemix.errors import DataError, choices

_COMPARED = {
    "=": "equal", "!=": "not_equal", "<=": "less_equal", ">=": "greater_equal", "<": "less", ">": "greater",
}  # fmt: skip
_REST = re.compile(r"\s*(?P<how><=|>=|!=|[=<>~])\s*(?P<value>.*)", re.DOTALL)  # of a condition, after its column


def mask(table: pa.Table, where: Sequence[str]) -> NDArray[np.bool_]:
    """Say which rows fulfil every condition.

    Args:
        table: N rows.
        where: conditions "COLUMN HOW VALUE"; HOW is one of = != < <= > >= and ~, which is true of a text that contains
            the value, in upper or lower case. A row without a value fulfils none but !=.

    Returns:
        (N,) bool.

    Raises:
        DataError: a condition of another form, a column that is not there, or a value that does not go with it.
    """
    held = np.ones(len(table), dtype=bool)
    for condition in where:
        held &= _holds(table, condition)
    return held


def _holds(table: pa.Table, condition: str) -> NDArray[np.bool_]:
    # A name may hold any sign, so a column that is there decides before the first sign does.
    text = condition.strip()
    for name in sorted(filter(text.startswith, table.column_names), key=len, reverse=True):
        if rest := _REST.fullmatch(text[len(name) :]):
            return _compare(table[name], name, rest["how"], rest["value"])
    wanted = re.split(r"<=|>=|!=|[=<>~]", text, maxsplit=1)
    if len(wanted) < 2:
        raise DataError(f"{condition!r} is no condition; write it as COLUMN = VALUE, with one of = != < <= > >= ~")
    raise DataError(f"no column {wanted[0].strip()!r}; {choices(wanted[0].strip(), table.column_names)}")


def _compare(column: pa.ChunkedArray, name: str, how: str, value: str) -> NDArray[np.bool_]:
    kind = column.type
    if how == "~":
        held = pc.match_substring(pc.cast(column, pa.large_string()), value, ignore_case=True)
    else:
        held = getattr(pc, _COMPARED[how])(column, _scalar(value, kind, name))
    if not isinstance(held, pa.ChunkedArray):  # a table of no rows
        return np.zeros(len(column), dtype=bool)
    return np.asarray(held.fill_null(how == "!="), dtype=bool)


def _scalar(value: str, kind: pa.DataType, name: str) -> Any:
    """Read a value as the column's type; numbers are compared as numbers, whatever their width."""
    try:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return pa.scalar(float(value))
        if pa.types.is_boolean(kind) and value.lower() in ("true", "false", "yes", "no", "1", "0"):
            return pa.scalar(value.lower() in ("true", "yes", "1"))
        return pa.scalar(value).cast(kind)
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"column {name!r} holds {kind}; {value!r} is none") from error
