"""Decode ahead of the model, in other processes: a decoder that crashes, hangs or swallows memory costs one item.

Each thread of a small pool owns one worker process (`python -m fusemix.data.worker`) and talks to it over its pipes.
They are started that way, and not by `multiprocessing`, so that a user's script without a __main__ guard does not
run again in every one of them.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer, local
from types import TracebackType
from typing import Any, Self

import fusemix
from fusemix.data.media import ItemError, Source
from fusemix.data.worker import pack_source, receive, send
from fusemix.errors import FusemixError, MissingExtraError
from fusemix.sound import Sound

TIMEOUT = 60.0  # seconds for one item; ten minutes of sound take two
MOST = 8  # workers; more than a model can use of them
COMMAND = [sys.executable, "-m", "fusemix.data.worker"]


class Decoders:
    """A pool of decoding processes, each started when it is first needed; a context manager.

    Args:
        workers: number of processes; by default one a core, at most 8.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(workers or min(MOST, os.cpu_count() or 1), "fusemix-decode")
        self._own = local()
        self._workers: list[_Worker] = []
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for worker in self._workers:
                worker.kill()  # a thread that waits for it returns at once
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def submit(self, form: str, source: Source) -> "Future[Any]":
        """Decode one item to a form: "image" (PIL image), "audio" (Sound) or "video" (list of PIL images).

        The future raises ItemError where the item cannot be used, MissingExtraError where a library is not there.
        """
        return self._threads.submit(self._decode, form, source)

    def submit_call(self, function: Callable[[Any], Any], source: Source) -> "Future[Any]":
        """Run the user's own decoder in a thread of this process; whatever it raises fails the item."""
        return self._threads.submit(_call, function, source)

    def _decode(self, form: str, source: Source) -> Any:
        worker = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _Worker()
            with self._lock:
                self._workers.append(worker)
        return worker.decode(form, source)


class _Worker:
    """One decoding process, started again after its death."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def decode(self, form: str, source: Source) -> Any:
        process = self.process
        if process is None:
            process = self.process = _start()
        assert process.stdin is not None and process.stdout is not None
        late: list[bool] = []
        timer = Timer(TIMEOUT, _stop, (process, late))
        timer.start()
        try:
            facts, arrays = pack_source(source)
            send(process.stdin, {"form": form, **facts}, arrays)  # type: ignore[arg-type]
            reply = receive(process.stdout)  # type: ignore[arg-type]
        except OSError:
            reply = None
        finally:
            timer.cancel()
        if reply is None:
            self.kill()
            code = process.wait()
            self.close()
            if late:
                raise ItemError("timed out", f"not decoded within {TIMEOUT:g} s")
            raise ItemError("decoder crashed", f"the decoding process ended with code {code}")
        return _value(form, *reply)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # it died with a request in the pipe
            process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def _stop(process: "subprocess.Popen[bytes]", late: list[bool]) -> None:
    late.append(True)
    process.kill()


def _start() -> "subprocess.Popen[bytes]":
    # Its own session: Ctrl-C reaches this process alone, which then ends the workers in order.
    path = os.pathsep.join(filter(None, [str(Path(fusemix.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(  # noqa: S603
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )


def _value(form: str, facts: dict[str, Any], arrays: list[Any]) -> Any:
    """Turn an answer into what the encoder gets."""
    if "missing" in facts:
        raise MissingExtraError(*facts["missing"])
    if "reason" in facts:
        raise ItemError(facts["reason"], facts["message"])
    if form == "audio":
        return Sound(arrays[0], facts["rate"])
    from PIL import Image

    images = [Image.fromarray(array) for array in arrays]
    return images if form == "video" else images[0]


def _call(function: Callable[[Any], Any], source: Source) -> Any:
    try:
        return function(source)
    except (ItemError, FusemixError):
        raise
    except Exception as error:
        raise ItemError("decode failed", f"{type(error).__name__}: {error}") from error
