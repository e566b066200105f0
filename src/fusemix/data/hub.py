"""Read data sets of the Hugging Face hub, and folders that its library wrote, through `datasets`."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from fusemix.data.items import Reading
from fusemix.errors import DataError, MissingExtraError

HUB = "hf://"
_NAME = re.compile(r"hf://datasets/(\w[\w.-]*/\w[\w.-]*)(?:@(refs/[\w-]+/[\w.-]+|\w[\w.-]*))?(?:/(\w[\w.-]*))?")


def read_hub(source: str, root: Path | None = None) -> Reading:
    """Read all splits of a data set of the hub; media stay undecoded, and code of the data set is never run.

    Args:
        source: "hf://datasets/ORG/NAME", with "@REVISION", "/CONFIG" or both behind it.
        root: folder that file names are relative to; by default "/", as the library gives full paths.

    Returns:
        The columns of the data set and, where it has several splits and no such column, "split". A column of class
        labels holds their names.

    Raises:
        DataError: no such data set, or one that cannot be read.
        MissingExtraError: `datasets` is not installed.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: wanted hf://datasets/ORG/NAME, with @REVISION or /CONFIG behind it")
    name, revision, config = match.groups()
    if Path(name).exists():  # `datasets` would read it instead
        raise DataError(f"{source}: the folder {name} here would be read instead; go to another working folder")
    datasets = _library()
    try:
        found = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # whatever builders, the hub and the network raise
        raise DataError(f"{source} cannot be read: {type(error).__name__}: {error}") from error
    return Reading(_table(found, source), root or Path("/"), [], {})


def is_saved(folder: Path) -> bool:
    """Tell whether `save_to_disk` wrote this folder."""
    dataset = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return dataset or (folder / "dataset_dict.json").is_file()


def read_saved(folder: Path, root: Path | None = None) -> Reading:
    """Read a folder that `save_to_disk` wrote, of one data set or of several splits; see `read_hub`.

    Raises:
        DataError: it cannot be read.
        MissingExtraError: `datasets` is not installed.
    """
    datasets = _library()
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder} cannot be read as a saved data set: {type(error).__name__}: {error}") from error
    return Reading(_table(found, str(folder)), root or folder, [], {})


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", "reading a Hugging Face data set") from error
    return datasets


def _table(found: Any, source: str) -> pa.Table:
    """Join the splits; the values stay where they are, for a saved data set in the mapped file."""
    splits = found if isinstance(found, Mapping) else {"": found}
    tables = []
    for split, dataset in splits.items():
        table = _named_classes(dataset.with_format("arrow")[:], dataset.features)
        if len(splits) > 1 and "split" not in table.column_names:
            table = table.append_column("split", pa.array([split] * len(table), pa.string()))
        tables.append(table)
    try:
        table = pa.concat_tables(tables, promote_options="default").replace_schema_metadata()
        table.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{source}: the splits cannot be joined, or are damaged: {error}") from error
    if not len(table):
        raise DataError(f"{source} has no rows (columns: {', '.join(table.column_names)})")
    return table


def _named_classes(table: pa.Table, features: Mapping[str, Any]) -> pa.Table:
    """Replace the numbers of class labels by their names."""
    for i, name in enumerate(table.column_names):
        names = getattr(features[name], "names", None)
        if names and pa.types.is_integer(table.schema.field(name).type):
            codes = table[name]
            codes = pa.compute.if_else(pa.compute.less(codes, 0), None, codes)  # -1 says that there is no label
            table = table.set_column(
                i, name, pa.chunked_array([pa.array(names).take(c) for c in codes.chunks], pa.string())
            )
    return table
