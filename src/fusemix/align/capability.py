"""What a GPU needs for kernels of its own."""

import os
import shutil
from functools import cache
from importlib.util import find_spec

import torch


@cache
def runs_triton(device: torch.device) -> bool:
    """Tell whether Triton kernels run on a device: a GPU that it knows, and the C compiler that builds their callers.

    Containers often have no compiler; there the first kernel would end the fit.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and torch.cuda.get_device_capability(device) >= (7, 0)
