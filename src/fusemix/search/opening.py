"""Opening an index together with its models."""

from pathlib import Path

from fusemix.errors import StoreError
from fusemix.model import FuseMix
from fusemix.search.folder import model_folders, read_facts
from fusemix.search.index import Index
from fusemix.search.space import Space


def open_index(folder: str | Path) -> Index:
    """Open an index that `Index.save` wrote, with its models; every file is held to its checksum.

    An index may be written again meanwhile: what is opened is the old one or the new one, whole.

    Raises:
        StoreError: no index there, or a damaged one.
        MismatchError: the models are not those that embedded the items.
    """
    folder = Path(folder)
    while True:
        facts = read_facts(folder)
        try:
            return Index.load(folder, facts, Space([FuseMix.load(each) for each in model_folders(folder, facts)]))
        except StoreError:
            if read_facts(folder)["generation"] == facts["generation"]:
                raise
