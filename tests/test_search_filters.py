"""Conditions on columns against Python's own comparisons: every type, missing values, and names of any signs."""

import datetime as dt
import operator
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemix.errors import DataError
from fusemix.search.filters import mask

HOW = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
TABLE = pa.table(
    {
        "price": pa.array([3, 20, None, 100]),
        "tiny": pa.array([3, 20, None, 100], pa.int8()),
        "large": pa.array([2**53, 2**53 + 1, None, -(2**63)]),
        "unsigned": pa.array([2**64 - 1, 0, None, 7], pa.uint64()),
        "weight": [1.5, float("nan"), None, float("inf")],
        "half": pa.array([1.5, 2, None, 4], pa.float16()),
        "cost": pa.array([Decimal("1.50"), Decimal("2.00"), None, Decimal("3.25")], pa.decimal128(5, 2)),
        "new": [True, False, None, True],
        "day": [dt.date(2024, 1, 1), dt.date(2024, 5, 1), None, dt.date(2023, 12, 31)],
        "at": [dt.datetime(2024, 1, 1), dt.datetime(2024, 5, 1, 12), None, dt.datetime(2023, 1, 1)],
        "zoned": pa.array(
            [dt.datetime(2024, 1, 1), dt.datetime(2024, 5, 1, 12), None, dt.datetime(2023, 1, 1)],
            pa.timestamp("us", "Europe/Berlin"),  # noon of UTC is two o'clock there
        ),
        "nothing": pa.nulls(4),
        "maker": ["Acme", "acme & co", None, "B=C"],
        "wide": pa.array(["a", "b", None, "d"], pa.large_string()),
        "kind": pa.array(["shoe", "hat", None, "shoe"]).dictionary_encode(),
        "csv": ["9", "20", "", "100.0"],
        "mixed": ["9", "n/a", " 100 ", None],
        "iso": ["2024-01-01", "2024-05-01", "", "2023-12-31"],
        "a": [1, 2, 3, 4],
        "a<b": [5, 6, 7, 8],
        "maker of it": list("wxyz"),
        " spaced ": list("wxyz"),
        "spaced": list("abcd"),
    }
)  # fmt: skip


def rows(*conditions):
    return np.flatnonzero(mask(TABLE, conditions)).tolist()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        # whole numbers, however they are written
        ("price = 20", [1]),
        ("price=20.0", [1]),
        ("price = 20.", [1]),
        ("price == 20", [1]),
        ("price != 20", [0, 2, 3]),
        ("price <> 20", [0, 2, 3]),
        ("price < 20", [0]),
        ("price <= 20", [0, 1]),
        ("price > 3", [1, 3]),
        ("price >= 2.5", [0, 1, 3]),
        ("price = 2.5", []),
        ("price < 1e3", [0, 1, 3]),
        ("price > -inf", [0, 1, 3]),
        ("tiny < 1000", [0, 1, 3]),
        ("price < 99999999999999999999999999", [0, 1, 3]),
        ("price ~ 0", [1, 3]),
        # beyond what a float tells apart
        ("large = 9007199254740993", [1]),
        ("large > 9007199254740992", [1]),
        ("large < 2.5", [3]),
        ("unsigned = 18446744073709551615", [0]),
        ("unsigned > -1", [0, 1, 3]),
        # floats
        ("weight = 1.5", [0]),
        ("weight > 1", [0, 3]),
        ("weight != 1.5", [1, 2, 3]),
        ("weight = nan", []),
        ("half < 3", [0, 1]),
        ("cost < 2.5", [0, 1]),
        ("cost = 3.25", [3]),
        ("cost < 3.249", [0, 1]),
        # true and false
        ("new = true", [0, 3]),
        ("new = YES", [0, 3]),
        ("new = 0", [1]),
        ("new != true", [1, 2]),
        # time
        ("day = 2024-01-01", [0]),
        ("day > 2023-12-31", [0, 1]),
        ("day ~ 2024", [0, 1]),
        ("at >= 2024-05-01T12:00", [1]),
        ("at > 2024-01-01", [1]),
        ("at = 2024-05-01 12:00:00", [1]),
        ("zoned > 2024-05-01 13:00", [1]),
        ("zoned > 2024-05-01 14:00", []),
        ("zoned = 2024-05-01T12:00:00Z", [1]),
        # nothing
        ("nothing = x", []),
        ("nothing < 3", []),
        ("nothing ~ x", []),
        ("nothing != x", [0, 1, 2, 3]),
        # texts
        ("maker = Acme", [0]),
        ("maker = B=C", [3]),
        ("maker=B=C", [3]),
        ("maker != B=C", [0, 1, 2]),
        ("maker ~ ACME", [0, 1]),
        ("maker ~ =", [3]),
        ("maker ~ &", [1]),
        ("maker ~ .", []),
        ("maker > B", [1, 3]),
        ("wide = a", [0]),
        ("wide ~ B", [1]),
        ("kind = shoe", [0, 3]),
        ("kind != shoe", [1, 2]),
        ("kind ~ HA", [1]),
        # texts of numbers, as all of a CSV file are
        ("csv < 20", [0]),
        ("csv <= 20", [0, 1]),
        ("csv > 9.5", [1, 3]),
        ("csv = 20", [1]),
        ("csv = 20.0", []),
        ("csv = 100.0", [3]),
        ("csv =", [2]),
        ("csv != 20", [0, 2, 3]),
        ("maker = 'Acme'", [0]),
        ('kind ~ "hO"', [0, 3]),
        ('maker = "Acme', []),
        ("mixed < 20", [0]),
        ("mixed > 20", [2]),
        ("iso >= 2024", [0, 1]),
        ("iso < 2024-02", [0, 2, 3]),
        # names
        ("a<b = 6", [1]),
        ("a<b<7", [0, 1]),
        ("a<3", [0, 1]),
        ("a < 3", [0, 1]),
        ("  a  <  3  ", [0, 1]),
        ("maker of it = x", [1]),
        (" spaced  = x", []),
        ("spaced = b", [1]),
    ],
)  # fmt: skip
def test_a_condition_holds_where_it_should(condition, expected):
    assert rows(condition) == expected


