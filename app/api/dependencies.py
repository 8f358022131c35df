"""What routes get from a request: the container, with every object of the service, and the client who sent it."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from app.api.exchange import Exchange
from app.api_keys import ApiKeys
from app.container import Container
from app.verification import log_context


async def _exchange(request: Request) -> Exchange:  # FastAPI would run a plain function in a thread
    exchange: Exchange = request.scope["exchange"]
    return exchange


ExchangeDep = Annotated[Exchange, Depends(_exchange)]


async def _container(exchange: ExchangeDep) -> Container:
    return exchange.container


ContainerDep = Annotated[Container, Depends(_container)]


def authenticate(exchange: Exchange, keys: ApiKeys) -> str:
    """Return the client whose key a request carries, and keep the name for the log. Raises Unauthorized."""
    client = exchange.client = keys.client_of(exchange.header(b"authorization"))
    log_context.bind(client=client)
    return client


class Authenticate(HTTPBearer):
    """The dependency that returns the client of a request; ``keys`` selects the keys that are accepted."""

    def __init__(self, keys: Callable[[Container], ApiKeys], *, scheme_name: str, description: str) -> None:
        super().__init__(scheme_name=scheme_name, description=description)
        self._keys = keys

    async def __call__(self, exchange: ExchangeDep) -> str:  # type: ignore[override] # the name, not the credentials
        """Return the name of the client. Raises Unauthorized."""
        return authenticate(exchange, self._keys(exchange.container))


ADMIN_KEY = Security(
    Authenticate(
        lambda container: container.keys.admins,
        scheme_name="AdminKey",
        description="A key of `ADMIN_KEYS`; no client's key is one. In sandbox mode none is needed as long as neither"
        " `ADMIN_KEYS` nor `API_KEYS` has any.",
    )
)
"""The dependency on an admin key; it returns the name of the key."""

_CLIENT_KEY = Authenticate(
    lambda container: container.keys.clients,
    scheme_name="ApiKey",
    description="`plusofon-verify keygen` makes one. In sandbox mode none is needed.",
)
Client = Annotated[str, Security(_CLIENT_KEY)]
