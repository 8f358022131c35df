"""The use cases start, check, follow, read and cancel, with a reference store and a fake provider."""

import asyncio
from copy import deepcopy
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from app.verification.channels import Channel
from app.verification.check import CheckRequest
from app.verification.code import CodeDigester
from app.verification.domain_events import (
    CallAsked,
    CallEnded,
    CallNeverPlaced,
    CallPlaced,
    CallRefused,
    CodeRejected,
    DomainEvent,
    LimitHit,
    Segment,
    UnknownCallStatus,
    VerificationStarted,
    VerificationSucceeded,
)
from app.verification.errors import (
    BalanceTooLow,
    CallBudgetExhausted,
    CallCooldown,
    CodeTooShortOrLong,
    NotAllowed,
    PhoneNotCallable,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    StoreUnavailable,
)
from app.verification.idempotency import IdempotencyInProgress
from app.verification.model import (
    CallOutcome,
    CallState,
    CallStatus,
    Lang,
    Locked,
    Placed,
    Refused,
    Started,
    Status,
    Unknown,
    Verification,
    Verified,
    WrongCode,
)
from app.verification.phone import Phone
from app.verification.policy import DAY, HOUR, Limit, Policies, Policy
from app.verification.ports import CallId, CallOrder, CallSender, Confirmation, Ports, StoredCall
from app.verification.provider_account import AccountReader
from app.verification.service import VerificationService
from app.verification.start import StartRequest
from app.verification.store_requests import DeferredWrites
from app.verification.test_numbers import TestNumber, TestNumbers
from tests.fakes import (
    FakeAccounts,
    FakeGuard,
    FakeQueue,
    FakeRateLimiter,
    FakeSender,
    FakeTokens,
    ReferenceStore,
)
from tests.outcomes import expect
from tests.policies import make_policy

PHONE = "8 (900) 123-45-67"
TEST_PHONE = Phone("+79000000099")


def spoken(call: CallOrder) -> str:
    assert call.code
    return call.code


class ServiceHarness:
    def __init__(self, policy: Policy = make_policy()) -> None:  # noqa: B008 - frozen
        self.store = ReferenceStore()
        self.sender = FakeSender()
        self.senders: dict[Channel, CallSender] = {Channel.VOICE: self.sender}
        self.queue = FakeQueue()
        self.published: list[DomainEvent] = []
        self.guard = FakeGuard()
        self.limits = FakeRateLimiter(self.store, self.guard)
        self.today = date(2030, 1, 1)
        self.deferred = DeferredWrites()
        fixed = {TEST_PHONE: TestNumber("1234", until=date(2030, 1, 31))}
        self.service = VerificationService(
            Ports(
                store=self.store,
                limits=self.limits,
                guard=self.guard,
                senders=self.senders,
                schedule=self.queue,
                publish=self.published.append,
                digester=CodeDigester([b"k" * 32]),
                policies=Policies(policy, {"bank": replace(policy, purposes=frozenset({"login"}))}),
                tokens=FakeTokens(),
                test_numbers=TestNumbers(fixed, lambda: self.today),
                deferred=self.deferred,
                store_timeout=1,
            )
        )

    @property
    def kept(self) -> object:
        """Return everything that is stored."""
        events = {name: events for name, events in self.store.counters.events.items() if events}
        return self.store.records, self.store.phones, events, self.guard.calls

    async def start(self, phone: str = PHONE, **fields: Any) -> Verification:  # noqa: ANN401 - those of a request
        request = StartRequest(**{"client": "shop", "phone": phone, "purpose": "login", **fields})
        return (await self.service.start(request)).verification


class FakeJournal:
    """Record what is written to it; ``noted`` is the error that ``begin`` raises, if any."""

    def __init__(self) -> None:
        self.begun: CallId | None = None
        self.noted: Exception | None = None
        self.kept: list[Started] = []
        self.undone: list[CallId | None] = []  # by each release

    async def claim(self) -> CallId | None:
        return self.begun

    async def begin(self, name: CallId) -> None:
        assert not self.kept
        if self.noted:
            raise self.noted
        self.begun = name

    async def release(self, undone: CallId | None = None) -> None:
        if self.begun == undone:
            self.begun = None
        self.undone.append(undone)

    async def keep(self, started: Started) -> None:
        self.kept.append(started)


@pytest.fixture
def harness() -> ServiceHarness:
    return ServiceHarness()


async def test_the_code_of_a_placed_call_verifies(harness: ServiceHarness) -> None:
    verification = await harness.start()

    result = await harness.service.check.by_id(
        CheckRequest(client="shop", code=spoken(harness.sender.calls[0])), verification.id
    )

    assert result.status is Status.VERIFIED
    assert expect(Verified, result).phone == Phone("+79001234567")


async def test_a_right_code_gives_a_token_for_the_client_that_checks_it(harness: ServiceHarness) -> None:
    verification = await harness.start()
    request = CheckRequest(client="shop", code=spoken(harness.sender.calls[0]))

    result = expect(Verified, await harness.service.check.by_id(request, verification.id))

    assert result.token == f"shop +79001234567 login {verification.id} None False"
    assert result.token_lifetime == FakeTokens.lifetime


