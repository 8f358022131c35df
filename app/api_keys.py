"""API keys: the key of a request in, the name of its client out."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

CLIENT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class Unauthorized(Exception):
    """The request carries no known key of the kind that is ``wanted``."""

    def __init__(self, wanted: str) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class ApiKeys:
    """The keys of one kind, as pairs of a client's name and the key's SHA-256.

    Without any keys, every request is accepted as the client ``open_as``, if that is set. A plain hash is enough for a
    key of 256 random bits, which cannot be guessed.

    A key is looked up by its hash. How long that takes reveals nothing: who cannot compute a key from its hash cannot
    choose how much of the hash is right, and Python hashes it again, under a secret of the process.
    """

    def __init__(self, keys: Sequence[tuple[str, bytes]], *, kind: str = "API key", open_as: str | None = None) -> None:
        self._clients = {digest: client for client, digest in reversed(keys)}
        self._kind = kind
        self._open_as = open_as

    def client_of(self, authorization: str | None) -> str:
        """Return the client of an ``Authorization`` header. Raises Unauthorized."""
        if not self._clients and self._open_as:
            return self._open_as
        scheme, _, key = (authorization or "").partition(" ")
        client = self._clients.get(hashlib.sha256(key.strip().encode()).digest())
        if scheme.lower() != "bearer" or client is None:
            raise Unauthorized(self._kind)
        return client


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKeys:
    """The keys that each kind of request needs."""

    clients: ApiKeys
    admins: ApiKeys
    metrics: ApiKeys
