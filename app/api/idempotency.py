"""The ``Idempotency-Key`` header: a repeated request gets the first answer again, byte for byte, and does nothing.

After https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/, with two differences: any visible
ASCII is a key, quoted as the draft wants it or not; and ``Idempotent-Replayed: true`` marks an answer that is given
again, as it does at Stripe (https://docs.stripe.com/api/idempotent_requests).
"""

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fastapi import Request, Response

from app.verification.deferred import DeferredWrites, store_deadline
from app.verification.errors import StoreUnavailable
from app.verification.idempotency import Claim, IdempotencyInProgress, IdempotencyStore, IdempotentRequest, KeptAnswer
from app.verification.model import Started
from app.verification.ports import CallId

log = logging.getLogger(__name__)

_KEY = re.compile(r"[!-~]{1,128}")
_KEPT_HEADERS = ("content-type", "location")
_RETRY_AFTER = 1  # seconds: who took the request over will soon have answered

# For ``openapi_extra``: a parameter that FastAPI reads costs 14 µs of every request, with the header or without.
IDEMPOTENCY_KEY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "Names this request, so that it may be repeated when its answer was lost: with the same key"
            " and the same body, byte for byte, the first answer comes again, with `Idempotent-Replayed: true`, and"
            " nothing is done. Only an answer that did something is kept: after a problem the key is free again. Make"
            " a new key, such as a random UUID, for each new request.",
            "schema": {"type": "string", "pattern": f"^{_KEY.pattern}$"},
            "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
        }
    ]
}


class InvalidIdempotencyKey(Exception):
    """The header is not one key of 1 to 128 visible ASCII characters."""


class AnsweredBefore(Exception):
    """The request is a repetition; ``response`` is the answer that the first one got."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """What repeatable requests need. ``store_timeout`` (seconds) bounds all waits for the store before an answer."""

    store: IdempotencyStore
    deferred: DeferredWrites
    store_timeout: float


@dataclass(slots=True)
class RepeatableRequest:
    """An authenticated request with an ``Idempotency-Key``."""

    idempotency: Idempotency
    request: IdempotentRequest
    claimed: Claim | None = field(default=None, init=False)

    async def claim(self) -> Claim:
        """Claim it.

        Raises:
            AnsweredBefore, IdempotencyKeyReused, IdempotencyInProgress, StoreUnavailable: it must not be done.

        """
        claim = await self.idempotency.store.claim(self.request)
        if isinstance(claim, KeptAnswer):
            raise AnsweredBefore(Response(claim.body, claim.status, {**claim.headers, "Idempotent-Replayed": "true"}))
        self.claimed = claim
        return claim

    async def keep(self, response: Response, lifetime: timedelta) -> None:
        """Keep the answer. Where that fails it is no less true, is given all the same, and is kept a moment later."""
        assert self.claimed  # noqa: S101 - only what was claimed is answered
        store, claim = self.idempotency.store, self.claimed
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        kept = KeptAnswer(response.status_code, headers, bytes(response.body))
        try:
            if not await store.keep(claim, kept, lifetime):
                log.error("idempotency.claim_lost", extra={"claim": claim.name})
        except StoreUnavailable as error:
            log.error("idempotency.not_kept", extra={"claim": claim.name, "reason": error.reason})
            self.idempotency.deferred.write_later(lambda: store.keep(claim, kept, lifetime))

    async def release(self, *, keep_note: bool = False) -> None:
        """Let it be made again. Harmless when repeated. Raises StoreUnavailable."""
        if self.claimed:
            await self.idempotency.store.release(self.claimed, keep_note=keep_note)


def repeatable(http: Request, body: bytes) -> RepeatableRequest | None:
    """Return the request as one that may be repeated; none if it has no key. Raises InvalidIdempotencyKey."""
    given = http.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidIdempotencyKey
    request = IdempotentRequest(client=http.state.client, route=http.scope["path"], key=given[0], body=body)
    return RepeatableRequest(http.state.idempotency, request)


async def once(http: Request, act: Callable[[str | None], Awaitable[Response]], *, keep_for: timedelta) -> Response:
    """Do what a request asks, unless it is the repetition of one that was answered.

    ``act`` is given a keyed digest of the request, if it has a key. Whatever it raises is not kept.

    Raises:
        InvalidIdempotencyKey, IdempotencyKeyReused, IdempotencyInProgress, StoreUnavailable: nothing was done.

    """
    repeated = repeatable(http, await http.body())
    if repeated is None:
        return await act(None)
    deferred = repeated.idempotency.deferred
    try:
        async with store_deadline(repeated.idempotency.store_timeout):
            response = await act((await repeated.claim()).fingerprint)
    except AnsweredBefore as before:
        return before.response
    except Exception as error:
        if isinstance(error, StoreUnavailable):  # nobody waits for a dead Redis twice
            deferred.write_later(repeated.release)
        else:
            await deferred.write(repeated.release)
        raise
    except BaseException:  # a cancellation, too: the caller should not have to wait for the claim to expire
        deferred.write_later(repeated.release)
        raise
    await repeated.keep(response, keep_for)
    return response


class StartJournal:
    """The StartJournal of ``app/verification/idempotency.py``: a start and the answer to it, written once and kept."""

    def __init__(
        self,
        request: RepeatableRequest,
        *,
        answer: Callable[[Started], Response],
        keep_for: Callable[[Started], timedelta],
    ) -> None:
        self._request = request
        self._answer = answer
        self._keep_for = keep_for
        self.response: Response | None = None

    async def claim(self) -> CallId | None:
        """Claim the request; return the call that an earlier one had begun and died over."""
        begun = (await self._request.claim()).begun
        return CallId.parse(begun) if begun else None

    async def begin(self, call_id: CallId) -> None:
        """Note the call that is about to be placed.

        Raises:
            IdempotencyInProgress: somebody else has taken the request over.
            StoreUnavailable: the call must not be placed, for a repetition would not know of it.

        """
        assert self._request.claimed  # noqa: S101 - only what was claimed is begun
        if not await self._request.idempotency.store.begin(self._request.claimed, str(call_id)):
            log.error("idempotency.taken_over", extra={"claim": self._request.claimed.name})
            raise IdempotencyInProgress(retry_after=_RETRY_AFTER)

    async def release(self) -> None:
        """Let the request be made again: no call was placed. Raises StoreUnavailable."""
        await self._request.release()

    async def abandon(self) -> None:
        """Let the request be made again, and then be told of the call that was noted. Raises StoreUnavailable."""
        await self._request.release(keep_note=True)

    async def keep(self, started: Started) -> None:
        """Keep the answer."""
        self.response = self._answer(started)
        await self._request.keep(self.response, self._keep_for(started))