async def test_a_wrong_code_and_the_last_wrong_code_tell_what_is_left(harness: ServiceHarness) -> None:
    verification = await harness.start()
    request = CheckRequest(client="shop", code=wrong(spoken(harness.sender.calls[0])))

    results = [await harness.service.check.by_id(request, verification.id) for _ in range(5)]

    assert [expect(WrongCode, result).checks_left for result in results[:4]] == [4, 3, 2, 1]
    assert expect(Locked, results[4]).retry_after == 60


async def test_a_check_by_phone_accepts_any_spelling_of_the_number(harness: ServiceHarness) -> None:
    await harness.start()

    result = await harness.service.check.by_phone(
        CheckRequest(client="shop", code=spoken(harness.sender.calls[0])), "+7 900 1234567", "login"
    )

    assert result.status is Status.VERIFIED


async def test_the_call_is_placed_with_the_requested_phone_and_language(harness: ServiceHarness) -> None:
    await harness.start(lang=Lang.EN)

    (call,) = harness.sender.calls
    assert (call.phone, call.lang, call.repeat, len(spoken(call))) == (Phone("+79001234567"), Lang.EN, 2, 6)


async def test_the_digest_is_stored_before_the_call_is_placed(harness: ServiceHarness) -> None:
    """So the code always verifies, even if it is checked while the provider is still dialling."""
    seen: list[Status] = []

    class ChecksWhileDialling(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            result = await harness.service.check.by_phone(
                CheckRequest(client="shop", code=spoken(order)), PHONE, "login"
            )
            seen.append(result.status)
            return Placed("ref")

    harness.senders[Channel.VOICE] = ChecksWhileDialling()
    await harness.start()

    assert seen == [Status.VERIFIED]


async def test_no_call_is_placed_when_the_store_is_unavailable(harness: ServiceHarness) -> None:
    harness.store.available = False

    with pytest.raises(StoreUnavailable):
        await harness.start()

    assert harness.sender.calls == []


@pytest.mark.parametrize("phone", ["87011234567", "88001234567", "+79401234567", "not a number"])
async def test_no_call_is_placed_to_a_number_that_may_not_be_called(harness: ServiceHarness, phone: str) -> None:
    with pytest.raises(PhoneNotCallable):
        await harness.start(phone)

    assert harness.sender.calls == []


async def test_a_purpose_that_is_not_allowed_is_refused(harness: ServiceHarness) -> None:
    with pytest.raises(NotAllowed) as caught:
        await harness.start(purpose="lottery")
    assert caught.value.field == "purpose"

    with pytest.raises(NotAllowed):
        await harness.service.check.by_phone(CheckRequest(client="shop", code="123456"), PHONE, "lottery")
    assert harness.sender.calls == []


async def test_a_placed_call_is_recorded_with_the_providers_reference(harness: ServiceHarness) -> None:
    verification = await harness.start()

    call = verification.latest_call
    assert call is not None
    assert (call.ref, call.state.status) == ("call-1", CallStatus.INITIATED)


async def test_a_call_of_unknown_outcome_counts_and_its_code_verifies(harness: ServiceHarness) -> None:
    harness.sender.outcome = Unknown("timed out")

    verification = await harness.start()

    assert [call.state.status for call in verification.calls] == [CallStatus.UNCONFIRMED]
    with pytest.raises(CallCooldown):
        await harness.start()
    result = await harness.service.check.by_id(
        CheckRequest(client="shop", code=spoken(harness.sender.calls[0])), verification.id
    )
    assert result.status is Status.VERIFIED


@pytest.mark.parametrize(
    "error",
    [ProviderRejected("no"), ProviderUnavailable(retry_after=5), BalanceTooLow()],
    ids=["rejected", "unavailable", "balance"],
)
async def test_a_refused_call_is_refunded_completely(harness: ServiceHarness, error: Exception) -> None:
    assert isinstance(error, ProviderRejected | ProviderUnavailable | BalanceTooLow)
    harness.sender.outcome = Refused(error)
    with pytest.raises(type(error)):
        await harness.start()
    assert harness.store.records == {}

    harness.sender.outcome = None
    verification = await harness.start()
    assert (verification.calls_placed, verification.resend_in) == (1, 60)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Placed("ref"), CallStatus.INITIATED), (Unknown("timed out"), CallStatus.UNCONFIRMED)],
)
async def test_a_start_succeeds_even_if_the_placed_call_cannot_be_recorded(
    harness: ServiceHarness, outcome: CallOutcome, status: CallStatus
) -> None:
    """The call is in progress and paid for, and its code verifies once the store is available."""

    class StoreFails(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            harness.store.available = False
            await super().place(order)
            return outcome

    harness.senders[Channel.VOICE] = provider = StoreFails()
    verification = await harness.start()
    assert [call.state.status for call in verification.calls] == [status]

    harness.store.available = True
    result = await harness.service.check.by_id(
        CheckRequest(client="shop", code=spoken(provider.calls[0])), verification.id
    )
    assert result.status is Status.VERIFIED


async def test_a_call_that_could_not_be_recorded_is_recorded_once_the_store_is_available(
    harness: ServiceHarness,
) -> None:
    """Otherwise no webhook would be sent for the verification, and the call would not be followed."""

    class StoreFails(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            harness.store.available = False
            return await super().place(order)

    harness.senders[Channel.VOICE] = StoreFails()
    verification = await harness.start()
    harness.store.available = True
    await harness.deferred.aclose()

    (call,) = (await harness.service.read(client="shop", verification_id=verification.id)).calls
    assert call.ref == "call-1"
    assert [name.verification_id for name in harness.queue.scheduled] == [verification.id]


async def test_a_refused_call_is_reported_even_if_it_cannot_be_refunded(harness: ServiceHarness) -> None:
    class StoreFails(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            harness.store.available = False
            return Refused(ProviderRejected("no"))

    harness.senders[Channel.VOICE] = StoreFails()
    with pytest.raises(ProviderRejected):
        await harness.start()

    harness.store.available = True
    with pytest.raises(CallCooldown):  # until the deferred refund
        await harness.start()
    await harness.deferred.aclose()
    harness.senders[Channel.VOICE] = harness.sender
    assert (await harness.start()).resend_in == 60


async def test_reading_a_verification_does_not_ask_the_provider(harness: ServiceHarness) -> None:
    verification = await harness.start()

    read = await harness.service.read(client="shop", verification_id=verification.id)

    assert [call.state for call in read.calls] == [CallState(CallStatus.INITIATED)]
    assert harness.sender.lookups == 0


async def test_a_call_that_a_crashed_worker_did_not_record_is_unconfirmed(harness: ServiceHarness) -> None:
    """It may have crashed before or after the call was placed; the code verifies either way."""
    harness.store.available = True

    class Crashes(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            await super().place(order)
            raise asyncio.CancelledError

    harness.senders[Channel.VOICE] = sender = Crashes()
    with pytest.raises(asyncio.CancelledError):
        await harness.start()
    (name,) = harness.store.records
    assert await call_status(harness, name) is CallStatus.INITIATED
    harness.store.advance(make_policy().call_timeout + timedelta(seconds=1))

    assert await call_status(harness, name) is CallStatus.UNCONFIRMED
    result = await harness.service.check.by_id(CheckRequest(client="shop", code=spoken(sender.calls[0])), name)
    assert result.status is Status.VERIFIED


async def call_status(harness: ServiceHarness, verification_id: str) -> CallStatus:
    read = await harness.service.read(client="shop", verification_id=verification_id)
    return read.calls[-1].state.status


async def test_a_placed_call_is_followed_until_its_status_is_final(harness: ServiceHarness) -> None:
    verification = await harness.start()
    (name,) = harness.queue.scheduled

    assert name == CallId(verification.id, 1)
    assert not await harness.service.calls.follow(name)
    assert await call_status(harness, verification.id) is CallStatus.RINGING
    harness.sender.state = CallState(CallStatus.COMPLETED)
    assert await harness.service.calls.follow(name)
    assert await harness.service.calls.follow(name)
    assert await call_status(harness, verification.id) is CallStatus.COMPLETED
    segment = Segment.of("shop", Channel.VOICE, verification.phone)
    assert harness.published.count(CallEnded(segment, CallStatus.COMPLETED)) == 1


async def test_a_failed_status_lookup_raises_the_providers_error(harness: ServiceHarness) -> None:
    verification = await harness.start()
    harness.sender.state = ProviderUnavailable(retry_after=5)

    with pytest.raises(ProviderUnavailable):
        await harness.service.calls.follow(CallId(verification.id, 1))


async def test_an_unknown_call_status_is_counted_and_the_call_is_still_followed(harness: ServiceHarness) -> None:
    verification = await harness.start()
    harness.sender.state = CallState(CallStatus.INITIATED, "rerouted")

    assert not await harness.service.calls.follow(CallId(verification.id, 1))

    assert UnknownCallStatus(Channel.VOICE) in harness.published


async def test_an_expired_or_missing_call_is_no_longer_followed(harness: ServiceHarness) -> None:
    verification = await harness.start()
    assert await harness.service.calls.follow(CallId(verification.id, 2))
    harness.store.advance(make_policy().lifetime)

    assert await harness.service.calls.follow(CallId(verification.id, 1))


async def test_a_call_that_expires_during_a_status_lookup_is_no_longer_followed(harness: ServiceHarness) -> None:
    verification = await harness.start()

    class Slow(FakeSender):
        async def fetch_status(self, call_ref: str) -> CallState | None:
            harness.store.advance(make_policy().lifetime)
            return CallState(CallStatus.RINGING)

    harness.senders[Channel.VOICE] = Slow()
    assert await harness.service.calls.follow(CallId(verification.id, 1))


async def test_an_unconfirmed_call_that_was_never_placed_is_refunded_once(harness: ServiceHarness) -> None:
    harness.sender.outcome = Unknown("no answer", call_ref="ours")
    verification = await harness.start()
    name = CallId(verification.id, 1)
    assert list(harness.queue.scheduled) == [name]
    harness.sender.state = None

    assert await harness.service.calls.follow(name)
    assert await harness.service.calls.follow(name)

    assert not harness.store.records
    assert harness.guard.calls == []
    assert harness.published.count(CallNeverPlaced(Segment.of("shop", Channel.VOICE, verification.phone))) == 1
    harness.sender.outcome = None
    await harness.start()  # no cooldown is left


async def test_a_placed_call_is_not_refunded_when_a_provider_does_not_know_it(harness: ServiceHarness) -> None:
    """As after ``RELAY_CHANNELS`` has moved a channel to another provider during a call."""
    verification = await harness.start()
    harness.sender.state = None

    assert await harness.service.calls.follow(CallId(verification.id, 1))

    code = spoken(harness.sender.calls[0])
    result = await harness.service.check.by_id(CheckRequest(client="shop", code=code), verification.id)
    assert result.status is Status.VERIFIED


async def test_an_unconfirmed_call_that_was_placed_is_confirmed_by_a_status_lookup(harness: ServiceHarness) -> None:
    harness.sender.outcome = Unknown("no answer", call_ref="ours")
    verification = await harness.start()
    assert verification.calls[-1].state.status is CallStatus.UNCONFIRMED

    await harness.service.calls.follow(CallId(verification.id, 1))

    assert await call_status(harness, verification.id) is CallStatus.RINGING


async def test_the_accounts_are_returned_without_a_balance_when_that_cannot_be_read() -> None:
    accounts = FakeAccounts()
    reader = AccountReader(accounts)
    assert (await reader.read()).balance_rub == Decimal("12.50")

    accounts.balance = ProviderUnavailable(retry_after=5)
    overview = await reader.read()
    assert overview.balance_rub is None
    assert [account.name for account in overview.accounts] == ["Fake"]


MINUTE = timedelta(minutes=1)
ONE_CALL = {
    "calls_per_range": make_policy(calls_per_range=Limit("calls_per_range", 1, HOUR)),
    "calls_per_client": make_policy(calls_per_client=(Limit("calls_per_client", 1, MINUTE),)),
    "calls_per_address": make_policy(calls_per_address=Limit("calls_per_address", 1, MINUTE)),
}


@pytest.mark.parametrize("limit", ONE_CALL)
async def test_a_call_beyond_a_rate_limit_is_not_placed_and_nothing_is_stored(limit: str) -> None:
    harness = ServiceHarness(ONE_CALL[limit])
    await harness.start("+79001234567", address="192.0.2.1")

    with pytest.raises(RateLimited) as caught:
        await harness.start("+79001234568", address="192.0.2.1")

    assert caught.value.limit == limit
    assert len(harness.sender.calls) == 1
    assert len(harness.store.records) == 1
    harness.store.advance(HOUR)
    await harness.start("+79001234568", address="192.0.2.1")


async def test_the_daily_call_budget_is_shared_by_all_clients() -> None:
    harness = ServiceHarness(make_policy(calls_per_day=Limit("calls_per_day", 1, DAY)))
    await harness.start("+79001234567")

    with pytest.raises(CallBudgetExhausted) as caught:
        await harness.start("+79117654321", client="bank")

    assert caught.value.retry_after == DAY.total_seconds()


@pytest.mark.parametrize(("at_once", "refused"), [(True, ["acquire"]), (False, ["ask"])])
async def test_limits_that_the_store_counts_in_are_not_asked_before_and_a_refusal_has_nothing_to_refund(
    refused: list[str], *, at_once: bool
) -> None:
    harness = ServiceHarness(make_policy(calls_per_day=Limit("calls_per_day", 1, DAY)))
    harness.store.counts_in_allowances = at_once
    await harness.start("+79001234567")
    accepted = list(harness.limits.uses)
    harness.limits.uses.clear()

    with pytest.raises(CallBudgetExhausted):
        await harness.start("+79117654321")

    assert accepted == (["acquire"] if at_once else ["ask", "acquire"])
    assert harness.limits.uses == refused


async def test_a_start_refused_by_the_cooldown_counts_against_no_other_limit() -> None:
    harness = ServiceHarness(make_policy(calls_per_day=Limit("calls_per_day", 2, DAY)))
    await harness.start()
    for _ in range(5):
        with pytest.raises(CallCooldown):
            await harness.start()

    await harness.start("+79117654321")


async def test_a_refused_call_counts_against_no_rate_limit() -> None:
    harness = ServiceHarness(make_policy(calls_per_day=Limit("calls_per_day", 1, DAY)))
    harness.sender.outcome = Refused(ProviderRejected("no"))
    for _ in range(3):
        with pytest.raises(ProviderRejected):
            await harness.start()

    harness.sender.outcome = None
    await harness.start()


async def test_concurrent_reads_of_the_provider_account_share_one_request() -> None:
    accounts = FakeAccounts()
    reader = AccountReader(accounts)
    overviews = await asyncio.gather(*[reader.read() for _ in range(50)])
    assert accounts.overviews == 1
    assert len({overview.balance_rub for overview in overviews}) == 1

    await reader.read()
    assert accounts.overviews == 2


async def test_a_client_may_use_only_the_purposes_of_its_own_policy(harness: ServiceHarness) -> None:
    await harness.start(client="bank", purpose="login")
    with pytest.raises(NotAllowed):
        await harness.start(client="bank", purpose="password_reset")


async def test_the_result_of_a_start_is_recorded_in_the_journal(harness: ServiceHarness) -> None:
    journal = FakeJournal()

    started = await harness.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), journal=journal)

    assert journal.kept == [started]


async def test_a_repeated_start_returns_the_call_begun_by_a_crashed_one(harness: ServiceHarness) -> None:
    journal, request = FakeJournal(), StartRequest(client="shop", phone=PHONE, purpose="login")
    started = await harness.service.start(request, journal=journal)

    resumed = await harness.service.start(request, journal=journal)

    assert resumed.verification.id == started.verification.id
    assert len(harness.sender.calls) == 1
    with pytest.raises(CallCooldown):  # a call begun by another client is not resumed
        await harness.service.start(replace(request, client="bank"), journal=journal)


async def test_a_test_number_is_not_called_and_its_fixed_code_verifies_it(harness: ServiceHarness) -> None:
    for _ in range(3):
        verification = await harness.start(TEST_PHONE.e164)
        assert (verification.test, verification.code_length) == (True, 4)
        result = await harness.service.check.by_id(CheckRequest(client="shop", code="1234"), verification.id)
        assert expect(Verified, result).test

    assert harness.sender.calls == []


async def test_an_expired_test_number_is_not_accepted(harness: ServiceHarness) -> None:
    harness.today = date(2030, 1, 31)
    await harness.start(TEST_PHONE.e164)

    harness.today = date(2030, 2, 1)
    with pytest.raises(PhoneNotCallable):
        await harness.start(TEST_PHONE.e164)
    assert harness.sender.calls == []


async def test_the_fraud_guard_counts_only_placed_calls_and_first_successes(harness: ServiceHarness) -> None:
    verification = await harness.start()
    code = spoken(harness.sender.calls[0])
    await harness.service.check.by_id(CheckRequest(client="shop", code=wrong(code)), verification.id)
    await harness.service.check.by_id(CheckRequest(client="shop", code=code), verification.id)
    with pytest.raises(CallCooldown):
        await harness.start()
    harness.sender.outcome = Refused(ProviderRejected("no"))
    with pytest.raises(ProviderRejected):
        await harness.start("+79117654321")
    await harness.start(TEST_PHONE.e164)
    await harness.deferred.aclose()

    assert harness.guard.calls == ["+79001234"]
    assert harness.guard.successes == ["+79001234567"]


async def test_a_number_blocked_by_the_fraud_guard_is_not_called_and_uses_no_limit(harness: ServiceHarness) -> None:
    harness.guard.blocked = {"+79001234"}
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            await harness.start()
        assert caught.value.limit == "fraud_guard"
    assert (harness.sender.calls, harness.store.records) == ([], {})

    harness.guard.blocked = set()
    assert (await harness.start()).resend_in == 60


def wrong(code: str) -> str:
    return code[:-1] + str((int(code[-1]) + 1) % 10)


class AllChannelsHarness(ServiceHarness):
    """A harness with all channels: voice and flash calls of one provider, reverse calls of another."""

    def __init__(self, **policy: Any) -> None:  # noqa: ANN401 - fields of a policy
        super().__init__(make_policy(channels=tuple(Channel), **policy))
        self.flash, self.reverse = FakeSender(), FakeSender("other")
        self.senders |= {Channel.FLASH_CALL: self.flash, Channel.REVERSE_CALL: self.reverse}

    @property
    def placed(self) -> tuple[int, int, int]:
        return len(self.sender.calls), len(self.flash.calls), len(self.reverse.calls)


async def test_the_next_channel_is_tried_when_one_refuses_the_call() -> None:
    harness = AllChannelsHarness()
    harness.sender.outcome = Refused(ProviderRejected("not to this number"))

    verification = await harness.start()

    assert verification.channel is Channel.FLASH_CALL
    assert (verification.code_length, verification.calls_placed, verification.checks_left) == (4, 1, 3)
    assert harness.placed == (1, 1, 0)
    refused, spoken_last = spoken(harness.sender.calls[0]), spoken(harness.flash.calls[0])
    with pytest.raises(CodeTooShortOrLong):
        await harness.service.check.by_id(CheckRequest(client="shop", code=refused), verification.id)
    right = await harness.service.check.by_id(CheckRequest(client="shop", code=spoken_last), verification.id)
    assert right.status is Status.VERIFIED
    voice, flash = (Segment.of("shop", it, verification.phone) for it in (Channel.VOICE, Channel.FLASH_CALL))
    assert harness.published == [
        CallAsked(voice),
        CallRefused(Channel.VOICE, harness.sender.outcome.error),
        CallPlaced(flash, CallStatus.INITIATED),
        VerificationStarted(flash),
        VerificationSucceeded(flash),
    ]


async def test_a_concurrent_start_does_not_learn_the_id_of_a_pending_reverse_call() -> None:
    harness = AllChannelsHarness()
    shown: list[str | None] = []

    class RefusesSlowly(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            with pytest.raises(CallCooldown) as refused:
                await harness.start()
            shown.append(refused.value.verification_id)
            return Refused(ProviderRejected("not to this number"))

    harness.senders[Channel.VOICE] = RefusesSlowly()
    verification = await harness.start(channels=(Channel.VOICE, Channel.REVERSE_CALL))

    assert verification.channel is Channel.REVERSE_CALL
    assert shown
    assert verification.id not in shown


async def test_the_call_recorded_in_the_journal_is_the_one_that_is_placed() -> None:
    harness = AllChannelsHarness()
    harness.sender.outcome = Refused(ProviderRejected("not to this number"))
    journal = FakeJournal()

    request = StartRequest(client="shop", phone=PHONE, purpose="login")

    started = await harness.service.start(request, journal=journal)

    assert started.verification.channel is Channel.FLASH_CALL
    assert journal.begun == CallId(started.verification.id, 1)
    assert (journal.kept, journal.undone) == ([started], [])


@pytest.mark.parametrize("error", [StoreUnavailable(), IdempotencyInProgress(retry_after=1)])
async def test_no_call_is_placed_that_could_not_be_recorded_in_the_journal(
    harness: ServiceHarness, error: Exception
) -> None:
    journal = FakeJournal()
    journal.noted = error

    with pytest.raises(type(error)):
        await harness.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), journal=journal)

    await harness.deferred.aclose()
    assert (harness.sender.calls, harness.store.records, harness.guard.calls) == ([], {}, [])
    assert journal.undone
    assert None not in journal.undone


async def begin_a_call(harness: ServiceHarness, journal: FakeJournal) -> StartRequest:
    """Start a request that is canceled while the provider places its call; return it."""
    asked = asyncio.Event()

    class Slow(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            asked.set()
            await asyncio.sleep(60)
            raise AssertionError(order)

    harness.senders[Channel.VOICE] = Slow()
    request = StartRequest(client="shop", phone=PHONE, purpose="login")
    task = asyncio.create_task(harness.service.start(request, journal=journal))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    return request


async def test_the_claim_of_a_start_canceled_during_the_provider_request_is_not_released(
    harness: ServiceHarness,
) -> None:
    """The call may have been placed: a repeated request returns it and places no second one."""
    journal = FakeJournal()
    request = await begin_a_call(harness, journal)

    assert journal.undone == [None]
    resumed = await harness.service.start(request, journal=journal)
    assert [call.state.status for call in resumed.verification.calls] == [CallStatus.UNCONFIRMED]
    assert harness.sender.calls == []
    assert journal.kept == [resumed]


@pytest.mark.parametrize("error", [StoreUnavailable(), asyncio.CancelledError(), RuntimeError("a bug")])
@pytest.mark.parametrize("step", ["read", "record_call"])
async def test_a_call_that_was_begun_stays_noted_when_its_repetition_fails(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    journal = FakeJournal()
    request = await begin_a_call(harness, journal)
    begun = journal.begun

    async def fails(*_: object, **__: object) -> object:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(harness.store, step, fails)
        for _ in range(2):
            with pytest.raises(type(error)):
                await harness.service.start(request, journal=journal)
            await asyncio.sleep(0)  # for what is written later
    assert (journal.begun, journal.undone) == (begun, [None] * 3)

    resumed = await harness.service.start(request, journal=journal)
    assert CallId(resumed.verification.id, 1) == begun
    assert harness.sender.calls == []


async def test_a_start_that_crashed_before_storing_anything_is_started_again(harness: ServiceHarness) -> None:
    journal = FakeJournal()
    journal.begun = CallId("vrf_00000000000000000000009", 1)

    started = await harness.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), journal=journal)

    assert len(harness.sender.calls) == 1
    assert journal.begun == CallId(started.verification.id, 1)


async def test_a_begun_call_that_is_gone_is_forgotten_when_its_repetition_is_refused() -> None:
    harness, journal = AllChannelsHarness(), FakeJournal()
    journal.begun = gone = CallId("vrf_00000000000000000000009", 1)
    await harness.start()

    with pytest.raises(CallCooldown):  # by the preview, since there are several channels
        await harness.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), journal=journal)

    assert journal.undone == [gone]


