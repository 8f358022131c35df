"""Verifications in Redis: one script and one round trip for each use case."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import Any

from msgpack import packb, unpackb

from app.store.layout import (
    CallField,
    PhoneName,
    RecordField,
    RecordName,
    from_ms,
    keyed_digest,
    ms,
    name_journal,
    name_limit,
    read_consent,
    seconds,
    write_consent,
)
from app.store.limits import RedisRateLimiter
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.webhooks import RedisOutbox, outbox_key
from app.verification.channels import Channel
from app.verification.errors import (
    CallCooldown,
    CodeNotExpected,
    CodeRequired,
    CodeTooShortOrLong,
    ProviderError,
    RateLimited,
    StoreUnavailable,
    VerificationAlreadyCanceled,
    VerificationAlreadyUsed,
    VerificationError,
    VerificationLocked,
    VerificationNotFound,
)
from app.verification.model import (
    Call,
    CallState,
    CallStatus,
    CheckOutcome,
    CheckPassed,
    Locked,
    Status,
    Verification,
    Waiting,
    WrongCode,
)
from app.verification.operators import operator_of
from app.verification.phone import Phone
from app.verification.policy import Allowance, Limit, Policy, Quota
from app.verification.ports import (
    CallHistory,
    CallId,
    CallUpdate,
    CodeCheck,
    Confirmation,
    NewCall,
    Reservation,
    StartPreview,
    StoredCall,
)
from app.verification.store_requests import best_effort

READ, REFUND, EXPIRE = (Script("verification", name) for name in ("read", "refund", "expire"))
CANCEL, CONFIRM, RECORD_CALL, CHECK = (
    Script("verification", name, is_durable=True) for name in ("cancel", "confirm", "record_call", "check")
)
PREVIEW = Script("verification", "start_preview", after="start_rules")
START = Script("verification", "start", after="start_rules", is_durable=True)

_ADDRESS_DIGITS = 6  # hex: of one phone's failed checks, of which there are some dozens, few digests are the same


class RedisVerificationStore:
    """The ``VerificationStore`` of ``app/verification/ports.py``, in Redis.

    Webhook events are written to ``outbox`` by the same script as the change. ``limits``, with the same
    ``phone_key``, are those on other subjects than the phone; on one server the scripts of a start and of a check count
    in them too. Attempts are in the journal for ``journal_kept``; 0: there is none.
    """

    def __init__(
        self,
        runner: ScriptRunner,
        *,
        phone_key: bytes,
        outbox: RedisOutbox | None = None,
        limits: RedisRateLimiter | None = None,
        journal_kept: timedelta = timedelta(),
    ) -> None:
        self._runner = runner
        self._phone_key = phone_key
        self._journal_kept = ms(journal_kept)
        self._limits = limits
        self._outbox = outbox or RedisOutbox(runner)
        self.counts_in_allowances = limits is not None and not runner.has_slots

    def new_id(self, phone: Phone) -> str:
        """Return an id for a new verification of a phone."""
        return self._name(phone).new_record().verification_id

    async def preview_start(self, call: NewCall, policy: Policy) -> StartPreview:
        """Return what a start would do."""
        phone = self._name(call.phone)
        new = phone.new_record()
        arguments = [*self._start_arguments(phone, call, 0, policy), 0, b""]
        reply = await self._runner.run(PREVIEW, [phone.key, new.key], arguments)
        number, operator, calls = _facts(reply, call.resend_of)
        verification_id = call.resend_of if number > 1 and call.resend_of else new.verification_id
        words = [word.decode() for word in calls]
        states = zip(map(Channel, words[::2]), map(CallStatus, words[1::2]), strict=True)
        return StartPreview(CallId(verification_id, number), CallHistory(operator.decode() or None, tuple(states)))

    async def start(
        self, call_id: CallId, call: NewCall, policy: Policy, allowances: Sequence[Allowance] = ()
    ) -> StoredCall:
        """Store the digest of a call about to be placed."""
        phone, record = self._name(call.phone), _record(call_id.verification_id)
        if allowances and not call.token:
            raise ValueError("a call is counted in allowances by its token")
        limit_keys, rules = self._keys_and_rules(allowances)
        journal = self._journal(phone.bucket, record.key)
        keys = [phone.key, record.key, journal, *limit_keys, *self._outbox.keys_for(call.client, phone.bucket)]
        arguments = self._start_arguments(phone, call, call_id.call_number, policy)
        reply = await self._runner.run(START, keys, [*arguments, len(limit_keys), rules])
        reservation = Reservation(call.token, ())
        if self._limits and allowances and reply[0] in {b"started", b"no_room"}:
            reservation = await self._limits.reservation(call.token, allowances, decision=reply[1])
        _, checks_left, calls_left, *stored = _facts(reply, call.resend_of)
        verification = _verification(record, *stored, checks_left=checks_left)
        quotas = _quotas(_phone_limits(policy, test=call.test), calls_left)
        return StoredCall(verification, (*quotas, *reservation.quotas), reservation.token)

    async def record_call(self, verification: Verification, call_number: int, update: CallUpdate) -> bool:
        """Record what happened to a call; return whether this has ended it."""
        name, state = _record(verification.id), update.state
        arguments: list[Argument] = [
            *(call_number, state.status, update.ref or "", state.provider_status or ""),
            *(update.code_digest or "", update.code_length or ""),
            *(_digits(update.dial) if update.dial else "", update.operator or "", update.limits_token or ""),
        ]
        reply = await self._change(RECORD_CALL, [name.key], arguments, name.bucket, verification.client)
        (has_ended,) = _facts(reply)
        return bool(has_ended)

    async def confirm(
        self, verification: Verification, call_number: int, *, ref: str, caller: Phone, policy: Policy
    ) -> Confirmation:
        """Record that the person dialled the number of a reverse call."""
        name = _record(verification.id)
        arguments: list[Argument] = [call_number, ref, _digits(caller), ms(policy.lifetime), ms(policy.earliest_dial)]
        reply = await self._change(CONFIRM, [name.key], arguments, name.bucket, verification.client)
        return Confirmation(reply.decode())

    async def refund(
        self,
        call_id: CallId,
        *,
        phone: Phone,
        client: str,
        policy: Policy,
        token: str | None = None,
        error: ProviderError | None = None,
        allowances: Sequence[Allowance] = (),
    ) -> bool:
        """Refund a call that did not happen."""
        name = self._name(phone)
        limit_keys, rules = self._keys_and_rules(allowances)
        keys = [name.key, _record(call_id.verification_id).key, *limit_keys]
        refusal = (error.kind, error.reason) if error else ("", "")
        arguments: list[Argument] = [call_id.call_number, ms(policy.lifetime), token or "", *refusal]
        return bool(await self._change(REFUND, keys, [*arguments, len(limit_keys), rules], name.bucket, client))

    async def check_by_id(self, verification_id: str, check: CodeCheck, policy: Policy) -> CheckOutcome:
        """Count the check, compare the code and consume it."""
        record = _record(verification_id)
        return await self._check(record.key, record.bucket, "", check, policy)

    async def check_by_phone(self, phone: Phone, purpose: str, check: CodeCheck, policy: Policy) -> CheckOutcome:
        """Do so for all pending verifications of a phone and purpose."""
        name = self._name(phone)
        return await self._check(name.key, name.bucket, purpose, check, policy)

    async def read(self, verification_id: str, *, client: str | None, follow: bool = False) -> Verification:
        """Read a verification."""
        name = _record(verification_id)
        return _verification(name, *_facts(await self._runner.run(READ, [name.key], [client or "", int(follow)])))

    async def cancel(self, client: str, verification_id: str) -> Verification:
        """Cancel a pending verification."""
        name = _record(verification_id)
        reply = await self._change(CANCEL, [name.key], [client], name.bucket, client)
        return _verification(name, *_facts(reply))

    async def expire(self, verification_id: str) -> bool:
        """Let a pending verification expire now, with its event; return False if it is not pending.

        For the sandbox: no route and no use case does this.
        """
        name = _record(verification_id)
        try:
            return bool(await self._runner.run(EXPIRE, [name.key, outbox_key(name.bucket)], []))
        finally:
            self._outbox.note_change(name.bucket)

    def _keys_and_rules(self, allowances: Sequence[Allowance]) -> tuple[Sequence[str], bytes]:
        """Return the keys and rules of allowances. Raises ValueError where they would not be counted."""
        if not allowances:
            return (), b""
        if self._limits is None:
            raise ValueError("a call is counted in allowances only by a store that has limits")
        return self._limits.keys_and_rules(allowances)

    def _name(self, phone: Phone) -> PhoneName:
        return PhoneName.from_phone(self._phone_key, phone)

    def _start_arguments(self, phone: PhoneName, call: NewCall, number: int, policy: Policy) -> list[Argument]:
        """Return the arguments that ``start_rules.lua`` lists. Raises VerificationNotFound."""
        named = _record(call.resend_of) if call.resend_of is not None else None
        if named and named.bucket != phone.bucket:
            raise VerificationNotFound  # it is of another phone
        return [
            *(call.client, call.purpose, _digits(call.phone), call.channel),
            *(int(not call.channel.rules.has_code), int(call.test), call.code_length or 0, call.code_digest or ""),
            *(named.rest if named else "", number, call.checks, call.token, self._address(call.address)),
            *(call.reference or "", write_consent(call.consent) if call.consent else ""),
            *(operator_of(call.phone) or "", self._journal_kept, _pack_start_policy(policy, test=call.test)),
        ]

    async def _check(self, key: str, bucket: str, purpose: str, check: CodeCheck, policy: Policy) -> CheckOutcome:
        """Check a code, and count a wrong one against all its limits.

        The script counts against those that it reaches. Those in other slots of a cluster are acquired before a code is
        compared, and refunded unless it was wrong; where that is not known they stay.
        """
        within, beyond = dict[str, Allowance](), list[Allowance]()
        for allowance in policy.for_failed_checks(client=check.client, address=check.address):
            limit = name_limit(self._phone_key, allowance.limit.name, allowance.subject)
            if self._runner.slot_of(limit) == self._runner.slot_of(key):
                within[limit] = allowance
            else:
                beyond.append(allowance)
        if not beyond or not check.candidates:
            return (await self._compare(key, bucket, purpose, check, policy, further=within))[0]
        assert self._limits is not None  # noqa: S101 - the container gives them
        reservation = await self._limits.acquire(secrets.token_hex(6), beyond)
        try:
            outcome, is_counted = await self._compare(key, bucket, purpose, check, policy, further=within)
        except StoreUnavailable:
            raise
        except VerificationError:
            await best_effort(self._limits.refund(reservation.token, beyond))
            raise
        quotas = reservation.quotas
        if not is_counted:
            await best_effort(self._limits.refund(reservation.token, beyond))
            quotas = [replace(quota, remaining=quota.remaining + 1) for quota in quotas]
        return replace(outcome, quotas=(*outcome.quotas, *quotas)) if outcome.quotas else outcome

    async def _compare(
        self, key: str, bucket: str, purpose: str, check: CodeCheck, policy: Policy, *, further: Mapping[str, Allowance]
    ) -> tuple[CheckOutcome, bool]:
        """Run the script, with ``further`` limits by key; return the outcome, and whether it counted a wrong code."""
        limits = tuple([allowance.limit for allowance in further.values()])
        arguments: list[Argument] = [
            *(check.client, purpose, secrets.token_hex(6), check.retry_digest or "", self._address(check.address)),
            *(check.length, _pack_check_policy(policy, limits)),
            *check.candidates,
        ]
        reply = await self._change(CHECK, [key, *further], arguments, bucket, check.client)
        rest, left, *facts = _facts(reply)
        quotas = _quotas((policy.failed_checks_per_phone, *limits)[: len(left)], left)
        outcome = _check_outcome(reply[0], RecordName(bucket, rest.decode()).verification_id, facts, quotas)
        return outcome, bool(left) and isinstance(outcome, WrongCode | Locked)

    def _address(self, address: str | None) -> str:
        """Return the digest of an address for the log of failed checks, or '' without one."""
        if not address:
            return ""
        return keyed_digest(self._phone_key, f"address\0{address}")[:_ADDRESS_DIGITS]

    def _journal(self, bucket: str, other_key: str) -> str:
        """Return the key of the journal; without one, another key of the script, since each must be of its slot."""
        return name_journal(bucket) if self._journal_kept else other_key

    async def _change(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], bucket: str, client: str
    ) -> Any:  # noqa: ANN401 - as run
        """Run a script that may add to the journal of ``bucket``, and an event of ``client`` to its outbox."""
        outbox = self._outbox.keys_for(client, bucket)
        try:
            return await self._runner.run(script, [*keys, self._journal(bucket, keys[0]), *outbox], arguments)
        finally:
            if outbox:
                self._outbox.note_change(bucket)  # also if the reply is lost


def _check_outcome(
    outcome: bytes, verification_id: str, facts: Sequence[Any], quotas: tuple[Quota, ...]
) -> CheckOutcome:
    match outcome:
        case b"verified" | b"verified_again":
            purpose, digits, channel, test, *reference = facts
            return CheckPassed(
                verification_id=verification_id,
                purpose=purpose.decode(),
                phone=_phone(digits.decode()),
                channel=Channel(channel.decode()),
                quotas=quotas,
                test=bool(test),
                is_repeated=outcome == b"verified_again",
                reference=_reference(reference),
            )
        case b"wrong":
            left, *reference = facts
            return WrongCode(verification_id, checks_left=left, quotas=quotas, reference=_reference(reference))
        case b"waiting":
            left, *reference = facts
            return Waiting(verification_id, checks_left=left, quotas=quotas, reference=_reference(reference))
        case _:
            wait, *reference = facts
            return Locked(verification_id, retry_after=seconds(wait), quotas=quotas, reference=_reference(reference))


def _reference(rest: Sequence[bytes]) -> str | None:
    """Return the reference that ends a reply of a check, if there is one."""
    return rest[0].decode() if rest else None


_REFUSALS: Mapping[bytes, Callable[..., VerificationError]] = {
    b"not_found": VerificationNotFound,
    b"verified_before": VerificationAlreadyUsed,
    b"canceled_before": VerificationAlreadyCanceled,
    b"code_needed": CodeRequired,
    b"no_code_needed": CodeNotExpected,
    b"other_length": lambda lengths: CodeTooShortOrLong(frozenset(lengths)),
    b"calls_exhausted": lambda wait: RateLimited(limit="calls_per_verification", retry_after=seconds(wait)),
    b"locked": lambda wait: VerificationLocked(retry_after=seconds(wait)),
    b"limited": lambda name, wait: RateLimited(limit=name.decode(), retry_after=seconds(wait)),
}


def _facts(reply: Sequence[Any], resend_of: str | None = None) -> Sequence[Any]:
    """Return what follows the outcome in a script's reply, or raise the error of a refusal (see its RETURN comment)."""
    outcome, *facts = reply
    if outcome == b"cooldown":
        raise CallCooldown(retry_after=seconds(facts[0]), verification_id=resend_of)
    if refusal := _REFUSALS.get(outcome):
        raise refusal(*facts)
    return facts


