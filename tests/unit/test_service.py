"""The order of steps that keeps money and codes safe, with fakes for Redis and the provider."""

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
from app.verification.deferred import DeferredWrites
from app.verification.domain_events import (
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeChecked,
    DomainEvent,
    LimitHit,
    UnknownCallStatus,
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
from app.verification.ports import CallId, CallOrder, CallSender, Confirmation
from app.verification.provider_account import AccountReader
from app.verification.service import VerificationService
from app.verification.start import StartRequest
from app.verification.test_numbers import TestNumber, TestNumbers
from tests.fakes import (
    FakeAccounts,
    FakeGuard,
    FakeQueue,
    FakeRateLimiter,
    FakeSender,
    FakeTokens,
    FakeVerificationStore,
)
from tests.outcomes import expect
from tests.policies import make_policy

PHONE = "8 (900) 123-45-67"
TEST_PHONE = Phone("+79000000099")


def spoken(call: CallOrder) -> str:
    assert call.code
    return call.code


class World:
    def __init__(self, policy: Policy = make_policy()) -> None:  # noqa: B008 - frozen
        self.store = FakeVerificationStore()
        self.sender = FakeSender()
        self.senders: dict[Channel, CallSender] = {Channel.VOICE: self.sender}
        self.queue = FakeQueue()
        self.published: list[DomainEvent] = []
        self.guard = FakeGuard()
        self.today = date(2030, 1, 1)
        self.deferred = DeferredWrites()
        fixed = {TEST_PHONE: TestNumber("1234", until=date(2030, 1, 31))}
        self.service = VerificationService(
            store=self.store,
            limits=FakeRateLimiter(self.store),
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

    @property
    def kept(self) -> object:
        """All that is kept for anybody."""
        events = {name: events for name, events in self.store.counters.events.items() if events}
        return self.store.records, self.store.phones, events, self.guard.calls

    async def start(self, phone: str = PHONE, **fields: Any) -> Verification:  # noqa: ANN401 - those of a request
        request = StartRequest(**{"client": "shop", "phone": phone, "purpose": "login", **fields})
        return (await self.service.start(request)).verification


class FakeJournal:
    """Remembers what it was told; ``noted`` is what it answers to a note, if it is an error."""

    def __init__(self) -> None:
        self.begun: CallId | None = None
        self.noted: Exception | None = None
        self.kept: list[Started] = []
        self.released = 0
        self.abandoned = 0

    async def claim(self) -> CallId | None:
        return self.begun

    async def begin(self, name: CallId) -> None:
        assert not self.kept
        if self.noted:
            raise self.noted
        self.begun = name

    async def release(self) -> None:
        self.released += 1

    async def abandon(self) -> None:
        self.abandoned += 1

    async def keep(self, started: Started) -> None:
        self.kept.append(started)


@pytest.fixture
def world() -> World:
    return World()


async def test_the_code_that_was_spoken_verifies(world: World) -> None:
    verification = await world.start()

    result = await world.service.check.by_id(
        CheckRequest(client="shop", code=spoken(world.sender.calls[0])), verification.id
    )

    assert result.status is Status.VERIFIED
    assert expect(Verified, result).phone == Phone("+79001234567")


async def test_a_right_code_gives_a_token_for_the_client_that_checks_it(world: World) -> None:
    verification = await world.start()
    request = CheckRequest(client="shop", code=spoken(world.sender.calls[0]))

    result = expect(Verified, await world.service.check.by_id(request, verification.id))

    assert result.token == f"shop +79001234567 login {verification.id} False"
    assert result.token_lifetime == FakeTokens.lifetime


async def test_a_wrong_code_and_the_last_wrong_code_tell_what_is_left(world: World) -> None:
    verification = await world.start()
    request = CheckRequest(client="shop", code=wrong(spoken(world.sender.calls[0])))

    results = [await world.service.check.by_id(request, verification.id) for _ in range(5)]

    assert [expect(WrongCode, result).checks_left for result in results[:4]] == [4, 3, 2, 1]
    assert expect(Locked, results[4]).retry_after == 60


async def test_a_check_by_phone_reads_any_spelling(world: World) -> None:
    await world.start()

    result = await world.service.check.by_phone(
        CheckRequest(client="shop", code=spoken(world.sender.calls[0])), "+7 900 1234567", "login"
    )

    assert result.status is Status.VERIFIED


async def test_the_provider_is_asked_for_what_the_caller_wanted(world: World) -> None:
    await world.start(lang=Lang.EN)

    (call,) = world.sender.calls
    assert (call.phone, call.lang, call.repeat, len(spoken(call))) == (Phone("+79001234567"), Lang.EN, 2, 6)


async def test_the_digest_is_stored_before_the_call_is_placed(world: World) -> None:
    """So a code that was heard always verifies: the store is asked while the provider is still dialling."""
    seen: list[Status] = []

    class Impatient(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            result = await world.service.check.by_phone(CheckRequest(client="shop", code=spoken(order)), PHONE, "login")
            seen.append(result.status)
            return Placed("ref")

    world.senders[Channel.VOICE] = Impatient()
    await world.start()

    assert seen == [Status.VERIFIED]


async def test_no_call_is_placed_without_a_store(world: World) -> None:
    world.store.available = False

    with pytest.raises(StoreUnavailable):
        await world.start()

    assert world.sender.calls == []


@pytest.mark.parametrize("phone", ["87011234567", "88001234567", "+79401234567", "nobody"])
async def test_no_call_is_placed_to_a_number_that_is_not_called(world: World, phone: str) -> None:
    with pytest.raises(PhoneNotCallable):
        await world.start(phone)

    assert world.sender.calls == []


async def test_a_purpose_that_is_not_allowed_is_refused(world: World) -> None:
    with pytest.raises(NotAllowed) as caught:
        await world.start(purpose="lottery")
    assert caught.value.field == "purpose"

    with pytest.raises(NotAllowed):
        await world.service.check.by_phone(CheckRequest(client="shop", code="123456"), PHONE, "lottery")
    assert world.sender.calls == []


async def test_a_placed_call_is_recorded_with_the_providers_name_for_it(world: World) -> None:
    verification = await world.start()

    call = verification.latest_call
    assert call is not None
    assert (call.ref, call.state.status) == ("call-1", CallStatus.INITIATED)


async def test_a_call_of_unknown_outcome_counts_and_its_code_verifies(world: World) -> None:
    world.sender.outcome = Unknown("timed out")

    verification = await world.start()

    assert [call.state.status for call in verification.calls] == [CallStatus.UNCONFIRMED]
    with pytest.raises(CallCooldown):
        await world.start()
    result = await world.service.check.by_id(
        CheckRequest(client="shop", code=spoken(world.sender.calls[0])), verification.id
    )
    assert result.status is Status.VERIFIED


@pytest.mark.parametrize(
    "error",
    [ProviderRejected("no"), ProviderUnavailable(retry_after=5), BalanceTooLow()],
    ids=["rejected", "unavailable", "balance"],
)
async def test_a_refused_call_gives_everything_back(world: World, error: Exception) -> None:
    assert isinstance(error, ProviderRejected | ProviderUnavailable | BalanceTooLow)
    world.sender.outcome = Refused(error)
    with pytest.raises(type(error)):
        await world.start()
    assert world.store.records == {}

    world.sender.outcome = None
    verification = await world.start()
    assert (verification.calls_placed, verification.resend_in) == (1, 60)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(Placed("ref"), CallStatus.INITIATED), (Unknown("timed out"), CallStatus.UNCONFIRMED)],
)
async def test_a_call_is_told_even_if_it_cannot_be_recorded(
    world: World, outcome: CallOutcome, told: CallStatus
) -> None:
    """It is under way and paid for, and its code verifies once the store is back."""

    class StoreGoesAway(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            world.store.available = False
            await super().place(order)
            return outcome

    world.senders[Channel.VOICE] = provider = StoreGoesAway()
    verification = await world.start()
    assert [call.state.status for call in verification.calls] == [told]

    world.store.available = True
    result = await world.service.check.by_id(
        CheckRequest(client="shop", code=spoken(provider.calls[0])), verification.id
    )
    assert result.status is Status.VERIFIED


async def test_a_call_that_could_not_be_recorded_is_recorded_once_the_store_answers_again(world: World) -> None:
    """Else the client's webhook is never told of the verification, and nobody follows the call."""

    class StoreGoesAway(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            world.store.available = False
            return await super().place(order)

    world.senders[Channel.VOICE] = StoreGoesAway()
    verification = await world.start()
    world.store.available = True
    await world.deferred.aclose()

    (call,) = (await world.service.read(client="shop", verification_id=verification.id)).calls
    assert call.ref == "call-1"
    assert [name.verification_id for name in world.queue.scheduled] == [verification.id]


async def test_a_refusal_is_told_even_if_it_cannot_be_taken_back(world: World) -> None:
    class StoreGoesAway(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            world.store.available = False
            return Refused(ProviderRejected("no"))

    world.senders[Channel.VOICE] = StoreGoesAway()
    with pytest.raises(ProviderRejected):
        await world.start()

    world.store.available = True
    with pytest.raises(CallCooldown):  # too strict for a moment, never too lax
        await world.start()
    await world.deferred.aclose()
    world.senders[Channel.VOICE] = world.sender
    assert (await world.start()).resend_in == 60


async def test_reading_asks_nobody(world: World) -> None:
    verification = await world.start()

    read = await world.service.read(client="shop", verification_id=verification.id)

    assert [call.state for call in read.calls] == [CallState(CallStatus.INITIATED)]
    assert world.sender.lookups == 0


async def test_a_call_that_its_server_did_not_live_to_record_is_unconfirmed(world: World) -> None:
    """Whether it died before or after the call was placed, nobody knows; the code verifies if it was heard."""
    world.store.available = True

    class Dies(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            await super().place(order)
            raise asyncio.CancelledError

    world.senders[Channel.VOICE] = sender = Dies()
    with pytest.raises(asyncio.CancelledError):
        await world.start()
    (name,) = world.store.records
    assert await call_status(world, name) is CallStatus.INITIATED
    world.store.advance(make_policy().call_timeout + timedelta(seconds=1))

    assert await call_status(world, name) is CallStatus.UNCONFIRMED
    result = await world.service.check.by_id(CheckRequest(client="shop", code=spoken(sender.calls[0])), name)
    assert result.status is Status.VERIFIED


async def call_status(world: World, verification_id: str) -> CallStatus:
    read = await world.service.read(client="shop", verification_id=verification_id)
    return read.calls[-1].state.status


async def test_a_placed_call_is_followed_to_its_end(world: World) -> None:
    verification = await world.start()
    (name,) = world.queue.scheduled

    assert name == CallId(verification.id, 1)
    assert not await world.service.calls.follow(name)
    assert await call_status(world, verification.id) is CallStatus.RINGING
    world.sender.state = CallState(CallStatus.COMPLETED)
    assert await world.service.calls.follow(name)
    assert await world.service.calls.follow(name)
    assert await call_status(world, verification.id) is CallStatus.COMPLETED
    assert world.published.count(CallEnded(Channel.VOICE, CallStatus.COMPLETED)) == 1


async def test_what_cannot_be_looked_up_now_is_told(world: World) -> None:
    verification = await world.start()
    world.sender.state = ProviderUnavailable(retry_after=5)

    with pytest.raises(ProviderUnavailable):
        await world.service.calls.follow(CallId(verification.id, 1))


async def test_a_word_that_nobody_knows_is_counted_and_the_call_is_followed_on(world: World) -> None:
    verification = await world.start()
    world.sender.state = CallState(CallStatus.INITIATED, "rerouted")

    assert not await world.service.calls.follow(CallId(verification.id, 1))

    assert UnknownCallStatus(Channel.VOICE) in world.published


async def test_what_is_gone_needs_no_following(world: World) -> None:
    verification = await world.start()
    assert await world.service.calls.follow(CallId(verification.id, 2))
    world.store.advance(make_policy().lifetime)

    assert await world.service.calls.follow(CallId(verification.id, 1))


async def test_what_expires_during_a_look_up_needs_no_following(world: World) -> None:
    verification = await world.start()

    class Slow(FakeSender):
        async def fetch_status(self, call_ref: str) -> CallState | None:
            world.store.advance(make_policy().lifetime)
            return CallState(CallStatus.RINGING)

    world.senders[Channel.VOICE] = Slow()
    assert await world.service.calls.follow(CallId(verification.id, 1))


async def test_an_unclear_call_that_was_never_placed_is_given_back_once(world: World) -> None:
    world.sender.outcome = Unknown("no answer", call_ref="ours")
    verification = await world.start()
    name = CallId(verification.id, 1)
    assert list(world.queue.scheduled) == [name]
    world.sender.state = None

    assert await world.service.calls.follow(name)
    assert await world.service.calls.follow(name)

    assert not world.store.records
    assert world.guard.calls == []
    world.sender.outcome = None
    await world.start()  # no cooldown is left


async def test_a_call_that_was_placed_is_not_given_back_by_a_provider_that_does_not_know_it(world: World) -> None:
    """As after ``RELAY_CHANNELS`` has moved a channel to another provider while a call was under way."""
    verification = await world.start()
    world.sender.state = None

    assert await world.service.calls.follow(CallId(verification.id, 1))

    code = spoken(world.sender.calls[0])
    result = await world.service.check.by_id(CheckRequest(client="shop", code=code), verification.id)
    assert result.status is Status.VERIFIED


async def test_an_unclear_call_that_was_placed_is_confirmed(world: World) -> None:
    world.sender.outcome = Unknown("no answer", call_ref="ours")
    verification = await world.start()
    assert verification.calls[-1].state.status is CallStatus.UNCONFIRMED

    await world.service.calls.follow(CallId(verification.id, 1))

    assert await call_status(world, verification.id) is CallStatus.RINGING


async def test_an_unreadable_balance_is_unknown_and_the_accounts_are_told() -> None:
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
async def test_a_call_beyond_a_limit_is_not_placed_and_leaves_nothing(limit: str) -> None:
    world = World(ONE_CALL[limit])
    await world.start("+79001234567", address="192.0.2.1")

    with pytest.raises(RateLimited) as caught:
        await world.start("+79001234568", address="192.0.2.1")

    assert caught.value.limit == limit
    assert len(world.sender.calls) == 1
    assert len(world.store.records) == 1
    world.store.advance(HOUR)
    await world.start("+79001234568", address="192.0.2.1")


async def test_the_budget_of_a_day_is_everybodys() -> None:
    world = World(make_policy(calls_per_day=Limit("calls_per_day", 1, DAY)))
    await world.start("+79001234567")

    with pytest.raises(CallBudgetExhausted) as caught:
        await world.start("+79117654321", client="bank")

    assert caught.value.retry_after == DAY.total_seconds()


async def test_what_is_refused_for_the_phone_counts_against_no_other_limit() -> None:
    world = World(make_policy(calls_per_day=Limit("calls_per_day", 2, DAY)))
    await world.start()
    for _ in range(5):
        with pytest.raises(CallCooldown):
            await world.start()

    await world.start("+79117654321")


async def test_a_call_that_did_not_happen_counts_against_no_limit() -> None:
    world = World(make_policy(calls_per_day=Limit("calls_per_day", 1, DAY)))
    world.sender.outcome = Refused(ProviderRejected("no"))
    for _ in range(3):
        with pytest.raises(ProviderRejected):
            await world.start()

    world.sender.outcome = None
    await world.start()


async def test_all_who_ask_for_the_account_at_once_share_one_answer() -> None:
    accounts = FakeAccounts()
    reader = AccountReader(accounts)
    overviews = await asyncio.gather(*[reader.read() for _ in range(50)])
    assert accounts.overviews == 1
    assert len({overview.balance_rub for overview in overviews}) == 1

    await reader.read()
    assert accounts.overviews == 2


async def test_a_client_may_do_only_what_its_own_policy_allows(world: World) -> None:
    await world.start(client="bank", purpose="login")
    with pytest.raises(NotAllowed):
        await world.start(client="bank", purpose="password_reset")


async def test_what_is_told_and_what_is_kept_are_the_same(world: World) -> None:
    journal = FakeJournal()

    told = await world.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), journal=journal)

    assert journal.kept == [told]


async def test_a_start_that_died_is_told_of_once_and_as_it_is(world: World) -> None:
    journal, request = FakeJournal(), StartRequest(client="shop", phone=PHONE, purpose="login")
    told = await world.service.start(request, journal=journal)

    resumed = await world.service.start(request, journal=journal)

    assert resumed.verification.id == told.verification.id
    assert len(world.sender.calls) == 1
    with pytest.raises(CallCooldown):  # another client's call is none that it had begun
        await world.service.start(replace(request, client="bank"), journal=journal)


async def test_a_test_number_is_not_called_and_its_fixed_code_verifies(world: World) -> None:
    for _ in range(3):
        verification = await world.start(TEST_PHONE.e164)
        assert (verification.test, verification.code_length) == (True, 4)
        result = await world.service.check.by_id(CheckRequest(client="shop", code="1234"), verification.id)
        assert expect(Verified, result).test

    assert world.sender.calls == []


async def test_after_its_last_day_a_test_number_is_called_no_more_than_before(world: World) -> None:
    world.today = date(2030, 1, 31)
    await world.start(TEST_PHONE.e164)

    world.today = date(2030, 2, 1)
    with pytest.raises(PhoneNotCallable):
        await world.start(TEST_PHONE.e164)
    assert world.sender.calls == []


async def test_the_guard_hears_of_calls_and_successes_and_of_nothing_that_did_not_happen(world: World) -> None:
    verification = await world.start()
    code = spoken(world.sender.calls[0])
    await world.service.check.by_id(CheckRequest(client="shop", code=wrong(code)), verification.id)
    await world.service.check.by_id(CheckRequest(client="shop", code=code), verification.id)
    with pytest.raises(CallCooldown):
        await world.start()
    world.sender.outcome = Refused(ProviderRejected("no"))
    with pytest.raises(ProviderRejected):
        await world.start("+79117654321")
    await world.start(TEST_PHONE.e164)
    await world.deferred.aclose()

    assert world.guard.calls == ["+79001234567"]
    assert world.guard.successes == ["+79001234567"]


async def test_what_the_guard_blocks_is_not_called_and_takes_nothing(world: World) -> None:
    world.guard.blocked = {"+79001234567"}
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            await world.start()
        assert caught.value.limit == "fraud_guard"
    assert (world.sender.calls, world.store.records) == ([], {})

    world.guard.blocked = set()
    assert (await world.start()).resend_in == 60


def wrong(code: str) -> str:
    return code[:-1] + str((int(code[-1]) + 1) % 10)


class Choice(World):
    """A world with all channels, the voice and the flash call of one provider, the reverse call of another."""

    def __init__(self, **policy: Any) -> None:  # noqa: ANN401 - fields of a policy
        super().__init__(make_policy(channels=tuple(Channel), **policy))
        self.flash, self.reverse = FakeSender(), FakeSender("other")
        self.senders |= {Channel.FLASH_CALL: self.flash, Channel.REVERSE_CALL: self.reverse}

    @property
    def placed(self) -> tuple[int, int, int]:
        return len(self.sender.calls), len(self.flash.calls), len(self.reverse.calls)


async def test_the_next_channel_is_tried_when_one_refuses() -> None:
    world = Choice()
    world.sender.outcome = Refused(ProviderRejected("not to this number"))

    verification = await world.start()

    assert verification.channel is Channel.FLASH_CALL
    assert (verification.code_length, verification.calls_placed, verification.checks_left) == (4, 1, 3)
    assert world.placed == (1, 1, 0)
    refused, spoken_last = spoken(world.sender.calls[0]), spoken(world.flash.calls[0])
    with pytest.raises(CodeTooShortOrLong):
        await world.service.check.by_id(CheckRequest(client="shop", code=refused), verification.id)
    right = await world.service.check.by_id(CheckRequest(client="shop", code=spoken_last), verification.id)
    assert right.status is Status.VERIFIED
    assert world.published[:2] == [
        CallRefused(Channel.VOICE, world.sender.outcome.error),
        CallPlaced(Channel.FLASH_CALL, CallStatus.INITIATED),
    ]


async def test_whoever_starts_meanwhile_is_not_told_the_id_of_the_reverse_call_that_it_becomes() -> None:
    world = Choice()
    told: list[str | None] = []

    class RefusesSlowly(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            with pytest.raises(CallCooldown) as refused:
                await world.start()
            told.append(refused.value.verification_id)
            return Refused(ProviderRejected("not to this number"))

    world.senders[Channel.VOICE] = RefusesSlowly()
    verification = await world.start(channels=(Channel.VOICE, Channel.REVERSE_CALL))

    assert verification.channel is Channel.REVERSE_CALL
    assert told
    assert verification.id not in told


async def test_the_call_that_is_noted_is_the_one_that_is_placed() -> None:
    world = Choice()
    world.sender.outcome = Refused(ProviderRejected("not to this number"))
    journal = FakeJournal()

    request = StartRequest(client="shop", phone=PHONE, purpose="login")

    started = await world.service.start(request, journal=journal)

    assert started.verification.channel is Channel.FLASH_CALL
    assert journal.begun == CallId(started.verification.id, 1)
    assert (journal.kept, journal.released) == ([started], 0)


@pytest.mark.parametrize("error", [StoreUnavailable(), IdempotencyInProgress(retry_after=1)])
async def test_no_call_is_placed_that_could_not_be_noted(world: World, error: Exception) -> None:
    journal = FakeJournal()
    journal.noted = error

    with pytest.raises(type(error)):
        await world.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), journal=journal)

    await world.deferred.aclose()
    assert (world.sender.calls, world.store.records, world.guard.calls) == ([], {}, [])
    assert journal.released


async def test_a_start_that_is_broken_off_while_the_provider_is_asked_is_not_released(world: World) -> None:
    """The call may have been placed: a repetition is told of it, and places no other."""
    asked = asyncio.Event()

    class Slow(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            asked.set()
            await asyncio.sleep(60)
            raise AssertionError(order)

    world.senders[Channel.VOICE] = Slow()
    journal, request = FakeJournal(), StartRequest(client="shop", phone=PHONE, purpose="login")
    task = asyncio.create_task(world.service.start(request, journal=journal))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await asyncio.sleep(0)
    assert (journal.released, journal.abandoned) == (0, 1)
    resumed = await world.service.start(request, journal=journal)
    assert [call.state.status for call in resumed.verification.calls] == [CallStatus.UNCONFIRMED]
    assert world.sender.calls == []
    assert journal.kept == [resumed]


async def test_a_start_that_died_before_anything_was_stored_is_made_anew(world: World) -> None:
    journal = FakeJournal()
    journal.begun = CallId("vrf_00000000000000000000009", 1)

    started = await world.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), journal=journal)

    assert len(world.sender.calls) == 1
    assert journal.begun == CallId(started.verification.id, 1)


@pytest.mark.parametrize("refusal", ["address", "guard", "cooldown", "balance"])
async def test_a_start_that_is_refused_changes_nothing_for_anybody_else(refusal: str) -> None:
    world = World(make_policy(calls_per_address=Limit("calls_per_address", 1, HOUR)))
    await world.start("+79031234567", address="192.0.2.66")
    match refusal:
        case "guard":
            world.guard.blocked.add("+79001234567")
        case "cooldown":
            await world.start()
        case "balance":
            world.sender.unready = BalanceTooLow()
    before = deepcopy(world.kept)
    journal = FakeJournal()

    address = "192.0.2.66" if refusal == "address" else "192.0.2.1"
    request = StartRequest(client="shop", phone=PHONE, purpose="login", address=address)
    for _ in range(3):
        with pytest.raises((RateLimited, CallCooldown, BalanceTooLow)):
            await world.service.start(request, journal=journal)

    assert world.kept == before
    assert (journal.begun, journal.released) == (None, 3)


async def test_a_right_check_repeated_is_told_once_to_whoever_counts(world: World) -> None:
    verification = await world.start()
    code = spoken(world.sender.calls[0])

    results = [
        await world.service.check.by_id(CheckRequest(client="shop", code=code, retry_digest="d1"), verification.id)
        for _ in range(3)
    ]

    await world.deferred.aclose()
    assert {result.status for result in results} == {Status.VERIFIED}
    assert world.published.count(CodeChecked(Status.VERIFIED)) == 1
    assert len(world.guard.successes) == 1


async def test_starts_of_test_numbers_are_limited_for_each_client() -> None:
    world = World(make_policy(test_starts_per_client=Limit("test_starts_per_client", 3, HOUR)))
    for _ in range(3):
        await world.start(TEST_PHONE.e164)

    with pytest.raises(RateLimited, match="test_starts_per_client"):
        await world.start(TEST_PHONE.e164)

    assert len(world.store.records) == 3
    assert (await world.start(TEST_PHONE.e164, client="bank")).test


@pytest.mark.parametrize("outcome", [Unknown("time-out"), None])
async def test_a_call_that_may_have_been_placed_is_never_followed_by_another(outcome: CallOutcome | None) -> None:
    world = Choice()
    world.sender.outcome = outcome

    await world.start()

    assert world.placed == (1, 0, 0)


@pytest.mark.parametrize("error", [ProviderUnavailable(retry_after=5), BalanceTooLow()])
async def test_a_provider_that_fails_is_not_tried_by_another_channel_but_another_provider_is(
    error: ProviderError,
) -> None:
    world = Choice()
    world.sender.outcome = Refused(error)

    verification = await world.start()

    assert world.placed == (1, 0, 1)
    assert verification.channel is Channel.REVERSE_CALL


async def test_when_all_refuse_nothing_is_left_and_the_last_reason_is_told() -> None:
    world = Choice()
    for place, sender in enumerate((world.sender, world.flash, world.reverse)):
        sender.outcome = Refused(ProviderRejected(f"no {place}"))

    with pytest.raises(ProviderRejected, match="no 2"):
        await world.start()

    assert world.placed == (1, 1, 1)
    assert not world.store.records
    assert not world.guard.calls


async def test_a_channel_that_is_not_ready_is_left_out_before_anything_is_taken() -> None:
    world = Choice()
    world.sender.unready = ProviderUnavailable(retry_after=9)

    assert (await world.start()).channel is Channel.FLASH_CALL

    for sender in (world.flash, world.reverse):
        sender.unready = BalanceTooLow()
    with pytest.raises(ProviderUnavailable):
        await world.start(purpose="password_reset", phone="+79031234567")
    assert len(world.store.records) == 1


async def test_the_channel_that_is_asked_for_is_the_only_one() -> None:
    world = Choice()
    world.flash.outcome = Refused(ProviderRejected("no"))

    with pytest.raises(ProviderRejected):
        await world.start(channels=(Channel.FLASH_CALL,))

    assert world.placed == (0, 1, 0)


async def test_a_resend_goes_by_another_channel_if_nobody_answered() -> None:
    world = Choice()
    first = await world.start()
    world.sender.state = CallState(CallStatus.NO_ANSWER)
    await world.service.calls.follow(CallId(first.id, 1))
    world.store.advance(timedelta(minutes=2))

    second = await world.start(verification_id=first.id)

    assert (second.id, second.channel, second.calls_placed) == (first.id, Channel.FLASH_CALL, 2)


@pytest.mark.parametrize("unready", [True, False], ids=["not ready", "refuses"])
async def test_a_resend_that_becomes_a_reverse_call_leaves_the_verification_that_it_names(unready: bool) -> None:  # noqa: FBT001
    world, channels = Choice(), (Channel.VOICE, Channel.REVERSE_CALL)
    first = await world.start(channels=channels)
    world.store.advance(timedelta(minutes=2))
    if unready:
        world.sender.unready = ProviderUnavailable(retry_after=9)
    else:
        world.sender.outcome = Refused(ProviderRejected("no"))

    second = await world.start(verification_id=first.id, channels=channels)

    assert (second.channel, second.calls_placed, second.id == first.id) == (Channel.REVERSE_CALL, 1, False)
    named = await world.service.read(client="shop", verification_id=first.id)
    assert (named.channel, named.calls_placed, named.calls_left) == (Channel.VOICE, 1, 2)


async def test_a_rule_for_an_operator_decides_and_the_operator_is_remembered() -> None:
    world = Choice(operator_channels={"mts": Channel.REVERSE_CALL})
    assert (await world.start(phone="+79101234567")).channel is Channel.REVERSE_CALL

    world.flash.outcome = Placed("ref", operator="mts")
    ported = await world.start(phone="+79031234567", channels=(Channel.FLASH_CALL,))
    assert ported.channel is Channel.FLASH_CALL
    world.store.advance(timedelta(minutes=2))
    assert (await world.start(phone="+79031234567")).channel is Channel.REVERSE_CALL


async def test_a_code_that_the_provider_chose_is_the_one_that_counts() -> None:
    world = Choice()
    world.flash.outcome = Placed("ref", code="7391")
    verification = await world.start(channels=(Channel.FLASH_CALL,))

    result = await world.service.check.by_id(CheckRequest(client="shop", code="7391"), verification.id)

    assert result.status is Status.VERIFIED


async def test_a_code_that_the_provider_chose_and_nobody_could_store_is_told_as_a_failure() -> None:
    """The caller must not wait for a code that nobody can check."""
    world = Choice()

    class StoreGoesAway(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            world.store.available = False
            return Placed("ref", code="7391")

    world.senders[Channel.FLASH_CALL] = StoreGoesAway()
    with pytest.raises(StoreUnavailable):
        await world.start(channels=(Channel.FLASH_CALL,))


async def test_a_reverse_call_tells_the_number_to_dial_and_has_no_code() -> None:
    world = Choice(earliest_dial=timedelta())
    world.reverse.outcome = Placed("key-1", dial=Phone("+78005550100"))
    verification = await world.start(channels=(Channel.REVERSE_CALL,))
    name = CallId(verification.id, 1)

    assert verification.code_length is None
    assert verification.calls[-1].dial == Phone("+78005550100")
    assert world.reverse.calls[0].code is None

    async def check() -> Status:
        return (await world.service.check.by_id(CheckRequest(client="shop", code=None), verification.id)).status

    assert await check() is Status.PENDING
    stranger = await world.service.calls.confirm_reverse_call(name, ref="key-1", caller=Phone("+79031234567"))
    assert stranger is Confirmation.NOT_THE_CALLER
    confirmed = await world.service.calls.confirm_reverse_call(name, ref="key-1", caller=verification.phone)
    assert confirmed is Confirmation.CONFIRMED
    assert await check() is Status.VERIFIED
    assert world.published.count(CallEnded(Channel.REVERSE_CALL, CallStatus.COMPLETED)) == 1
    assert CodeChecked(Status.PENDING) not in world.published


async def test_a_hook_of_a_verification_that_never_was_finds_nothing(world: World) -> None:
    name = CallId("vrf_00000000000000000000000", 1)

    confirmation = await world.service.calls.confirm_reverse_call(name, ref="key-1", caller=Phone("+79001234567"))

    assert confirmation is Confirmation.NOT_FOUND


async def test_what_limits_refuse_is_told() -> None:
    world = World(make_policy(calls_per_day=Limit("calls_per_day", 1, DAY)))
    await world.start()
    with pytest.raises(CallCooldown):
        await world.start()
    with pytest.raises(CallBudgetExhausted):
        await world.start(phone="+79031234567")
    world.guard.blocked.add("+79051234567")
    with pytest.raises((RateLimited, CallBudgetExhausted)):
        await world.start(phone="+79051234567")

    assert world.published[2:4] == [LimitHit("call_cooldown"), LimitHit("calls_per_day")]
