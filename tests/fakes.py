"""Stand-ins for what the domain asks of the world: simple enough to be obviously right."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import ceil
from typing import Any

from app.verification.channel import Channel
from app.verification.errors import (
    CallBudgetExhausted,
    CallCooldown,
    CodeNotExpected,
    CodeRequired,
    CodeTooShortOrLong,
    ProviderError,
    RateLimited,
    StoreUnavailable,
    VerificationAlreadyUsed,
    VerificationCanceled,
    VerificationLocked,
    VerificationNotFound,
)
from app.verification.guard import Block, Suspect
from app.verification.model import (
    Call,
    CallOutcome,
    CallState,
    CallStatus,
    CheckResult,
    Placed,
    ProviderAccount,
    Started,
    Status,
    Verification,
)
from app.verification.phone import Phone
from app.verification.policy import Allowance, Limit, Policy, Quota
from app.verification.ports import (
    CallName,
    CallOrder,
    CallReport,
    Confirmation,
    Guess,
    NewCall,
    Recorded,
    Tried,
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
    verification: Verification
    codes: dict[int, tuple[bytes, datetime]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    serial: int = 0
    checks_used: int = 0
    confirmed: set[int] = field(default_factory=set)
    before: dict[int, tuple[Verification, int]] = field(default_factory=dict)


@dataclass
class PhoneRecord:
    streak: int = 0
    next_call: datetime = NEVER
    forgotten: datetime = NEVER
    operator: str | None = None
    reverse: str = ""
    latest: dict[tuple[str, str], str] = field(default_factory=dict)


class Counters:
    """Counts events in sliding windows, by remembering each."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], list[tuple[datetime, str]]] = {}

    def wait(self, limit: Limit, of: str, now: datetime) -> timedelta | None:
        inside = sorted(moment for moment, _ in self._of(limit, of) if moment > now - limit.period)
        return inside[-limit.count] + limit.period - now if len(inside) >= limit.count else None

    def add(self, limit: Limit, of: str, now: datetime, token: str) -> Quota:
        self._of(limit, of).append((now, token))
        inside = [moment for moment, _ in self._of(limit, of) if moment > now - limit.period]
        return Quota(limit, max(0, limit.count - len(inside)))

    def remove(self, limit: Limit, of: str, token: str) -> None:
        events = self._of(limit, of)
        events[:] = [event for event in events if event[1] != token]

    def left(self, limit: Limit, of: str, now: datetime) -> int:
        return limit.count - len([moment for moment, _ in self._of(limit, of) if moment > now - limit.period])

    def _of(self, limit: Limit, of: str) -> list[tuple[datetime, str]]:
        return self.events.setdefault((limit.name, of), [])


