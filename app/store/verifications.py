"""Verifications in Redis: one script for each use case, one round trip for each script."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

from app.store.keys import PhoneName, RecordName
from app.store.scripts import Argument, Script, ScriptRunner
from app.verification.errors import (
    CallCooldown,
    RateLimited,
    VerificationAlreadyUsed,
    VerificationCanceled,
    VerificationLocked,
    VerificationNotFound,
)
from app.verification.model import Call, CallState, CallStatus, Channel, CheckResult, Status, Verification
from app.verification.phone import Phone
from app.verification.policy import Policy
from app.verification.ports import NewCall, Reading

SCRIPTS = START, CHECK, CANCEL, READ, RECORD_CALL, TAKE_BACK = [
    Script(name) for name in ("start", "check", "cancel", "read", "record_call", "take_back")
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RedisVerificationStore:
    """The VerificationStore of ``app/verification/ports.py``, on Redis."""

    def __init__(self, runner: ScriptRunner, *, phone_key: bytes) -> None:
        self._runner = runner
        self._phone_key = phone_key

    async def start(self, call: NewCall, policy: Policy) -> Verification:
        """Store the digest of a call about to be placed."""
        phone = self._name(call.phone)
        new = phone.new_record()
        arguments: list[Argument] = [
            *(call.client, call.purpose, _digits(call.phone), call.channel, policy.code_length, call.code_digest),
            *(new.rest, _ms(policy.lifetime), policy.calls, policy.checks),
            *map(_ms, policy.cooldowns),
        ]
        outcome, *facts = await self._runner.run(START, [phone.key, new.key], arguments)
        match outcome:
            case b"started":
                rest, now, record = facts
                return _verification(RecordName(phone.bucket, rest.decode()), now, record)
            case b"cooldown":
                rest, wait = facts
                pending = RecordName(phone.bucket, rest.decode()).verification_id if rest else None
                raise CallCooldown(retry_after=_seconds(wait), verification_id=pending)
            case b"calls_exhausted":
                raise RateLimited(limit="calls_per_verification", retry_after=_seconds(facts[0]))
            case _:
                raise _refusal(outcome, facts)

    async def record_call(
        self, verification: Verification, serial: int, state: CallState, ref: str | None = None
    ) -> Verification:
        """Write what became of a call."""
        name = _record(verification.id)
        arguments = [str(serial), state.status, ref or "", state.provider_status or ""]
        outcome, *facts = await self._runner.run(RECORD_CALL, [name.key], arguments)
        if outcome != b"recorded":
            raise _refusal(outcome, facts)
        return _verification(name, *facts)

    async def take_back(self, verification: Verification, serial: int) -> None:
        """Undo a call that did not happen."""
        record = _record(verification.id)
        cooldown_end = _to_ms(verification.resend_at) if verification.resend_at else ""
        await self._runner.run(
            TAKE_BACK,
            [self._name(verification.phone).key, record.key],
            [str(serial), f"{verification.client}:{verification.purpose}", record.rest, str(cooldown_end)],
        )

    async def check_by_id(self, client: str, verification_id: str, candidates: Sequence[bytes]) -> CheckResult:
        """Count the check, compare, consume."""
        record = _record(verification_id)
        return await self._check(record.key, record.bucket, [client, "", *candidates])

    async def check_by_phone(self, client: str, phone: Phone, purpose: str, candidates: Sequence[bytes]) -> CheckResult:
        """Do so for the latest verification of a phone and purpose."""
        name = self._name(phone)
        return await self._check(name.key, name.bucket, [client, purpose, *candidates])

    async def read(self, client: str, verification_id: str, policy: Policy) -> Reading:
        """Read a verification, and whether to look its latest call up."""
        name = _record(verification_id)
        outcome, *facts = await self._runner.run(READ, [name.key], [client, _ms(policy.lookup_interval)])
        if outcome != b"found":
            raise _refusal(outcome, facts)
        now, record, lookup_due = facts
        return Reading(_verification(name, now, record), lookup_due=bool(lookup_due))

    async def cancel(self, client: str, verification_id: str) -> Verification:
        """Make a pending verification canceled."""
        name = _record(verification_id)
        outcome, *facts = await self._runner.run(CANCEL, [name.key], [client])
        if outcome != b"canceled":
            raise _refusal(outcome, facts)
        return _verification(name, *facts)

    async def ping(self) -> None:
        """Return if Redis answers."""
        await self._runner.ping()

    def _name(self, phone: Phone) -> PhoneName:
        return PhoneName.from_phone(self._phone_key, phone)

    async def _check(self, key: str, bucket: str, arguments: Sequence[Argument]) -> CheckResult:
        outcome, *facts = await self._runner.run(CHECK, [key], arguments)
        if outcome not in {b"verified", b"wrong", b"exhausted"}:
            raise _refusal(outcome, facts)
        verification_id = RecordName(bucket, facts[0].decode()).verification_id
        match outcome:
            case b"verified":
                return CheckResult(
                    verification_id=verification_id,
                    status=Status.VERIFIED,
                    purpose=facts[1].decode(),
                    phone=_phone(facts[2]),
                )
            case b"wrong":
                return CheckResult(verification_id=verification_id, status=Status.PENDING, checks_left=facts[1])
            case _:
                return CheckResult(
                    verification_id=verification_id, status=Status.LOCKED, retry_after=_seconds(facts[1])
                )


def _refusal(outcome: bytes, facts: Sequence[Any]) -> Exception:
    """Make the error of a script's refusal; the words are those in the RETURN comments of the scripts."""
    match outcome:
        case b"not_found":
            return VerificationNotFound()
        case b"verified_before":
            return VerificationAlreadyUsed()
        case b"canceled_before":
            return VerificationCanceled()
        case b"locked":
            return VerificationLocked(retry_after=_seconds(facts[0]))
        case _:
            return AssertionError(outcome)


