"""Error responses: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mvar.text import MOST_SHOWN, shown
from mvar.web.messages import Broken, Busy, Failed, Late, Refused

INVALID, SERVER = "invalid_request_error", "server_error"
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
UNREADABLE = "body: cannot be read; send a JSON object, as Content-Type: application/json, or a form"
REFUSALS = (400, 401, 403, 404, 405, 408, 410, 413, 415, 421, 429, 500, 503, 504)  # that a client may meet


class Problem(HTTPException):
    """Ends a request with an error.

    Args:
        status: of HTTP.
        message: one line.
        param: the field that is wrong.
        code: for programs.
        kind: OpenAI's type of error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = "invalid_value",
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, shown(message, MOST_SHOWN), headers)
        self.param, self.code, self.kind = param, code, kind

    @property
    def body(self) -> dict[str, Any]:
        """As clients get it."""
        return {"error": {"message": self.detail, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """To be sent."""
        return JSONResponse(self.body, self.status_code, self.headers)


def problem_of(error: Exception) -> Problem:
    """The problem that an exception of the service, of routing or of reading a body stands for."""
    match error:
        case Problem():
            return error
        case Refused():
            field = str(error).partition(" ")[0].rstrip(":")
            return Problem(400, str(error), field if field.isidentifier() else None)
        case Busy():
            headers = {"Retry-After": str(error.seconds)}
            return Problem(429, str(error), None, "busy", "rate_limit_error", headers)
        case Late():
            return Problem(504, str(error), None, "deadline_exceeded", "timeout_error")
        case Failed():
            return Problem(500, str(error), None, "failed", SERVER)
        case Broken():
            return Problem(503, str(error), None, "model_unavailable", SERVER, {"Retry-After": "2"})
        case RequestValidationError():
            found = error.errors()[0]
            place, *names = map(str, found["loc"])
            text = UNREADABLE if place == "body" else f"{'.'.join(names) or place}: {found['msg'].lower()}"
            return Problem(400, text, None, "invalid_body")
        case HTTPException(detail="There was an error parsing the body"):  # FastAPI's, of what is no text
            return Problem(400, UNREADABLE, None, "invalid_body")
        case HTTPException():
            kind = SERVER if error.status_code >= 500 else INVALID
            code = CODES.get(error.status_code, "invalid_request")
            return Problem(error.status_code, str(error.detail), None, code, kind, error.headers)
        case _:
            return Problem(500, "the server failed; its log says more under this request's id", None, "failed", SERVER)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    return problem_of(error).response()


def handle_errors(app: FastAPI) -> None:
    """Give raised errors their form; unexpected ones pass on, to be logged."""
    for kind in (HTTPException, RequestValidationError, Refused, Busy, Late, Broken):
        app.add_exception_handler(kind, _answer)