def test_a_name_with_spaces_around_it_need_not_have_them_in_a_condition():
    table = pa.table({" price": [1, 2], "other ": [1, 2]})
    assert mask(table, [" price = 2"]).tolist() == mask(table, ["price=2"]).tolist() == [False, True]
    assert mask(table, ["other < 2"]).tolist() == [True, False]


@pytest.mark.parametrize("cell", ["it's Bob's", "'", '"', "'a' or 'b'", '"a', "a'", "a 'b'"])
def test_quotes_that_are_not_around_the_value_are_of_it(cell):
    table = pa.table({"maker": [cell, "other"]})
    assert mask(table, [f"maker = {cell}"]).tolist() == [True, False]


def test_all_conditions_must_hold_and_none_holds_everywhere():
    assert rows("price > 3", "maker ~ b") == [3]
    assert rows() == [0, 1, 2, 3]
    np.testing.assert_array_equal(mask(TABLE, "price = 20"), mask(TABLE, ["price = 20"]))  # not letter by letter


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("price = abc", "column 'price' holds int64, and 'abc' is no such value"),
        ("price =", "column 'price' holds int64, and '' is no such value"),
        ("price = 1,000", "holds int64, and '1,000' is no such value"),
        ("weight < cheap", "column 'weight' holds double, and 'cheap' is no such value"),
        ("new = maybe", "column 'new' holds bool, and 'maybe' is no such value"),
        ("day = 2024", r"column 'day' holds date32\[day\], and '2024' is no such value"),
        ("at > yesterday", r"column 'at' holds timestamp\[us\], and 'yesterday' is no such value"),
        ("zoned > soon", r"column 'zoned' holds timestamp\[us, tz=Europe/Berlin\], and 'soon' is no such value"),
        ("makr = Acme", "no column 'makr'; found: price, .*; did you mean 'maker'"),
        ("a ! 3", "'a ! 3' is no condition; write it as COLUMN = VALUE, with one of = != < <= > >= ~"),
        ("maker", "'maker' is no condition; write it as COLUMN = VALUE"),
        ("", "'' is no condition"),
        ("= 3", "no column ''; found: price"),
        ("csv < 20 and kind = shoe", "'csv' holds numbers, and '20 and kind = shoe' is none; give every condition by"),
        ("maker ~ ''", "'maker ~' says no text to look for"),
    ],
)
def test_a_mistake_is_told(condition, message):
    with pytest.raises(DataError, match=message):
        rows(condition)


@pytest.mark.parametrize("name", TABLE.column_names)
def test_a_table_of_no_rows_fulfils_nothing(name):
    for empty in (TABLE.slice(0, 0), TABLE.schema.empty_table()):
        assert mask(empty, [f"{name} ~ 1", f"{name} != 1"]).shape == (0,)


def slow(cells, how, value):
    """Row by row, in Python."""
    return [how in ("!=", "<>") if cell is None else bool(HOW[how](cell, value)) for cell in cells]


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)), st.sampled_from([*HOW]), st.data())
@settings(max_examples=60, deadline=None)
def test_whole_numbers_are_compared_as_python_does(cells, how, data):
    near = [value + step for value in cells if value is not None for step in (-1, 0, 1)]
    value = data.draw(st.sampled_from(near) if near else st.integers(-9, 9))
    table = pa.table({"c": pa.array(cells, pa.int64())})
    if -(2**63) <= value < 2**63:
        assert mask(table, [f"c {how} {value}"]).tolist() == slow(cells, how, value)


@given(st.lists(st.none() | st.floats()), st.sampled_from([*HOW]), st.floats())
@settings(max_examples=60, deadline=None)
def test_floats_are_compared_as_python_does(cells, how, value):
    table = pa.table({"c": pa.array(cells, pa.float64())})
    assert mask(table, [f"c {how} {value!r}"]).tolist() == slow(cells, how, value)


WORDS = st.sampled_from(["", " ", "9", "10", "-3", "1.5", "1e2", ".5", "-", "x", "9x", "1 2", "+4", "nan", "inf", "ä"])


@given(st.lists(st.none() | WORDS), st.sampled_from([*HOW]), WORDS)
@settings(max_examples=200, deadline=None)
def test_texts_are_compared_as_numbers_where_there_are_some_and_as_texts_elsewhere(cells, how, value):
    def number(word):
        try:
            return float(word) if word not in ("nan", "inf", "+4") else None
        except (TypeError, ValueError):
            return None

    numbers = [number(cell) for cell in cells]
    value = value.strip()
    ordered = HOW[how] not in (operator.eq, operator.ne)
    if ordered and number(value) is not None and any(each is not None for each in numbers):
        expected = slow(numbers, how, number(value))
    else:
        expected = slow(cells, how, value)
    table, condition = pa.table({"c": pa.array(cells, pa.string())}), f"c {how} {value}"
    filled = [number(cell) for cell in cells if cell and cell.strip()]
    if ordered and number(value) is None and filled and None not in filled:
        with pytest.raises(DataError, match="'c' holds numbers"):
            mask(table, [condition])
    else:
        assert mask(table, [condition]).tolist() == expected
