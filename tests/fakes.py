"""Test doubles of the domain's ports; ``ReferenceStore`` is the reference implementation of the contract suite."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import ceil
from typing import Any, NoReturn

from app.verification.channels import Channel
from app.verification.errors import (
    CallBudgetExhausted,
    CallCooldown,
    CodeNotExpected,
    CodeRequired,
    CodeTooShortOrLong,
    ProviderError,
    RateLimited,
    StoreUnavailable,
    TokenInvalid,
    VerificationAlreadyCanceled,
    VerificationAlreadyUsed,
    VerificationLocked,
    VerificationNotFound,
)
from app.verification.fraud_guard import Block, GuardAction, Suspect
from app.verification.model import (
    Call,
    CallOutcome,
    CallState,
    CallStatus,
    CheckOutcome,
    CheckPassed,
    Locked,
    Placed,
    Proof,
    ProviderAccount,
    Status,
    Verification,
    Waiting,
    WrongCode,
)
from app.verification.phone import Phone
from app.verification.policy import Allowance, Limit, Policy, Quota
from app.verification.ports import (
    CallHistory,
    CallId,
    CallOrder,
    CallUpdate,
    CodeCheck,
    Confirmation,
    NewCall,
    Reservation,
    StartPreview,
    StoredCall,
)

STAGES = {
    CallStatus.INITIATED: 1,
    CallStatus.UNCONFIRMED: 1,
    CallStatus.RINGING: 2,
    CallStatus.ANSWERED: 3,
    CallStatus.COMPLETED: 4,
    CallStatus.BUSY: 4,
    CallStatus.NO_ANSWER: 4,
    CallStatus.FAILED: 4,
}
NEVER = datetime.min.replace(tzinfo=UTC)


def seconds(wait: timedelta) -> int:
    return max(1, ceil(wait.total_seconds()))


@dataclass
class Record:
    """A verification; ``checks`` is its number of checks, ``wanted`` that of the channel of each call."""

    verification: Verification
    checks: int
    codes: dict[int, tuple[bytes, datetime]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)
    phone_before: dict[int, tuple[datetime, int, datetime]] = field(default_factory=dict)
    tokens: dict[int, str] = field(default_factory=dict)
    call_number: int = 0
    checks_used: int = 0
    retry_digest: str | None = None
    confirmed: set[int] = field(default_factory=set)

    @property
    def is_pending(self) -> bool:
        return self.verification.stored_status is Status.PENDING


@dataclass
class PhoneRecord:
    streak: int = 0
    next_call: datetime = NEVER
    expires_at: datetime = NEVER
    operator: str | None = None
    pending: CallId | None = None
    reverse: str = ""
    ids: dict[tuple[str, str], list[str]] = field(default_factory=dict)


class Counters:
    """Count events in sliding windows, by storing each."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], list[tuple[datetime, str]]] = {}

    def wait(self, limit: Limit, of: str, now: datetime) -> timedelta | None:
        inside = sorted(moment for moment, _ in self._of(limit, of) if moment > now - limit.period)
        return inside[-limit.count] + limit.period - now if len(inside) >= limit.count else None

    def add(self, limit: Limit, of: str, now: datetime, token: str) -> Quota:
        self._of(limit, of).append((now, token))
        inside = [moment for moment, _ in self._of(limit, of) if moment > now - limit.period]
        return Quota(limit, max(0, limit.count - len(inside)))

    def wait_of(self, limit: Limit, of: str, token: str, now: datetime) -> timedelta | None:
        inside = sorted(moment for moment, by in self._of(limit, of) if moment > now - limit.period and by == token)
        return inside[-limit.count] + limit.period - now if len(inside) >= limit.count else None

    def remove(self, limit: Limit, of: str, token: str) -> None:
        events = self._of(limit, of)
        events[:] = [event for event in events if event[1] != token]

    def left(self, limit: Limit, of: str, now: datetime) -> int:
        return limit.count - len([moment for moment, _ in self._of(limit, of) if moment > now - limit.period])

    def _of(self, limit: Limit, of: str) -> list[tuple[datetime, str]]:
        return self.events.setdefault((limit.name, of), [])