class FakeVerificationStore:
    """Keeps verifications in a dictionary, with a clock that moves only when told to."""

    def __init__(self) -> None:
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
        self.phones = {phone: record for phone, record in self.phones.items() if record.forgotten > self.now}

    async def start(self, call: NewCall, policy: Policy) -> Started:
        self._require_available()
        phone = self.phones.get(call.phone) or PhoneRecord()
        record = self.records.get(phone.latest.get((call.client, call.purpose), ""))
        pending = record and record.verification.stored_status is Status.PENDING and not call.test
        if record and record.verification.test:
            record = pending = None
        if not call.test:
            self._refuse(call, policy, phone, record)
        if not record or not pending or call.channel is Channel.REVERSE_CALL:
            record = Record(self._new(call, policy))
            self.records[record.verification.id] = record
        return self._place(record, phone, call, policy)

    def _refuse(self, call: NewCall, policy: Policy, phone: PhoneRecord, record: Record | None) -> None:
        pending = record and record.verification.stored_status is Status.PENDING
        if record and record.verification.stored_status is Status.LOCKED:
            raise VerificationLocked(retry_after=self._until(record.verification.expires_at))
        by_id = call.channel is Channel.REVERSE_CALL
        if record and pending and record.verification.calls_left <= 0 and not by_id:
            raise RateLimited(
                limit="calls_per_verification",
                retry_after=self._until(max(record.verification.expires_at, phone.next_call)),
            )
        if phone.next_call > self.now:
            raise CallCooldown(
                retry_after=self._until(phone.next_call),
                verification_id=record.verification.id if record and pending else None,
            )
        other = self.records.get(phone.reverse)
        if by_id and other and other.verification.stored_status is Status.PENDING:
            raise CallCooldown(retry_after=self._until(other.verification.expires_at), verification_id=None)
        for limit in (policy.failed_checks_per_phone, *policy.calls_per_phone):
            self._require_room(limit, call.phone.e164)

    def _require_room(self, limit: Limit, of: str) -> None:
        if wait := self.counters.wait(limit, of, self.now):
            raise RateLimited(limit=limit.name, retry_after=seconds(wait))

    def _new(self, call: NewCall, policy: Policy) -> Verification:
        self._ids += 1
        return Verification(
            id=f"vrf_{self._ids:023x}",
            client=call.client,
            purpose=call.purpose,
            channel=call.channel,
            phone=call.phone,
            code_length=call.code_length,
            stored_status=Status.PENDING,
            calls_placed=0,
            calls_left=1 if call.channel is Channel.REVERSE_CALL and not call.test else policy.calls,
            checks_left=call.checks,
            calls=(),
            created_at=self.now,
            expires_at=self.now,
            resend_at=None,
            observed_at=self.now,
            test=call.test,
        )

    def _place(self, record: Record, phone: PhoneRecord, call: NewCall, policy: Policy) -> Started:
        cooldowns = [timedelta()] if call.test else policy.cooldowns
        limits = [] if call.test else policy.calls_per_phone
        remembered = phone.streak and phone.next_call + cooldowns[-1] > self.now
        phone.streak = phone.streak + 1 if remembered else 1
        phone.next_call = self.now + cooldowns[min(phone.streak, len(cooldowns)) - 1]
        if call.channel is Channel.REVERSE_CALL and not call.test:
            phone.reverse = record.verification.id
        else:
            phone.latest[call.client, call.purpose] = record.verification.id
        expires = self.now + policy.lifetime
        longest = max([limit.period for limit in limits], default=timedelta())
        phone.forgotten = max(phone.forgotten, expires, phone.next_call + cooldowns[-1], self.now + longest)
        self.phones[call.phone] = phone
        record.serial += 1
        record.before[record.serial] = record.verification, record.checks_used
        if call.code_digest:
            record.codes[record.serial] = (call.code_digest, expires)
            record.lengths[record.serial] = call.code_length or 0
        before = record.verification
        record.verification = replace(
            before,
            channel=call.channel,
            code_length=call.code_length,
            calls_placed=before.calls_placed + 1,
            calls_left=before.calls_left - 1,
            checks_left=max(1, min(before.checks_left, call.checks - record.checks_used)),
            calls=(
                *before.calls,
                Call(record.serial, CallState(CallStatus.INITIATED), channel=call.channel, expires_at=expires),
            ),
            expires_at=expires,
            resend_at=phone.next_call,
        )
        token = f"{before.id}:{record.serial}"
        quotas = [self.counters.add(limit, call.phone.e164, self.now, token) for limit in limits]
        return Started(self._seen(record), tuple(quotas))

    async def tried(self, client: str, phone: Phone, purpose: str) -> Tried:
        self._require_available()
        known = self.phones.get(phone) or PhoneRecord()
        calls = [
            call
            for name in (known.latest.get((client, purpose), ""), known.reverse)
            if (record := self.records.get(name)) and record.verification.stored_status is Status.PENDING
            for call in record.verification.calls
        ]
        return Tried(known.operator, tuple((call.channel, call.state.status) for call in calls))

    async def record_call(self, verification: Verification, serial: int, report: CallReport) -> Recorded:
        self._require_available()
        record = self.records.get(verification.id)
        if not record:
            raise VerificationNotFound
        call = record.verification.call(serial)
        if not call or call.state.status.is_final or STAGES[report.state.status] < STAGES[call.state.status]:
            return Recorded(self._seen(record), ended=False)
        self._change(
            record,
            serial,
            state=report.state,
            ref=report.ref or call.ref,
            dial=report.dial or call.dial,
            limits_token=report.limits_token or call.limits_token,
        )
        if report.code_digest and call.expires_at and record.verification.stored_status is Status.PENDING:
            record.codes[serial] = (report.code_digest, call.expires_at)
            record.lengths[serial] = report.code_length or 0
            record.verification = replace(record.verification, code_length=report.code_length)
        if report.operator:
            self.phones[verification.phone].operator = report.operator
        return Recorded(self._seen(record), ended=report.state.status.is_final)

    async def confirm(
        self, verification: Verification, serial: int, *, ref: str, caller: Phone, policy: Policy
    ) -> Confirmation:
        self._require_available()
        record = self.records.get(verification.id)
        call = record and record.verification.call(serial)
        if not record or not call or call.channel is not Channel.REVERSE_CALL or call.ref != ref or not call.expires_at:
            return Confirmation.NOT_FOUND
        if record.verification.phone != caller:
            return Confirmation.NOT_THE_CALLER
        if serial in record.confirmed or record.verification.stored_status is Status.VERIFIED:
            return Confirmation.CONFIRMED_BEFORE
        if record.verification.stored_status is not Status.PENDING or call.expires_at <= self.now:
            return Confirmation.NOT_FOUND
        if self.now < call.expires_at - policy.lifetime + policy.earliest_dial:
            return Confirmation.TOO_EARLY
        record.confirmed.add(serial)
        self._change(record, serial, state=CallState(CallStatus.COMPLETED))
        return Confirmation.CONFIRMED

    def _change(self, record: Record, serial: int, **changes: Any) -> None:  # noqa: ANN401 - fields of a call
        calls = [replace(call, **changes) if call.serial == serial else call for call in record.verification.calls]
        record.verification = replace(record.verification, calls=tuple(calls))

    async def take_back(self, verification: Verification, serial: int, policy: Policy) -> bool:
        self._require_available()
        record = self.records.get(verification.id)
        call = record and record.verification.call(serial)
        if not record or not call or not call.expires_at:
            return False
        moment = call.expires_at - policy.lifetime
        phone = self.phones.get(verification.phone)
        before, latest = record.verification, record.serial == serial
        if phone and latest and before.resend_at and phone.next_call == before.resend_at:
            phone.streak -= 1
            phone.next_call = moment if phone.streak else NEVER
        for (_, of), events in self.counters.events.items():
            if of == verification.phone.e164:
                events[:] = [event for event in events if event[1] != f"{verification.id}:{serial}"]
        record.codes.pop(serial, None)
        record.confirmed.discard(serial)
        others = tuple(other for other in before.calls if other.serial != serial)
        record.verification = replace(
            before,
            calls_placed=before.calls_placed - 1,
            calls_left=before.calls_left + 1,
            calls=others,
            expires_at=max((other.expires_at for other in others if other.expires_at), default=before.expires_at),
            resend_at=None if latest else before.resend_at,
        )
        if latest and others:
            kept, used = record.before[serial]
            record.verification = replace(
                record.verification,
                channel=kept.channel,
                code_length=kept.code_length,
                checks_left=kept.checks_left + used - record.checks_used
                if before.stored_status is Status.PENDING
                else before.checks_left,
            )
        if not record.verification.calls_placed and before.stored_status is Status.PENDING and not record.checks_used:
            del self.records[before.id]
        self.advance(timedelta())
        return True

    async def check_by_id(self, verification_id: str, guess: Guess, policy: Policy) -> CheckResult:
        self._require_available()
        record = self._own(guess.client, verification_id)
        before = record.verification
        if before.stored_status is Status.VERIFIED:
            raise VerificationAlreadyUsed
        if before.stored_status is Status.CANCELED:
            raise VerificationCanceled
        if before.stored_status is Status.LOCKED:
            raise VerificationLocked(retry_after=self._until(before.expires_at))
        if before.channel is Channel.REVERSE_CALL and not before.test:
            return self._check_without_code(record, guess)
        if not guess.candidates:
            raise CodeRequired
        counted = self._counted(before, guess, policy)
        live = self._comparisons(record, guess)
        for place, (limit, of) in enumerate(counted):
            # A guess is held against every live code, so for the phone there has to be room for each.
            room = limit if place else replace(limit, count=max(1, limit.count - live + 1))
            self._require_room(room, of)
        right = [
            serial
            for serial, (digest, expires) in record.codes.items()
            if digest in guess.candidates and expires > self.now
        ]
        if right:
            self._hear(record, right[0])
            self._finish(record, Status.VERIFIED)
            return CheckResult(
                verification_id=before.id,
                status=Status.VERIFIED,
                purpose=before.purpose,
                phone=before.phone,
                quotas=tuple(Quota(limit, self.counters.left(limit, of, self.now)) for limit, of in counted),
                test=before.test,
            )
        for limit, of in counted[:1] * (live - 1):  # for the phone, once for each live code
            self.counters.add(limit, of, self.now, "failed")
        quotas = tuple(self.counters.add(limit, of, self.now, "failed") for limit, of in counted)
        self._keep_phone(before.phone, policy)
        record.checks_used += 1
        record.verification = replace(before, checks_left=before.checks_left - 1)
        if record.verification.checks_left:
            return CheckResult(
                verification_id=before.id,
                status=Status.PENDING,
                checks_left=record.verification.checks_left,
                quotas=quotas,
            )
        self._finish(record, Status.LOCKED)
        return CheckResult(
            verification_id=before.id,
            status=Status.LOCKED,
            retry_after=self._until(before.expires_at),
            quotas=quotas,
        )

    def _comparisons(self, record: Record, guess: Guess) -> int:
        live = [serial for serial, (_, expires) in record.codes.items() if expires > self.now]
        lengths = frozenset(record.lengths[serial] for serial in live)
        if lengths and guess.length not in lengths:
            raise CodeTooShortOrLong(lengths)
        return max(1, len(live))

    def _check_without_code(self, record: Record, guess: Guess) -> CheckResult:
        if guess.candidates:
            raise CodeNotExpected
        verification = record.verification
        calls = {call.serial: call for call in verification.calls if call.expires_at and call.expires_at > self.now}
        if record.serial in record.confirmed & set(calls):
            self._finish(record, Status.VERIFIED)
            return CheckResult(
                verification_id=verification.id,
                status=Status.VERIFIED,
                purpose=verification.purpose,
                phone=verification.phone,
                test=verification.test,
            )
        return CheckResult(verification_id=verification.id, status=Status.PENDING, checks_left=verification.checks_left)

    def _hear(self, record: Record, serial: int) -> None:
        call = record.verification.call(serial)
        if call and STAGES[call.state.status] < STAGES[CallStatus.ANSWERED]:
            self._change(record, serial, state=replace(call.state, status=CallStatus.ANSWERED))

    def _counted(self, verification: Verification, guess: Guess, policy: Policy) -> list[tuple[Limit, str]]:
        if verification.test:
            return []
        further = policy.for_failed_checks(client=guess.client, address=guess.address)
        return [
            (policy.failed_checks_per_phone, verification.phone.e164),
            *((allowance.limit, allowance.of) for allowance in further),
        ]

    def _keep_phone(self, phone: Phone, policy: Policy) -> None:
        if phone in self.phones:
            until = self.now + policy.failed_checks_per_phone.period
            self.phones[phone].forgotten = max(self.phones[phone].forgotten, until)

    async def check_by_phone(self, phone: Phone, purpose: str, guess: Guess, policy: Policy) -> CheckResult:
        latest = self.phones[phone].latest.get((guess.client, purpose), "") if phone in self.phones else ""
        return await self.check_by_id(latest, guess, policy)

    async def read(self, verification_id: str, *, client: str | None) -> Verification:
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
            raise VerificationLocked(retry_after=self._until(record.verification.expires_at))
        self._finish(record, Status.CANCELED)
        return self._seen(record)

    async def ping(self) -> None:
        self._require_available()

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
        return replace(record.verification, observed_at=self.now)

    def _until(self, moment: datetime) -> int:
        return seconds(moment - self.now)


