"""What routes get from a request: the container, with every object of the service, and the client who sent it."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.types import Scope

from app.api_keys import ApiKeys
from app.container import Container


def container_of(request: Request) -> Container:
    """Return the container that was opened when the application started."""
    container: Container = request.scope["state"]["container"]
    return container


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Return the values of each header of that name, which is in lower case. Starlette's object for all costs more."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def authenticate(request: Request, keys: ApiKeys) -> str:
    """Return the client whose key a request carries, and keep the name in ``request.state`` for the log.

    Raises Unauthorized: there is no such key, or there are several (a proxy may have checked the other one).
    """
    given = header_values(request.scope, b"authorization")
    client = request.scope["state"]["client"] = keys.client_of(given[0] if len(given) == 1 else None)
    return client


class Authenticate(HTTPBearer):
    """The dependency that returns the client of a request; ``keys`` selects the keys that are accepted."""

    def __init__(self, keys: Callable[[Container], ApiKeys], *, scheme_name: str, description: str) -> None:
        super().__init__(scheme_name=scheme_name, description=description)
        self._keys = keys

    async def __call__(self, request: Request) -> str:  # type: ignore[override] # the name, not the credentials
        """Return the name of the client. Raises Unauthorized."""
        return authenticate(request, self._keys(container_of(request)))


def admin_key(keys: Callable[[Container], ApiKeys]) -> Authenticate:
    """Return the dependency on an admin key."""
    return Authenticate(
        keys,
        scheme_name="AdminKey",
        description="A key of `ADMIN_KEYS`; no client's key is one. Where none is configured, nobody is let in.",
    )


async def _container(request: Request) -> Container:  # FastAPI would run a plain function in a thread
    return container_of(request)


ContainerDep = Annotated[Container, Depends(_container)]
_CLIENT_KEY = Authenticate(
    lambda container: container.keys.clients,
    scheme_name="ApiKey",
    description="`plusofon-verify keygen` makes one. In sandbox mode none is needed.",
)
Client = Annotated[str, Security(_CLIENT_KEY)]
