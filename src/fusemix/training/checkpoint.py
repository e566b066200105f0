"""A fit on disk: everything that the next step depends on, in one file that is whole or absent.

    checkpoint/step-000001200.safetensors    weights, optimiser, best weights, losses; in its header the numbers and a
                                             checksum

Order, lam and dropout are closed formulas of seed and step, so the step is all that has to be kept of them. The last
two files stay: one that the disk spoilt costs a few steps, not the fit.
"""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusemix import durable
from fusemix.errors import StoreError

FOLDER = "checkpoint"
KEPT = 2
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.int64: "I64"}


def write(folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Commit the state after `step` steps, then let go of all but the last two.

    Args:
        folder: of the fit.
        step: number of steps done.
        tensors: by name.
        record: plain values.

    Raises:
        OSError: the disk refused; the earlier files are untouched.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    header = json.dumps({**record, "step": step})
    # One entry only: safetensors writes several in random order.
    head = _head(tensors, {"record": json.dumps({"record": header, "sha256": _digest(header, tensors)})})
    durable.write(folder / FOLDER / f"step-{step:09d}.safetensors", head, *map(_bytes, tensors.values()))
    for path in _files(folder)[KEPT:]:
        path.unlink(missing_ok=True)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and record of the last state that is whole; None where nothing was written.

    Raises:
        StoreError: there are files, but none of them is whole.
    """
    damaged = []
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                outer = json.loads((file.metadata() or {})["record"])
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if outer["sha256"] != _digest(outer["record"], tensors):
                raise ValueError("its checksum does not hold")
            record: dict[str, Any] = json.loads(outer["record"])
            return tensors, record
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"{path} ({error})")
    if damaged:
        raise StoreError(f"no whole checkpoint: {'; '.join(damaged)}; delete {folder / FOLDER} to start again")
    return None


def clear(folder: Path) -> None:
    """Remove the checkpoints of a fit that is done."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """All checkpoints, the last one first."""
    return sorted((folder / FOLDER).glob("step-*.safetensors"), reverse=True)


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = sha256(header.encode())
    for tensor in tensors.values():
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _head(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return what stands before the numbers in a safetensors file.

    The library would copy the numbers three times on their way; with gigabytes of them that is what a signal waits for.
    """
    head: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        head[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.flatten().view(torch.uint8).numpy().data)