async def test_another_channel_whose_storing_gets_no_reply_is_refunded_again_later() -> None:
    harness = AllChannelsHarness()
    harness.sender.outcome = Refused(ProviderRejected("not to this number"))
    start, stored = harness.store.start, 0

    async def runs_late(*arguments: Any, **options: Any) -> StoredCall:  # noqa: ANN401 - passed on
        nonlocal stored
        stored += 1
        if stored == 1:
            return await start(*arguments, **options)
        asyncio.get_running_loop().call_later(0.01, harness.deferred.start, start(*arguments, **options))
        raise StoreUnavailable

    harness.store.start = runs_late  # type: ignore[method-assign]
    with pytest.raises(ProviderRejected):
        await harness.start()
    async with asyncio.timeout(10):
        while not harness.store.records:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    await harness.deferred.aclose()

    assert (harness.store.records, harness.guard.calls) == ({}, [])


@pytest.mark.parametrize("refusal", ["address", "guard", "cooldown", "balance"])
async def test_a_refused_start_changes_no_stored_state(refusal: str) -> None:
    harness = ServiceHarness(make_policy(calls_per_address=Limit("calls_per_address", 1, HOUR)))
    await harness.start("+79031234567", address="192.0.2.66")
    match refusal:
        case "guard":
            harness.guard.blocked.add("+79001234")
        case "cooldown":
            await harness.start()
        case "balance":
            harness.sender.unready = BalanceTooLow()
    before = deepcopy(harness.kept)
    journal = FakeJournal()

    address = "192.0.2.66" if refusal == "address" else "192.0.2.1"
    request = StartRequest(client="shop", phone=PHONE, purpose="login", address=address)
    for _ in range(3):
        with pytest.raises((RateLimited, CallCooldown, BalanceTooLow)):
            await harness.service.start(request, journal=journal)

    assert harness.kept == before
    assert (journal.begun, len(journal.undone)) == (None, 3)


