"""The server under loads that would break it: slow clients, more than it can do, ends and swaps in the middle of work.

    python benchmarks/torture_server_load.py [--small]

Clients are raw sockets of this process and share the machine's cores with the server, so its figures are lower bounds.
"""

import argparse
import asyncio
import itertools
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

import fusemix as fm
from goals import leave, result
from served import Reply, Server, make_index, request, search_request, send

WORDS = ("arrow", "circle", "letter", "box", "number", "heavy sign", "small dot", "black square", "double line", "star")


def ask(i: int, k: int = 12) -> bytes:
    """A search by words, which cannot be answered from memory."""
    return search_request({"query": [{"text": f"{WORDS[i % len(WORDS)]} {i}"}], "k": k})


def is_right(reply: Reply, k: int = 12) -> bool:
    """Tell whether a search was answered, whole."""
    return reply.status == 200 and len(reply.json()["hits"]) == k


async def closed_loop(server: Server, clients: int, until: float) -> list[Reply]:
    """Clients that ask again as soon as they have an answer."""
    numbers, replies = itertools.count(), []

    async def client() -> None:
        while time.perf_counter() < until:
            replies.append(await send(server, ask(next(numbers))))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


async def steady(server: Server, rate: float, seconds: float) -> list[Reply]:
    """Requests at fixed times, whatever becomes of those before."""
    started, tasks = time.perf_counter(), []
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + i / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(send(server, ask(i))))
    return list(await asyncio.gather(*tasks))


def p99(replies: list[Reply]) -> float:
    """Seconds that 99 % of the answers took at most."""
    return float(np.percentile([reply.seconds for reply in replies], 99))


async def slow_clients(server: Server, count: int, seconds: float) -> None:
    """Connections that send a byte now and then: half of them headers, half of them a body."""
    quiet = await steady(server, 20, seconds / 2)
    over = time.perf_counter() + seconds
    slow_ones = [asyncio.create_task(_slow(server, i, over)) for i in range(count)]
    honest = await steady(server, 20, seconds)
    lives = [life for lives in await asyncio.gather(*slow_ones) for life in lives]
    answered = round(100 * sum(map(is_right, honest)) / len(honest), 2)
    name = f"honest requests answered beside {count} slow connections, %"
    result(name, answered, ">= 99.9", lambda x: x >= 99.9)
    print(f"# p99 {1000 * p99(honest):.0f} ms beside {1000 * p99(quiet):.0f} ms quiet, {len(honest)} requests")
    result("p99 of honest requests beside the quiet one", round(p99(honest) / p99(quiet), 2), "<= 2", lambda x: x <= 2)
    result("longest life of a slow connection, s", round(max(lives), 1), "<= 16", lambda x: x <= 16)


