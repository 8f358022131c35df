"""API keys: the key of a request in, the name of its client out."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass


class Unauthorized(Exception):
    """The request carries no known key of the kind that is ``wanted``."""

    def __init__(self, wanted: str) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class ApiKeys:
    """The keys of one kind, as pairs of a client's name and the key's SHA-256.

    Without any keys, every request is accepted as the client ``open_as``, if that is set. A plain hash is enough for a
    key of 256 random bits, which cannot be guessed.
    """

    def __init__(self, keys: Sequence[tuple[str, bytes]], *, kind: str = "API key", open_as: str | None = None) -> None:
        self._keys = tuple(keys)
        self._kind = kind
        self._open_as = open_as

    def client_of(self, authorization: str | None) -> str:
        """Return the client of an ``Authorization`` header. Raises Unauthorized.

        Every key is compared, each in constant time, so that the time of an answer reveals nothing about the keys.
        """
        if not self._keys and self._open_as:
            return self._open_as
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = [client for client, known in self._keys if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not found:
            raise Unauthorized(self._kind)
        return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKeys:
    """The keys that each kind of request needs; ``account`` is for reading the provider's account."""

    clients: ApiKeys
    admins: ApiKeys
    account: ApiKeys
    metrics: ApiKeys
