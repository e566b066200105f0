"""How long a connection may take: uvicorn's HTTP/1.1 protocol, with deadlines for clients that are slow on purpose.

uvicorn limits how long an idle connection is kept, but neither how long a request may take to come nor how long an
answer may take to be fetched: a few hundred connections that send a byte now and then would hold it for ever. And what
cannot be answered is told so before it is parsed, so that it takes next to nothing from what can.
"""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from fusemix.server.limits import HEADER_BYTES, RETRY_SECONDS, SLOW_SECONDS, STATUS, RequestError

_LEAVING_SECONDS = 0.3  # that a connection is kept for what is on its way
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def _written(refusal: RequestError) -> bytes:
    """Return an answer as bytes, after which the connection ends."""
    status, body = HTTPStatus(STATUS[refusal.code]), json.dumps(refusal.body).encode()
    headers = {"connection": "close", "content-type": "application/json", "content-length": str(len(body))}
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in {**headers, **refusal.headers}.items()]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


_FULL = _written(RequestError("busy", "too many searches are waiting", f"try again in {RETRY_SECONDS} s"))
_MALFORMED = _written(
    RequestError("bad_request", "this is no HTTP/1.1", f"mind that address and headers may have {HEADER_BYTES:,} bytes")
)


class PatientProtocol(H11Protocol):
    """One connection.

    Args:
        is_full: tells whether searches are turned away.
        *arguments, **named: of uvicorn.
    """

    def __init__(self, is_full: Callable[[], bool], *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_full = is_full
        self._deadline: asyncio.TimerHandle | None = None
        self._leaving = self._turned_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the time runs from the first one of a request until its last."""
        if self._turned_away:
            return
        if self.cycle is None and data.startswith(b"POST ") and self._is_full():
            self._turn_away(_FULL)
            return
        super().data_received(data)
        if self._whole():
            self._stop_waiting()
        else:
            self._await_client()

    def handle_events(self) -> None:
        """Take what the bytes mean; the last answer of a connection says that it is the last."""
        super().handle_events()
        if self._leaving and self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not fetch its answer."""
        super().pause_writing()
        self._await_client()

    def resume_writing(self) -> None:
        """Go on."""
        self._stop_waiting()
        super().resume_writing()

    def shutdown(self) -> None:
        """End after what is asked already; a request that has just been sent is answered too."""
        self._leaving = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LEAVING_SECONDS, self._leave)
        else:
            super().shutdown()

    def _leave(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request."""
        self._turn_away(_MALFORMED)

    def _turn_away(self, answer: bytes) -> None:
        """Answer a client and let it leave: to close on what it still sends would take the answer from it."""
        self._turned_away = True
        self.transport.write(answer)
        self.loop.call_later(_LEAVING_SECONDS, self.transport.close)

    def _whole(self) -> bool:
        """Tell whether a request has come whole and is being answered."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _await_client(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(SLOW_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        answered = self.cycle is not None and self.cycle.response_started
        if answered or self.flow.write_paused:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()
