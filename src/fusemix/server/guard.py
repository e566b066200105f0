"""What stands before the application: who may ask, from which page, how much; and the headers of every answer.

A page of another site, or a name that was rebound to this machine, must not reach a server on localhost: the Host must
be one of ours, and what costs work must come from our own page or from no page at all.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from hmac import compare_digest
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from fusemix.server.limits import BODY_BYTES, HEADER_BYTES, JSON_BYTES, STATUS, RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
}
SAFE = ("GET", "HEAD", "OPTIONS")
LOCAL = ("localhost", "127.0.0.1", "::1")
_LINGER_SECONDS = 2
_ANY = ("0.0.0.0", "::")  # noqa: S104  # addresses that mean every address of this machine


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        host: address that the server listens on.
        allowed: further names by which it may be called.
        token: what clients must bring; None asks for none.
        open_paths: what needs no token: the page itself, which holds no data, and the checks of health.
    """

    def __init__(
        self, app: App, host: str = "127.0.0.1", allowed: Iterable[str] = (), token: str | None = None,
        open_paths: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.app, self.token = app, token
        self.names = {*LOCAL, host.lower(), *(name.lower() for name in allowed)}
        self.any_address = host in _ANY
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = _Headers(scope["headers"])
        state = {"started": False}

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["started"] = True
                named = {name for name, _ in message.get("headers", [])}
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in named]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, _limited(receive, headers), sealed)
        except RequestError as refusal:
            if not state["started"]:
                await _answer(refusal, receive, sealed)

    def _check(self, scope: Scope, headers: "_Headers") -> None:
        """Refuse who may not ask."""
        host = headers.one("host")
        if host is None or not self._is_ours(host):
            raise RequestError("forbidden", "this server does not go by that name", "start it with --allow-host NAME")
        origin, site = headers.one("origin"), headers.one("sec-fetch-site")
        if scope["method"] not in SAFE and origin is not None and not _same(origin, host):
            raise RequestError("forbidden", "requests from pages of other sites are not answered")
        if site == "cross-site" and scope["path"].startswith("/v1/"):
            raise RequestError("forbidden", "requests from pages of other sites are not answered")
        if self.token is not None and scope["path"] not in self.open_paths:
            given = headers.one("authorization") or ""
            if not compare_digest(given.encode("latin-1"), f"Bearer {self.token}".encode()):
                raise RequestError(
                    "unauthorized", "this server asks for a token",
                    "send the header `Authorization: Bearer TOKEN`, with what --token or FUSEMIX_TOKEN said",
                )  # fmt: skip
        if headers.size > HEADER_BYTES:
            raise RequestError("bad_request", f"the headers have more than {HEADER_BYTES:,} bytes")
        length = headers.one("content-length")
        if length is not None and (not length.isdigit() or int(length) > headers.most):
            raise _too_large(headers.most)

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        return name is not None and (name in self.names or (self.any_address and _is_address(name)))


class _Headers:
    """The headers of a request; one that must be single and is not counts as a value that nothing matches."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, list[str]] = {}
        self.size = 0
        for name, value in raw:
            self.size += len(name) + len(value) + 4
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        kind = self._values.get("content-type", [""])[0].lower()
        self.most = BODY_BYTES if kind.startswith("multipart/form-data") else JSON_BYTES

    def one(self, name: str) -> str | None:
        values = self._values.get(name, [])
        return None if not values else values[0] if len(values) == 1 else "\0"


def _limited(receive: Receive, headers: _Headers) -> Receive:
    """Count the bytes of a body, whatever it says of itself."""
    count = 0

    async def limited() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > headers.most:
            raise _too_large(headers.most)
        return message

    return limited


async def _answer(refusal: RequestError, receive: Receive, send: Send) -> None:
    """Answer, then let go of what the client still sends: to close on it would take the answer from him."""
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in {**headers, **refusal.headers}.items()]
    await send({"type": "http.response.start", "status": STATUS[refusal.code], "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


def _too_large(most: int) -> RequestError:
    return RequestError("too_large", f"the request has more than {most:,} bytes", "send smaller or fewer files")


def _name(host: str) -> str | None:
    """Return the name in a Host header, without the port; None of what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # which raises where it is no number
    except ValueError:
        return None
    plain = parts.hostname is not None and not (parts.path or parts.query or parts.fragment or "@" in host)
    return parts.hostname if plain else None


def _is_address(name: str) -> bool:
    """Tell whether this is a number: a name could be rebound, a number can not."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _same(origin: str, host: str) -> bool:
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
