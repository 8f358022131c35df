"""The service's own pages: plain files of the package, served under a strict content security policy.

``shared/`` has what all pages use: colours, controls, the header, languages. A page finds those files beside its own.
"""

from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Response
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
_SHARED = Path(__file__).with_name("shared")


def page_router(name: str, folder: Path) -> APIRouter:
    """Return the routes of a page: ``/name`` is ``index.html`` of its folder, and ``/name/…`` are its other files."""
    contents = {
        path.relative_to(root).as_posix(): (path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for root in (_SHARED, folder)
        for path in root.rglob("*.*")
    }
    router = APIRouter(include_in_schema=False)

    @router.get(f"/{name}")
    async def page() -> Response:
        return await file("index.html")

    @router.get(f"/{name}/{{file_name:path}}")
    async def file(file_name: str) -> Response:
        if file_name not in contents:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        content, media_type = contents[file_name]
        return Response(content, headers={"Content-Security-Policy": _POLICY}, media_type=media_type)

    return router