def _record(verification_id: str) -> RecordName:
    name = RecordName.from_id(verification_id)
    if name is None:
        raise VerificationNotFound
    return name


def _verification(name: RecordName, now: bytes, record: Sequence[bytes]) -> Verification:
    """Read a record; ``app/store/lua/common.lua`` lists its fields."""
    fields = dict(zip(*[(item.decode() for item in record)] * 2, strict=True))
    resend_at = fields.get("r")
    return Verification(
        id=name.verification_id,
        client=fields["c"],
        purpose=fields["u"],
        channel=Channel(fields["h"]),
        phone=_phone(fields["p"].encode()),
        code_length=int(fields["l"]),
        stored_status=Status(fields.get("s", Status.PENDING)),
        calls_placed=int(fields["k"]),
        calls_left=int(fields["m"]),
        checks_left=int(fields["g"]) - int(fields.get("b", 0)),
        calls=tuple(_calls(fields)),
        created_at=_from_ms(fields["a"]),
        expires_at=_from_ms(fields["e"]),
        resend_at=_from_ms(resend_at) if resend_at else None,
        observed_at=_from_ms(now),
    )


def _calls(fields: dict[str, str]) -> Iterable[Call]:
    for serial in range(1, int(fields["n"]) + 1):
        if status := fields.get(f"t{serial}"):
            state = CallState(CallStatus(status), fields.get(f"w{serial}"))
            yield Call(serial, state, fields.get(f"f{serial}"))


def _digits(phone: Phone) -> str:
    """Write a phone without its plus sign: Redis keeps digits alone in half the bytes."""
    return phone.e164.removeprefix("+")


def _phone(digits: bytes) -> Phone:
    return Phone(f"+{digits.decode()}")


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


def _to_ms(moment: datetime) -> int:
    return _ms(moment - _EPOCH)


def _from_ms(ms: str | bytes) -> datetime:
    return _EPOCH + timedelta(milliseconds=int(ms))


def _seconds(wait_ms: int) -> int:
    """Round a wait up: whoever comes back then is not sent away again."""
    return max(1, ceil(wait_ms / 1000))
