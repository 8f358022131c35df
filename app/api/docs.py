"""The OpenAPI description and its page: examples for every answer, no asset from another host."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.api.problems import MEDIA_TYPE, PROBLEM_TYPES, ProblemType
from app.api.webhooks import describe_webhooks

_ASSETS = "/docs/assets"
_PAGE = {  # by path: the file of this package, and its type
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs/page.css": ("page.css", "text/css; charset=utf-8"),
    "/docs/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# CSP Level 3, strict: nothing inline, and nothing from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
# In the order in which they are needed.
_TAGS: Mapping[str, str] = {
    "verify": "**The job**: start calls a phone, check proves that a person holds it.",
    "tokens": "**The proof**: what a right code gives, which a backend believes without asking, or accepts once.",
    "provider": "**The telephone company**: the account that pays for the calls.",
    "operations": "**For whoever runs the service**: is it alive, can it work, what does a problem mean.",
    "admin": "**For its operator alone**, with a key of its own: what the fraud guard has blocked.",
    "sandbox": "**In sandbox mode alone**: the virtual telephones, where a code can be heard, and the numbers to try.",
}
_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "verification_id": {
        "description": "as `start` returned it; on this page the example stands for the one started last",
        "example": "vrf_0a11b22c33d44e55f667788",
    },
    "slug": {"description": "the end of a problem's `type`", "example": "call-cooldown"},
}
_IDEMPOTENCY_KEY = "Idempotency-Key"
_INVALID_FIELD_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "description": "A field that is wrong.",
    "required": ["pointer", "detail"],
    "properties": {
        "pointer": {"type": "string", "description": "a JSON pointer into the body, or the name of a header"},
        "detail": {"type": "string"},
    },
}
_PROBLEM_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "description": "RFC 9457 problem details; further members depend on `type`.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened, and what can be done about it, for a developer"},
        "instance": {"type": "string", "description": "the id of the request, which `X-Request-ID` tells, too"},
        "errors": {
            "type": "array",
            "description": "of `validation-failed`: each field that is wrong",
            "items": {"$ref": "#/components/schemas/InvalidField"},
        },
        "reason": {"type": "string", "description": "of `phone-not-callable`"},
        "limit": {"type": "string", "description": "of `rate-limited`: the name of the limit"},
        "retry_after": {"type": "integer", "description": "seconds, as in the header `Retry-After`"},
        "verification_id": {"type": ["string", "null"], "description": "of `call-cooldown`: the pending verification"},
    },
}


def respond(model: BaseModel, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """Write a wire model down. It is valid already, so FastAPI need not validate it again."""
    return Response(model.model_dump_json(), status, headers, "application/json")


Answers = dict[int | str, dict[str, Any]]


def answers(
    status: HTTPStatus, *models: type[BaseModel], problems: Iterable[str] = (), headers: Iterable[str] = ()
) -> Answers:
    """Describe what a route answers: an example of each model, and its problems, grouped by status.

    ``headers`` are those of a success that mean something: ``Location``, ``RateLimit``, ``RateLimit-Policy``.
    """
    examples = {model.__name__: {"summary": _summary(model), "value": example_of(model)} for model in models}
    described: Answers = {status.value: {"content": {"application/json": {"examples": examples}}}}
    if told := {name: _HEADERS[name] for name in headers}:
        described[status.value]["headers"] = told
    for kind in (PROBLEM_TYPES[slug] for slug in problems):
        for problem_status in (kind.status, *kind.also):
            answer = described.setdefault(problem_status.value, plain_answer(problem_status))
            answer["description"] += f"\n\n`{kind.slug}`: {kind.meaning}"
            example = {"summary": kind.title, "value": _example(kind, problem_status)}
            answer["content"][MEDIA_TYPE].setdefault("examples", {})[kind.slug] = example
            answer.setdefault("headers", {}).update(_headers(kind, problem_status))
    return described


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """Make an example of a wire model from those of its fields."""
    values = {name: _example_of_field(field) for name, field in model.model_fields.items()}
    left_out = {
        name for name, field in model.model_fields.items() if field.exclude_if and field.exclude_if(values[name])
    }
    return {name: value for name, value in values.items() if name not in left_out}


def _example_of_field(field: FieldInfo) -> Any:  # noqa: ANN401 - whatever the field holds
    return field.examples[0] if field.examples else field.get_default(call_default_factory=True)


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _headers(kind: ProblemType, status: HTTPStatus) -> dict[str, Any]:
    """Describe the headers that come with a problem."""
    headers = {}
    if "retry_after" in kind.example:
        headers["Retry-After"] = _header("integer", "the `retry_after` of the body, in seconds")
    if kind.slug in _TELLS_LIMIT:
        headers["RateLimit"] = _header("string", "the limit that refused", '"calls_per_phone_hour";r=0;t=42')
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = _header("string", "how to send a key (RFC 6750)")
    return headers


def _header(kind: str, description: str, example: str | None = None) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}, **({"example": example} if example else {})}


_TELLS_LIMIT = frozenset({"rate-limited", "call-budget-exhausted"})
_HEADERS: Mapping[str, dict[str, Any]] = {
    "Location": _header("string", "where the verification is read", "/verify/vrf_0a11b22c33d44e55f667788"),
    "RateLimit": _header(
        "string",
        "what remains (`r`) of each limit that the request counted against (draft-ietf-httpapi-ratelimit-headers)",
        '"calls_per_phone_hour";r=4, "calls_per_phone_day";r=9',
    ),
    "RateLimit-Policy": _header(
        "string",
        "those limits: at most `q` in any window of `w` seconds",
        '"calls_per_phone_hour";q=5;w=3600, "calls_per_phone_day";q=10;w=86400',
    ),
}
_REPLAYED = {
    "description": "`true` where the answer was given before, to a request with the same `Idempotency-Key`",
    "schema": {"type": "string", "const": "true"},
}


DESCRIPTION = "/openapi.json"


def plain_answer(status: HTTPStatus) -> dict[str, Any]:
    """Describe a problem that its status explains."""
    return {
        "description": status.phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _example(kind: ProblemType, status: HTTPStatus) -> dict[str, Any]:
    return {
        "type": kind.uri,
        "title": kind.title,
        "status": status.value,
        "detail": kind.meaning,
        "instance": "5f0c7a1e9b2d4c68",
        **(kind.example_of_also if status in kind.also else kind.example),
    }


def install_docs(app: FastAPI) -> None:
    """Publish ``/openapi.json`` and ``/docs``; the page's assets come from the package fastapi-offline."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    @cache
    def written() -> bytes:
        return json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()

    async def description() -> Response:
        return Response(written(), media_type="application/json")

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend its schema
    app.add_api_route(
        DESCRIPTION, description, include_in_schema=False
    )  # FastAPI's own writes it anew for each request
    app.mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
    for path, (name, media_type) in _PAGE.items():
        _serve(app, path, (files("app.api") / "docs_page" / name).read_bytes(), media_type)