async def test_a_repeated_correct_check_is_counted_once(harness: ServiceHarness) -> None:
    verification = await harness.start()
    code = spoken(harness.sender.calls[0])

    results = [
        await harness.service.check.by_id(CheckRequest(client="shop", code=code, retry_digest="d1"), verification.id)
        for _ in range(3)
    ]

    await harness.deferred.aclose()
    assert {result.status for result in results} == {Status.VERIFIED}
    segment = Segment.of("shop", Channel.VOICE, verification.phone)
    assert harness.published.count(VerificationSucceeded(segment)) == 1
    assert len(harness.guard.successes) == 1


async def test_starts_of_test_numbers_are_rate_limited_per_client() -> None:
    harness = ServiceHarness(make_policy(test_starts_per_client=Limit("test_starts_per_client", 3, HOUR)))
    for _ in range(3):
        await harness.start(TEST_PHONE.e164)

    with pytest.raises(RateLimited, match="test_starts_per_client"):
        await harness.start(TEST_PHONE.e164)

    assert len(harness.store.records) == 3
    assert (await harness.start(TEST_PHONE.e164, client="bank")).test


@pytest.mark.parametrize("outcome", [Unknown("time-out"), None])
async def test_no_other_channel_is_tried_after_a_call_that_may_have_been_placed(outcome: CallOutcome | None) -> None:
    harness = AllChannelsHarness()
    harness.sender.outcome = outcome

    await harness.start()

    assert harness.placed == (1, 0, 0)


