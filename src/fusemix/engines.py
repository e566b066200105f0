"""Who runs which shard: this process, ranks of torchrun, or a Ray cluster. The plan is ours, the bytes are the same."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from fusemix.data.pairs import Items
from fusemix.data.store import LatentStore
from fusemix.encoders import Encoder, load_encoder
from fusemix.encoders.canaries import check_canaries
from fusemix.encoders.vectors import Precomputed
from fusemix.errors import DataError, MissingExtraError, choices
from fusemix.progress import Progress, silent
from fusemix.shards import Work, check_answers, fill

ENGINES = ("local", "ray")
BARRIER = timedelta(days=30)  # a rank waits for the slowest shard of the others, not for a network


@dataclass(frozen=True)
class Job:
    """One modality, as it is sent to whoever works on it.

    Attributes:
        items: all of them.
        folder: of the store.
        spec: what `load_encoder` takes.
        given: the latents that the user brings, instead of an encoder.
        pooling: instead of the default of the architecture.
        precision: instead of what the device does best.
        decode: the user's own decoder.
        max_failed: largest share of the first 1,000 items that may fail.
    """

    items: Items
    folder: Path
    spec: Any
    given: Precomputed | None
    pooling: str | None
    precision: str | None
    decode: Callable[..., Any] | None
    max_failed: float

    def load(self) -> Encoder:
        """Load the encoder."""
        if self.given is not None:
            return self.given
        return load_encoder(self.spec, self.items.kind, pooling=self.pooling, precision=self.precision)

    def work(self, encoder: Encoder, progress: Progress) -> Work:
        """Open the store and hold the encoder to the one that started it."""
        store = LatentStore.open(self.folder)
        if store.canaries is not None:
            check_canaries(encoder, store.canaries)
        return Work(store, self.items, encoder, self.decode, self.max_failed, progress)


def run(engine: str, job: Job, shards: Sequence[int], progress: Progress) -> None:
    """Encode the shards of one modality with an engine; returns when all of them are committed.

    Under torchrun every process calls this and does its share, whatever the engine.

    Raises:
        DataError: no such engine.
        FusemixError: whatever `shards.fill` raises.
    """
    if engine not in ENGINES:
        raise DataError(f"no engine {engine!r}; {choices(engine, ENGINES)}")
    rank, world = ranks()
    if job.given is None and world > 1:
        mine = [shard for shard in shards if shard % world == rank]
        _run_here(job, mine, progress)
    elif job.given is None and engine == "ray":
        _run_ray(job, shards, progress)
    elif rank == 0:
        _run_here(job, shards, progress)
    barrier()


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

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=BARRIER)


def barrier() -> None:
    """Wait for all ranks."""
    if ranks()[1] > 1:
        from torch import distributed

        distributed.barrier()


def _run_here(job: Job, shards: Sequence[int], progress: Progress) -> None:
    if not shards:
        return
    work = job.work(job.load(), progress)
    check_answers(work, shards)
    done = len(job.items) - sum(len(work.store.items_of(shard)) for shard in shards)
    fill(work, shards, done)


def _run_ray(job: Job, shards: Sequence[int], progress: Progress) -> None:
    """Run one Ray task a shard, on the cluster that RAY_ADDRESS names or on this machine."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "scale", "the engine 'ray'") from error
    from fusemix.errors import FusemixError

    started = not ray.is_initialized()
    if started:
        ray.init(logging_level="error", log_to_driver=False, include_dashboard=False)
    try:
        import torch

        sent = ray.put(replace(job, folder=job.folder.resolve()))
        gpus = 1 if torch.cuda.is_available() else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_ray_task)
        store = LatentStore.open(job.folder)
        waiting = {task.remote(sent, list(shards), shard): shard for shard in shards}
        done = len(job.items) - sum(len(store.items_of(shard)) for shard in shards)
        while waiting:
            (finished, *_), _ = ray.wait(list(waiting))
            shard = waiting.pop(finished)
            try:
                ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                for other in waiting:
                    ray.cancel(other)
                raise (error.cause if isinstance(error.cause, FusemixError) else error) from None
            done += len(store.items_of(shard))
            progress(f"extract {job.items.name}", done, len(job.items))
    finally:
        if started:
            ray.shutdown()


_WORK: dict[Path, Work] = {}  # of this worker process: an encoder loads once a process, not once a shard


def _ray_task(job: Job, shards: Sequence[int], shard: int) -> None:
    if job.folder not in _WORK:
        _WORK.clear()  # the encoder of the last modality leaves memory
        work = job.work(job.load(), silent)
        check_answers(work, shards)
        _WORK[job.folder] = work
    fill(_WORK[job.folder], [shard])
