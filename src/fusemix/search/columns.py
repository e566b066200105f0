"""What an index holds beside its items: the user's own columns, and previews; taken and joined with them."""

import numpy as np
import pyarrow as pa

from fusemix.data.latents import ItemLatents
from fusemix.errors import DataError


def own(items: ItemLatents) -> pa.Table:
    """Return the user's columns of items, n rows."""
    if items.columns is None:
        return none(len(items))
    table = items.columns.table
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # the categories of pandas; they do not go with plain texts
            table = table.set_column(place, field.name, table[field.name].cast(field.type.value_type))
    return table


def telling(columns: pa.Table, items: pa.Table) -> pa.Table:
    """Leave out columns that only repeat the id or the value of every item, and so tell nothing beside them."""
    keys = [items[name].cast(kind) for name in ("id", "value") for kind in (pa.string(), pa.large_string())]
    return columns.drop_columns([name for name in columns.column_names if any(map(columns[name].equals, keys))])


def none(count: int) -> pa.Table:
    """Return a table of no columns; pyarrow keeps its length until it takes or joins rows."""
    return pa.table({"row": np.arange(count)}).select([])


def taken(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Return some of the rows, in this order."""
    return table.take(rows) if table.num_columns else none(len(rows))


def joined(one: pa.Table, other: pa.Table) -> pa.Table:
    """Put the user's columns of some items below those of others; what only one of them has is empty in the other.

    Raises:
        DataError: a column holds one thing here and another there.
    """
    try:
        both = pa.concat_tables([one, other], promote_options="permissive")
    except pa.ArrowException as error:
        shared = [name for name in one.column_names if name in other.column_names]
        kinds = {name: (one.schema.field(name).type, other.schema.field(name).type) for name in shared}
        unlike = ", ".join(f"{name!r} ({a} and {b})" for name, (a, b) in kinds.items() if a != b)
        raise DataError(
            f"a column holds another type in the new items than in those before: {unlike}; write both tables with the "
            "same types, or give the column another name (a CSV file holds texts only), and extract again"
        ) from error
    return both if both.num_columns else none(len(one) + len(other))


def joined_previews(
    one: pa.ChunkedArray | None, other: pa.ChunkedArray | None, counts: tuple[int, int]
) -> pa.ChunkedArray | None:
    """Put previews below others; there are so many of each, or none at all."""
    if one is None and other is None:
        return None
    sides = zip((one, other), counts, strict=True)
    chunks = [side.chunks if side is not None else [pa.nulls(count, pa.large_binary())] for side, count in sides]
    return pa.chunked_array([chunk for side in chunks for chunk in side], pa.large_binary())
