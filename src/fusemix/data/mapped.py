"""Tensors that stay in their safetensors file: opening reads the header, touching maps the file.

`safetensors.safe_open` maps the file to read its header; a folder of thousands of shards opens faster and with less
memory where each costs one small read.
"""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fusemix.errors import StoreError

_USUAL = 4096  # bytes that hold the header of a shard in which little failed
_DTYPES = {"F16": torch.float16, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64}


class Mapped(NamedTuple):
    """A tensor in a file.

    Attributes:
        path: of the file.
        size: bytes of the whole file when its header was read.
        start: byte where the tensor begins.
        shape: of the tensor.
        dtype: of the tensor.
    """

    path: Path
    size: int
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> Tensor:
        """Map the file; nothing is read before it is touched, and what is written into the tensor stays in memory.

        Raises:
            StoreError: the file is gone, or no longer as long as it was: touching it would end the process.
        """
        try:
            found = self.path.stat().st_size
            if found != self.size:
                raise ValueError(f"{found:,} bytes, it had {self.size:,} when it was opened")
            storage = torch.UntypedStorage.from_file(str(self.path), False, self.size)
        except (OSError, ValueError, RuntimeError) as error:
            raise damaged(self.path, error) from error
        content = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
        return content[self.start : self.start + self.nbytes].view(self.dtype).view(self.shape)


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Mapped]]:
    """Read what a safetensors file says of itself: its metadata, and where each tensor lies.

    Raises:
        OSError: the file cannot be read.
        ValueError, TypeError, KeyError, RecursionError: it is no safetensors file, or not a whole one.
    """
    with path.open("rb", buffering=0) as file:
        size, content = os.fstat(file.fileno()).st_size, file.read(_USUAL)
        length = int.from_bytes(content[:8], "little")
        if not 0 < length <= size - 8:
            raise ValueError(f"{size:,} bytes, its header alone wants {length:,}")
        if 8 + length > len(content):
            content += file.read(8 + length - len(content))
    header = json.loads(content[8 : 8 + length])
    metadata, tensors, end = header.pop("__metadata__", {}), {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (start, stop), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        if not all(isinstance(number, int) for number in (start, stop, *shape)):
            raise ValueError(f"the tensor {name!r} has no whole numbers for its place and shape")
        tensors[name] = Mapped(path, size, 8 + length + start, shape, dtype)
        misplaced = start != end or stop - start != tensors[name].nbytes or tensors[name].start % dtype.itemsize
        if misplaced or min(shape, default=0) < 0:
            raise ValueError(f"the tensor {name!r} does not lie where the header says")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"{size:,} bytes, its header wants {8 + length + end:,}")
    return metadata, tensors


def damaged(path: Path, reason: object) -> StoreError:
    """Return the error of a shard that cannot be used, with the way out."""
    return StoreError(f"{path} is damaged ({reason}); run the same `fusemix extract` again, it does this shard anew")