class ReferenceStore:
    """The reference implementation of ``VerificationStore``, in memory, with a clock moved by ``advance``.

    A ``FakeRateLimiter`` of this store has its allowances.
    """

    def __init__(self) -> None:
        self.counts_in_allowances = True
        self.limits: FakeRateLimiter | None = None
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.available = True
        self.records: dict[str, Record] = {}
        self.phones: dict[Phone, PhoneRecord] = {}
        self.counters = Counters()
        self._ids = 0

    def advance(self, duration: timedelta) -> None:
        self.now += duration
        self.records = {
            name: record for name, record in self.records.items() if record.verification.expires_at > self.now
        }
        self.phones = {phone: record for phone, record in self.phones.items() if record.expires_at > self.now}

    def new_id(self, phone: Phone) -> str:
        self._ids += 1
        return f"vrf_{self._ids:023x}"

    async def preview_start(self, call: NewCall, policy: Policy) -> StartPreview:
        self._require_available()
        named = self._refuse(call, policy)
        if named and self._is_resend(named, call):
            name = CallId(named.verification.id, named.call_number + 1)
        else:
            name = CallId(self.new_id(call.phone), 1)
        known = self.phones.get(call.phone) or PhoneRecord()
        calls = [
            call
            for verification_id in (*known.ids.get((call.client, call.purpose), []), known.reverse)
            if (record := self.records.get(verification_id)) and record.is_pending
            for call in record.verification.calls
        ]
        return StartPreview(
            name, CallHistory(known.operator, tuple((call.channel, call.state.status) for call in calls))
        )

    async def start(
        self, call_id: CallId, call: NewCall, policy: Policy, allowances: Sequence[Allowance] = ()
    ) -> StoredCall:
        self._require_available()
        named = self._refuse(call, policy)
        is_resend = named and self._is_resend(named, call)
        if named and is_resend and named.call_number + 1 != call_id.call_number:
            raise CallCooldown(retry_after=1, verification_id=call.resend_of)
        reservation = Reservation(call.token, ())
        if self.limits and allowances:
            reservation = await self.limits.acquire(call.token, allowances)
        if named and is_resend:
            record = named
        else:
            record = Record(self._new(call_id.verification_id, call, policy, named), call.checks)
            self.records[call_id.verification_id] = record
        verification, quotas = self._place(record, call, policy)
        return StoredCall(verification, (*quotas, *reservation.quotas), reservation.token)

    def _is_resend(self, named: Record, call: NewCall) -> bool:
        return call.test or (call.channel.rules.has_code and named.verification.channel.rules.has_code)

    def _refuse(self, call: NewCall, policy: Policy) -> Record | None:
        """Raise if the start is refused; return the verification to resend, if any."""
        phone = self.phones.get(call.phone) or PhoneRecord()
        named = self._find_resent(call)
        if named and self._is_resend(named, call) and (named.verification.calls_left <= 0 or named.call_number >= 100):
            until = max(named.verification.expires_at, phone.next_call)
            raise RateLimited(limit="calls_per_verification", retry_after=self._until(until))
        if call.test:
            return named
        if phone.next_call > self.now:
            wait = 1 if self._is_being_placed(phone.pending, policy) else self._until(phone.next_call)
            raise CallCooldown(retry_after=wait, verification_id=call.resend_of)
        other = self.records.get(phone.reverse)
        if not call.channel.rules.has_code and other and other.is_pending:
            until = other.verification.expires_at
            raise CallCooldown(retry_after=self._until(until), verification_id=call.resend_of)
        self._require_room(policy.failed_checks_per_phone, call.phone.e164)
        self._require_share(policy, call.phone, call.address)
        for limit in policy.calls_per_phone:
            self._require_room(limit, call.phone.e164)
        return named

    def _is_being_placed(self, name: CallId | None, policy: Policy) -> bool:
        """Return whether the provider may still be processing the request for this call."""
        record = self.records.get(name.verification_id) if name else None
        call = record.verification.call(name.call_number) if record and name else None
        if not call or call.ref or call.state.status is not CallStatus.INITIATED or not call.expires_at:
            return False
        return call.expires_at - policy.lifetime + timedelta(seconds=15) > self.now

    def _find_resent(self, call: NewCall) -> Record | None:
        if call.resend_of is None:
            return None
        record = self._own(call.client, call.resend_of)
        named = record.verification
        wanted = (call.phone, call.purpose, call.test, call.reference or named.reference)
        if not record.is_pending or (named.phone, named.purpose, named.test, named.reference) != wanted:
            raise VerificationNotFound
        return record

    def _require_room(self, limit: Limit, of: str) -> None:
        if wait := self.counters.wait(limit, of, self.now):
            raise RateLimited(limit=limit.name, retry_after=seconds(wait))

    def _require_share(self, policy: Policy, phone: Phone, address: str | None, comparisons: int = 1) -> None:
        if address is None:
            return
        share = policy.failed_checks_per_phone_and_address
        room = Limit(policy.failed_checks_per_phone.name, max(1, share.count - comparisons + 1), share.period)
        if wait := self.counters.wait_of(room, phone.e164, address, self.now):
            raise RateLimited(limit=share.name, retry_after=seconds(wait))

    def _new(self, verification_id: str, call: NewCall, policy: Policy, named: Record | None) -> Verification:
        return Verification(
            id=verification_id,
            client=call.client,
            purpose=call.purpose,
            channel=call.channel,
            phone=call.phone,
            code_length=call.code_length,
            stored_status=Status.PENDING,
            calls_placed=0,
            calls_left=policy.calls if call.channel.rules.has_code or call.test else 1,
            checks_left=call.checks,
            calls=(),
            created_at=self.now,
            expires_at=self.now,
            resend_at=None,
            observed_at=self.now,
            test=call.test,
            reference=call.reference or (named.verification.reference if named else None),
            consent=named.verification.consent if named else None,
        )

    def _place(self, record: Record, call: NewCall, policy: Policy) -> tuple[Verification, Sequence[Quota]]:
        phone = self.phones.setdefault(call.phone, PhoneRecord())
        before, cooldowns = record.verification, [timedelta()] if call.test else policy.cooldowns
        limits = [] if call.test else policy.calls_per_phone
        is_streak = phone.streak and phone.next_call + cooldowns[-1] > self.now
        streak = phone.streak + 1 if is_streak else 1
        resend_at = self.now + cooldowns[min(streak, len(cooldowns)) - 1]
        record.call_number += 1
        record.tokens[record.call_number] = call.token
        record.phone_before[record.call_number] = resend_at, phone.streak, phone.next_call
        if not call.test:
            phone.streak, phone.next_call = streak, resend_at
            phone.pending = CallId(before.id, record.call_number)
        if not call.channel.rules.has_code and not call.test:
            phone.reverse = before.id
        elif record.call_number == 1:
            ids = phone.ids.get((call.client, call.purpose), [])
            phone.ids[call.client, call.purpose] = [*(it for it in ids if it in self.records), before.id]
        expires = self.now + policy.lifetime
        longest = max([limit.period for limit in limits], default=timedelta())
        phone.expires_at = max(phone.expires_at, expires, resend_at + cooldowns[-1], self.now + longest)
        record.lengths[record.call_number] = call.code_length or 0
        if call.code_digest:
            record.codes[record.call_number] = (call.code_digest, expires)
        record.wanted[record.call_number] = call.checks
        placed = Call(record.call_number, CallState(CallStatus.INITIATED), channel=call.channel, expires_at=expires)
        record.verification = replace(
            before,
            calls_placed=before.calls_placed + 1,
            calls_left=before.calls_left - 1,
            calls=(*before.calls, placed),
            expires_at=expires,
            resend_at=resend_at,
            consent=call.consent or before.consent,
        )
        token = f"{before.id}:{record.call_number}"
        quotas = [self.counters.add(limit, call.phone.e164, self.now, token) for limit in limits]
        checks_left = max(1, min(record.checks, call.checks) - record.checks_used)
        return replace(self._seen(record), checks_left=checks_left), quotas

    async def record_call(self, verification: Verification, call_number: int, update: CallUpdate) -> bool:
        self._require_available()
        record = self.records.get(verification.id)
        if not record:
            raise VerificationNotFound
        call = record.verification.call(call_number)
        if not call or call.state.status.is_final or STAGES[update.state.status] < STAGES[call.state.status]:
            return False
        if update.state.status is not CallStatus.UNCONFIRMED:
            record.phone_before.pop(call_number, None)
            record.tokens.pop(call_number, None)
        is_first = not call.ref and call.state.status is CallStatus.INITIATED
        if is_first and record.is_pending and record.wanted[call_number] < record.checks:
            record.checks = max(record.checks_used + 1, min(record.checks, record.wanted[call_number]))
        self._change(
            record,
            call_number,
            state=update.state,
            ref=update.ref or call.ref,
            dial=update.dial or call.dial,
            limits_token=update.limits_token or call.limits_token,
        )
        if update.code_digest and call.expires_at and record.verification.stored_status is Status.PENDING:
            record.codes[call_number] = (update.code_digest, call.expires_at)
            record.lengths[call_number] = update.code_length or 0
        if update.operator:
            self.phones[verification.phone].operator = update.operator
        return update.state.status.is_final

    async def confirm(
        self, verification: Verification, call_number: int, *, ref: str, caller: Phone, policy: Policy
    ) -> Confirmation:
        self._require_available()
        record = self.records.get(verification.id)
        call = record and record.verification.call(call_number)
        if not record or not call or call.channel.rules.has_code or call.ref != ref or not call.expires_at:
            return Confirmation.NOT_FOUND
        if record.verification.phone != caller:
            return Confirmation.NOT_THE_CALLER
        if call_number in record.confirmed or record.verification.stored_status is Status.VERIFIED:
            return Confirmation.CONFIRMED_BEFORE
        if record.verification.stored_status is not Status.PENDING or call.expires_at <= self.now:
            return Confirmation.NOT_FOUND
        if self.now < call.expires_at - policy.lifetime + policy.earliest_dial:
            return Confirmation.TOO_EARLY
        record.confirmed.add(call_number)
        self._change(record, call_number, state=CallState(CallStatus.COMPLETED))
        return Confirmation.CONFIRMED

    def _change(self, record: Record, call_number: int, **changes: Any) -> None:  # noqa: ANN401 - fields of a call
        calls = [
            replace(call, **changes) if call.call_number == call_number else call for call in record.verification.calls
        ]
        record.verification = replace(record.verification, calls=tuple(calls))

    async def refund(
        self,
        name: CallId,
        *,
        phone: Phone,
        client: str,
        policy: Policy,
        token: str | None = None,
        error: ProviderError | None = None,
        allowances: Sequence[Allowance] = (),
    ) -> bool:
        self._require_available()
        record = self.records.get(name.verification_id)
        call = record and record.verification.call(name.call_number)
        if not record or not call or not call.expires_at:
            return False
        if token and record.tokens.get(name.call_number) != token:
            return False
        if self.limits and allowances:
            await self.limits.refund(f"{token}@once", allowances)
        known, before = self.phones.get(phone), record.verification
        resend_at, streak, next_call = record.phone_before.pop(name.call_number, (None, 0, NEVER))
        if known and known.next_call == resend_at:
            known.streak, known.next_call = streak, next_call if streak else NEVER
        for (_, of), events in self.counters.events.items():
            if of == phone.e164:
                events[:] = [event for event in events if event[1] != str(name)]
        record.codes.pop(name.call_number, None)
        record.confirmed.discard(name.call_number)
        others = tuple(other for other in before.calls if other.call_number != name.call_number)
        record.verification = replace(
            before,
            calls_placed=before.calls_placed - 1,
            calls_left=before.calls_left + 1,
            calls=others,
            expires_at=max((other.expires_at for other in others if other.expires_at), default=before.expires_at),
            resend_at=None if record.call_number == name.call_number else before.resend_at,
        )
        if not others and record.is_pending:
            del self.records[before.id]
        self.advance(timedelta())
        return True

    async def check_by_id(self, verification_id: str, guess: CodeCheck, policy: Policy) -> CheckOutcome:
        self._require_available()
        return self._check([self._own(guess.client, verification_id)], guess, policy)

    async def check_by_phone(self, phone: Phone, purpose: str, guess: CodeCheck, policy: Policy) -> CheckOutcome:
        self._require_available()
        ids = self.phones[phone].ids.get((guess.client, purpose), []) if phone in self.phones else []
        found = [self.records[it] for it in reversed(ids) if it in self.records]
        if not found:
            raise VerificationNotFound
        return self._check(found, guess, policy)

    def _check(self, found: list[Record], guess: CodeCheck, policy: Policy) -> CheckOutcome:
        """Check a code for some verifications, the latest first."""
        for record in found:
            if record.retry_digest and record.retry_digest == guess.retry_digest:
                return self._passed(record, is_repeated=True)
        pending = [record for record in found if record.is_pending]
        if not pending:
            self._refuse_final(found[0].verification)
        latest = pending[0]
        before = latest.verification
        if not before.channel.rules.has_code and not before.test:
            return self._check_without_code(latest, guess)
        if not guess.candidates:
            raise CodeRequired
        live = self._live(pending)
        lengths = frozenset(record.lengths[call_number] for record, call_number in live)
        if lengths and guess.length not in lengths:
            raise CodeTooShortOrLong(lengths)
        comparisons, counted = max(1, len(live)), self._counted(before, guess, policy)
        for place, (limit, of) in enumerate(counted):
            # A check is compared with every live code, so the phone's limit needs room for each of them.
            room = limit if place else replace(limit, count=max(1, limit.count - comparisons + 1))
            self._require_room(room, of)
            if not place:
                self._require_share(policy, before.phone, guess.address, comparisons)
        right = [
            (record, call_number) for record, call_number in live if record.codes[call_number][0] in guess.candidates
        ]
        if right:
            record, call_number = right[0]
            self._mark_answered(record, call_number)
            self._finish(record, Status.VERIFIED)
            record.retry_digest = guess.retry_digest
            quotas = tuple(Quota(limit, self.counters.left(limit, of, self.now)) for limit, of in counted)
            call = record.verification.call(call_number)
            return self._passed(record, quotas, channel=call.channel if call else None)
        return self._wrong(latest, guess, policy, comparisons)

    def _refuse_final(self, verification: Verification) -> NoReturn:
        if verification.stored_status is Status.VERIFIED:
            raise VerificationAlreadyUsed
        if verification.stored_status is Status.CANCELED:
            raise VerificationAlreadyCanceled
        raise VerificationLocked(retry_after=self._until(self.phones[verification.phone].next_call))

    def _passed(
        self,
        record: Record,
        quotas: tuple[Quota, ...] = (),
        *,
        channel: Channel | None = None,
        is_repeated: bool = False,
    ) -> CheckPassed:
        return CheckPassed(
            verification_id=record.verification.id,
            purpose=record.verification.purpose,
            phone=record.verification.phone,
            channel=channel or record.verification.channel,
            quotas=quotas,
            test=record.verification.test,
            is_repeated=is_repeated,
            reference=record.verification.reference,
        )

    def _wrong(self, record: Record, guess: CodeCheck, policy: Policy, comparisons: int) -> CheckOutcome:
        before, counted = record.verification, self._counted(record.verification, guess, policy)
        for limit, of in counted[:1] * (comparisons - 1):  # for the phone, once for each live code
            self.counters.add(limit, of, self.now, guess.address or "")
        quotas = tuple(self.counters.add(limit, of, self.now, guess.address or "") for limit, of in counted)
        self._extend_phone(before.phone, policy)
        record.checks_used += 1
        left = record.checks - record.checks_used
        if left > 0:
            return WrongCode(before.id, checks_left=left, quotas=quotas, reference=before.reference)
        self._finish(record, Status.LOCKED)
        retry_after = self._until(self.phones[before.phone].next_call)
        return Locked(before.id, retry_after=retry_after, quotas=quotas, reference=before.reference)

    def _live(self, records: list[Record]) -> list[tuple[Record, int]]:
        return [
            (record, call_number)
            for record in records
            for call_number, (_, expires) in record.codes.items()
            if expires > self.now
        ]

    def _check_without_code(self, record: Record, guess: CodeCheck) -> CheckOutcome:
        if guess.candidates:
            raise CodeNotExpected
        verification = record.verification
        calls = {
            call.call_number: call for call in verification.calls if call.expires_at and call.expires_at > self.now
        }
        if record.call_number in record.confirmed & set(calls):
            self._finish(record, Status.VERIFIED)
            return self._passed(record)
        return Waiting(verification.id, checks_left=verification.checks_left, reference=verification.reference)

    def _mark_answered(self, record: Record, call_number: int) -> None:
        call = record.verification.call(call_number)
        if call and STAGES[call.state.status] < STAGES[CallStatus.ANSWERED]:
            self._change(record, call_number, state=replace(call.state, status=CallStatus.ANSWERED))

    def _counted(self, verification: Verification, guess: CodeCheck, policy: Policy) -> list[tuple[Limit, str]]:
        if verification.test:
            return []
        further = policy.for_failed_checks(client=guess.client, address=guess.address)
        return [
            (policy.failed_checks_per_phone, verification.phone.e164),
            *((allowance.limit, allowance.subject) for allowance in further),
        ]

    def _extend_phone(self, phone: Phone, policy: Policy) -> None:
        if phone in self.phones:
            until = self.now + policy.failed_checks_per_phone.period
            self.phones[phone].expires_at = max(self.phones[phone].expires_at, until)

    async def read(self, verification_id: str, *, client: str | None, follow: bool = False) -> Verification:
        self._require_available()
        record = self.records.get(verification_id)
        if not record:
            raise VerificationNotFound
        return self._seen(self._own(client or record.verification.client, verification_id))

    async def cancel(self, client: str, verification_id: str) -> Verification:
        self._require_available()
        record = self._own(client, verification_id)
        if record.verification.stored_status is Status.VERIFIED:
            raise VerificationAlreadyUsed
        if record.verification.stored_status is Status.LOCKED:
            raise VerificationLocked(retry_after=self._until(self.phones[record.verification.phone].next_call))
        self._finish(record, Status.CANCELED)
        return self._seen(record)

    def _require_available(self) -> None:
        if not self.available:
            raise StoreUnavailable

    def _own(self, client: str, verification_id: str) -> Record:
        record = self.records.get(verification_id)
        if not record or record.verification.client != client:
            raise VerificationNotFound
        return record

    def _finish(self, record: Record, status: Status) -> None:
        record.codes.clear()
        record.confirmed.clear()
        record.verification = replace(record.verification, stored_status=status)

    def _seen(self, record: Record) -> Verification:
        seen = replace(record.verification, observed_at=self.now, checks_left=record.checks - record.checks_used)
        if latest := seen.latest_call:
            seen = replace(seen, channel=latest.channel, code_length=record.lengths[latest.call_number] or None)
        return seen

    def _until(self, moment: datetime) -> int:
        return seconds(moment - self.now)


