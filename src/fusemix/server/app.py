"""The application: its addresses, version 1."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import fusemix
from fusemix.data.decoding import Decoders
from fusemix.data.media import MAX_PIXELS, MAX_SECONDS
from fusemix.errors import FusemixError
from fusemix.search.hit import Hit
from fusemix.search.index import Index
from fusemix.search.previews import media_type
from fusemix.server import limits
from fusemix.server.batching import Ask, Batcher
from fusemix.server.limits import STATUS, Code, K, RequestError
from fusemix.server.schema import (
    Condition,
    IndexOut,
    ItemsOut,
    Name,
    SearchIn,
    SearchOut,
    StatusOut,
    errors,
)
from fusemix.server.served import Opened, Served
from fusemix.server.uploads import accepted, read_request, read_terms, refused

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
OPEN_PATHS = (*PAGE, "/healthz", "/readyz")
SEARCH_SCHEMA = SearchIn.model_json_schema()
SEARCH_SCHEMA["properties"]["query"]["items"] = SEARCH_SCHEMA.pop("$defs")["TermIn"]  # no reference is left open
SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": SEARCH_SCHEMA},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"request": {"type": "string", "description": "The search, as JSON."}},
                    "required": ["request"],
                    "maxProperties": limits.PARTS + 1,
                    "additionalProperties": {"type": "string", "format": "binary"},
                }
            },
        },
    }
}


def create_app(served: Served, batcher: Batcher) -> FastAPI:
    """Make the application that serves an index; what guards it is put around it by `run`."""
    decoders, turn = Decoders(1), asyncio.Semaphore(1)  # a picture of 40 megapixels takes 300 MB on its way

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with decoders:
            yield
            served.close()
            batcher.close()

    app = FastAPI(
        title="fusemix", version=fusemix.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        summary="Search across modalities in one shared space.",
    )  # fmt: skip
    _add_page(app)
    _add_checks(app, served)
    _add_items(app, served)
    _add_errors(app)

    @app.post(
        "/v1/search",
        response_model=SearchOut,
        openapi_extra=SEARCH_BODY,
        responses=errors(400, 401, 403, 413, 415, 422, 503),
    )
    async def search(request: Request) -> Response:
        """Find the items nearest to a query of texts, items, vectors and files, added and subtracted."""
        opened = _opened(served)
        asked, files = await read_request(request)
        async with AsyncExitStack() as held:
            terms = await read_terms(asked, files, opened, decoders, turn, held)
            answer = await batcher.ask(Ask(terms, asked.k, asked.where, asked.among))
        index = answer.index
        return _json(
            generation=index.generation,
            milliseconds=round(1000 * answer.seconds, 2),
            exact=index.approximate is None or bool(asked.where) or asked.among is not None,
            hits=[_hit(index, hit, row, hit.score) for hit, row in zip(answer.hits, answer.rows, strict=True)],
            embedding=answer.embedding[: answer.index.dim].tolist(),
        )

    return app


def _add_page(app: FastAPI) -> None:
    folder = files("fusemix.server") / "page"
    for path, (name, kind) in PAGE.items():
        content = (folder / name).read_bytes()

        app.get(path, include_in_schema=False)(partial(_static, content, kind))


def _static(content: bytes, kind: str) -> Response:
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


def _add_checks(app: FastAPI, served: Served) -> None:
    @app.get("/healthz", response_model=StatusOut, responses=errors(400, 403))
    async def health() -> Response:
        """Say that the server lives."""
        return _json(status="ok", generation=None)

    @app.get("/readyz", response_model=StatusOut, responses=errors(400, 403, 503))
    async def ready() -> Response:
        """Say whether the index is loaded, and held to its checksums."""
        return _json(status="ready", generation=_opened(served).index.generation)


def _add_items(app: FastAPI, served: Served) -> None:
    @app.get("/v1/index", response_model=IndexOut, responses=errors(400, 401, 403, 503))
    async def about() -> Response:
        """Say what is served, and what one can ask with."""
        return _json(**_about(served, _opened(served)))

    @app.get("/v1/items", response_model=ItemsOut, responses=errors(400, 401, 403, 422, 503))
    def items(
        k: Annotated[int, Query(ge=1, le=K)] = 24,
        where: Annotated[list[Condition], Query(max_length=limits.CONDITIONS)] = [],  # noqa: B006
        among: Name | None = None,
    ) -> Response:
        """Return items from all over the index, to begin with."""
        index = _opened(served).index
        rows = index.rows(where, among)
        chosen = range(len(index)) if rows is None else rows.tolist()
        count = min(k, len(chosen))
        spread = [int(chosen[i * len(chosen) // count]) for i in range(count)]
        found = index.hits_of(spread, [0.0] * count)
        return _json(
            generation=index.generation,
            hits=[_hit(index, hit, row, None) for hit, row in zip(found, spread, strict=True)],
        )

    @app.get(
        "/v1/preview",
        response_class=Response,
        responses={
            200: {"content": {"image/webp": {}, "audio/mpeg": {}}},
            304: {"description": "The client has it."},
            **errors(400, 401, 403, 404, 422, 503),
        },
    )
    def preview(request: Request, modality: Name, id: Name, g: int | None = None) -> Response:
        """Return the small picture, or the beginning of the sound, of an item; `g` only tells caches apart."""
        index = _opened(served).index
        row = index.row_of.get((modality, id))
        content = index.previews[row].as_py() if row is not None and index.previews is not None else None
        if content is None:
            raise RequestError("not_found", f"no preview of the {modality} item {id!r}")
        return Response(content, media_type=media_type(content), headers={"cache-control": "private, max-age=86400"})


def _add_errors(app: FastAPI) -> None:
    """Give every error the one form."""

    @app.exception_handler(RequestError)
    async def refuse(request: Request, refusal: RequestError) -> Response:
        return JSONResponse(refusal.body, STATUS[refusal.code], refusal.headers)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody gets

    @app.exception_handler(FusemixError)
    async def user_error(request: Request, error: FusemixError) -> Response:
        return await refuse(request, RequestError("unprocessable", str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refuse(request, refused(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        codes: dict[int, Code] = {404: "not_found", 405: "method_not_allowed"}
        refusal = RequestError(codes.get(error.status_code, "bad_request"), str(error.detail))
        return JSONResponse(refusal.body, STATUS[refusal.code], error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return await refuse(request, RequestError("failed", "the server failed; its log says why"))


def _opened(served: Served) -> Opened:
    if served.now is None:
        raise RequestError("busy", "the index is being loaded", "try again in a moment")
    return served.now


def _about(served: Served, opened: Opened) -> dict[str, Any]:
    index, shown = opened.index, opened.index.previews is not None
    return {
        "name": served.folder.resolve().name,
        "generation": index.generation,
        "items": len(index),
        "dim": index.dim,
        "modalities": [
            {"name": name, "kind": found.kind, "items": opened.counts.get(name, 0), "previews": shown}
            for name, found in index.found.items()
        ],
        "queries": [
            {"name": name, "kind": side.kind, "ready": name not in opened.why, "why": opened.why.get(name)}
            for name, side in index.space.sides_.items()
        ],
        "columns": [{"name": name, "type": kind, "values": values} for name, kind, values in opened.columns],
        "limits": {
            "body_bytes": limits.BODY_BYTES, "text_bytes": limits.TEXT_BYTES, "k": K, "pixels": MAX_PIXELS,
            "seconds": MAX_SECONDS, "parts": limits.PARTS,
        },
        "accept": accepted(opened),
    }  # fmt: skip


def _hit(index: Index, hit: Hit, row: int, score: float | None) -> dict[str, Any]:
    """What a client learns of an item: never where its file lies."""
    shown = index.previews is not None and index.previews[row].is_valid
    address = f"/v1/preview?modality={quote(hit.modality, '')}&id={quote(hit.id, '')}&g={index.generation}"
    return {
        "modality": hit.modality,
        "kind": index.found[hit.modality].kind,
        "id": hit.id,
        "score": score,
        "text": hit.text,
        "columns": {name: plain(value) for name, value in hit.columns.items()},
        "preview": address if shown else None,
    }


def plain(value: Any) -> str | int | float | bool | None:
    """Return a cell as JSON has it: NaN and infinity are null, a date is text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def _json(**content: Any) -> Response:
    # Python's own encoder takes a third of the time of a search away from the others.
    return Response(to_json(content), media_type="application/json")