@lru_cache
def _pack_start_policy(policy: Policy, *, test: bool) -> bytes:
    """Return the policy that ``start_rules.lua`` lists."""
    failed, share = policy.failed_checks_per_phone, policy.failed_checks_per_phone_and_address
    cooldowns = [timedelta()] if test else policy.cooldowns
    limits = _phone_limits(policy, test=test)
    longest = max((limit.period for limit in limits), default=timedelta())
    facts = [ms(policy.lifetime), policy.calls, failed.count, share.count, ms(failed.period)]
    packed: bytes = packb([*facts, [*map(ms, cooldowns)], ms(longest), _rules(limits)])
    return packed


@lru_cache
def _pack_check_policy(policy: Policy, limits: Sequence[Limit]) -> bytes:
    """Return the policy that ``check.lua`` lists."""
    failed, share = policy.failed_checks_per_phone, policy.failed_checks_per_phone_and_address
    packed: bytes = packb([failed.count, share.count, ms(failed.period), _rules(limits)])
    return packed


def _rules(limits: Sequence[Limit]) -> Sequence[Sequence[str | int]]:
    return [(limit.name, limit.count, ms(limit.period)) for limit in limits]


def _phone_limits(policy: Policy, *, test: bool) -> Sequence[Limit]:
    return () if test else policy.calls_per_phone


