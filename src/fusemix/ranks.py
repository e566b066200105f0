"""The processes of torchrun: which one this is, and how they meet."""

import os
from datetime import timedelta

PATIENCE = timedelta(days=30)  # a rank waits for the slowest of the others, not for a network


def ranks() -> tuple[int, int]:
    """Return the rank of this process and the number of them; (0, 1) outside of torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def join_ranks() -> None:
    """Meet the other processes of torchrun, and take the accelerator of this one's number."""
    if ranks()[1] == 1:
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)


def barrier() -> None:
    """Wait for all ranks."""
    if ranks()[1] > 1:
        from torch import distributed

        distributed.barrier()


def least(value: float) -> float:
    """Return the smallest of what the ranks bring. What decides how they go on must be the same for all of them."""
    if ranks()[1] == 1:
        return value
    import torch
    from torch import distributed

    answer = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(answer, distributed.ReduceOp.MIN)
    return float(answer)


def most(value: float) -> float:
    """Return the largest of what the ranks bring."""
    return -least(-value)
