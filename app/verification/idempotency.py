"""What the HTTP edge asks of the store so that a repeated request is answered again and not done again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from app.verification.deferred import DeferredWrites
from app.verification.errors import VerificationError


class IdempotencyKeyReused(VerificationError):
    """The key came before, with another body."""


class IdempotencyInProgress(VerificationError):
    """The first request with this key is still under way; ask again in ``retry_after`` seconds."""

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentRequest:
    """A request that may be repeated: two are the same if client, route and key are. The body may hold a code."""

    client: str
    route: str
    key: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it was given, and as it will be given again. The body may hold a phone."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to do what a request asks: ``name`` says which request, and ``token`` that it is one's own.

    ``fingerprint`` is a keyed digest of the request, its key and body included. ``begun`` is what somebody noted who
    held the claim before and died over it. After ``begin_before``, by the store's clock, nothing is begun any more:
    whoever asked for it has given up.
    """

    name: str
    token: str = field(repr=False)
    fingerprint: str
    begin_before: datetime
    begun: str | None = None


class IdempotencyStore(Protocol):
    """Keeps answers by the key of their request; each method is one atomic step. All raise StoreUnavailable.

    A claim is given up by ``keep`` or ``release``, and by itself once whoever holds it must have died. Neither
    method touches a claim that somebody else has taken over by then.
    """

    async def claim(self, request: IdempotentRequest) -> Claim | KeptAnswer:
        """Claim a request, or return the answer that it was given before.

        Raises IdempotencyKeyReused or IdempotencyInProgress.
        """
        ...

    async def begin(self, claim: Claim, note: str) -> bool:
        """Note what is about to be done, for whoever claims the request if this process dies, and extend the claim.

        False if somebody else has taken it over: then it must not be done.
        """
        ...

    async def keep(self, claim: Claim, answer: KeptAnswer, lifetime: timedelta) -> bool:
        """Keep the answer of a claimed request; false if the claim was lost, and nothing is kept."""
        ...

    async def release(self, claim: Claim, *, keep_note: bool = False) -> None:
        """Let the request be made again: nothing was done; or, where the note is kept, what it names may have been."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """What repeatable requests need. ``store_timeout`` (seconds) bounds all waits for the store before an answer."""

    store: IdempotencyStore
    deferred: DeferredWrites
    store_timeout: float
