"""Opening an index together with its model."""

from pathlib import Path

from fusemix.errors import StoreError
from fusemix.index import Index
from fusemix.model import FuseMix


def open_index(folder: str | Path) -> Index:
    """Open an index that `Index.save` wrote, with its model.

    Raises:
        StoreError: no index there, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / "model").is_dir():
        raise StoreError(f"{folder} holds no index; make one with `fusemix index`")
    return Index.load(folder, FuseMix.load(folder / "model"))
