"""Precomputed latents: a column of vectors, or a .npy file whose rows follow the table."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.encoders.base import Latent
from fusemix.errors import DataError


class Precomputed:
    """Latents that the user brings: passed through as they are."""

    takes = "vector"
    batch_size = 1024

    def __init__(self, fingerprint: dict[str, Any] | None = None) -> None:
        self.fingerprint: dict[str, Any] = fingerprint or {"loader": "vectors", "name": "column"}
        self.source = "precomputed"

    def encode(self, items: Sequence[Any]) -> Latent:
        """Stack n vectors (D,) to (n, D)."""
        return np.stack(items).astype(np.float32)


def read_vectors(path: Path, rows: np.ndarray[Any, Any], count: int) -> tuple[list[Any], dict[str, Any]]:
    """Read a .npy file of latents.

    Args:
        path: (R, D) array; R is the number of table rows, or of distinct items in order of first appearance.
        rows: (N,) item of each table row, -1 where empty.
        count: number of distinct items.

    Returns:
        One vector per distinct item, and the fingerprint of the file.

    Raises:
        DataError: not a .npy file of numbers, another number of rows, or rows of one item that differ.
    """
    if not path.is_file():
        raise DataError(f"no file {path} (looked in {Path.cwd()})")
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays; wanted a .npy file of one")
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: wanted numbers of shape (rows, D), got {array.dtype} of shape {array.shape}")
    fingerprint = {"loader": "vectors", "name": path.name, "sha256": sha256(path.read_bytes()).hexdigest()[:16]}
    if len(array) == count:
        return list(np.asarray(array)), fingerprint
    if len(array) != len(rows):
        wanted = f"{count:,}" if count == len(rows) else f"{count:,} (distinct items) or {len(rows):,} (table rows)"
        raise DataError(f"{path} has {len(array):,} rows; wanted {wanted}")
    filled = np.flatnonzero(rows >= 0)
    items, first, place = np.unique(rows[filled], return_index=True, return_inverse=True)
    assert len(items) == count, "items are numbered without gaps"
    chosen = array[filled[first]]
    given, kept = array[filled], chosen[place]
    # Rounding is forgiven, as one text encoded in two batches shows it; NaN equals NaN, which extraction reports.
    scale = np.nanmax(np.abs(kept), axis=1, keepdims=True, initial=0, where=np.isfinite(kept))
    differs = np.flatnonzero(~np.isclose(given, kept, rtol=0, atol=0.01 * scale, equal_nan=True).all(axis=1))
    if len(differs):
        row = int(filled[differs[0]]) + 1
        raise DataError(f"{path}: row {row} differs from an earlier row of the same item; give one vector per item")
    return list(chosen), fingerprint
