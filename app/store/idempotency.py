"""The answers of repeated requests, in Redis: claimed, kept or released, one script and one round trip each."""

import hashlib
import hmac
import json
import secrets
from datetime import timedelta

from app.store.scripts import Argument, Script, ScriptRunner
from app.store.units import from_ms, ms, to_ms
from app.verification.idempotency import (
    Claim,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    IdempotentRequest,
    KeptAnswer,
)
from app.verification.keys import derive_key

CLAIM, BEGIN, KEEP, RELEASE = (Script("idempotency", name) for name in ("claim", "begin", "keep", "release"))

_TOKEN_BYTES = 16
_CLAIM_FOR = timedelta(seconds=3)  # longer than all waits for Redis before a call is noted
_RETRY_AFTER = 1  # seconds: most requests take less
_NOTE_KEPT = timedelta(minutes=10)  # longer than any code lives, and so than what a note tells of


class RedisIdempotency:
    """The IdempotencyStore of ``app/verification/idempotency.py``, on Redis.

    ``key`` is for the digests: a plain hash of a body that holds a code or a phone could be reversed by trying all.
    ``work_for`` is how long a claim lasts once it is noted what is begun: longer than any call takes to be placed.
    """

    def __init__(self, runner: ScriptRunner, *, key: bytes, work_for: timedelta = timedelta(seconds=30)) -> None:
        self._runner = runner
        self._name_key = derive_key(key, "name")
        self._body_key = derive_key(key, "body")
        self._work_for = work_for

    async def claim(self, request: IdempotentRequest) -> Claim | KeptAnswer:
        """Claim a request, or return its answer."""
        name, token = self._name(request), secrets.token_hex(_TOKEN_BYTES)
        fingerprint = self._fingerprint(name, request.body)
        arguments: list[Argument] = [fingerprint, token, ms(_CLAIM_FOR)]
        outcome, *answer = await self._runner.run(CLAIM, _keys(name), arguments)
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
        arguments: list[Argument] = [
            *(claim.fingerprint, claim.token, note, ms(self._work_for), ms(_NOTE_KEPT)),
            to_ms(claim.begin_before),
        ]
        return bool(await self._runner.run(BEGIN, _keys(claim.name), arguments))

    async def keep(self, claim: Claim, answer: KeptAnswer, lifetime: timedelta) -> bool:
        """Keep the answer of a claimed request."""
        headers = json.dumps(dict(answer.headers))
        arguments: list[Argument] = [claim.token, int(answer.status), headers, answer.body, ms(lifetime)]
        return bool(await self._runner.run(KEEP, _keys(claim.name), arguments))

    async def release(self, claim: Claim, *, keep_note: bool = False) -> None:
        """Let the request be made again."""
        keys = _keys(claim.name)[:1] if keep_note else _keys(claim.name)
        await self._runner.run(RELEASE, keys, [claim.token])

    def _name(self, request: IdempotentRequest) -> str:
        """Name a request. Neither route nor key can hold the separator, so no two requests share a name."""
        named = f"{request.client}\0{request.route}\0{request.key}"
        return f"pv:{{i:{_digest(self._name_key, named.encode())}}}"

    def _fingerprint(self, name: str, body: bytes) -> str:
        """Digest the body of a request byte by byte: JSON that is spaced in another way is another body.

        What the body means would be no better measure: it changes when a new version of this service gives a field
        a default, and a repetition across that would look like a reuse. Whoever repeats a request has its bytes.
        """
        return _digest(self._body_key, name.encode() + body)


def _keys(name: str) -> list[str]:
    return [name, name.replace("pv:", "pv:begun:", 1)]


def _digest(key: bytes, data: bytes) -> str:
    return hmac.digest(key, data, hashlib.sha256).hex()
