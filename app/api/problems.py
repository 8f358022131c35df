"""Every error response: a problem of the table in ``app/api/problem_types.py``, as RFC 9457 has it."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.api.exchange import Exchange
from app.api.idempotency import AnsweredBefore
from app.api.problem_types import FIELD_ERRORS, PROBLEM_OF, VALIDATION_FAILED, detail_of, join_fields
from app.verification.code import MIN_LENGTH

MEDIA_TYPE = "application/problem+json"

_NO_OBJECT = "must be a JSON object, sent with Content-Type: application/json"
_MESSAGES = {  # by the type of pydantic's error
    "model_attributes_type": _NO_OBJECT,
    "model_type": _NO_OBJECT,
    "missing": "is required",
    "extra_forbidden": "is not known here",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "has the wrong form",
}


def plain_problem(
    status: HTTPStatus, instance: str, headers: Mapping[str, str] | None = None, *, detail: str = ""
) -> JSONResponse:
    """Return a problem that its HTTP status explains (RFC 9457, section 4.2.1)."""
    body = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail or status.description}
    return JSONResponse({**body, "instance": instance}, status, headers, MEDIA_TYPE)


def install_problems(app: FastAPI) -> None:
    """Answer the errors of the table, of validation and of HTTP itself with a problem; replay kept responses."""
    for error in (*PROBLEM_OF, *FIELD_ERRORS, RequestValidationError, HTTPException, AnsweredBefore):
        app.add_exception_handler(error, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    exchange: Exchange = request.scope["exchange"]
    match error:
        case AnsweredBefore():
            return error.response
        case HTTPException() if error.status_code in VALIDATION_FAILED.also:
            return _malformed(exchange, error.status_code)
        case HTTPException():
            status = HTTPStatus(error.status_code)
            detail = "" if error.detail == status.phrase else error.detail
            return plain_problem(status, exchange.request_id, error.headers, detail=detail)
        case RequestValidationError():
            found = [(_pointer(item["loc"][1:]), _message(item)) for item in error.errors()]
            is_json = all(item["type"] != "json_invalid" for item in error.errors())
            return _invalid(exchange, found) if is_json else _malformed(exchange, HTTPStatus.BAD_REQUEST)
    if type(error) in FIELD_ERRORS:
        return _invalid(exchange, [FIELD_ERRORS[type(error)](error)])
    kind = PROBLEM_OF[type(error)]
    headers = {name: value.format(error) for name, value in kind.headers.items()}
    members = {name: getattr(error, name) for name in kind.members}
    if "retry_after" in members:
        headers["Retry-After"] = str(members["retry_after"])
    exchange.outcome = kind.slug  # for the log and the metrics
    return JSONResponse(kind.body(detail_of(error), exchange.request_id, members), kind.status, headers, MEDIA_TYPE)


def _malformed(exchange: Exchange, status: int) -> Response:
    return _invalid(exchange, [("#", VALIDATION_FAILED.also[status])], status)


def _invalid(exchange: Exchange, found: Sequence[tuple[str, str]], status: int = VALIDATION_FAILED.status) -> Response:
    """Report the fields that are wrong, each as its pointer and what is wrong with it."""
    exchange.outcome = VALIDATION_FAILED.slug
    members = {"errors": [{"pointer": pointer, "detail": detail} for pointer, detail in found]}
    body = VALIDATION_FAILED.body(join_fields(found), exchange.request_id, members, status)
    return JSONResponse(body, status, media_type=MEDIA_TYPE)


def _pointer(steps: Iterable[str | int]) -> str:
    """Return a JSON pointer (RFC 6901). A name with as many digits as a code may be one, and is masked."""
    masked = [
        "•••" if isinstance(step, str) and sum(map(str.isnumeric, step)) >= MIN_LENGTH else str(step) for step in steps
    ]
    return "/".join(["#", *(step.replace("~", "~0").replace("/", "~1") for step in masked)])


def _message(item: Mapping[str, Any]) -> str:
    """Return what is wrong, without the input: it may be a code or a phone number."""
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return _MESSAGES.get(item["type"]) or message