def _used_up(limit: Limit, wait: timedelta) -> Exception:
    if limit.name == "calls_per_day":
        return CallBudgetExhausted(retry_after=seconds(wait))
    return RateLimited(limit=limit.name, retry_after=seconds(wait))


class FakeRateLimiter:
    """Count in memory, by the clock of a store, and have a guard block ranges."""

    def __init__(self, store: ReferenceStore, guard: "FakeGuard") -> None:
        self._store = store
        self._guard = guard
        self._counters = Counters()
        self.uses: list[str] = []
        store.limits = self

    async def require_room(self, allowances: Sequence[Allowance]) -> None:
        self.uses.append("ask")
        self._require_room(allowances)

    def _require_room(self, allowances: Sequence[Allowance]) -> None:
        self._store._require_available()
        for allowance in allowances:
            if wait := self._counters.wait(allowance.limit, allowance.subject, self._store.now):
                raise _used_up(allowance.limit, wait)
        if self._guard.blocked & set(_guarded_ranges(allowances)):
            raise RateLimited(limit="fraud_guard", retry_after=3600)

    async def acquire(self, token: str, allowances: Sequence[Allowance]) -> Reservation:
        self.uses.append("acquire")
        self._require_room(allowances)
        self._guard.calls += _guarded_ranges(allowances)
        now = self._store.now
        quotas = [self._counters.add(allowance.limit, allowance.subject, now, token) for allowance in allowances]
        return Reservation(f"{token}@once", quotas)

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        self.uses.append("refund")
        self._store._require_available()
        event, _, is_owned = token.partition("@")
        for allowance in allowances:
            self._counters.remove(allowance.limit, allowance.subject, event)
        for number_range in _guarded_ranges(allowances) if is_owned else ():
            self._guard.calls.remove(number_range)


