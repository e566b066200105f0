"""What a request may be, and how it is told that it is not."""

from dataclasses import dataclass
from typing import Literal

from fusemix.data.media import Reason

MB = 2**20
BODY_BYTES = 25 * MB
JSON_BYTES = 2 * MB  # sixteen vectors of 4,096 numbers
PARTS = 16  # files of a request, and terms of a query
TEXT_BYTES = 8 * 1024
K = 1000
CONDITIONS = 16
HEADER_BYTES = 16 * 1024
LARGE_BYTES = 16 * MB  # of decoded files: one such request at a time
MOST_BYTES = 160 * MB  # of the decoded files of a request together; a picture of 40 megapixels has 120
SLOW_SECONDS = 15  # in which a request must have come whole, or an answer have been taken
WAITING = 128  # requests that are worked on or wait; more are told to come again
RETRY_SECONDS = 1

Code = Literal[
    "bad_request", "unauthorized", "forbidden", "not_found", "method_not_allowed", "too_large", "unsupported",
    "unprocessable", "busy", "failed",
]  # fmt: skip
STATUS: dict[Code, int] = {
    "bad_request": 400, "unauthorized": 401, "forbidden": 403, "not_found": 404, "method_not_allowed": 405,
    "too_large": 413, "unsupported": 415, "unprocessable": 422, "failed": 500, "busy": 503,
}  # fmt: skip
OF_REASON: dict[Reason, Code] = {"too large": "too_large", "too long": "too_large", "wrong format": "unsupported"}


@dataclass(eq=False)
class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        code: one of the closed set.
        message: what is wrong, for people.
        hint: what to do about it.
    """

    code: Code
    message: str
    hint: str | None = None

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """What the client gets."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the code."""
        if self.code == "busy":
            return {"retry-after": str(RETRY_SECONDS)}
        return {"www-authenticate": "Bearer"} if self.code == "unauthorized" else {}
