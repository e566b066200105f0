"""Decode ahead of the model, in other processes: a decoder that crashes, hangs or swallows memory costs one item.

Each thread of a small pool owns one worker process (`python -m fusemix.data.worker`) and talks to it over its pipes.
They are started that way, and not by `multiprocessing`, so that a user's script without a __main__ guard does not
run again in every one of them.
"""

import math
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Condition, Lock, Thread, Timer, local
from types import TracebackType
from typing import Any, Self

import fusemix
from fusemix.data.media import ItemError, Source, path_or_bytes
from fusemix.data.worker import Message, pack_source, receive, send
from fusemix.errors import FusemixError, MissingExtraError
from fusemix.sound import Sound

TIMEOUT = 60.0  # seconds for one item; ten minutes of sound take two
GRACE = 1.0  # seconds in which a process that closed its pipes may end by itself, and tell by its code why
MOST = 8  # workers; more than a model can use of them
AHEAD_BYTES = 1 << 30  # of decoded items that wait for their turn: nine pictures of 40 megapixels
COMMAND = [sys.executable, "-m", "fusemix.data.worker"]


class Decoders:
    """A pool of decoding processes, each started when it is first needed; a context manager.

    What is submitted has a turn. `take_turn` says which one is wanted now, and `let_go` which ones are done with; what
    comes later is only decoded while all that is held stays below AHEAD_BYTES. Leaving waits for what was submitted;
    leaving by an exception, Ctrl-C too, ends all at once.

    Args:
        workers: number of processes; by default one a core, at most 8.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(workers or min(MOST, os.cpu_count() or 1), "fusemix-decode")
        self._own = local()
        self._room = _Room()
        self._workers: list[_Worker] = []
        self._calls: set[Future[Any]] = set()
        self._lock = Lock()
        self._ending = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.take_turn(math.inf)
        if error is None:
            self._threads.shutdown()
        with self._lock:
            self._ending = True
        for worker in self._workers:
            worker.end()  # a thread that waits for it goes on at once
        for call in list(self._calls):
            with suppress(InvalidStateError):
                call.set_exception(CancelledError())
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def submit(self, form: str, source: Source, turn: int = 0) -> "Future[Any]":
        """Decode one item to a form: "image" (PIL image), "audio" (Sound), "video" (list of PIL images) or "file".

        A "file" is a Path, or the bytes of what lies in a tar or in the table.

        The future raises ItemError where the item cannot be used, MissingExtraError where a library is not there, and
        FusemixError where one does not load or no process starts.
        """
        return self._threads.submit(self._in_turn, turn, self._decode, form, source)

    def submit_call(self, function: Callable[[Any], Any], source: Source, turn: int = 0) -> "Future[Any]":
        """Run the user's own decoder in a thread of this process; whatever it raises fails the item."""
        return self._threads.submit(self._in_turn, turn, self._call, function, source)

    def take_turn(self, turn: int) -> None:
        """Decode what has this turn, or an earlier one, whatever it takes."""
        self._room.take_turn(turn)

    def let_go(self, turn: int) -> None:
        """Count the decoded items of this turn and of earlier ones no longer."""
        self._room.let_go(turn)

    def _in_turn(self, turn: int, decode: Callable[..., Any], *arguments: Any) -> Any:
        self._room.wait(turn)
        value = decode(*arguments)
        self._room.fill(turn, bytes_of(value))
        return value

    def _call(self, function: Callable[[Any], Any], source: Source) -> Any:
        # No thread can be stopped: one that hangs is left behind, and must not keep the process from its end.
        answer: Future[Any] = Future()
        with self._lock:
            if self._ending:
                raise CancelledError
            self._calls.add(answer)
        Thread(target=_answer, args=(answer, function, path_or_bytes(source)), daemon=True).start()
        try:
            return answer.result(TIMEOUT)
        except TimeoutError as error:
            raise ItemError("timed out", f"your decoder took more than {TIMEOUT:g} s") from error
        finally:
            self._calls.discard(answer)

    def _decode(self, form: str, source: Source) -> Any:
        if form == "file":
            return path_or_bytes(source)
        worker = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _Worker()
            with self._lock:
                if self._ending:
                    raise CancelledError
                self._workers.append(worker)
        return worker.decode(form, source)


def call_decoder(function: Callable[[Any], Any], source: Path | bytes) -> Any:
    """Run the user's own decoder on one item.

    Raises:
        ItemError: what it raises itself, or "decode failed" for anything else and for None.
        FusemixError: what it raises itself.
    """
    try:
        value = function(source)
    except (ItemError, FusemixError):
        raise
    except (Exception, SystemExit) as error:  # an exit would end its thread only, and somebody waits for an answer
        raise ItemError("decode failed", f"{type(error).__name__}: {error}") from error
    if value is None:
        raise ItemError("decode failed", "your decoder returned None")
    return value


