"""The ``Idempotency-Key`` header: a repeated request gets the first answer again, byte for byte, and does nothing.

After https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/, with two differences: any visible
ASCII is a key, quoted as the draft wants it or not; and ``Idempotent-Replayed: true`` marks an answer that is given
again, as it does at Stripe (https://docs.stripe.com/api/idempotent_requests).
"""

import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar

from fastapi import Request, Response

from app.verification.errors import StoreUnavailable
from app.verification.idempotency import Claim, IdempotencyInProgress, IdempotencyStore, IdempotentRequest, KeptAnswer

log = logging.getLogger(__name__)

T = TypeVar("T")

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


async def once(
    http: Request,
    act: Callable[["Keep[T] | None"], Awaitable[T]],
    *,
    answer: Callable[[T], Response],
    keep_for: Callable[[T], timedelta],
    resume: Callable[[str], Awaitable[T | None]] | None = None,
) -> Response:
    """Do what an authenticated request asks, unless it is the repetition of one that was answered.

    ``act`` does it, and ``answer`` writes its result down. The answer is kept after that, in a round trip of its own,
    unless ``act`` has kept it together with a write of its own: by the function that it is given, which takes the
    result exactly as ``act`` will return it. Whatever ``act`` raises is not kept.

    Where ``act`` had noted what it began, and its process died over it, ``resume`` is asked what became of that;
    only if it knows of nothing, ``act`` does it anew.

    Raises:
        InvalidIdempotencyKey, IdempotencyKeyReused, IdempotencyInProgress, StoreUnavailable: nothing was done.

    """
    key = _key_of(http)
    if key is None:
        return answer(await act(None))
    store: IdempotencyStore = http.state.idempotency
    claim = await store.claim(
        IdempotentRequest(client=http.state.client, route=http.scope["path"], key=key, body=await http.body())
    )
    if isinstance(claim, KeptAnswer):
        return Response(claim.body, claim.status, {**claim.headers, "Idempotent-Replayed": "true"})
    claimed = Keep(store, claim, answer, keep_for)
    if resume and claim.begun and (result := await resume(claim.begun)) is not None:
        return await claimed.give(result)
    return await claimed.run(act)


def _key_of(http: Request) -> str | None:
    given = http.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidIdempotencyKey
    return given[0]


class Keep(Generic[T]):
    """A request that is done for the first time: its answer is written down once, and kept."""

    def __init__(
        self, store: IdempotencyStore, claim: Claim, answer: Callable[[T], Response], keep_for: Callable[[T], timedelta]
    ) -> None:
        self._store = store
        self._claim = claim
        self._answer = answer
        self._keep_for = keep_for
        self._given: Response | None = None

    async def run(self, act: "Callable[[Keep[T]], Awaitable[T]]") -> Response:
        """Do it, and give the answer."""
        try:
            result = await act(self)
            return self._given or await self.give(result)
        except BaseException:  # a cancellation, too: the caller should not have to wait for the claim to expire
            await self._release()
            raise

    async def __call__(self, result: T) -> None:
        """Keep the answer that tells ``result``."""
        await self.give(result)

    async def begin(self, note: str) -> None:
        """Note what is about to be done. Where that fails it is done all the same: it takes two failures to matter.

        Unless the claim may be somebody else's by now. A process that was stopped finds both at once: its wait for
        the store is over, and so is its claim.

        Raises:
            IdempotencyInProgress: somebody else has, or may have, taken the request over: it must not be done here.

        """
        try:
            noted = await self._store.begin(self._claim, note)
        except StoreUnavailable as error:
            log.error("idempotency.not_noted", extra={"claim": self._claim.name, "error": repr(error)})
            noted = time.monotonic() < self._claim.held_until
        if not noted:
            log.error("idempotency.taken_over", extra={"claim": self._claim.name})
            raise IdempotencyInProgress(retry_after=_RETRY_AFTER)

    async def give(self, result: T) -> Response:
        """Write the answer down and keep it. Where that fails it is no less true, and is given all the same."""
        self._given = response = self._answer(result)
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        kept = KeptAnswer(response.status_code, headers, bytes(response.body))
        try:
            if not await self._store.keep(self._claim, kept, self._keep_for(result)):
                log.error("idempotency.claim_lost", extra={"claim": self._claim.name})
        except StoreUnavailable as error:
            log.error("idempotency.not_kept", extra={"claim": self._claim.name, "error": repr(error)})
        return response

    async def _release(self) -> None:
        """Give the claim up. Without a store it expires by itself; an answer that was kept stays."""
        try:
            await self._store.release(self._claim)
        except StoreUnavailable as error:
            log.warning("idempotency.not_released", extra={"claim": self._claim.name, "error": repr(error)})
