"""From a request to the terms of a query: JSON and files are read, checked and decoded, none of them trusted."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fusemix.data.decoding import Decoders, bytes_of
from fusemix.data.items import SUFFIXES
from fusemix.data.media import ItemError
from fusemix.errors import FusemixError, MissingExtraError, choices
from fusemix.search.query import ItemId, Term
from fusemix.server.limits import JSON_BYTES, LARGE_BYTES, MOST_BYTES, OF_REASON, PARTS, TEXT_BYTES, Code, RequestError
from fusemix.server.schema import SearchIn, TermIn
from fusemix.server.served import Opened


async def read_request(request: Request) -> tuple[SearchIn, Mapping[str, UploadFile]]:
    """Read a search, as JSON or as a form that holds the JSON and files.

    Raises:
        RequestError: another content type, a form or JSON that is none, too many parts, or values out of range.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _parsed(await request.body()), {}
    if kind != "multipart/form-data":
        raise RequestError(
            "unsupported", f"a search is application/json or multipart/form-data, not {kind or 'nothing'}"
        )
    try:
        form = await request.form(max_files=PARTS, max_fields=1, max_part_size=JSON_BYTES)
    except HTTPException as error:
        code = "too_large" if "Too many files" in error.detail or "exceeded" in error.detail else "bad_request"
        raise RequestError(code, error.detail, f"send one field 'request' and at most {PARTS} files") from error  # type: ignore[arg-type]
    asked = form.get("request")
    if not isinstance(asked, str):
        raise RequestError("unprocessable", "the form has no field 'request' with the search as JSON")
    return _parsed(asked.encode()), {name: each for name, each in form.multi_items() if isinstance(each, UploadFile)}


async def read_terms(
    asked: SearchIn,
    files: Mapping[str, UploadFile],
    opened: Opened,
    decoders: Decoders,
    turn: asyncio.Semaphore,
    held: AsyncExitStack,
) -> list[Term]:
    """Make the terms of a query.

    Files are decoded in another process, those of one request at a time: what waits for its turn waits on the disk. A
    request of large files keeps the turn until `held` is left, when it is answered.

    Raises:
        RequestError: a modality that cannot be asked with, a text or file over the limits, or one that does not decode.
    """
    mine = AsyncExitStack()
    if any(term.file is not None for term in asked.query):
        await mine.enter_async_context(turn)
    async with mine:
        terms = [await _term(term, files, opened, decoders) for term in asked.query]
        total = sum(bytes_of(term.value) for term in terms if not isinstance(term.value, (str, ItemId)))
        if total > MOST_BYTES:
            raise RequestError("too_large", "the files are too large together", "send smaller or fewer ones")
        if total > LARGE_BYTES:
            held.push_async_exit(mine.pop_all())
    return terms


async def _term(term: TermIn, files: Mapping[str, UploadFile], opened: Opened, decoders: Decoders) -> Term:
    if term.item is not None:
        return Term(ItemId(term.item, term.modality), None, term.weight)
    if term.vector is not None:
        return Term(np.array(term.vector), term.modality, term.weight)
    if term.text is not None:
        if len(term.text.encode("utf-8", "surrogatepass")) > TEXT_BYTES:
            raise RequestError("too_large", f"the text has more than {TEXT_BYTES:,} bytes", "shorten it")
        return Term(term.text, _modality(opened, "text", term), term.weight)
    name, file = _file(term, files, opened)
    item = await _decoded(term.file or "", await file.read(), opened.forms[name], decoders)
    return Term(item, name, term.weight)


def _file(term: TermIn, files: Mapping[str, UploadFile], opened: Opened) -> tuple[str, UploadFile]:
    """Return the modality of a file, and the file."""
    assert term.file is not None
    if term.file not in files:
        raise RequestError("unprocessable", f"the request has no file {term.file!r}; {choices(term.file, files)}")
    suffix = PurePosixPath(term.file).suffix.lower()
    if suffix not in SUFFIXES and term.modality is None:
        taken = f"taken are {', '.join(accepted(opened)) or 'none'}"
        raise RequestError("unsupported", f"{term.file}: no file of a kind that is known", taken)
    name = _modality(opened, SUFFIXES.get(suffix, "file"), term)
    return name, files[term.file]


HINTS: dict[Code, str] = {
    "too_large": "send a smaller or a shorter one",
    "unsupported": "save it as PNG, JPEG, WAV or OGG",
    "unprocessable": "does it open in a viewer or a player? send another one",
}


async def _decoded(name: str, content: bytes, form: str, decoders: Decoders) -> Any:
    try:
        return await asyncio.wrap_future(decoders.submit(form, content))
    except ItemError as error:
        code = OF_REASON.get(error.reason, "unprocessable")
        raise RequestError(code, f"{name}: {error.reason}: {error}", HINTS[code]) from error
    except MissingExtraError as error:
        raise RequestError("unsupported", f"{name}: {error}") from error
    except FusemixError as error:
        raise RequestError("unprocessable", f"{name}: {error}") from error


def accepted(opened: Opened) -> list[str]:
    """Return the suffixes of files that one can ask with."""
    kinds = {opened.index.space.sides_[name].kind for name in opened.forms}
    if "audio" in kinds:
        kinds.add("video")  # its sound track
    return sorted(suffix for suffix, kind in SUFFIXES.items() if kind in kinds)


def _modality(opened: Opened, kind: str, term: TermIn) -> str:
    """Find the modality that takes a text or file of a kind; a video also goes where only sounds do.

    Raises:
        RequestError: none does, or several do.
    """
    sides = opened.index.space.sides_
    if term.modality is not None:
        if term.modality not in sides:
            raise RequestError("unprocessable", f"no modality {term.modality!r}; {choices(term.modality, sides)}")
        if sides[term.modality].kind != kind and not (kind != "text" and sides[term.modality].kind != "text"):
            raise RequestError("unprocessable", f"{term.modality!r} takes no {kind}")
        found = [term.modality]
    else:
        found = _takers(opened, kind) or (_takers(opened, "audio") if kind == "video" else [])
    if len(found) != 1:
        names = ", ".join(f"{name} ({side.kind})" for name, side in sides.items())
        why = "nothing here takes" if not found else f"{' and '.join(found)} both take"
        raise RequestError("unprocessable", f"{why} a query of the kind {kind}; there are {names}", "say its modality")
    if found[0] in opened.why:
        raise RequestError("unprocessable", f"{found[0]!r} cannot be asked with: {opened.why[found[0]]}")
    return found[0]


def _takers(opened: Opened, kind: str) -> list[str]:
    return [name for name, side in opened.index.space.sides_.items() if side.kind == kind]


def _parsed(content: bytes) -> SearchIn:
    try:
        return SearchIn.model_validate_json(content)
    except ValidationError as error:
        raise refused(error.errors(include_url=False, include_context=False, include_input=False)) from error


def refused(errors: Sequence[Any]) -> RequestError:
    """Say what the first of pydantic's errors is, and where."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"])
    code = "bad_request" if first["type"] == "json_invalid" else "unprocessable"
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        fields = (SearchIn if len(first["loc"]) == 1 else TermIn).model_fields
        said = f"no such field; {choices(str(first['loc'][-1]), fields)}"
    message = f"{place}: {said}" if place else said
    return RequestError(code, message)  # type: ignore[arg-type]
