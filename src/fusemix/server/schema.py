"""What clients send and get, as pydantic models: the OpenAPI schema is made of these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fusemix.server.limits import CONDITIONS, PARTS, TEXT_BYTES, Code, K

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=1024)]
Condition = Annotated[str, Field(min_length=1, max_length=2048)]
Where = Annotated[list[Condition], Field(max_length=CONDITIONS, description='Conditions, such as "price < 20".')]


class Strict(BaseModel):
    """Refuses names that it does not know, and numbers written as text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TermIn(Strict):
    """One part of a query; has exactly one of text, item, vector and file."""

    text: Annotated[str, Field(min_length=1, max_length=TEXT_BYTES)] | None = None
    item: Name | None = None
    vector: Annotated[list[Finite], Field(min_length=1, max_length=16_384)] | None = None
    file: Name | None = None
    modality: Name | None = None
    weight: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _one(self) -> "TermIn":
        given = [name for name in ("text", "item", "vector", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a term has one of text, item, vector and file, not {', '.join(given) or 'none of them'}")
        return self


class SearchIn(Strict):
    """A search."""

    query: Annotated[list[TermIn], Field(min_length=1, max_length=PARTS)]
    k: Annotated[int, Field(ge=1, le=K)] = 24
    where: Where = []
    among: Name | None = None


class HitOut(BaseModel):
    """One answer; `score` is a cosine less the bias of a hub, or null where nothing was asked for."""

    modality: str
    kind: str
    id: str
    score: float | None
    text: str | None
    columns: dict[str, str | int | float | bool | None]
    preview: str | None


class ItemsOut(BaseModel):
    """Some items."""

    generation: int
    hits: list[HitOut]


class SearchOut(ItemsOut):
    """Hits, best first, and the embedding of the query."""

    milliseconds: float
    exact: bool
    embedding: list[float]


class ModalityOut(BaseModel):
    """A modality of the items."""

    name: str
    kind: str
    items: int
    previews: bool


class QueryOut(BaseModel):
    """A modality that one can ask with, or why not."""

    name: str
    kind: str
    ready: bool
    why: str | None


class ColumnOut(BaseModel):
    """A column that conditions can be about; `values` where there are few."""

    name: str
    type: Literal["text", "number", "other"]
    values: list[str] | None


class IndexOut(BaseModel):
    """What is served."""

    name: str
    generation: int
    items: int
    dim: int
    modalities: list[ModalityOut]
    queries: list[QueryOut]
    columns: list[ColumnOut]
    limits: dict[str, int]
    accept: list[str]


class StatusOut(BaseModel):
    """Whether the server lives, or is ready."""

    status: str
    generation: int | None = None


class ErrorIn(BaseModel):
    """What went wrong."""

    code: Code
    message: str
    hint: str | None


class ErrorOut(BaseModel):
    """Every answer that is no success."""

    error: ErrorIn


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare errors of an endpoint."""
    return {status: {"model": ErrorOut} for status in statuses}