class FakeLimits:
    """Counts in memory, on the clock of a store."""

    def __init__(self, store: FakeVerificationStore) -> None:
        self._store = store
        self._counters = Counters()

    async def take(self, token: str, allowances: Sequence[Allowance]) -> Sequence[Quota]:
        self._store._require_available()
        now = self._store.now
        for allowance in allowances:
            if wait := self._counters.wait(allowance.limit, allowance.of, now):
                if allowance.limit.name == "calls_per_day":
                    raise CallBudgetExhausted(retry_after=seconds(wait))
                raise RateLimited(limit=allowance.limit.name, retry_after=seconds(wait))
        return [self._counters.add(allowance.limit, allowance.of, now, token) for allowance in allowances]

    async def give_back(self, token: str, allowances: Sequence[Allowance]) -> None:
        self._store._require_available()
        for allowance in allowances:
            self._counters.remove(allowance.limit, allowance.of, token)


class FakeGuard:
    """Remembers what it was told, and blocks what it is told to."""

    def __init__(self) -> None:
        self.blocked: set[str] = set()
        self.calls: list[str] = []
        self.successes: list[str] = []

    async def admit(self, phone: Phone, client: str) -> None:
        if phone.e164 in self.blocked:
            raise RateLimited(limit="fraud_guard", retry_after=3600)
        self.calls.append(phone.e164)

    async def retract(self, phone: Phone, client: str) -> None:
        self.calls.remove(phone.e164)

    async def succeeded(self, phone: Phone, client: str) -> None:
        self.successes.append(phone.e164)

    async def blocks(self) -> list[Block]:
        return []

    async def suspects(self) -> list[Suspect]:
        return []

    async def lift(self, number_range: str) -> bool:
        return False


class FakeSender:
    """Takes every call, or answers what ``outcome`` says; ``state`` is what it tells of any call."""

    def __init__(self, provider: str = "fake") -> None:
        self.provider = provider
        self.is_followed = True
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

    async def look_up(self, call_ref: str) -> CallState | None:
        self.lookups += 1
        if isinstance(self.state, ProviderError):
            raise self.state
        return self.state


class FakeAccounts:
    """Tells of one account, and the ``balance``."""

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


class FakeQueue:
    """Remembers what was scheduled."""

    def __init__(self) -> None:
        self.scheduled: dict[CallName, timedelta] = {}

    async def schedule(self, name: CallName, delay: timedelta) -> None:
        self.scheduled[name] = delay
