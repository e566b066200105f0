"""Running the server: on this machine alone unless a token is asked for, until SIGTERM or Ctrl-C."""

import asyncio
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn

from fusemix.errors import DataError, FusemixError
from fusemix.search.folder import read_facts
from fusemix.server.app import OPEN_PATHS, create_app
from fusemix.server.batching import Batcher
from fusemix.server.guard import LOCAL, Guard
from fusemix.server.limits import HEADER_BYTES
from fusemix.server.patience import PatientProtocol
from fusemix.server.served import Served

DRAIN_SECONDS = 20  # for what is asked already
TOKEN_LETTERS = 16  # at least
BACKLOG = 512  # connections that the kernel takes before the server does


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allowed: Sequence[str] = (),
    encoders: Mapping[str, Any] | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve an index until the process is told to end; then answer what was asked, and return.

    Args:
        folder: of the index; when it is written again, the new one is served.
        host: address to listen on; any but this machine's own needs a token.
        port: 0 takes a free one.
        token: that clients must bring as `Authorization: Bearer TOKEN`.
        allowed: further names by which clients may call this machine.
        encoders: of modalities that code of yours encodes.
        ready: called with the address when the index is loaded.

    Raises:
        DataError: another address without a token, a token that could be guessed, or an address that is taken or none.
        StoreError: no index there, or a damaged one.
    """
    read_facts(folder)  # a folder that is none is told before anything listens
    # One core is for the connections: threads that compute together wait for the one whose core is taken.
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
    _try_address(host, port)
    served = Served(folder, encoders or {})
    server = make_server(served, host, port, token, allowed)
    failed: list[FusemixError] = []
    threading.Thread(target=_open, args=(served, server, failed, ready), daemon=True).start()
    for each in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them once more when it has ended in order
        signal.signal(each, lambda *_: setattr(server, "should_exit", True))
    server.run()
    if failed:
        raise failed[0]
    if not server.started:
        sys.exit(1)


def make_server(
    served: Served, host: str, port: int, token: str | None = None, allowed: Sequence[str] = ()
) -> uvicorn.Server:
    """Make a server, guarded; arguments and errors as of `serve`."""
    if host not in LOCAL and token is None:
        raise DataError(f"--host {host} lets others in: give a --token (any 16 letters or more), which they must bring")
    if token is not None and (len(token) < TOKEN_LETTERS or not token.isascii() or not token.isprintable()):
        raise DataError(f"--token: wanted at least {TOKEN_LETTERS} letters or digits, so that nobody guesses it")
    batcher = Batcher(served)
    guard = Guard(create_app(served, batcher), host, allowed, token, OPEN_PATHS)
    protocol: Any = partial(PatientProtocol, batcher.is_full)
    return _Server(
        uvicorn.Config(
            guard, host=host, port=port, http=protocol, ws="none", log_level="warning", access_log=False,
            server_header=False, proxy_headers=False, h11_max_incomplete_event_size=HEADER_BYTES, timeout_keep_alive=5,
            timeout_graceful_shutdown=DRAIN_SECONDS, backlog=BACKLOG,
        )
    )  # fmt: skip


def _try_address(host: str, port: int) -> None:
    """Refuse an address that nothing can listen on before anything is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot listen on {host}, port {port}: {reason}; --port 0 takes a free one") from error


class _Server(uvicorn.Server):
    """Uvicorn's, which takes what waits at the door before it closes it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order: uvloop accepts one connection a turn, and those that the kernel has taken would be reset."""
        with selectors.DefaultSelector() as door:
            for each in self.servers:
                for listening in each.sockets:
                    door.register(listening.fileno(), selectors.EVENT_READ)
            turns = iter(range(2 * BACKLOG))
            while door.get_map() and door.select(0) and next(turns, None) is not None:
                await asyncio.sleep(0)
        await super().shutdown(sockets)


def _open(served: Served, server: uvicorn.Server, failed: list[FusemixError], ready: Callable[[str], None]) -> None:
    """Load the index while the server answers already that it is not ready."""
    try:
        served.open()
    except FusemixError as error:
        failed.append(error)
        server.should_exit = True
        return
    while not server.started and not server.should_exit:
        threading.Event().wait(0.01)
    if server.started:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
