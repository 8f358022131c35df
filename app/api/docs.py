"""The docs: the OpenAPI description ``/openapi.json``, and its page ``/docs``, which loads nothing from elsewhere."""

import json
from collections.abc import Mapping
from functools import cache, partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response
from fastapi.staticfiles import StaticFiles

from app.api.webhooks import describe_webhooks

_ASSETS = {  # by path: the file in docs_page/, and its media type
    "/docs/page.css": ("page.css", "text/css; charset=utf-8"),
    "/docs/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# CSP Level 3, strict: nothing inline, and nothing from another host.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)

# In the order in which they are needed.
_TAGS: Mapping[str, str] = {
    "verify": "**The job**: start calls a phone, check proves that a person holds it.",
    "tokens": "**The proof**: the token of a correct code, which a backend verifies by itself, or redeems once.",
    "provider": "**The telephone company**: the account that pays for the calls.",
    "operations": "**For the operator**: health, metrics, and what a problem means.",
    "admin": "**For the operator alone**, with its own key: what became of each call, what the fraud guard blocks.",
    "sandbox": "**In sandbox mode alone**: the virtual telephones, where a code can be heard, and the numbers to try.",
}
_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "verification_id": {
        "description": "as `start` returned it; on this page the example stands for the one started last",
        "example": "vrf_0a11b22c33d44e55f667788",
    },
    "slug": {"description": "the end of a problem's `type`", "example": "call-cooldown"},
}
_SCHEMAS: Mapping[str, Any] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457 problem details; further members depend on `type`.",
        "required": ["type", "title", "status", "detail", "instance"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "what happened, and what a developer can do about it"},
            "instance": {"type": "string", "description": "the id of the request, as in `X-Request-ID`"},
            "errors": {
                "type": "array",
                "description": "of `validation-failed`: each field that is wrong",
                "items": {"$ref": "#/components/schemas/InvalidField"},
            },
            "reason": {"type": "string", "description": "of `phone-not-callable`"},
            "limit": {"type": "string", "description": "of `rate-limited`: the name of the limit"},
            "retry_after": {"type": "integer", "description": "seconds, as in the header `Retry-After`"},
            "verification_id": {"type": ["string", "null"], "description": "of `call-cooldown`: the pending one"},
        },
    },
    "InvalidField": {
        "type": "object",
        "description": "A field that is wrong.",
        "required": ["pointer", "detail"],
        "properties": {
            "pointer": {"type": "string", "description": "a JSON pointer into the body, or the name of a header"},
            "detail": {"type": "string"},
        },
    },
}


def install_docs(app: FastAPI, pages: Mapping[str, str]) -> None:
    """Serve ``/openapi.json`` and ``/docs``, whose header links to ``pages`` (titles by path).

    The page's assets come from the package fastapi-offline.
    """

    @cache
    def description() -> bytes:
        return json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()

    async def openapi() -> Response:
        return Response(description(), media_type="application/json")

    app.openapi = cache(lambda: _describe(app))  # type: ignore[method-assign] # FastAPI's documented way to extend it
    app.add_api_route("/openapi.json", openapi, include_in_schema=False)  # FastAPI's own serializes it on each request
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
    for path, (name, media_type) in _ASSETS.items():
        content = (files("app.api") / "docs_page" / name).read_bytes()
        app.add_api_route(path, partial(_serve, content, media_type), include_in_schema=False)

    links = "\n      ".join(f'<a href="{path}">{title}</a>' for path, title in pages.items())
    template = (files("app.api") / "docs_page" / "index.html").read_text(encoding="utf-8")
    page = template.replace("<!-- pages -->", links).encode()
    app.add_api_route("/docs", partial(_serve, page, "text/html; charset=utf-8"), include_in_schema=False)


async def _serve(content: bytes, media_type: str) -> Response:
    return Response(content, headers={"Content-Security-Policy": _POLICY}, media_type=media_type)


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return what FastAPI makes of the routes, with tags, problems, parameters and webhooks (OpenAPI 3.1)."""
    schema = FastAPI.openapi(app)
    operations = [operation for item in schema["paths"].values() for operation in item.values()]
    for operation in operations:
        operation.setdefault("security", [])  # public on purpose
        # FastAPI describes an error of its own for every route with a parameter; no route here answers with it.
        if "application/json" in operation["responses"].get("422", {}).get("content", {}):
            del operation["responses"]["422"]
        for parameter in operation.get("parameters", ()):
            for name, text in _PARAMETERS.get(parameter["name"], {}).items():
                parameter.setdefault(name, text)
            if examples := parameter["schema"].get("examples"):
                parameter.setdefault("example", examples[0])  # the one place where the docs UI looks for it
    used = {tag for operation in operations for tag in operation.get("tags", ())}
    schema["tags"] = [{"name": tag, "description": text} for tag, text in _TAGS.items() if tag in used]
    schema["webhooks"], models = describe_webhooks()
    schemas = schema["components"]["schemas"]
    schemas |= {**_SCHEMAS, **models}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return schema
