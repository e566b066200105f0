"""What the server is tortured and measured with: an index of pictures and sounds, a server process, and raw clients.

The pictures are symbols of the demo and the sounds are tones, each with captions; two models locked to the captions'
encoder share one space, so every kind of query goes to every kind of item.
"""

import asyncio
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import fusemix as fm
from fusemix.data.symbols import write_symbols
from fusemix.search.index import Index
from fusemix.search.previews import with_previews
from fusemix.search.space import Space

HEAR = '''"""Encode tones: the strength of 64 bands."""
import numpy as np

def encode(sounds):
    spectra = [np.abs(np.fft.rfft(sound.samples[:16000], 16000))[:4096] for sound in sounds]
    return np.stack([np.log1p(s.reshape(64, 64).mean(axis=1)) for s in spectra]).astype(np.float32)
'''
NOTES = ("low hum", "deep tone", "dark note", "middle tone", "bright note", "high whistle")


def make_index(folder: Path, symbols: int = 300) -> Path:
    """Write an index of symbols and tones, and return the words that `fusemix serve` needs for it."""
    (folder / "hear.py").write_text(HEAR)
    table = write_symbols(folder, symbols)
    pairs = fm.read_pairs(table, image="image", text="text")
    reads = fm.load_encoder("minilm", "text")  # once
    seen = fm.extract(pairs, image="hog", text=reads, out=folder / "seen")
    tones = fm.read_pairs(write_tones(folder), sound="file", text="caption")
    heard = fm.extract(tones, sound=f"{folder / 'hear.py'}:encode", text=reads, out=folder / "heard")
    train = {"epochs": 2, "batch_size": 64, "depth": 0}
    sees = fm.FuseMix(lock="text", **train).fit(seen.split()[0])
    hears = fm.FuseMix(lock="text", **train).fit(heard)
    index = Index.of(Space([sees, hears]), seen["image"], heard["sound"])
    with_previews(index).save(folder / "index")
    return folder / "index"


def write_tones(folder: Path, count: int = 60) -> Path:
    """Write sine tones, low to high, and tones.csv with the columns file and caption; return its path."""
    (folder / "tones").mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        pitch = 80 * 2 ** (6 * i / count)
        samples = np.sin(2 * np.pi * pitch * np.arange(16000) / 16000) * 0.3 + rng.normal(0, 0.01, 16000)
        soundfile.write(folder / "tones" / f"{i:02d}.wav", samples, 16000)
        rows.append([f"tones/{i:02d}.wav", f"{NOTES[i * len(NOTES) // count]} {i}"])
    with (folder / "tones.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "caption"], *rows])
    return folder / "tones.csv"


class Server:
    """A `fusemix serve` process; a context manager that waits until it is ready, and ends it.

    Args:
        index: what is served.
        words: more of the command line.
        hears: whether it is told of the encoder of sounds.
    """

    def __init__(self, index: Path, *words: str, hears: bool = True) -> None:
        encoder = ["--encoder", f"sound={index.parent / 'hear.py'}:encode"] if hears else []
        self.command = [sys.executable, "-m", "fusemix", "serve", str(index), "--port", "0", *encoder, *words]

    def __enter__(self) -> "Server":
        self.log = open(f"/tmp/served-{os.getpid()}-{id(self)}.log", "w+")  # noqa: PTH123
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)/", line)
        if found is None:
            raise RuntimeError(f"no server: {line}{self.told()}")
        self.host, self.port = found[1], int(found[2])
        return self

    def __exit__(self, *error: Any) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.stdout.close()
        self.log.close()
        Path(self.log.name).unlink(missing_ok=True)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def told(self) -> str:
        """What the server wrote on stderr."""
        return Path(self.log.name).read_text()

    def memory(self) -> int:
        """Bytes of the server and of its decoding processes that nobody shares (PSS)."""
        import psutil

        total = 0
        process = psutil.Process(self.process.pid)
        for each in [process, *process.children(recursive=True)]:
            try:
                total += each.memory_full_info().pss
            except psutil.Error:
                continue
        return total


@dataclass
class Reply:
    """An answer: status 0 where the connection ended before it was whole."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


def request(
    method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"", host: str = "127.0.0.1"
) -> bytes:
    """Write a request as bytes, with whatever headers."""
    given = {name.lower() for name, _ in headers}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [] if "host" in given else [f"host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"content-length: {len(body)}"] if body and not given & {"content-length", "transfer-encoding"} else []
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def search_request(query: dict[str, Any], headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Write a search."""
    return request("POST", "/v1/search", [("content-type", "application/json"), *headers], json.dumps(query).encode())


def form_request(query: dict[str, Any], files: dict[str, bytes]) -> bytes:
    """Write a search with files."""
    edge = "edge7MA4YWxkTrZu0gW"
    parts = [f'--{edge}\r\ncontent-disposition: form-data; name="request"\r\n\r\n{json.dumps(query)}\r\n'.encode()]
    for name, content in files.items():
        head = f'--{edge}\r\ncontent-disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        parts.append(head.encode("utf-8", "surrogateescape") + content + b"\r\n")
    body = b"".join(parts) + f"--{edge}--\r\n".encode()
    return request("POST", "/v1/search", [("content-type", f"multipart/form-data; boundary={edge}")], body)


async def send(server: Server, raw: bytes, timeout: float = 30) -> Reply:
    """Send bytes over a connection of their own, and read the answer."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(server.host, server.port)
            try:
                writer.write(raw)
                reply = await _read(reader)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        reply = Reply(0)
    reply.seconds = time.perf_counter() - started
    return reply


async def _read(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Reply(int(head[0].split()[1]), headers, body)


async def gather(server: Server, raws: Iterable[bytes], at_once: int = 16) -> list[Reply]:
    """Send many requests, some at once; answers in the order of the requests."""
    turn = asyncio.Semaphore(at_once)

    async def one(raw: bytes) -> Reply:
        async with turn:
            return await send(server, raw)

    return await asyncio.gather(*(one(raw) for raw in raws))
