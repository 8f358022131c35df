"""Serves the demo page from the static files of this package."""

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from app.pages import page_router

_EVENT_STREAM = "/verify/{verification_id}/events"


def demo_router(*, channels: Sequence[str]) -> APIRouter:
    """Return the routes of the page, which offers ``channels`` in this order; for sandbox mode only."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root(request: Request) -> Response:
        return RedirectResponse(f"{request.scope['root_path']}/demo", HTTPStatus.TEMPORARY_REDIRECT)

    @router.get("/demo/config.json")
    async def config(request: Request) -> Response:
        """Return what the page can offer."""
        paths = {getattr(route, "path", None) for route in request.app.routes}
        return JSONResponse({"channels": list(channels), "events": _EVENT_STREAM in paths})

    router.include_router(page_router("demo", Path(__file__).with_name("static")))
    return router