@pytest.mark.parametrize("error", [ProviderUnavailable(retry_after=5), BalanceTooLow()])
async def test_after_a_provider_failure_only_channels_of_other_providers_are_tried(
    error: ProviderError,
) -> None:
    harness = AllChannelsHarness()
    harness.sender.outcome = Refused(error)

    verification = await harness.start()

    assert harness.placed == (1, 0, 1)
    assert verification.channel is Channel.REVERSE_CALL


async def test_when_all_channels_refuse_everything_is_refunded_and_the_last_error_raised() -> None:
    harness = AllChannelsHarness()
    for place, sender in enumerate((harness.sender, harness.flash, harness.reverse)):
        sender.outcome = Refused(ProviderRejected(f"no {place}"))

    with pytest.raises(ProviderRejected, match="no 2"):
        await harness.start()

    assert harness.placed == (1, 1, 1)
    assert not harness.store.records
    assert not harness.guard.calls


async def test_a_channel_that_is_not_ready_is_skipped_before_limits_are_acquired() -> None:
    harness = AllChannelsHarness()
    harness.sender.unready = ProviderUnavailable(retry_after=9)

    assert (await harness.start()).channel is Channel.FLASH_CALL

    for sender in (harness.flash, harness.reverse):
        sender.unready = BalanceTooLow()
    with pytest.raises(ProviderUnavailable):
        await harness.start(purpose="password_reset", phone="+79031234567")
    assert len(harness.store.records) == 1


