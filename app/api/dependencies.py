"""How a route gets the container, with every object of the service."""

from typing import Annotated

from fastapi import Depends, Request

from app.container import Container


def container_of(request: Request) -> Container:
    """Return the container that was opened when the application started."""
    container: Container = request.scope["state"]["container"]
    return container


async def _container(request: Request) -> Container:  # FastAPI would run a plain function in a thread
    return container_of(request)


ContainerDep = Annotated[Container, Depends(_container)]