def _guarded_ranges(allowances: Sequence[Allowance]) -> list[str]:
    return [allowance.subject for allowance in allowances if allowance.guard is GuardAction.BLOCK]


class FakeGuard:
    """Record the ranges of calls and the phones of successes; the ranges in ``blocked`` are blocked."""

    def __init__(self) -> None:
        self.blocked: set[str] = set()
        self.calls: list[str] = []
        self.successes: list[str] = []

    def succeeded(self, phone: Phone, client: str) -> None:
        self.successes.append(phone.e164)

    async def blocks(self) -> list[Block]:
        return []

    async def suspects(self) -> list[Suspect]:
        return []

    async def lift(self, number_range: str) -> bool:
        return False


class FakeSender:
    """Place every call, or return ``outcome``; ``state`` is the status of every call."""

    def __init__(self, provider: str = "fake") -> None:
        self.provider = provider
        self.supports_status = True
        self.unready: ProviderError | None = None
        self.calls: list[CallOrder] = []
        self.outcome: CallOutcome | None = None
        self.state: CallState | ProviderError | None = CallState(CallStatus.RINGING)
        self.lookups = 0

    def require_ready(self) -> None:
        if self.unready:
            raise self.unready

    async def place(self, order: CallOrder) -> CallOutcome:
        self.calls.append(order)
        return self.outcome or Placed(f"call-{len(self.calls)}")

    async def fetch_status(self, call_ref: str) -> CallState | None:
        self.lookups += 1
        if isinstance(self.state, ProviderError):
            raise self.state
        return self.state


class FakeAccounts:
    """Return one account, and the ``balance``."""

    def __init__(self) -> None:
        self.overviews = 0
        self.balance: Decimal | ProviderError = Decimal("12.50")

    async def get_account(self) -> Sequence[ProviderAccount]:
        self.overviews += 1
        await asyncio.sleep(0)
        return [ProviderAccount("7", "Fake")]

    async def get_balance(self) -> Decimal:
        if isinstance(self.balance, ProviderError):
            raise self.balance
        return self.balance


class FakeTokens:
    """Signs tokens that name their verification."""

    lifetime = timedelta(minutes=10)

    def sign(
        self,
        *,
        phone: Phone,
        purpose: str,
        verification_id: str,
        client: str,
        reference: str | None = None,
        test: bool = False,
    ) -> str:
        return f"{client} {phone.e164} {purpose} {verification_id} {reference} {test}"

    def verify(self, token: str, *, client: str) -> Proof:
        raise TokenInvalid


class FakeQueue:
    """Record what was scheduled."""

    def __init__(self) -> None:
        self.scheduled: dict[CallId, timedelta] = {}

    async def schedule(self, name: CallId, delay: timedelta) -> None:
        self.scheduled[name] = delay
