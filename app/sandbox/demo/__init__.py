"""Serves the demo page from the static files of this package."""

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

# CSP Level 3, strict: nothing inline, nothing from other origins, and no string ever becomes code or markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_EVENT_STREAM = "/verify/{verification_id}/events"
_STATIC = Path(__file__).with_name("static")


def demo_router(*, channels: Sequence[str]) -> APIRouter:
    """Return the routes of the page, which offers ``channels`` in this order; for sandbox mode only."""
    files = {
        path.relative_to(_STATIC).as_posix(): (path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in _STATIC.rglob("*.*")
    }
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root(request: Request) -> Response:
        return RedirectResponse(f"{request.scope['root_path']}/demo", HTTPStatus.TEMPORARY_REDIRECT)

    @router.get("/demo")
    async def page() -> Response:
        return await asset("index.html")

    @router.get("/demo/config.json")
    async def config(request: Request) -> Response:
        """Return what the page can offer."""
        paths = {getattr(route, "path", None) for route in request.app.routes}
        return JSONResponse({"channels": list(channels), "events": _EVENT_STREAM in paths})

    @router.get("/demo/{name:path}")
    async def asset(name: str) -> Response:
        if name not in files:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        content, media_type = files[name]
        return Response(content, headers={"Content-Security-Policy": _POLICY}, media_type=media_type)

    return router
