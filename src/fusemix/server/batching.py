"""Queries that wait are answered together: one batch through the encoder, one product with the index."""

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusemix.errors import FusemixError
from fusemix.search.hit import Hit
from fusemix.search.index import Index
from fusemix.search.query import Term
from fusemix.server.limits import RETRY_SECONDS, WAITING, RequestError
from fusemix.server.served import Served

MOST = 32  # queries a batch; fewer than may wait, so that the thread never idles while answers are written


@dataclass(frozen=True)
class Ask:
    """A search, see `Index.search`."""

    terms: Sequence[Term]
    k: int
    where: Sequence[str] = ()
    among: str | None = None


@dataclass(frozen=True)
class Answer:
    """What was found, in which index."""

    index: Index
    hits: list[Hit]
    rows: list[int]
    embedding: NDArray[np.float32]
    seconds: float


class Batcher:
    """A thread that takes whatever waits, again and again.

    Args:
        served: what is served; a batch is answered from one index of it.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._waiting: queue.SimpleQueue[tuple[Ask, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._count = 0
        self._thread = threading.Thread(target=self._work, name="fusemix-search", daemon=True)
        self._thread.start()

    def is_full(self) -> bool:
        """Tell whether one more search would have to wait too long."""
        return self._count >= WAITING

    async def ask(self, ask: Ask) -> Answer:
        """Search.

        Raises:
            RequestError: busy.
            DataError: a query or a condition that cannot be used.
        """
        if self.is_full():
            raise RequestError("busy", "too many searches are waiting", f"try again in {RETRY_SECONDS} s")
        self._count += 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.put((ask, future))
        try:
            return await asyncio.shield(future)
        finally:
            self._count -= 1

    def close(self) -> None:
        """End the thread when all that waits is answered."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while self._answer_what_waits():
            pass

    def _answer_what_waits(self) -> bool:
        """Answer a batch, and hold nothing of it afterwards: a decoded picture may be large. False at the end."""
        job, jobs = self._waiting.get(), []
        while job is not None:
            jobs.append(job)
            if len(jobs) == MOST or self._waiting.empty():
                break
            job = self._waiting.get()
        if jobs:
            assert self._served.now is not None  # who asks has looked at it
            answers = answer_all(self._served.now.index, [ask for ask, _ in jobs])
            for (_, future), answer in zip(jobs, answers, strict=True):
                future.get_loop().call_soon_threadsafe(_tell, future, answer)
        return job is not None


def answer_all(index: Index, asks: Sequence[Ask]) -> list[Answer | Exception]:
    """Answer searches together; one that cannot be answered gets its error, and the others their hits."""
    try:
        return list(_together(index, asks))
    except Exception as error:
        if len(asks) == 1:
            return [error]
        return [answer for ask in asks for answer in answer_all(index, [ask])]


def _together(index: Index, asks: Sequence[Ask]) -> list[Answer]:
    started = time.perf_counter()
    embedded = index.embed_queries([ask.terms for ask in asks])
    queries = torch.from_numpy(embedded)
    among = [index.rows(ask.where, ask.among) for ask in asks]
    found: dict[int, tuple[Any, Any]] = {}
    free = [i for i, rows in enumerate(among) if rows is None]
    if free:
        scores, rows = index.search_embeddings(queries[free], max(asks[i].k for i in free))
        found.update({i: (scores[place, : asks[i].k], rows[place, : asks[i].k]) for place, i in enumerate(free)})
    for i, chosen in enumerate(among):
        if chosen is not None:
            scores, rows = index.search_embeddings(queries[i : i + 1], asks[i].k, chosen)
            found[i] = scores[0], rows[0]
    hits = [index.hits(found[i][0][None], found[i][1][None])[0] for i in range(len(asks))]
    seconds = time.perf_counter() - started
    return [Answer(index, hits[i], found[i][1].tolist(), embedded[i], seconds) for i in range(len(asks))]


def _tell(future: "asyncio.Future[Answer]", answer: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Answer):
        future.set_result(answer)
    else:
        future.set_exception(answer if isinstance(answer, FusemixError) else RuntimeError(repr(answer)))