async def _slow(server: Server, i: int, over: float) -> list[float]:
    """Open a connection, send a byte a second until it is closed, and again; return how long each lived."""
    lives = []
    raw = request("POST", "/v1/search", [("content-type", "application/json"), ("content-length", "9000")])
    while time.perf_counter() < over:
        started = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection(server.host, server.port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        try:
            writer.write(raw if i % 2 else raw[:40])
            while time.perf_counter() < started + 30:
                try:
                    await asyncio.wait_for(reader.read(1000), 1.0)
                    break  # an answer, or the end
                except TimeoutError:
                    writer.write(b"x")
        except OSError:
            pass
        lives.append(time.perf_counter() - started)
        writer.transport.abort()
        await asyncio.sleep(0)  # in which the transport goes
    return lives


async def overload(server: Server, seconds: float) -> None:
    """Four times as many requests a second as it can answer."""
    await closed_loop(server, 16, time.perf_counter() + 3)
    peaks = []
    for clients in (16, 32, 48):
        started = time.perf_counter()
        replies = await closed_loop(server, clients, started + seconds / 4)
        peaks.append(sum(map(is_right, replies)) / (time.perf_counter() - started))
    peak = max(peaks)
    started = time.perf_counter()
    replies = await steady(server, 4 * peak, seconds)
    lasted = time.perf_counter() - started
    taken, rest = [r for r in replies if is_right(r)], [r for r in replies if not is_right(r)]
    counts = dict(Counter(reply.status for reply in replies))
    print(f"# peak {peak:.0f}/s; offered {len(replies) / lasted:.0f}/s for {lasted:.1f} s: {counts}")
    share = 100 * len(taken) / lasted / peak
    result("accepted throughput at 4 times capacity, % of peak", round(share, 1), ">= 90", lambda x: x >= 90)
    told = 100 * sum(r.status == 503 and "retry-after" in r.headers for r in rest) / max(1, len(rest))
    result(
        "requests not accepted that were told 503 and when to try again, %", round(told, 2), "100", lambda x: x == 100
    )
    health = await send(server, request("GET", "/healthz"))
    result("s until it is well again", round(health.seconds, 2), "<= 5", lambda x: x <= 5 and health.status == 200)


async def terminations(index: Path, count: int) -> None:
    """SIGTERM in the middle of work: whatever the server had taken is answered."""
    unanswered = sent = 0
    codes: Counter[int] = Counter()
    ends = []
    for round_ in range(count):
        with Server(index) as server:
            numbers, stop = itertools.count(), asyncio.Event()
            lost: list[str] = []

            async def client(server=server, numbers=numbers, stop=stop, lost=lost) -> None:  # noqa: ANN001
                nonlocal sent
                while not stop.is_set():
                    try:
                        reader, writer = await asyncio.open_connection(server.host, server.port)
                    except OSError:  # refused: it listens no longer
                        return
                    writer.write(ask(next(numbers)))
                    sent += 1
                    try:
                        data = await reader.readuntil(b"\r\n\r\n")
                        length = int(data.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                        await reader.readexactly(length)
                    except (OSError, asyncio.IncompleteReadError) as error:
                        lost.append(repr(error))
                    writer.close()

            clients = [asyncio.create_task(client()) for _ in range(8)]
            await asyncio.sleep(0.3 + 0.02 * (round_ % 10))
            began = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(server.process.wait, 30)
            ends.append(time.perf_counter() - began)
            stop.set()
            await asyncio.gather(*clients)
            codes[code] += 1
            unanswered += len(lost)
            if lost:
                print(f"# round {round_}: {lost}")
    print(
        f"# {sent} requests, exit codes {dict(codes)}, s to end {statistics.median(ends):.1f}, at most {max(ends):.1f}"
    )
    result(f"requests unanswered by {count} SIGTERMs under load", unanswered, "0", lambda x: x == 0)
    result("exit codes that are not 0", count - codes[0], "0", lambda x: x == 0)


async def swaps(server: Server, index: Path, count: int) -> None:
    """The folder is written again and again while clients search."""
    stop, wrong, seen, total = asyncio.Event(), [], Counter(), itertools.count()

    async def client() -> None:
        while not stop.is_set():
            reply = await send(server, ask(next(total)))
            if not is_right(reply):
                wrong.append((reply.status, reply.body[:200]))
            else:
                body = reply.json()
                seen[body["generation"]] += 1
                if any(
                    f"&g={body['generation']}" not in (hit["preview"] or "&g=" + str(body["generation"]))
                    for hit in body["hits"]
                ):
                    wrong.append((reply.status, b"hits of another generation"))

    clients = [asyncio.create_task(client()) for _ in range(4)]
    opened = fm.open_index(index)
    for i in range(count):
        rows = np.arange(len(opened)) if i % 2 else np.arange(len(opened))[::-1].copy()
        saved = await asyncio.to_thread(opened.take(rows).save, index)
        for _ in range(200):
            if seen[saved.generation]:
                break
            await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*clients)
    print(f"# {next(total)} searches in {len(seen)} generations; {wrong[:3]}")
    result(f"errors in {count} swaps under load", len(wrong), "0", lambda x: x == 0)
    result("generations served", len(seen), f">= {count}", lambda x: x >= count)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a few seconds of each")
    parser.add_argument("--only", default="slow,overload,swaps,terminations")
    given = parser.parse_args()
    parts: dict[str, Callable[[Server, Path], Awaitable[None]]] = {
        "slow": lambda server, index: slow_clients(server, *((40, 6) if given.small else (200, 60))),
        "overload": lambda server, index: overload(server, 8 if given.small else 60),
        "swaps": lambda server, index: swaps(server, index, 3 if given.small else 50),
    }
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), 120 if given.small else 300)
        for name in given.only.split(","):
            if name == "terminations":
                asyncio.run(terminations(index, 2 if given.small else 50))
                continue
            with Server(index) as server:
                asyncio.run(parts[name](server, index))
                if server.told():
                    print(f"# the server said: {server.told()[-2000:]}")
    leave()


if __name__ == "__main__":
    main()
