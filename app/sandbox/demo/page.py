"""Serves the demo page: files of this package, with nothing in them that is made on the way."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

# CSP Level 3, strict: nothing inline, nothing from elsewhere, and no string ever becomes code or markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_HEADERS = {"Content-Security-Policy": _POLICY}
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_EVENTS = "/verify/{verification_id}/events"


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str

    def response(self) -> Response:
        return Response(self.content, headers=_HEADERS, media_type=self.media_type)


def demo_router(*, channels: Sequence[str]) -> APIRouter:
    """Build the routes of the page, which offers ``channels`` in this order; for the sandbox only."""
    pages = _load()
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root() -> Response:
        return RedirectResponse("/demo", HTTPStatus.TEMPORARY_REDIRECT)

    @router.get("/demo")
    async def page() -> Response:
        return pages["index.html"].response()

    @router.get("/demo/config.json")
    async def config(request: Request) -> Response:
        """Tell the page what this service can do."""
        paths = {getattr(route, "path", None) for route in request.app.routes}
        return JSONResponse({"channels": list(channels), "events": _EVENTS in paths})

    @router.get("/demo/{name:path}")
    async def asset(name: str) -> Response:
        if name not in pages:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return pages[name].response()

    return router


def _load() -> Mapping[str, _File]:
    """Read all files of the page, by their path: they are few, small, and known when the service starts."""
    return {
        name: _File(entry.read_bytes(), _MEDIA_TYPES[name.rpartition(".")[2]])
        for name, entry in _walk(files(__package__) / "static")
    }


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry
