"""The server against those who would break in or break it: odd requests, paths, names, pages of other sites, bombs.

    python benchmarks/torture_server.py [--small] [--only schema,paths,doors,limits,bombs]

Requests of a client that speaks plain HTTP/1.1 over sockets, so that nothing is tidied up on the way; the schema is
exercised by schemathesis.
"""

import argparse
import asyncio
import io
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile
from PIL import Image

from goals import leave, result
from served import Reply, Server, form_request, gather, make_index, request, search_request, send

SENTINEL = "SENTINEL-7f3a9c"
TOKEN = "a-token-of-many-letters"
REFUSED = [400, 401, 403, 404, 405, 413, 415, 422, 431]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
CHECKS += "response_schema_conformance,negative_data_rejection,unsupported_method"


def schema(server: Server, cases: int) -> None:
    """What schemathesis makes of the OpenAPI schema: no answer 5xx, none that the schema does not know."""
    tool = Path(sys.executable).with_name("schemathesis")
    always = [
        "--checks",
        CHECKS,
        "--phases",
        "examples,coverage,fuzzing",
        "--suppress-health-check",
        "all",
        "--no-color",
    ]
    total, failures, seed = 0, 0, 1
    with tempfile.TemporaryDirectory() as folder:
        # What is both wrong and too large is told that it is too large.
        settings = f"[checks.negative_data_rejection]\nexpected-statuses = {REFUSED}\n"
        (Path(folder) / "schemathesis.toml").write_text(settings)
        while total < cases and seed < 100:
            examples = str(max(10, min(2000, (cases - total) // 4)))
            words = [*always, "--workers", "2", "--max-examples", examples, "--seed", str(seed)]
            command = [tool, "run", f"{server.address}/openapi.json", *words]
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            made = re.search(r"([\d,]+) generated", run.stdout)
            if made is None:
                print(run.stdout[-3000:], run.stderr[-2000:])
                break
            total, seed = total + int(made[1].replace(",", "")), seed + 1
            if run.returncode:
                failures += 1
                said = re.split(r"=+ (?=ERRORS|FAILURES)", run.stdout, maxsplit=1)[-1]
                print("\n".join(f"# {line[:300]}" for line in said.splitlines()[:80]))
    result("cases of schemathesis", total, f">= {cases:,}", lambda x: x >= cases)
    result("runs of schemathesis with an answer 5xx or a violation", failures, "0", lambda x: x == 0)


def traversals() -> Iterator[str]:
    """Yield names that would leave a folder, in many spellings."""
    ups = ["../", "..\\", "%2e%2e/", "%2e%2e%2f", "..%2f", "..%5c", "%252e%252e%252f", "..;/", "....//", "..%c0%af",
           "..%ef%bc%8f", ".%2e/", "%2e./", "/../", "./../", "..%00/", "file:///", "\\\\?\\", "//", "~/"]  # fmt: skip
    targets = ["etc/passwd", "sentinel.txt", "index/facts.json", "proc/self/environ", "generation-1/items.parquet"]
    heads = ["", "images/", "/", "images/u2603.png/", "C:\\", "image\0"]
    tails = ["", "%00.png", "?.png", "#.png"]
    for up, target, head, tail, depth in itertools.product(ups, targets, heads, tails, (1, 4, 9)):
        yield f"{head}{up * depth}{target}{tail}"


def paths(server: Server, count: int) -> None:
    """Names and paths that lead out of the index: nothing of a file comes back, and nothing breaks."""
    every = list(traversals())
    chosen = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:count]]
    replies = asyncio.run(gather(server, [_led_out(i, name) for i, name in enumerate(chosen)]))
    leaks = sum(SENTINEL.encode() in each.body or b"root:" in each.body or b"PAR1" in each.body for each in replies)
    print(f"# {dict(Counter(each.status for each in replies))}")
    result(f"answers to {count:,} traversals that hold a byte of a file", leaks, "0", lambda x: x == 0)
    wrong = [each.status for each in replies if not 200 <= each.status < 500]
    result("of them not answered, or 5xx", len(wrong), "0", lambda x: x == 0)


def _led_out(i: int, name: str) -> bytes:
    """Put a name into one of the places of a request."""
    plain = name.replace("\0", "%00").replace(" ", "%20").replace("\\", "%5c").replace("#", "%23")
    return (
        lambda: request("GET", f"/v1/preview?modality=image&id={quote(name, '')}"),
        lambda: request("GET", f"/v1/preview?modality={plain.replace('?', '%3f')}&id=x"),
        lambda: request("GET", f"/{plain}"),
        lambda: request("GET", f"/v1/{plain}"),
        lambda: search_request({"query": [{"item": name}]}),
        lambda: form_request({"query": [{"file": name[:900]}]}, {re.sub(r'["\r\n\0]', "_", name): b"x"}),
    )[i % 6]()


def doors(open_: Server, locked: Server) -> None:
    """Sixty combinations of Host, Origin and token: each answered as it should be."""
    wrong, count = [], 0
    for server, needs in ((open_, False), (locked, True)):
        own = f"127.0.0.1:{server.port}"
        hosts = {
            own: True,
            f"localhost:{server.port}": True,
            "evil.example": False,
            "127.0.0.1.evil.example": False,
            f"{own}@evil.example": False,
        }
        for (host, known), kind in itertools.product(
            hosts.items(), ("none", "own", "null", "foreign", "port", "suffix")
        ):
            name = {"own": f"http://{host}", "null": "null", "foreign": "https://evil.example", "port": "http://127.0.0.1:1",
                    "suffix": f"http://{host}.evil.example"}.get(kind)  # fmt: skip
            headers = [("host", host), *([("origin", name)] if name else []), ("content-type", "application/json")]
            body = json.dumps({"query": [{"text": "arrow"}], "k": 1}).encode()
            for token, brings in ((None, False), (TOKEN, True), (TOKEN[:-1], False)) if needs else ((None, False),):
                bearer = [("authorization", f"Bearer {token}")] if token else []
                reply = asyncio.run(send(server, request("POST", "/v1/search", [*headers, *bearer], body)))
                fine = known and kind in ("none", "own")
                wanted = 403 if not fine else 401 if needs and not brings else 200
                count += 1
                if reply.status != wanted or any(n.startswith("access-control") for n in reply.headers):
                    wrong.append((host, kind, token, reply.status, wanted))
    reads = [("/", 200), ("/healthz", 200), ("/readyz", 200), ("/v1/index", 401), ("/v1/items", 401),
             ("/v1/preview?modality=image&id=x", 401), ("/openapi.json", 401), ("/nope", 401)]  # fmt: skip
    for path, wanted in reads:
        status = asyncio.run(send(locked, request("GET", path))).status
        wrong += [(path, status, wanted)] if status != wanted else []
    cross = asyncio.run(send(open_, request("GET", "/v1/items", [("sec-fetch-site", "cross-site")])))
    wrong += [("cross-site", cross.status)] if cross.status != 403 else []
    print(f"# {count + len(reads) + 1} combinations; wrong: {wrong}")
    result(
        "combinations of Host, Origin and token answered otherwise than specified", len(wrong), "0", lambda x: x == 0
    )


def limits(server: Server) -> None:
    """Each limit exceeded by one and by a hundred times: told at once, and as 4xx."""
    many = {f"{i}.png": b"x" for i in range(17)}
    more = {f"{i}.png": b"x" for i in range(1700)}
    query = {"query": [{"text": "a"}]}
    head = [("content-type", "application/json")]
    form = [("content-type", "multipart/form-data; boundary=b")]
    chunks = b"100000\r\n" + bytes(2**20) + b"\r\n"
    endless = request("POST", "/v1/search", [*head, ("transfer-encoding", "chunked")], chunks * 26 + b"0\r\n\r\n")
    cases: dict[str, tuple[bytes, set[int]]] = {
        "text + 1": (search_request({"query": [{"text": "a" * 8193}]}), {413, 422}),
        "text x 100": (search_request({"query": [{"text": "ä" * 400_000}]}), {413, 422}),
        "text of 8 KB in bytes": (search_request({"query": [{"text": "ä" * 4097}]}), {413, 422}),
        "k + 1": (search_request({**query, "k": 1001}), {422}),
        "k x 100": (search_request({**query, "k": 100_000}), {422}),
        "terms + 1": (search_request({"query": [{"text": "a"}] * 17}), {422}),
        "parts + 1": (form_request(query, many), {413}),
        "parts x 100": (form_request(query, more), {413}),
        "JSON body": (request("POST", "/v1/search", head, b"[" * (2**21 + 1)), {413}),
        "JSON depth": (request("POST", "/v1/search", head, b"[" * 100_000), {400, 422}),
        "declared 26 MB": (request("POST", "/v1/search", [*form, ("content-length", str(26 * 2**20))]), {413}),
        "declared 2.5 GB": (request("POST", "/v1/search", [*form, ("content-length", str(2500 * 2**20))]), {413}),
        "sent 26 MB": (form_request(query, {"a.png": bytes(26 * 2**20)}), {413}),
        "sent 26 MB in chunks": (endless, {413}),
        "header 17 KB": (request("GET", "/healthz", [("x", "y" * 17_000)]), {400, 431}),
        "header 1.6 MB": (request("GET", "/healthz", [("x", "y" * 1_600_000)]), {400, 431}),
        "conditions": (search_request({**query, "where": ["split = test"] * 17}), {422}),
        "other type": (request("POST", "/v1/search", [("content-type", "application/x-pickle")], b"\x80\x04N."), {415}),
        "other file": (form_request({"query": [{"file": "a.svg"}]}, {"a.svg": b"<svg onload=alert(1)>"}), {415}),
        "pickle as picture": (form_request({"query": [{"file": "a.png"}]}, {"a.png": b"\x80\x04N."}), {415, 422}),
        "tensor as file": (form_request({"query": [{"file": "a.npy"}]}, {"a.npy": b"\x93NUMPY"}), {415}),
        "address as text file": (form_request({"query": [{"file": "http://127.0.0.1/a.png"}]}, {}), {422}),
        "NaN": (request("POST", "/v1/search", head, b'{"query":[{"vector":[NaN]}]}'), {400, 422}),
        "wrong width": (search_request({"query": [{"vector": [1.0]}]}), {422}),
        "no numbers": (search_request({"query": [{"vector": [0.0] * 1152}]}), {422}),
    }  # fmt: skip
    wrong, slowest = [], 0.0
    for name, (raw, allowed) in cases.items():
        reply = asyncio.run(send(server, raw))
        slowest = max(slowest, reply.seconds)
        if reply.status not in allowed:
            wrong.append((name, reply.status, reply.body[:120]))
    print(f"# {len(cases)} cases, the slowest took {slowest:.2f} s; wrong: {wrong}")
    result(
        "requests beyond a limit, or of a foreign kind, that are not answered 4xx as specified",
        len(wrong),
        "0",
        lambda x: x == 0,
    )


def bombs(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield small files that unpack to large ones."""
    made = {
        "a.png": _png_bomb(30_000, 30_000), "b.gif": _gif_bomb(10_000), "c.tif": _encoded("TIFF", 9000),
        "d.webp": _encoded("WEBP", 7000), "e.jpg": _encoded("JPEG", 12_000), "f.ogg": _silence("OGG", "VORBIS"),
        "g.flac": _silence("FLAC", None), "h.png": _png_bomb(65_000, 700), "i.png": _encoded("PNG", 6300),
        "j.wav": _wave_header(),
    }  # fmt: skip
    yield from itertools.islice(itertools.cycle(made.items()), count)


def _png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row, rows = b"\0" * (width // 8 + 2), 0
    parts = []
    while rows < min(height, 4000):
        parts.append(packer.compress(row))
        rows += 1
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", b"".join(parts) + packer.flush())
        + chunk(b"IEND", b"")
    )


def _gif_bomb(frames: int) -> bytes:
    out = io.BytesIO()
    Image.new("P", (6000, 6000)).save(out, "GIF")
    once = out.getvalue()
    start = once.index(b",", 13 + 3 * 2 ** ((once[10] & 7) + 1))
    frame = once[start:-1]
    return once[:start] + frame * min(frames, 20 * 2**20 // len(frame)) + b";"


def _encoded(kind: str, side: int) -> bytes:
    out, options = io.BytesIO(), {"compression": "tiff_deflate"} if kind == "TIFF" else {}
    Image.new("L", (side, side)).save(out, kind, **options)
    return out.getvalue()


def _silence(kind: str, subtype: str | None) -> bytes:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 8000, 1, format=kind, subtype=subtype) as file:
        for _ in range(16 * 60):
            file.write(np.zeros(8000, np.float32))
    return out.getvalue()


def _wave_header() -> bytes:
    return (
        b"RIFF"
        + struct.pack("<I", 2**32 - 9)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
        + b"data"
        + struct.pack("<I", 2**32 - 45)
        + bytes(1000)
    )


def unpack(server: Server, count: int) -> None:
    """Decompression bombs, eight at a time: refused, at once, in little memory; what is within the limits is taken."""
    asyncio.run(send(server, form_request({"query": [{"file": "a.png"}]}, {"a.png": _encoded("PNG", 64)})))
    base, peak, done = server.memory(), 0, False
    raws = [form_request({"query": [{"file": name}], "k": 1}, {name: content}) for name, content in bombs(count)]

    async def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, await asyncio.to_thread(server.memory))
            await asyncio.sleep(0.02)

    async def run() -> list[Reply]:
        nonlocal done
        watching = asyncio.create_task(watch())
        replies = await gather(server, raws, 8)
        done = True
        await watching
        return replies

    started = time.perf_counter()
    replies = asyncio.run(run())
    by_name: dict[str, Counter[int]] = {}
    for (name, _), reply in zip(bombs(count), replies, strict=True):
        by_name.setdefault(name, Counter())[reply.status] += 1
    print(f"# {time.perf_counter() - started:.1f} s: { {name: dict(c) for name, c in by_name.items()} }")
    # A GIF has its first frame decoded, and i.png has 39.7 megapixels: both are within the limits.
    odd = [
        (n, r.status)
        for (n, _), r in zip(bombs(count), replies, strict=True)
        if r.status not in ({200} if n in ("b.gif", "i.png") else {413, 415, 422})
    ]
    result(f"of {count} bombs not answered as specified", len(odd), "0", lambda x: x == 0)
    result("memory above the base while bombs came, MB", round((peak - base) / 2**20), "< 500", lambda x: x < 500)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a few seconds of each")
    parser.add_argument("--only", default="paths,doors,limits,bombs,schema")
    given = parser.parse_args()
    small = given.small
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), 60)
        (Path(folder) / "sentinel.txt").write_text(SENTINEL)
        (index / "sentinel.txt").write_text(SENTINEL)
        with Server(index) as server, Server(index, "--token", TOKEN) as locked:
            parts = {
                "paths": lambda: paths(server, 120 if small else 2000),
                "doors": lambda: doors(server, locked),
                "limits": lambda: limits(server),
                "bombs": lambda: unpack(server, 10 if small else 100),
                "schema": lambda: schema(server, 200 if small else 20_000),
            }
            for name in given.only.split(","):
                parts[name]()
            told = server.told() + locked.told()
            if told:
                print(f"# the server said: {told[-3000:]}")
            result(
                "lines that the server wrote about failures of its own", told.count("Traceback"), "0", lambda x: x == 0
            )
    leave()


if __name__ == "__main__":
    main()