def bytes_of(value: Any) -> int:
    """Weigh a decoded item: a picture, a sound, frames, bytes or an array; 0 for what cannot be weighed."""
    if isinstance(value, list):
        return sum(bytes_of(part) for part in value)
    if isinstance(value, Sound):
        return value.samples.nbytes
    if isinstance(value, bytes):
        return len(value)
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    size = getattr(value, "size", None)
    return 3 * size[0] * size[1] if isinstance(size, tuple) else 0


class _Room:
    """The bytes of decoded items, from their decoding on until they are let go."""

    def __init__(self) -> None:
        self._held: Counter[float] = Counter()  # by turn
        self._turn: float = 0
        self._changed = Condition()

    def take_turn(self, turn: float) -> None:
        with self._changed:
            self._turn = turn
            self._changed.notify_all()

    def let_go(self, turn: int) -> None:
        with self._changed:
            for done in [key for key in self._held if key <= turn]:
                del self._held[done]
            self._changed.notify_all()

    def wait(self, turn: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: turn <= self._turn or self._held.total() < AHEAD_BYTES)

    def fill(self, turn: int, count: int) -> None:
        with self._changed:
            self._held[turn] += count


class _Worker:
    """One decoding process, started again after its death; `end` may come from another thread at any time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = 0  # of the process that runs now
        self._ended = False
        self._lock = Lock()

    def decode(self, form: str, source: Source) -> Any:
        """Decode one item; a process that dies of an item before is replaced, and asked again."""
        facts, arrays = pack_source(source)
        request = {"form": form, "seconds": TIMEOUT, **facts}, arrays
        while True:
            process, used = self._running(), self._answers > 0
            reply, late = _ask(process, request)
            if reply is None or late:
                code = self.close(GRACE if reply is None else 0)
            if reply is not None:
                self._answers += 1
                return _value(form, *reply)
            if late:
                raise ItemError("timed out", f"not decoded within {TIMEOUT:g} s")
            if not used and not self._ended:  # else an item before may have left the damage: try in a new process
                raise ItemError("decoder crashed", f"the decoding process ended with code {code}")

    def end(self) -> None:
        """Kill the process, now and for ever."""
        with self._lock:
            self._ended = True
            process = self._process
        if process is not None:
            process.kill()

    def close(self, patience: float = 0) -> int:
        """Kill the process unless it ends within some seconds, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        code = process.wait()
        _close_pipes(process)
        return code

    def _running(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._ended:
                raise CancelledError
            if self._process is not None:
                return self._process
            process = self._process = subprocess.Popen(  # noqa: S603
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **_options()
            )
        self._answers = 0
        if receive(process.stdout) is None:
            code = self.close(GRACE)
            raise CancelledError if self._ended else FusemixError(_why_it_does_not_start(code))
        return process


def _ask(process: "subprocess.Popen[bytes]", request: Message) -> tuple[Message | None, bool]:
    """Return the answer, None from a process that is dead, and whether it was killed for being late."""
    late: list[bool] = []

    def stop() -> None:
        late.append(True)
        process.kill()

    timer = Timer(TIMEOUT, stop)
    timer.start()
    try:
        send(process.stdin, *request)
        return receive(process.stdout), bool(late)
    except OSError:
        return None, bool(late)
    finally:
        timer.cancel()


def _why_it_does_not_start(code: int) -> str:
    """Start a worker once more, to read what it says."""
    again = subprocess.run(COMMAND, input=b"", capture_output=True, **_options())  # noqa: S603
    last = again.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"no decoding process starts ({' '.join(COMMAND)}): {last or f'exit code {code}'}"


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # it died with a request in the pipe
            pipe.close()


def _options() -> dict[str, Any]:
    """Let a worker find this very fusemix, import nothing from the folder it runs in, and use one core."""
    folder = str(Path(fusemix.__file__).parent.parent)
    paths = [] if folder == sysconfig.get_path("purelib") else [folder]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    # Its own session: Ctrl-C reaches this process alone, which then ends the workers in order.
    return {"start_new_session": True, "env": {**os.environ, **own}}


def _value(form: str, facts: dict[str, Any], arrays: list[Any]) -> Any:
    """Turn an answer into what the encoder gets."""
    if "missing" in facts:
        raise MissingExtraError(*facts["missing"])
    if "broken" in facts:
        raise FusemixError(f"a decoder does not load: {facts['broken']}")
    if "reason" in facts:
        raise ItemError(facts["reason"], facts["message"])
    if form == "audio":
        return Sound(arrays[0], facts["rate"])
    from PIL import Image

    images = [Image.fromarray(array) for array in arrays]
    return images if form == "video" else images[0]


def _answer(answer: "Future[Any]", function: Callable[[Any], Any], source: Path | bytes) -> None:
    """Run the user's own decoder, and say what came of it to whoever still listens."""
    with suppress(InvalidStateError):  # it was given up
        try:
            answer.set_result(call_decoder(function, source))
        except BaseException as error:  # whatever it is, somebody waits for it
            answer.set_exception(error)