def _record(verification_id: str) -> RecordName:
    name = RecordName.from_id(verification_id)
    if name is None:
        raise VerificationNotFound
    return name


def _verification(
    name: RecordName, now: int, expires: int, record: bytes, *, checks_left: int | None = None
) -> Verification:
    fields = unpackb(record)
    calls = tuple(_calls(fields))
    latest = calls[-1] if calls else None  # without any call, the record itself has its channel
    status, resend_after = fields.get(RecordField.STATUS), fields.get(RecordField.RESEND_AFTER)
    created_at = fields[RecordField.CREATED_AT]
    if checks_left is None:
        checks_left = int(fields[RecordField.CHECKS_ALLOWED]) - int(fields.get(RecordField.WRONG_CHECKS, 0))
    return Verification(
        id=name.verification_id,
        client=fields[RecordField.CLIENT],
        purpose=fields[RecordField.PURPOSE],
        channel=latest.channel if latest else Channel(fields[RecordField.CHANNEL]),
        phone=_phone(fields[RecordField.PHONE]),
        code_length=_of_call(fields, RecordField.CODE_LENGTH, latest.call_number if latest else 0) or None,
        stored_status=Status(status) if status else Status.PENDING,
        calls_placed=len(calls),
        calls_left=int(fields[RecordField.CALLS_LEFT]),
        checks_left=checks_left,
        calls=calls,
        created_at=from_ms(created_at),
        expires_at=from_ms(expires),
        resend_at=from_ms(created_at + resend_after) if resend_after is not None else None,
        observed_at=from_ms(now),
        version=int(fields.get(RecordField.VERSION, 0)),
        test=RecordField.IS_TEST in fields,
        reference=fields.get(RecordField.REFERENCE),
        consent=read_consent(consent) if (consent := fields.get(RecordField.CONSENT)) else None,
    )


