"""The virtual telephone network, with a fake clock."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from app.sandbox.calls import VirtualCall
from app.sandbox.network import (
    CALLS_KEPT,
    CALLS_KEPT_PER_PHONE,
    NO_BALANCE,
    CallRefused,
    CallUnknown,
    NoAccess,
    NoReply,
    VirtualNetwork,
)
from app.sandbox.numbers import MagicNumber, NetworkStatus
from app.verification.model import Lang
from app.verification.phone import parse_phone

PHONE = "+79001234567"
PIN = "123456"
NOW = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def network(clock: Clock) -> VirtualNetwork:
    return VirtualNetwork(monotonic=clock, now=lambda: NOW)


def place(network: VirtualNetwork, phone: str = PHONE, pin: str = PIN) -> VirtualCall:
    return network.place(phone=phone, pin=pin, lang=Lang.EN, repeat=3)


def timeline(network: VirtualNetwork, clock: Clock, phone: str) -> list[tuple[str, str | None]]:
    """Return the call's status and the code heard so far in each of the first seven seconds."""
    call_id = place(network, phone).call_id
    states = []
    for _ in range(7):
        call = network.status(call_id)
        states.append((call.status.value, call.heard))
        clock.seconds += 1
    return states


def test_a_call_is_queued_rings_is_answered_after_two_seconds_and_ends_after_five(
    network: VirtualNetwork, clock: Clock
) -> None:
    assert timeline(network, clock, PHONE) == [
        ("queued", None),
        ("ringing", None),
        ("answered", PIN),
        ("answered", PIN),
        ("answered", PIN),
        ("completed", PIN),
        ("completed", PIN),
    ]


def test_a_code_is_not_heard_before_the_call_is_answered(network: VirtualNetwork, clock: Clock) -> None:
    call_id = place(network).call_id
    clock.seconds += 1.99
    assert network.status(call_id).heard is None
    clock.seconds += 0.01
    assert network.status(call_id).heard == PIN


def test_the_pace_multiplies_the_duration_of_every_phase(clock: Clock) -> None:
    network = VirtualNetwork(monotonic=clock, pace=10.0)
    call_id = place(network).call_id
    clock.seconds += 19.9
    assert network.status(call_id).status is NetworkStatus.RINGING
    clock.seconds += 0.1
    assert network.status(call_id).status is NetworkStatus.ANSWERED


def test_with_a_pace_of_zero_a_call_completes_at_once(clock: Clock) -> None:
    assert place(VirtualNetwork(monotonic=clock, pace=0.0)).status is NetworkStatus.COMPLETED


def test_a_call_records_its_language_repeats_and_time(network: VirtualNetwork) -> None:
    call = place(network)
    assert (call.lang, call.repeat, call.placed_at) == (Lang.EN, 3, NOW)


def test_by_default_a_call_is_dated_in_utc() -> None:
    before = datetime.now(UTC)
    assert before <= place(VirtualNetwork()).placed_at <= datetime.now(UTC)


def test_every_call_has_a_unique_id(network: VirtualNetwork) -> None:
    assert len({place(network).call_id for _ in range(10)}) == 10


def test_an_unknown_call_id_raises_call_unknown(network: VirtualNetwork) -> None:
    with pytest.raises(CallUnknown):
        network.status("0" * 32)


def test_a_phone_lists_only_its_own_calls_oldest_first(network: VirtualNetwork) -> None:
    mine = [place(network).call_id for _ in range(3)]
    place(network, "+79007654321")
    assert [call.call_id for call in network.calls_of(PHONE)] == mine
    assert network.calls_of("+79005555555") == []


@pytest.mark.parametrize(
    ("phone", "states"),
    [
        (MagicNumber.BUSY, ["queued"] + ["busy"] * 6),
        (MagicNumber.NO_ANSWER, ["queued"] + ["ringing"] * 4 + ["no_answer"] * 2),
        (MagicNumber.FAILED, ["queued"] + ["failed"] * 6),
    ],
)
def test_a_code_is_never_heard_by_a_phone_that_does_not_answer(
    network: VirtualNetwork, clock: Clock, phone: str, states: list[str]
) -> None:
    assert timeline(network, clock, phone) == [(state, None) for state in states]


