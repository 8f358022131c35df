"""Responses: how routes write them, and how the OpenAPI description shows them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel
from pydantic_core import to_json

from app.api.problem_types import PROBLEM_TYPES
from app.api.problems import MEDIA_TYPE
from app.api.schemas import example_of
from app.verification.policy import Limit, Quota

Answers = dict[int | str, dict[str, Any]]  # as FastAPI takes them: by status


class JsonAnswer(Response):
    """A wire model, or the members of one, as JSON. It is valid already, so FastAPI need not validate it.

    The headers are bytes: the base class would spend as much on them as on the rest.
    """

    def __init__(
        self,
        answer: BaseModel | Mapping[str, object],
        status: HTTPStatus = HTTPStatus.OK,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.body, self.status_code, self.background = to_json(answer), status, None
        length = b"%d" % len(self.body)
        self.raw_headers = [*headers, (b"content-length", length), (b"content-type", b"application/json")]


def quota_headers(quotas: Sequence[Quota]) -> Sequence[tuple[bytes, bytes]]:
    """Return what remains of each limit that a request counted against (draft-ietf-httpapi-ratelimit-headers)."""
    if not quotas:
        return ()
    remaining = ", ".join([f'"{quota.limit.name}";r={quota.remaining}' for quota in quotas])
    policies = _policies(*[quota.limit for quota in quotas])
    return (b"ratelimit-policy", policies), (b"ratelimit", remaining.encode())


@lru_cache
def _policies(*limits: Limit) -> bytes:
    second = timedelta(seconds=1)
    return ", ".join([f'"{limit.name}";q={limit.count};w={limit.period // second}' for limit in limits]).encode()


def _header(description: str, example: str | None = None, **schema: str) -> dict[str, Any]:
    header = {"description": description, "schema": {"type": "string", **schema}}
    return {**header, "example": example} if example else header


_HEADERS: Mapping[str, dict[str, Any]] = {
    "Location": _header("where the verification is read", "/verify/vrf_0a11b22c33d44e55f667788"),
    "RateLimit": _header(
        "what remains (`r`) of each limit that the request counted against (draft-ietf-httpapi-ratelimit-headers)",
        '"calls_per_phone_hour";r=4, "calls_per_phone_day";r=9',
    ),
    "RateLimit-Policy": _header(
        "those limits: at most `q` in any window of `w` seconds",
        '"calls_per_phone_hour";q=5;w=3600, "calls_per_phone_day";q=10;w=86400',
    ),
    "Idempotent-Replayed": _header(
        "`true` where the answer was given before, to a request with the same `Idempotency-Key`", const="true"
    ),
}
_PROBLEM_HEADERS: Mapping[str, dict[str, Any]] = {
    "Retry-After": _header("the `retry_after` of the body, in seconds", type="integer"),
    "RateLimit": _header("the limit that refused", '"calls_per_phone_hour";r=0;t=42'),
    "WWW-Authenticate": _header("how to send a key (RFC 6750)"),
}


def answers(
    status: HTTPStatus, *models: type[BaseModel], problems: Iterable[str] = (), headers: Iterable[str] = ()
) -> Answers:
    """Describe the responses of a route: an example of each model, and its problems, grouped by status.

    ``headers`` are those of a success, beside the ones that every response has.
    """
    summaries = {model: str(model.__doc__).partition("\n")[0] for model in models}
    examples = {model.__name__: {"summary": summaries[model], "value": example_of(model)} for model in models}
    described: Answers = {status.value: {"content": {"application/json": {"examples": examples}}} if models else {}}
    if headers:
        described[status.value]["headers"] = {name: _HEADERS[name] for name in headers}
    for kind in (PROBLEM_TYPES[slug] for slug in problems):
        names = [*kind.headers, *(["Retry-After"] if "retry_after" in kind.members else [])]
        for problem_status in (kind.status, *kind.also):
            answer = described.setdefault(problem_status, plain_answer(HTTPStatus(problem_status)))
            answer["description"] += f"\n\n`{kind.slug}`: {kind.meaning}"
            example = {"summary": kind.title, "value": kind.example(problem_status)}
            answer["content"][MEDIA_TYPE].setdefault("examples", {})[kind.slug] = example
            answer.setdefault("headers", {}).update((name, _PROBLEM_HEADERS[name]) for name in names)
    return described


def plain_answer(status: HTTPStatus) -> dict[str, Any]:
    """Describe a problem that its status explains."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": status.phrase, "content": content}
