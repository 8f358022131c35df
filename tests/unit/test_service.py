"""The order of steps that keeps money and codes safe, with fakes for Redis and the provider."""

import asyncio
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from app.verification.code import CodeDigester
from app.verification.errors import (
    BalanceTooLow,
    CallBudgetExhausted,
    CallCooldown,
    NotAllowed,
    PhoneNotCallable,
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    StoreUnavailable,
    VerificationNotFound,
)
from app.verification.fixed_codes import FixedCode, FixedCodes
from app.verification.model import (
    CallOutcome,
    CallState,
    CallStatus,
    Channel,
    Lang,
    Placed,
    Refused,
    Started,
    Status,
    Unknown,
    Verification,
)
from app.verification.phone import Phone
from app.verification.policy import DAY, HOUR, Limit, Policy
from app.verification.ports import CallOrder, CallSender
from app.verification.service import Policies, StartRequest, VerificationService
from tests.fakes import FakeAccounts, FakeGuard, FakeLimits, FakeSender, FakeVerificationStore

PHONE = "8 (900) 123-45-67"
TEST_PHONE = Phone("+79000000099")


def spoken(call: CallOrder) -> str:
    assert call.code
    return call.code


class World:
    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008 - frozen
        self.store = FakeVerificationStore()
        self.sender = FakeSender()
        self.senders: dict[Channel, CallSender] = {Channel.VOICE: self.sender}
        self.accounts = FakeAccounts()
        self.guard = FakeGuard()
        self.today = date(2030, 1, 1)
        fixed = {TEST_PHONE: FixedCode("1234", until=date(2030, 1, 31))}
        self.service = VerificationService(
            store=self.store,
            limits=FakeLimits(self.store),
            guard=self.guard,
            senders=self.senders,
            accounts=self.accounts,
            digester=CodeDigester([b"k" * 32]),
            policies=Policies(policy, {"bank": replace(policy, purposes=frozenset({"login"}))}),
            fixed_codes=FixedCodes(fixed, lambda: self.today),
        )

    async def start(self, phone: str = PHONE, **fields: Any) -> Verification:  # noqa: ANN401 - those of a request
        request = StartRequest(**{"client": "shop", "phone": phone, "purpose": "login", **fields})
        return (await self.service.start(request)).verification


@pytest.fixture
def world() -> World:
    return World()


async def test_the_code_that_was_spoken_verifies(world: World) -> None:
    verification = await world.start()

    result = await world.service.check_by_id(
        client="shop", verification_id=verification.id, code=spoken(world.sender.calls[0])
    )

    assert result.status is Status.VERIFIED
    assert result.phone == Phone("+79001234567")