def test_a_call_with_an_unknown_status_still_delivers_its_code(network: VirtualNetwork, clock: Clock) -> None:
    assert timeline(network, clock, MagicNumber.ODD_STATUS) == [
        ("queued", None),
        *[("rerouted", None)] * 4,
        *[("completed", PIN)] * 2,
    ]


@pytest.mark.parametrize(
    ("phone", "error"),
    [
        (MagicNumber.REFUSED, CallRefused),
        (MagicNumber.NO_BALANCE, CallRefused),
        (MagicNumber.NO_ACCESS, NoAccess),
        (MagicNumber.NO_REPLY_NOT_PLACED, NoReply),
    ],
)
def test_a_call_that_is_not_placed_is_not_listed_and_costs_nothing(
    network: VirtualNetwork, phone: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        place(network, phone)
    assert network.calls_of(phone) == []
    assert network.balance == Decimal("10000.00")


def test_a_call_whose_response_is_lost_is_still_placed_heard_and_paid_for(
    network: VirtualNetwork, clock: Clock
) -> None:
    with pytest.raises(NoReply):
        place(network, MagicNumber.NO_REPLY_PLACED)
    clock.seconds += 2
    assert [call.heard for call in network.calls_of(MagicNumber.NO_REPLY_PLACED)] == [PIN]
    assert network.balance == Decimal("9997.00")


def test_a_call_costs_three_roubles_until_the_balance_cannot_pay(clock: Clock) -> None:
    network = VirtualNetwork(monotonic=clock, balance=Decimal("6.50"))
    place(network)
    assert network.balance == Decimal("3.50")
    place(network)
    with pytest.raises(CallRefused, match=NO_BALANCE):
        place(network)
    assert network.balance == Decimal("0.50")
    assert len(network.calls_of(PHONE)) == 2


def test_the_last_rouble_can_be_spent(clock: Clock) -> None:
    network = VirtualNetwork(monotonic=clock, balance=Decimal("3.00"))
    place(network)
    assert network.balance == 0


def refusal(attempt: Callable[[], object]) -> str:
    with pytest.raises(CallRefused) as caught:
        attempt()
    return str(caught.value)


def test_the_magic_number_without_balance_refuses_like_an_empty_account(network: VirtualNetwork) -> None:
    poor = VirtualNetwork(balance=Decimal(0))
    assert refusal(lambda: place(network, MagicNumber.NO_BALANCE)) == refusal(lambda: place(poor))


def test_only_the_latest_calls_of_a_phone_are_kept(network: VirtualNetwork) -> None:
    calls = [place(network).call_id for _ in range(CALLS_KEPT_PER_PHONE + 1)]
    assert [call.call_id for call in network.calls_of(PHONE)] == calls[1:]
    with pytest.raises(CallUnknown):
        network.status(calls[0])


def test_the_network_drops_its_oldest_call_beyond_its_capacity() -> None:
    network = VirtualNetwork(balance=Decimal(1_000_000), pace=3600)  # none rings before all are placed
    calls = [place(network, f"+7900{number:07}").call_id for number in range(100, CALLS_KEPT + 101)]
    with pytest.raises(CallUnknown):
        network.status(calls[0])
    assert network.calls_of("+79000000100") == []
    assert network.status(calls[1]).status is NetworkStatus.QUEUED
    assert (len(network._calls), len(network._of_phone)) == (CALLS_KEPT, CALLS_KEPT)


def test_dropping_one_call_of_a_phone_keeps_the_others() -> None:
    network = VirtualNetwork(balance=Decimal(1_000_000))
    calls = [place(network).call_id for _ in range(2)]
    for number in range(100, CALLS_KEPT + 99):
        place(network, f"+7900{number:07}")
    assert [call.call_id for call in network.calls_of(PHONE)] == calls[1:]


@pytest.mark.parametrize("number", MagicNumber)
def test_every_magic_number_is_callable_and_describes_its_effect(number: MagicNumber) -> None:
    assert parse_phone(number).e164 == number
    assert number.startswith("+790000000")
    assert number.effect.endswith(".")


def test_the_repr_of_a_call_shows_neither_code_nor_phone(network: VirtualNetwork) -> None:
    place(network)
    printed = repr(network._calls)
    assert PIN not in printed
    assert PHONE not in printed
