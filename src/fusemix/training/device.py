"""Where a fit runs, and how finely it multiplies there."""

import torch

from fusemix.errors import DataError


def find_device(name: str | None) -> torch.device:
    """Return the device of that name, or CUDA where there is one.

    Raises:
        DataError: it cannot be used here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and device.index is None:  # what a thread takes for the current one may be another
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"device {name!r} cannot be used here: {reason}; give cpu, cuda, or leave it out") from error
    return device


def choose_precision(asked: str, device: torch.device) -> torch.dtype:
    """Return the precision of the matrix products; weights, sums and the optimiser are always float32.

    "auto" chooses by what the device can do: bfloat16 where it multiplies natively (CUDA from compute capability 8 on,
    a CPU with AMX or AVX512-BF16), else float32. A CPU that emulates bfloat16 is eight times slower with it.
    """
    if asked != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        can = torch.cpu.get_capabilities()
        native = device.type == "cpu" and bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    return torch.bfloat16 if native else torch.float32