def _serve(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    async def serve() -> Response:
        return Response(content, headers={"Content-Security-Policy": _POLICY}, media_type=media_type)

    app.add_api_route(path, serve, include_in_schema=False)


def describe(app: FastAPI) -> dict[str, Any]:
    """Make the OpenAPI 3.1 description."""
    schema = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        license_info=app.license_info,
        servers=app.servers,
        routes=app.routes,
    )
    operations = [operation for item in schema["paths"].values() for operation in item.values()]
    for operation in operations:
        operation.setdefault("security", [])  # public on purpose
        _drop_default_error(operation["responses"])
        _describe_parameters(operation)
    used = {tag for operation in operations for tag in operation.get("tags", ())}
    schema["tags"] = [{"name": tag, "description": text} for tag, text in _TAGS.items() if tag in used]
    schemas = schema["components"]["schemas"]
    schemas |= {"Problem": dict(_PROBLEM_SCHEMA), "InvalidField": dict(_INVALID_FIELD_SCHEMA)}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schema["webhooks"], models = describe_webhooks()
    schemas |= models
    return schema


def _drop_default_error(responses: dict[str, Any]) -> None:
    """Drop the error that FastAPI describes for every route with a parameter; none here answers with it."""
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]


def _describe_parameters(operation: dict[str, Any]) -> None:
    """Say what the parameters that recur are, and what comes of the one that makes a request repeatable."""
    for parameter in operation.get("parameters", ()):
        for name, text in _PARAMETERS.get(parameter["name"], {}).items():
            parameter.setdefault(name, text)
        if examples := parameter["schema"].get("examples"):
            parameter.setdefault("example", examples[0])  # the one place where the docs UI looks for it
        if parameter["name"] == _IDEMPOTENCY_KEY:
            for status, answer in operation["responses"].items():
                if status.startswith("2"):
                    answer.setdefault("headers", {})["Idempotent-Replayed"] = _REPLAYED
