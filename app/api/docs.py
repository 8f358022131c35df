"""The OpenAPI description and its page: examples for every answer, no asset from another host."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.api.problems import MEDIA_TYPE, PROBLEM_TYPES, ProblemType

_ASSETS = "/docs/assets"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_PROBLEM_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "description": "RFC 9457 problem details; further members depend on `type`.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what a person can do about it"},
        "instance": {"type": "string", "description": "the id of the request"},
    },
}


def respond(model: BaseModel, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """Write a wire model down. It is valid already, so FastAPI need not validate it again."""
    return Response(model.model_dump_json(), status, headers, "application/json")


Answers = dict[int | str, dict[str, Any]]


def answers(status: HTTPStatus, *models: type[BaseModel], problems: Iterable[str] = ()) -> Answers:
    """Describe what a route answers: an example of each model, and its problems, grouped by status."""
    examples = {model.__name__: {"summary": _summary(model), "value": example_of(model)} for model in models}
    described: Answers = {status.value: {"content": {"application/json": {"examples": examples}}}}
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
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = _header("string", "how to send a key (RFC 6750)")
    return headers


def _header(kind: str, description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


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

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend its schema
    app.mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=app.title,
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon.png",
        swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True},
    )
    content = bytes(page.body).decode()
    headers = {"Content-Security-Policy": _docs_policy(content)}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(content, headers=headers)


def describe(app: FastAPI) -> dict[str, Any]:
    """Make the OpenAPI 3.1 description."""
    schema = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    for item in schema["paths"].values():
        for operation in item.values():
            _drop_default_error(operation["responses"])
    schemas = schema["components"]["schemas"]
    schemas["Problem"] = dict(_PROBLEM_SCHEMA)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return schema


def _drop_default_error(responses: dict[str, Any]) -> None:
    """Drop the error that FastAPI describes for every route with a parameter; none here answers with it."""
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]


def _docs_policy(page: str) -> str:
    """Allow the page its own files and its one inline script, by that script's hash (CSP Level 3)."""
    digests = (hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(page))
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
        " connect-src 'self'; frame-ancestors 'none'"
    )