async def test_only_the_requested_channel_is_used() -> None:
    harness = AllChannelsHarness()
    harness.flash.outcome = Refused(ProviderRejected("no"))

    with pytest.raises(ProviderRejected):
        await harness.start(channels=(Channel.FLASH_CALL,))

    assert harness.placed == (0, 1, 0)


async def test_a_resend_after_an_unanswered_call_uses_another_channel() -> None:
    harness = AllChannelsHarness()
    first = await harness.start()
    harness.sender.state = CallState(CallStatus.NO_ANSWER)
    await harness.service.calls.follow(CallId(first.id, 1))
    harness.store.advance(timedelta(minutes=2))

    second = await harness.start(verification_id=first.id)

    assert (second.id, second.channel, second.calls_placed) == (first.id, Channel.FLASH_CALL, 2)


@pytest.mark.parametrize("unready", [True, False], ids=["not ready", "refuses"])
async def test_a_resend_that_becomes_a_reverse_call_leaves_the_original_verification_unchanged(unready: bool) -> None:  # noqa: FBT001
    harness, channels = AllChannelsHarness(), (Channel.VOICE, Channel.REVERSE_CALL)
    first = await harness.start(channels=channels)
    harness.store.advance(timedelta(minutes=2))
    if unready:
        harness.sender.unready = ProviderUnavailable(retry_after=9)
    else:
        harness.sender.outcome = Refused(ProviderRejected("no"))

    second = await harness.start(verification_id=first.id, channels=channels)

    assert (second.channel, second.calls_placed, second.id == first.id) == (Channel.REVERSE_CALL, 1, False)
    named = await harness.service.read(client="shop", verification_id=first.id)
    assert (named.channel, named.calls_placed, named.calls_left) == (Channel.VOICE, 1, 2)


