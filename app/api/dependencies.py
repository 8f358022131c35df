"""What routes read from a request: the container, with every object of the service, and headers."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from app.container import Container


def container_of(request: Request) -> Container:
    """Return the container that was opened when the application started."""
    container: Container = request.scope["state"]["container"]
    return container


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Return the values of each header of that name, which is in lower case. Starlette's object for all costs more."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _container(request: Request) -> Container:  # FastAPI would run a plain function in a thread
    return container_of(request)


ContainerDep = Annotated[Container, Depends(_container)]
