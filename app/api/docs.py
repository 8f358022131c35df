"""The docs UI: ``/openapi.json`` and its page ``/docs``, which loads nothing from another host."""

import json
from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Response
from fastapi.staticfiles import StaticFiles

from app.api.openapi import describe

_PAGE = {  # by path: the file in docs_page/, and its media type
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs/page.css": ("page.css", "text/css; charset=utf-8"),
    "/docs/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# CSP Level 3, strict: nothing inline, and nothing from another host.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def install_docs(app: FastAPI) -> None:
    """Serve ``/openapi.json`` and ``/docs``; the page's assets come from the package fastapi-offline."""

    @cache
    def description() -> bytes:
        return json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()

    async def openapi() -> Response:
        return Response(description(), media_type="application/json")

    app.openapi = cache(lambda: describe(app))  # type: ignore[method-assign] # FastAPI's documented way to extend it
    app.add_api_route("/openapi.json", openapi, include_in_schema=False)  # FastAPI's own serializes it on each request
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
    for path, (name, media_type) in _PAGE.items():
        _serve(app, path, (files("app.api") / "docs_page" / name).read_bytes(), media_type)


def _serve(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    async def serve() -> Response:
        return Response(content, headers={"Content-Security-Policy": _POLICY}, media_type=media_type)

    app.add_api_route(path, serve, include_in_schema=False)
