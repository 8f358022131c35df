"""The ``Idempotency-Key`` header: a repeated request gets the first response again, byte for byte, and does nothing.

After https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/, with two differences: any visible
ASCII is a key, quoted as the draft wants it or not; and ``Idempotent-Replayed: true`` marks a response that is sent
again, as at Stripe (https://docs.stripe.com/api/idempotent_requests).
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from fastapi import Response

from app.api.exchange import Exchange
from app.verification.errors import StoreUnavailable
from app.verification.idempotency import (
    Claim,
    Idempotency,
    IdempotencyInProgress,
    IdempotentRequest,
    InvalidIdempotencyKey,
    KeptAnswer,
)
from app.verification.ports import CallId
from app.verification.store_requests import StoreDeadline

log = logging.getLogger(__name__)

_KEY = re.compile(r"[!-~]{1,128}")
_KEPT_HEADERS = ("content-type", "location")
_RETRY_AFTER = 1  # seconds: most requests take less

# For ``openapi_extra``: a parameter that FastAPI reads costs 14 µs of every request, with the header or without.
_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Identifies this request, so that it can be repeated if its answer was lost: with the same key and"
    " the same body, byte for byte, the first answer is sent again, with `Idempotent-Replayed: true`, and nothing is"
    " done. A problem is not kept: the key is free again. Use a new key, such as a random UUID, for each new request.",
    "schema": {"type": "string", "pattern": f"^{_KEY.pattern}$"},
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}
IDEMPOTENCY_KEY: dict[str, Any] = {"parameters": [_PARAMETER]}


class AnsweredBefore(Exception):
    """The request is a repetition; ``response`` is the response to the first one."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


@dataclass(slots=True)
class KeyedRequest:
    """An authenticated request with an ``Idempotency-Key``: it is claimed, then released or kept with its response."""

    exchange: Exchange
    key: str
    idempotency: Idempotency
    claimed: Claim | None = field(default=None, init=False)

    @classmethod
    def of(cls, exchange: Exchange) -> Self | None:
        """Return the request, or None if it has no key. Raises InvalidIdempotencyKey."""
        key = exchange.header(b"idempotency-key")
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise InvalidIdempotencyKey
        return cls(exchange, key, exchange.container.idempotency)

    async def answer(self, work: Callable[[str], Awaitable[Response]], *, keep_for: timedelta) -> Response:
        """Return the response of ``work``, and keep it; if ``work`` raises, the request may be made again.

        ``work`` is called with a keyed digest of the request, and not for a repetition. Raises what ``claim_request``
        does.
        """
        deferred = self.idempotency.deferred
        try:
            async with StoreDeadline(self.idempotency.store_timeout):
                response = await work((await self.claim_request()).fingerprint)
        except AnsweredBefore:
            raise
        except (StoreUnavailable, asyncio.CancelledError):  # the store is slow, or the caller has gone: do not wait
            deferred.write_later(self.release)
            raise
        except Exception:
            await deferred.write(self.release)
            raise
        await self.keep_response(response, keep_for)
        return response

    async def claim_request(self) -> Claim:
        """Claim the request. Raises IdempotencyKeyReused, IdempotencyInProgress or StoreUnavailable.

        Raises AnsweredBefore for a repetition; ``install_problems`` has its response sent.
        """
        exchange = self.exchange
        assert exchange.client is not None  # noqa: S101 - authentication comes first
        request = IdempotentRequest(client=exchange.client, route=exchange.path, key=self.key, body=exchange.body)
        claim = await self.idempotency.store.claim(request)
        if isinstance(claim, KeptAnswer):
            raise AnsweredBefore(Response(claim.body, claim.status, {**claim.headers, "Idempotent-Replayed": "true"}))
        self.claimed = claim
        return claim

    async def begin(self, call_id: CallId) -> None:
        """Store which call is about to be placed, for the repetition to read if this process dies.

        Raises IdempotencyInProgress (another process has claimed the request since) or StoreUnavailable: then the call
        must not be placed.
        """
        assert self.claimed  # noqa: S101 - only a claimed request is processed
        if not await self.idempotency.store.begin(self.claimed, str(call_id)):
            log.error("idempotency.taken_over", extra={"claim": self.claimed.name})
            raise IdempotencyInProgress(retry_after=_RETRY_AFTER)

    async def keep_response(self, response: Response, lifetime: timedelta) -> None:
        """Keep the response. If the store fails it is kept later, and sent all the same."""
        assert self.claimed  # noqa: S101 - only a claimed request is answered
        store, claim = self.idempotency.store, self.claimed
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        kept = KeptAnswer(response.status_code, headers, bytes(response.body))
        try:
            if not await store.keep(claim, kept, lifetime):
                log.error("idempotency.claim_lost", extra={"claim": claim.name})
        except StoreUnavailable as error:
            log.error("idempotency.not_kept", extra={"claim": claim.name, "reason": error.reason})
            self.idempotency.deferred.write_later(lambda: store.keep(claim, kept, lifetime))

    async def release(self, undone: CallId | None = None) -> None:
        """Let the request be made again. Harmless when repeated. Raises StoreUnavailable.

        A call that is noted stays noted, for the repetition to read, unless it is ``undone``.
        """
        if self.claimed:
            await self.idempotency.store.release(self.claimed, undone=str(undone) if undone else None)
