"""The order of steps that keeps money and codes safe, with fakes for Redis and the provider."""

from decimal import Decimal

import pytest

from app.verification.code import CodeDigester
from app.verification.errors import (
    BalanceTooLow,
    CallCooldown,
    NotAllowed,
    PhoneNotCallable,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
    VerificationNotFound,
)
from app.verification.model import (
    CallOutcome,
    CallState,
    CallStatus,
    Channel,
    Lang,
    Placed,
    Refused,
    Status,
    Unknown,
    Verification,
)
from app.verification.phone import Phone
from app.verification.policy import Policy
from app.verification.service import VerificationService
from tests.fakes import FakeProvider, FakeVerificationStore

PHONE = "8 (900) 123-45-67"


class World:
    def __init__(self) -> None:
        self.store = FakeVerificationStore()
        self.provider = FakeProvider()
        self.service = VerificationService(
            store=self.store, provider=self.provider, digester=CodeDigester([b"k" * 32]), policy=Policy()
        )

    async def start(self, phone: str = PHONE, purpose: str = "login", lang: Lang = Lang.RU) -> Verification:
        return await self.service.start(client="shop", phone=phone, purpose=purpose, channel=Channel.VOICE, lang=lang)


@pytest.fixture
def world() -> World:
    return World()


async def test_the_code_that_was_spoken_verifies(world: World) -> None:
    verification = await world.start()

    result = await world.service.check_by_id(
        client="shop", verification_id=verification.id, code=world.provider.calls[0].pin
    )

    assert result.status is Status.VERIFIED
    assert result.phone == Phone("+79001234567")


async def test_a_check_by_phone_reads_any_spelling(world: World) -> None:
    await world.start()

    result = await world.service.check_by_phone(
        client="shop", phone="+7 900 1234567", purpose="login", code=world.provider.calls[0].pin
    )

    assert result.status is Status.VERIFIED


async def test_the_provider_is_asked_for_what_the_caller_wanted(world: World) -> None:
    await world.start(lang=Lang.EN)

    (call,) = world.provider.calls
    assert (call.phone, call.lang, call.repeat, len(call.pin)) == (Phone("+79001234567"), Lang.EN, 2, 6)


async def test_the_digest_is_stored_before_the_call_is_placed(world: World) -> None:
    """So a code that was heard always verifies: the store is asked while the provider is still dialling."""
    seen: list[Status] = []

    class Impatient(FakeProvider):
        async def initiate_call(self, phone: Phone, pin: str, lang: Lang, repeat: int) -> CallOutcome:
            result = await world.service.check_by_phone(client="shop", phone=PHONE, purpose="login", code=pin)
            seen.append(result.status)
            return Placed("ref")

    world.service._provider = Impatient()
    await world.start()

    assert seen == [Status.VERIFIED]


async def test_no_call_is_placed_without_a_store(world: World) -> None:
    world.store.available = False

    with pytest.raises(StoreUnavailable):
        await world.start()

    assert world.provider.calls == []


@pytest.mark.parametrize("phone", ["87011234567", "88001234567", "+79401234567", "nobody"])
async def test_no_call_is_placed_to_a_number_that_is_not_called(world: World, phone: str) -> None:
    with pytest.raises(PhoneNotCallable):
        await world.start(phone)

    assert world.provider.calls == []


async def test_a_purpose_that_is_not_allowed_is_refused(world: World) -> None:
    with pytest.raises(NotAllowed) as caught:
        await world.start(purpose="lottery")
    assert caught.value.field == "purpose"

    with pytest.raises(NotAllowed):
        await world.service.check_by_phone(client="shop", phone=PHONE, purpose="lottery", code="123456")
    assert world.provider.calls == []


async def test_a_placed_call_is_recorded_with_the_providers_name_for_it(world: World) -> None:
    verification = await world.start()

    call = verification.latest_call
    assert call is not None
    assert (call.ref, call.state.status) == ("call-1", CallStatus.INITIATED)


async def test_a_call_of_unknown_outcome_counts_and_its_code_verifies(world: World) -> None:
    world.provider.outcome = Unknown("timed out")

    verification = await world.start()

    assert [call.state.status for call in verification.calls] == [CallStatus.UNCONFIRMED]
    with pytest.raises(CallCooldown):
        await world.start()
    result = await world.service.check_by_id(
        client="shop", verification_id=verification.id, code=world.provider.calls[0].pin
    )
    assert result.status is Status.VERIFIED


@pytest.mark.parametrize(
    "error",
    [ProviderRejected("no"), ProviderUnavailable(retry_after=5), BalanceTooLow()],
    ids=["rejected", "unavailable", "balance"],
)
async def test_a_refused_call_gives_everything_back(world: World, error: Exception) -> None:
    assert isinstance(error, ProviderRejected | ProviderUnavailable | BalanceTooLow)
    world.provider.outcome = Refused(error)
    with pytest.raises(type(error)):
        await world.start()
    assert world.store.records == {}

    world.provider.outcome = None
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

    class StoreGoesAway(FakeProvider):
        async def initiate_call(self, phone: Phone, pin: str, lang: Lang, repeat: int) -> CallOutcome:
            world.store.available = False
            await super().initiate_call(phone, pin, lang, repeat)
            return outcome

    world.service._provider = provider = StoreGoesAway()
    verification = await world.start()
    assert [call.state.status for call in verification.calls] == [told]

    world.store.available = True
    result = await world.service.check_by_id(client="shop", verification_id=verification.id, code=provider.calls[0].pin)
    assert result.status is Status.VERIFIED


async def test_a_refusal_is_told_even_if_it_cannot_be_taken_back(world: World) -> None:
    class StoreGoesAway(FakeProvider):
        async def initiate_call(self, phone: Phone, pin: str, lang: Lang, repeat: int) -> CallOutcome:
            world.store.available = False
            return Refused(ProviderRejected("no"))

    world.service._provider = StoreGoesAway()
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
    assert world.provider.lookups == 1


async def test_a_provider_that_does_not_answer_is_no_reason_not_to(world: World) -> None:
    verification = await world.start()
    world.provider.state = ProviderUnavailable(retry_after=5)

    read = await world.service.read(client="shop", verification_id=verification.id)

    assert [call.state.status for call in read.calls] == [CallStatus.INITIATED]


async def test_what_expires_during_a_look_up_is_not_found(world: World) -> None:
    verification = await world.start()

    class Slow(FakeProvider):
        async def check_call_status(self, call_id: str) -> CallState:
            world.store.advance(Policy().lifetime)
            return CallState(CallStatus.COMPLETED)

    world.service._provider = Slow()
    with pytest.raises(VerificationNotFound):
        await world.service.read(client="shop", verification_id=verification.id)


async def test_an_unreadable_balance_is_unknown_and_the_accounts_are_told(world: World) -> None:
    assert (await world.service.provider_overview()).balance_rub == Decimal("12.50")

    world.provider.balance = ProviderUnavailable(retry_after=5)
    overview = await world.service.provider_overview()
    assert overview.balance_rub is None
    assert [account.name for account in overview.accounts] == ["Fake"]
