"""Idempotency: the port that stores answers by the key of their request, and the journal of a start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from app.verification.errors import RetryLater, VerificationError
from app.verification.model import Started
from app.verification.ports import CallId
from app.verification.store_requests import DeferredWrites


class InvalidIdempotencyKey(Exception):
    """The key is not one of 1 to 128 visible ASCII characters."""


class IdempotencyKeyReused(VerificationError):
    """The key was used before, with another body."""


class IdempotencyInProgress(RetryLater):
    """The first request with this key is still in progress; retry in ``retry_after`` seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentRequest:
    """A request with an idempotency key. Two with the same client, route and key are the same. May hold a code."""

    client: str
    route: str
    key: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The stored answer to a request. The body may hold a phone."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """The exclusive right to process the request ``name``; ``token`` proves its possession.

    ``fingerprint`` is a keyed digest of the request, with its key and body. ``begun`` is the note of an earlier holder
    that died. After ``begin_before``, by the store's clock, nothing may begin any more: the client has given up.
    """

    name: str
    token: str = field(repr=False)
    fingerprint: str
    begin_before: datetime
    begun: str | None = None


class IdempotencyStore(Protocol):
    """Stores answers by the key of their request; each method is one atomic step. All raise StoreUnavailable.

    A claim ends with ``keep`` or ``release``, or expires once its holder must have died. Neither method changes a claim
    that another request has taken over by then.
    """

    async def claim(self, request: IdempotentRequest) -> Claim | KeptAnswer:
        """Claim a request, or return its stored answer. Raise IdempotencyKeyReused or IdempotencyInProgress."""

    async def begin(self, claim: Claim, note: str) -> bool:
        """Store a note of what is about to be done, for the next holder if this process dies, and extend the claim.

        Return False if another request has taken the claim over: then it must not be done.
        """

    async def keep(self, claim: Claim, answer: KeptAnswer, lifetime: timedelta) -> bool:
        """Store the answer to a claimed request. Return False, and store nothing, if the claim was lost."""

    async def release(self, claim: Claim, *, undone: str | None = None) -> None:
        """Give up a claim, so that the request may be repeated; delete the note of what is ``undone``.

        A note of anything else stays, such as that of an earlier holder: what it names may have been done.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """What repeatable requests need. ``store_timeout`` (seconds) bounds all waits for the store before an answer."""

    store: IdempotencyStore
    deferred: DeferredWrites
    store_timeout: float


class StartJournal(Protocol):
    """The record of a start with an idempotency key, so that its repetition places no second call."""

    async def claim(self) -> CallId | None:
        """Claim the request; return the call that an earlier request began before it died.

        Raise IdempotencyKeyReused, IdempotencyInProgress, StoreUnavailable, or an error with the stored answer.
        """

    async def begin(self, call_id: CallId) -> None:
        """Note the call that is about to be placed; it must not be placed without the note.

        Raise StoreUnavailable, or IdempotencyInProgress if another request has taken the claim over.
        """

    async def release(self, undone: CallId | None = None) -> None:
        """Let the request be repeated. Idempotent. Raise StoreUnavailable.

        A call that is noted stays noted, for the repetition to resume it, unless it is ``undone``.
        """

    async def keep(self, started: Started) -> None:
        """Store the answer. Raise nothing."""
