"""Who is calling: an API key in, the client's name out."""

import hashlib
import hmac
from collections.abc import Sequence

from fastapi import Request
from fastapi.security import HTTPBearer


class Unauthorized(Exception):
    """The request carries no known key of the kind that is ``wanted``."""

    def __init__(self, wanted: str) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class ApiKeys:
    """The keys of one kind, each as its client's name and its SHA-256; without any, everybody is ``open_as``.

    A plain hash is enough for a key of 256 random bits: there is nothing to guess.
    """

    def __init__(self, keys: Sequence[tuple[str, bytes]], *, kind: str = "API key", open_as: str | None = None) -> None:
        self._keys = tuple(keys)
        self._kind = kind
        self._open_as = open_as

    def client_of(self, authorization: str | None) -> str:
        """Return the client of an ``Authorization`` header. Raises Unauthorized.

        Every key is compared, each in constant time, so that time tells nothing about any of them.
        """
        if not self._keys and self._open_as:
            return self._open_as
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = [client for client, known in self._keys if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not found:
            raise Unauthorized(self._kind)
        return found[0]


def authenticate(request: Request, keys: str = "api_keys") -> str:
    """Return whose key a request carries, among ``request.state``'s ``keys``, and note it for the log.

    Raises:
        Unauthorized: nobody's.

    """
    known: ApiKeys = getattr(request.state, keys)
    given = request.headers.getlist("authorization")
    # Of two keys, a proxy may have looked at the other one.
    client = known.client_of(given[0] if len(given) == 1 else None)
    request.state.client = client
    return client


class Authenticate(HTTPBearer):
    """The dependency that tells whose key a request carries; also what shows "Authorize" in the docs."""

    def __init__(self, keys: str, *, scheme_name: str, description: str) -> None:
        super().__init__(scheme_name=scheme_name, description=description)
        self._keys = keys

    async def __call__(self, request: Request) -> str:  # type: ignore[override] # the name, not the credentials
        """Return the name that the key goes by. Raises Unauthorized."""
        return authenticate(request, self._keys)


def admin_key(keys: str) -> Authenticate:
    """Make the dependency on an admin key, among ``request.state``'s ``keys``."""
    return Authenticate(
        keys,
        scheme_name="AdminKey",
        description="A key of `ADMIN_KEYS`; no client's key is one. Where none is configured, nobody is let in.",
    )
