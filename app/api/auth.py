"""Authentication of requests, as a function and as the dependencies that the API's description shows."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPBearer

from app.api.dependencies import container_of, header_values
from app.api_keys import ApiKeys
from app.container import Container


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


Client = Annotated[
    str,
    Security(
        Authenticate(
            lambda container: container.keys.clients,
            scheme_name="ApiKey",
            description="`plusofon-verify keygen` makes one. In sandbox mode none is needed.",
        )
    ),
]
