"""Who runs which shard: this process, ranks of torchrun, or a Ray cluster. The plan is ours, the bytes are the same."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from fusemix.data.pairs import Items
from fusemix.data.store import LatentStore, difference
from fusemix.encoders import Encoder, absolute, load_encoder
from fusemix.encoders.canaries import check_canaries
from fusemix.encoders.function import FunctionEncoder, load_function
from fusemix.encoders.vectors import Precomputed
from fusemix.errors import FusemixError, MismatchError, MissingExtraError
from fusemix.pipeline import Pipeline
from fusemix.progress import Progress, silent
from fusemix.ranks import barrier, ranks
from fusemix.shards import Work, fill

ENGINES = ("local", "ray")


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
        decode: the user's own decoder, or its name.
        max_failed: largest share of the first 1,000 items that may fail.
    """

    items: Items
    folder: Path
    spec: Any
    given: Precomputed | None
    pooling: str | None
    precision: str | None
    decode: str | Callable[..., Any] | None
    max_failed: float

    def load(self) -> Encoder:
        """Load the encoder."""
        if self.given is not None:
            return self.given
        return load_encoder(self.spec, self.items.kind, pooling=self.pooling, precision=self.precision)

    def decoder(self) -> FunctionEncoder | None:
        """Load the user's own decoder; it is described as an encoder is."""
        if isinstance(self.decode, str):
            return load_function(self.decode)
        return FunctionEncoder(self.decode) if self.decode is not None else None

    def pipeline(self, encoder: Encoder) -> Pipeline:
        """Join what makes the latents."""
        decoder = self.decoder()
        return Pipeline(self.items, encoder, decoder.function if decoder is not None else None)

    def work(self, progress: Progress) -> Work:
        """Open the store, load the encoder and hold it to the one that started it."""
        store, encoder = LatentStore.open(self.folder), self.load()
        # Another worker may have other files under the same name; a function that was sent has no file there.
        differs = difference(store.facts.encoder, encoder.fingerprint) if isinstance(self.spec, str) else None
        if differs:
            raise MismatchError(f"{socket.gethostname()} loads another encoder for {self.items.name!r}: {differs}")
        if store.canaries is not None:
            check_canaries(encoder, store.canaries)
        return Work(store, self.pipeline(encoder), self.max_failed, progress)

    def count_done(self, shards: Sequence[int]) -> tuple[int, int]:
        """Count the items that are not in these shards, and those of them that failed."""
        store, todo = LatentStore.open(self.folder), set(shards)
        done = len(self.items) - sum(len(store.items_of(shard)) for shard in shards)
        return done, sum(len(store.failures_of(shard)) for shard in range(store.shards) if shard not in todo)


def run(engine: str, job: Job, shards: Sequence[int], progress: Progress) -> None:
    """Encode the shards of one modality with an engine; returns when all of them are committed.

    Under torchrun every process calls this and does its share, whatever the engine.

    Raises:
        FusemixError: whatever `shards.fill` raises, or a cluster that fails.
    """
    assert engine in ENGINES, "checked before anything was written"
    rank, world = ranks()
    mine = shards[rank::world]
    done, failed = job.count_done(mine)
    if world > 1:
        progress = _of_share(done, world, progress) if rank == 0 else silent
    progress(f"extract {job.items.name}", done, len(job.items))
    if mine and engine == "ray" and world == 1 and job.given is None:  # to send vectors costs more than to write them
        _run_ray(job, mine, progress, done, failed)
    elif mine:
        fill(job.work(progress), mine, done, failed)
    barrier()


def _of_share(others: int, world: int, progress: Progress) -> Progress:
    """Report the share of this rank as the whole: of the items of the others nothing is known while they work."""

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        progress(stage, done - others, total - others, f"this rank of {world}{note and ', '}{note}")

    return report


def _run_ray(job: Job, shards: Sequence[int], progress: Progress, done: int, failed: int) -> None:
    """Run one Ray task a shard, on the cluster that RAY_ADDRESS names or on this machine."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "scale", "the engine 'ray'") from error
    import torch

    with _cluster() as received:
        sent = ray.put(_anywhere(job))
        gpus = 1 if torch.cuda.is_available() else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_ray_task)
        key, store = uuid4().hex, LatentStore.open(job.folder)
        waiting = {task.remote(sent, key, shard): shard for shard in shards}
        while waiting and not received:
            ready, _ = ray.wait(list(waiting), timeout=1)
            for finished in ready:
                shard = waiting.pop(finished)
                try:
                    ray.get(finished)
                except ray.exceptions.RayError as error:
                    for other in waiting:
                        ray.cancel(other)
                    raise _ray_failure(error) from None
                done += len(store.items_of(shard))
                failed += len(store.failures_of(shard))
                progress(f"extract {job.items.name}", done, len(job.items), f"{failed:,} failed" if failed else "")


@contextmanager
def _cluster() -> Iterator[list[int]]:
    """Start Ray unless it runs; yield the signals that should end the work, which wait for the end of the block.

    Ray puts a handler of its own in place of ours for SIGTERM, and turns an exit inside of its calls into another.
    """
    import ray

    received: list[int] = []
    if ray.is_initialized():
        yield received
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level="error", log_to_driver=False, include_dashboard=False)
    if main:
        signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        ray.shutdown()
        if main:
            signal.signal(signal.SIGTERM, before)
    if received:
        signal.raise_signal(received[0])


def _ray_failure(error: Exception) -> FusemixError:
    """Return our own error that a task ended with, or tell what happened to the cluster."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FusemixError):
        return cause
    last = str(error).strip().rpartition("\n")[2]
    return FusemixError(f"the engine 'ray' failed with {type(error).__name__}: {last}; what is finished is kept")


def _anywhere(job: Job) -> Job:
    """Write every path in full: a worker does not work in this folder."""
    items = replace(job.items, root=job.items.root.resolve())
    return replace(job, items=items, folder=job.folder.resolve(), spec=absolute(job.spec), decode=absolute(job.decode))


_WORK: dict[str, Work] = {}  # of this worker process: an encoder loads once a process, not once a shard


def _ray_task(job: Job, key: str, shard: int) -> None:
    if key not in _WORK:
        _WORK.clear()  # the encoder of the last modality leaves memory
        _WORK[key] = job.work(silent)
    fill(_WORK[key], [shard])