def _calls(fields: Mapping[str, Any]) -> Iterable[Call]:
    for call_number in range(1, int(fields[RecordField.LAST_CALL]) + 1):
        if status := fields.get(f"{CallField.CALL_STATUS}{call_number}"):
            dial = fields.get(f"{CallField.NUMBER_TO_DIAL}{call_number}")
            yield Call(
                call_number,
                CallState(CallStatus(status), fields.get(f"{CallField.UNKNOWN_STATUS}{call_number}")),
                ref=fields.get(f"{CallField.CALL_REF}{call_number}"),
                channel=Channel(_of_call(fields, RecordField.CHANNEL, call_number)),
                dial=_phone(dial) if dial else None,
                expires_at=from_ms(fields[RecordField.CREATED_AT] + fields[f"{CallField.EXPIRES_AFTER}{call_number}"]),
                limits_token=fields.get(f"{CallField.LIMITS_TOKEN}{call_number}"),
            )


def _of_call(fields: Mapping[str, Any], field: str, call_number: int) -> Any:  # noqa: ANN401 - as stored
    """Return the channel or the code length of a call."""
    return fields.get(f"{field}{call_number}", fields[field])


def _quotas(limits: Sequence[Limit], left: Sequence[int]) -> tuple[Quota, ...]:
    return tuple([Quota(limit, remaining) for limit, remaining in zip(limits, left, strict=True)])


def _digits(phone: Phone) -> str:
    """Return a phone without its plus sign: Redis stores digits alone in half the bytes."""
    return phone.e164.removeprefix("+")


def _phone(digits: str) -> Phone:
    return Phone(f"+{digits}")
