"""Serves the console, the page of the operator. It has no data: the admin routes do, and ask for a key."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.pages import page_router


def console_router(*, has_webhook_log: bool) -> APIRouter:
    """Return the routes of the page, which shows the webhooks sent if the service has a log of them."""
    router = APIRouter(include_in_schema=False)

    @router.get("/console/config.json")
    async def config() -> JSONResponse:
        """Return what the page can show."""
        return JSONResponse({"webhook_log": has_webhook_log})

    router.include_router(page_router("console", Path(__file__).with_name("static")))
    return router