async def test_a_reported_operator_is_stored_and_selects_the_channel_of_later_calls() -> None:
    harness = AllChannelsHarness(operator_channels={"mts": Channel.REVERSE_CALL})
    assert (await harness.start(phone="+79101234567")).channel is Channel.REVERSE_CALL

    harness.flash.outcome = Placed("ref", operator="mts")
    ported = await harness.start(phone="+79031234567", channels=(Channel.FLASH_CALL,))
    assert ported.channel is Channel.FLASH_CALL
    harness.store.advance(timedelta(minutes=2))
    assert (await harness.start(phone="+79031234567")).channel is Channel.REVERSE_CALL


async def test_a_code_chosen_by_the_provider_verifies() -> None:
    harness = AllChannelsHarness()
    harness.flash.outcome = Placed("ref", code="7391")
    verification = await harness.start(channels=(Channel.FLASH_CALL,))

    result = await harness.service.check.by_id(CheckRequest(client="shop", code="7391"), verification.id)

    assert result.status is Status.VERIFIED


async def test_a_start_fails_when_a_code_chosen_by_the_provider_cannot_be_stored() -> None:
    """Otherwise the caller would wait for a code that can never be checked."""
    harness = AllChannelsHarness()

    class StoreFails(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            harness.store.available = False
            return Placed("ref", code="7391")

    harness.senders[Channel.FLASH_CALL] = StoreFails()
    with pytest.raises(StoreUnavailable):
        await harness.start(channels=(Channel.FLASH_CALL,))


async def test_a_reverse_call_has_a_number_to_dial_and_no_code() -> None:
    harness = AllChannelsHarness(earliest_dial=timedelta())
    harness.reverse.outcome = Placed("key-1", dial=Phone("+78005550100"))
    verification = await harness.start(channels=(Channel.REVERSE_CALL,))
    name = CallId(verification.id, 1)

    assert verification.code_length is None
    assert verification.calls[-1].dial == Phone("+78005550100")
    assert harness.reverse.calls[0].code is None

    async def check() -> Status:
        return (await harness.service.check.by_id(CheckRequest(client="shop", code=None), verification.id)).status

    assert await check() is Status.PENDING
    stranger = await harness.service.calls.confirm_reverse_call(name, ref="key-1", caller=Phone("+79031234567"))
    assert stranger is Confirmation.NOT_THE_CALLER
    confirmed = await harness.service.calls.confirm_reverse_call(name, ref="key-1", caller=verification.phone)
    assert confirmed is Confirmation.CONFIRMED
    assert await check() is Status.VERIFIED
    segment = Segment.of("shop", Channel.REVERSE_CALL, verification.phone)
    assert harness.published.count(CallEnded(segment, CallStatus.COMPLETED)) == 1
    assert harness.published.count(VerificationSucceeded(segment)) == 1
    assert CodeRejected(Status.PENDING) not in harness.published


async def test_a_callback_for_an_unknown_verification_is_not_found(harness: ServiceHarness) -> None:
    name = CallId("vrf_00000000000000000000000", 1)

    confirmation = await harness.service.calls.confirm_reverse_call(name, ref="key-1", caller=Phone("+79001234567"))

    assert confirmation is Confirmation.NOT_FOUND


async def test_a_refusal_by_a_limit_is_published_as_a_domain_event() -> None:
    harness = ServiceHarness(make_policy(calls_per_day=Limit("calls_per_day", 1, DAY)))
    await harness.start()
    with pytest.raises(CallCooldown):
        await harness.start()
    with pytest.raises(CallBudgetExhausted):
        await harness.start(phone="+79031234567")
    harness.guard.blocked.add("+79051234")
    with pytest.raises((RateLimited, CallBudgetExhausted)):
        await harness.start(phone="+79051234567")

    hits = [event for event in harness.published if isinstance(event, LimitHit)][:2]
    assert [(hit.name, hit.operation) for hit in hits] == [("call_cooldown", "start"), ("calls_per_day", "start")]
    assert all(hit.retry_after >= 1 for hit in hits)
    assert sum(isinstance(event, CallAsked) for event in harness.published) == 4