async def test_a_check_by_phone_reads_any_spelling(world: World) -> None:
    await world.start()

    result = await world.service.check_by_phone(
        client="shop", phone="+7 900 1234567", purpose="login", code=spoken(world.sender.calls[0])
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
            result = await world.service.check_by_phone(client="shop", phone=PHONE, purpose="login", code=spoken(order))
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
        await world.service.check_by_phone(client="shop", phone=PHONE, purpose="lottery", code="123456")
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
    result = await world.service.check_by_id(
        client="shop", verification_id=verification.id, code=spoken(world.sender.calls[0])
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
    result = await world.service.check_by_id(
        client="shop", verification_id=verification.id, code=spoken(provider.calls[0])
    )
    assert result.status is Status.VERIFIED


async def test_a_refusal_is_told_even_if_it_cannot_be_taken_back(world: World) -> None:
    class StoreGoesAway(FakeSender):
        async def place(self, order: CallOrder) -> CallOutcome:
            world.store.available = False
            return Refused(ProviderRejected("no"))

    world.senders[Channel.VOICE] = StoreGoesAway()
    with pytest.raises(ProviderRejected):
        await world.start()

    world.store.available = True
    with pytest.raises(CallCooldown):  # too strict for a minute, never too lax
        await world.start()


async def test_reading_asks_the_provider_once_an_interval(world: World) -> None:
    verification = await world.start()

    first = await world.service.read(client="shop", verification_id=verification.id)
    await world.service.read(client="shop", verification_id=verification.id)

    assert [call.state for call in first.calls] == [CallState(CallStatus.RINGING)]
    assert world.sender.lookups == 1


async def test_a_provider_that_does_not_answer_is_no_reason_not_to(world: World) -> None:
    verification = await world.start()
    world.sender.state = ProviderUnavailable(retry_after=5)

    read = await world.service.read(client="shop", verification_id=verification.id)

    assert [call.state.status for call in read.calls] == [CallStatus.INITIATED]


async def test_what_expires_during_a_look_up_is_not_found(world: World) -> None:
    verification = await world.start()

    class Slow(FakeSender):
        async def look_up(self, call_ref: str) -> CallState | None:
            world.store.advance(Policy().lifetime)
            return CallState(CallStatus.COMPLETED)

    world.senders[Channel.VOICE] = Slow()
    with pytest.raises(VerificationNotFound):
        await world.service.read(client="shop", verification_id=verification.id)


async def test_an_unreadable_balance_is_unknown_and_the_accounts_are_told(world: World) -> None:
    assert (await world.service.provider_overview()).balance_rub == Decimal("12.50")

    world.accounts.balance = ProviderUnavailable(retry_after=5)
    overview = await world.service.provider_overview()
    assert overview.balance_rub is None
    assert [account.name for account in overview.accounts] == ["Fake"]


MINUTE = timedelta(minutes=1)
ONE_CALL = {
    "calls_per_range": replace(Policy(), calls_per_range=Limit("calls_per_range", 1, HOUR)),
    "calls_per_client": replace(Policy(), calls_per_client=(Limit("calls_per_client", 1, MINUTE),)),
    "calls_per_address": replace(Policy(), calls_per_address=Limit("calls_per_address", 1, MINUTE)),
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
    world = World(replace(Policy(), calls_per_day=Limit("calls_per_day", 1, DAY)))
    await world.start("+79001234567")

    with pytest.raises(CallBudgetExhausted) as caught:
        await world.start("+79117654321", client="bank")

    assert caught.value.retry_after == DAY.total_seconds()


async def test_what_is_refused_for_the_phone_counts_against_no_other_limit() -> None:
    world = World(replace(Policy(), calls_per_day=Limit("calls_per_day", 2, DAY)))
    await world.start()
    for _ in range(5):
        with pytest.raises(CallCooldown):
            await world.start()

    await world.start("+79117654321")


async def test_a_call_that_did_not_happen_counts_against_no_limit() -> None:
    world = World(replace(Policy(), calls_per_day=Limit("calls_per_day", 1, DAY)))
    world.sender.outcome = Refused(ProviderRejected("no"))
    for _ in range(3):
        with pytest.raises(ProviderRejected):
            await world.start()

    world.sender.outcome = None
    await world.start()


async def test_all_who_ask_for_the_account_at_once_share_one_answer(world: World) -> None:
    overviews = await asyncio.gather(*[world.service.provider_overview() for _ in range(50)])
    assert world.accounts.overviews == 1
    assert len({overview.balance_rub for overview in overviews}) == 1

    await world.service.provider_overview()
    assert world.accounts.overviews == 2


async def test_a_client_may_do_only_what_its_own_policy_allows(world: World) -> None:
    await world.start(client="bank", purpose="login")
    with pytest.raises(NotAllowed):
        await world.start(client="bank", purpose="password_reset")


async def test_what_is_told_and_what_is_kept_are_the_same(world: World) -> None:
    kept: list[Started] = []

    async def keep(started: Started) -> None:
        kept.append(started)

    told = await world.service.start(StartRequest(client="shop", phone=PHONE, purpose="login"), keep=keep)

    assert kept == [told]


async def test_a_test_number_is_not_called_and_its_fixed_code_verifies(world: World) -> None:
    for _ in range(3):
        verification = await world.start(TEST_PHONE.e164)
        assert (verification.test, verification.code_length) == (True, 4)
        result = await world.service.check_by_id(client="shop", verification_id=verification.id, code="1234")
        assert (result.status, result.test) == (Status.VERIFIED, True)

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
    await world.service.check_by_id(client="shop", verification_id=verification.id, code=wrong(code))
    await world.service.check_by_id(client="shop", verification_id=verification.id, code=code)
    with pytest.raises(CallCooldown):
        await world.start()
    world.sender.outcome = Refused(ProviderRejected("no"))
    with pytest.raises(ProviderRejected):
        await world.start("+79117654321")
    await world.start(TEST_PHONE.e164)
    await world.service.aclose()

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
