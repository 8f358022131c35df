"""Answers of requests with an ``Idempotency-Key``, in Redis: claimed, kept or released, one script for each."""

import hashlib
import hmac
import json
import secrets
from datetime import timedelta

from app.store.layout import from_ms, ms, to_ms
from app.store.scripts import Argument, Script, ScriptRunner
from app.verification.idempotency import (
    Claim,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    IdempotentRequest,
    KeptAnswer,
)
from app.verification.keys import derive_key

CLAIM, BEGIN, KEEP = (Script("idempotency", name, is_durable=True) for name in ("claim", "begin", "keep"))
RELEASE = Script("idempotency", "release")

_TOKEN_BYTES = 16
_CLAIM_FOR = timedelta(seconds=3)  # longer than all waits for Redis before a call is noted
_RETRY_AFTER = 1  # seconds: most requests take less
_NOTE_KEPT = timedelta(minutes=10)  # longer than any code lives


class RedisIdempotency:
    """The ``IdempotencyStore`` of ``app/verification/idempotency.py``, in Redis.

    ``key`` is for digests: a plain hash of a body with a code or a phone could be reversed by trying all. ``work_for``
    is how long a claim lasts once it is noted what is begun: longer than a call takes to be placed.
    """

    def __init__(self, runner: ScriptRunner, *, key: bytes, work_for: timedelta = timedelta(seconds=30)) -> None:
        self._runner = runner
        self._name_key = derive_key(key, "name")
        self._body_key = derive_key(key, "body")
        self._work_for = work_for

    async def claim(self, request: IdempotentRequest) -> Claim | KeptAnswer:
        """Claim a request, or return its answer."""
        # Neither route nor key can contain the separator, so no two requests share a name.
        named = f"{request.client}\0{request.route}\0{request.key}"
        name = f"{{i:{_digest(self._name_key, named.encode())}}}"
        token = secrets.token_hex(_TOKEN_BYTES)
        # Byte by byte, so JSON that is spaced in another way is another body. The meaning of a body changes when a new
        # version of the service gives a field a default; a repetition across that must not be refused as another.
        fingerprint = _digest(self._body_key, name.encode() + request.body)
        outcome, *answer = await self._runner.run(CLAIM, [name], [fingerprint, token, ms(_CLAIM_FOR)])
        match outcome:
            case b"claimed":
                note, now = answer
                latest = from_ms(now) + timedelta(seconds=self._runner.timeout)
                return Claim(name, token, fingerprint, begin_before=latest, begun=note.decode() or None)
            case b"done":
                status, headers, body = answer
                return KeptAnswer(int(status), json.loads(headers), body)
            case b"reused":
                raise IdempotencyKeyReused
            case _:
                raise IdempotencyInProgress(retry_after=_RETRY_AFTER)

    async def begin(self, claim: Claim, note: str) -> bool:
        """Note what is about to be done."""
        lifetimes = [ms(self._work_for), ms(_NOTE_KEPT), to_ms(claim.begin_before)]
        arguments: list[Argument] = [claim.fingerprint, claim.token, note, *lifetimes]
        return bool(await self._runner.run(BEGIN, [claim.name], arguments))

    async def keep(self, claim: Claim, answer: KeptAnswer, lifetime: timedelta) -> bool:
        """Keep the answer of a claimed request."""
        headers = json.dumps(dict(answer.headers))
        arguments: list[Argument] = [claim.token, int(answer.status), headers, answer.body, ms(lifetime)]
        return bool(await self._runner.run(KEEP, [claim.name], arguments))

    async def release(self, claim: Claim, *, undone: str | None = None) -> None:
        """Let the request be made again."""
        await self._runner.run(RELEASE, [claim.name], [claim.token, undone or ""])


def _digest(key: bytes, data: bytes) -> str:
    return hmac.digest(key, data, hashlib.sha256).hex()
