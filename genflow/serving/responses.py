"""Responses: a body with its media type and headers, and errors in one format.

{"error": {"code": "invalid", "field": "steps", "message": "...", "hint": "...", "request": "1f0c..."}}
"""

import json
from dataclasses import dataclass, field
from typing import Any

ERROR_CODES = {
    400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found",
    405: "method_not_allowed", 408: "timeout", 413: "too_large", 414: "too_long", 415: "not_json",
    422: "invalid", 429: "too_many_requests", 431: "too_large",
    500: "internal", 501: "not_implemented", 503: "overloaded", 504: "deadline",
}  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """A response, before the HTTP app sends it.

    Args:
        body: bytes of the body.
        media_type: value of Content-Type.
        status: HTTP status code.
        headers: further headers; Content-Type and Content-Length are added later.
        measurements: values for the metrics: model, n, nfe, rows of the batch, seconds of each stage.
    """

    body: bytes
    media_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)


class RequestError(Exception):
    """An error in a request, or in answering it, that is sent to the client.

    Args:
        status: HTTP status code.
        message: what is wrong, in one line.
        field: the field of the request that is wrong.
        hint: how to fix it.
        retry_after: seconds until the client may try again.
    """

    def __init__(
        self, status: int, message: str, field: str | None = None, hint: str = "", retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.hint, self.retry_after = status, message, field, hint, retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.message, self.field, self.hint, self.retry_after)

    def reply(self, request: str = "") -> Reply:
        """Return the error as a response; `request` is the request's id."""
        error = {
            "code": ERROR_CODES.get(self.status, "error"),
            "field": self.field,
            "message": one_line(self.message),
            "hint": one_line(self.hint),
            "request": request,
        }
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return Reply(json.dumps({"error": error}).encode(), status=self.status, headers=headers)


def one_line(text: str, max_length: int = 400) -> str:
    """Return the text as valid UTF-8 in one line of at most `max_length` characters."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def json_reply(document: Any, status: int = 200) -> Reply:
    """Return a document as a JSON response."""
    return Reply(json.dumps(document, default=str).encode(), status=status)
