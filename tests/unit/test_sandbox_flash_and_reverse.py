"""Flash and reverse calls in the virtual telephone network, with a fake clock."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import pytest

from app.sandbox.network import CallRefused, NoAccess, NoCallWaiting, NoReply, VirtualNetwork, WrongNumber
from app.sandbox.numbers import DIAL_NUMBERS, MagicNumber
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.provider_callbacks import ProviderCallback
from app.verification.channels import Channel
from app.verification.errors import PhoneNotCallable
from app.verification.model import Lang
from app.verification.operators import operator_of
from app.verification.phone import Phone, parse_phone

PHONE = "+79001234567"
OF_MTS = "+79101234567"
PIN = "0123"
HOOK_URL = "http://127.0.0.1:9/hooks/made-up"


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
    return VirtualNetwork(monotonic=clock)


def flash(network: VirtualNetwork, phone: str = PHONE, pin: str | None = PIN) -> str:
    return network.place_flash_call(phone=phone, pin=pin).call_id


def reverse(network: VirtualNetwork, phone: str = PHONE) -> str:
    dial = network.place_reverse_call(phone=phone, callback_url=HOOK_URL).dial
    assert dial
    return dial


def timeline(network: VirtualNetwork, clock: Clock, phone: str) -> list[tuple[str, str | None]]:
    call_id = flash(network, phone)
    states = []
    for _ in range(6):
        call = network.status(call_id)
        states.append((call.status.value, call.heard))
        clock.seconds += 1
    return states


# --- flash calls ----------------------------------------------------------------------------------------------------


def test_the_code_of_a_flash_call_is_visible_once_it_rings(network: VirtualNetwork, clock: Clock) -> None:
    assert timeline(network, clock, PHONE) == [("queued", None), ("ringing", PIN), *[("completed", PIN)] * 4]


@pytest.mark.parametrize(
    ("phone", "states"),
    [
        (OF_MTS, [("queued", None)] * 5 + [("no_answer", None)]),
        ("+79891234567", [("queued", None)] * 5 + [("no_answer", None)]),
        (MagicNumber.NO_ANSWER, [("queued", None)] * 5 + [("no_answer", None)]),
        (MagicNumber.BUSY, [("queued", None)] + [("busy", None)] * 5),
        (MagicNumber.FAILED, [("queued", None)] + [("failed", None)] * 5),
        (MagicNumber.ODD_STATUS, [("queued", None)] + [("rerouted", None)] * 4 + [("completed", PIN)]),
    ],
)
def test_a_flash_call_that_does_not_arrive_shows_no_code(
    network: VirtualNetwork, clock: Clock, phone: str, states: list[tuple[str, str | None]]
) -> None:
    assert timeline(network, clock, phone) == states


def test_a_voice_call_reaches_subscribers_of_mts(network: VirtualNetwork, clock: Clock) -> None:
    network.place(phone=OF_MTS, pin="123456", lang=Lang.RU, repeat=2)
    clock.seconds += 2
    assert [call.heard for call in network.calls_of(OF_MTS)] == ["123456"]


def test_the_calling_number_is_unassigned_and_ends_with_the_code(network: VirtualNetwork, clock: Clock) -> None:
    call_id = flash(network)
    assert network.status(call_id).caller is None
    clock.seconds += 1
    assert network.status(call_id).caller == f"+7495000{PIN}"


def test_a_code_is_generated_if_none_was_requested(network: VirtualNetwork, clock: Clock) -> None:
    ids = [flash(network, pin=None) for _ in range(10)]
    clock.seconds += 1
    pins = [network.status(call_id).heard or "" for call_id in ids]
    assert len(set(pins)) > 1
    assert {(len(pin), pin.isdigit()) for pin in pins} == {(4, True)}


def test_a_network_that_ignores_the_requested_code_shows_another(network: VirtualNetwork, clock: Clock) -> None:
    for asked in (PIN, "9999", None):
        placed = network.place_flash_call(phone=MagicNumber.OTHER_PIN, pin=asked)
        clock.seconds += 1
        assert placed.pin is not None
        assert placed.pin != asked
        assert network.status(placed.call_id).heard == placed.pin


@pytest.mark.parametrize(
    ("phone", "operator"),
    [
        ("+79100000000", "mts"),
        ("+79199999999", "mts"),
        ("+79800000000", "mts"),
        ("+79899999999", "mts"),
        ("+79031234567", "beeline"),
        ("+79261234567", "megafon"),
        ("+70001234567", None),
    ],
)
def test_the_operator_is_found_by_the_numbering_plan(phone: str, operator: str | None) -> None:
    assert operator_of(Phone(phone)) == operator


@pytest.mark.parametrize("phone", ["+79091234567", "+79201234567", "+79791234567", "+79901234567"])
def test_neighbouring_ranges_do_not_belong_to_mts(phone: str) -> None:
    assert operator_of(Phone(phone)) != "mts"


# --- reverse calls --------------------------------------------------------------------------------------------------


def test_a_reverse_call_waits_for_five_minutes(network: VirtualNetwork, clock: Clock) -> None:
    dial = reverse(network)
    assert dial in DIAL_NUMBERS
    clock.seconds += 299.9
    assert [(call.status, call.dial) for call in network.calls_of(PHONE)] == [("queued", dial)]
    clock.seconds += 0.1
    assert [(call.status, call.dial) for call in network.calls_of(PHONE)] == [("no_answer", None)]
    with pytest.raises(NoCallWaiting):
        network.dial(phone=PHONE, number=dial)


@pytest.mark.parametrize("spelling", ["8{}", "+7{}", "7{}", "8 ({}"])
def test_a_number_is_dialled_in_any_spelling(network: VirtualNetwork, spelling: str) -> None:
    dial = reverse(network)
    call = network.dial(phone=PHONE, number=spelling.format(dial[1:]))
    assert (call.status, call.dial, call.heard) == ("completed", None, None)


def test_a_reverse_call_is_completed_once_by_its_own_phone_dialling_its_own_number(network: VirtualNetwork) -> None:
    dial = reverse(network)
    for phone, number, error in (
        ("+79007654321", dial, NoCallWaiting),
        (PHONE, "88005559999", WrongNumber),
        (PHONE, "+", WrongNumber),
    ):
        with pytest.raises(error):
            network.dial(phone=phone, number=number)
    network.dial(phone=PHONE, number=dial)
    with pytest.raises(NoCallWaiting):
        network.dial(phone=PHONE, number=dial)


def test_of_two_waiting_calls_the_one_with_the_dialled_number_completes(network: VirtualNetwork) -> None:
    first, second = reverse(network), reverse(network)
    assert first != second
    network.dial(phone=PHONE, number=first)
    assert [call.dial for call in network.calls_of(PHONE)] == [None, second]


@pytest.mark.parametrize(
    ("phone", "announced", "confirmed"),
    [
        (PHONE, 1, ["89001234567"]),
        (MagicNumber.CALLBACK_TWICE, 2, ["89000000012"] * 2),
        (MagicNumber.CALLBACK_OF_ANOTHER, 1, ["89000000014"]),
    ],
)
def test_callbacks_announce_the_number_to_dial_and_then_confirm_the_caller(
    network: VirtualNetwork, phone: str, announced: int, confirmed: list[str]
) -> None:
    callbacks: list[ProviderCallback] = []
    network.send_callback = callbacks.append
    dial = reverse(network, phone)
    assert [callback.body["phone"] for callback in callbacks] == [dial] * announced
    call = network.dial(phone=phone, number=dial)
    assert [callback.body["phone"] for callback in callbacks[announced:]] == confirmed
    assert {(callback.url, callback.body["key"]) for callback in callbacks} == {(HOOK_URL, call.call_id)}


def test_callbacks_alternate_between_json_and_form_except_for_a_magic_number(network: VirtualNetwork) -> None:
    callbacks: list[ProviderCallback] = []
    network.send_callback = callbacks.append
    for phone in (PHONE, PHONE, MagicNumber.CALLBACK_AS_FORM, MagicNumber.CALLBACK_AS_FORM):
        network.dial(phone=phone, number=reverse(network, phone))
    assert [callback.as_form for callback in callbacks] == [False, False, True, True, True, True, True, True]


async def test_callbacks_are_dropped_once_the_api_has_stopped(
    network: VirtualNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_sandbox_app(network, user_id="0", access_token="calls")
    async with app.router.lifespan_context(app):
        assert network.send_callback
    network.dial(phone=PHONE, number=reverse(network))
    assert caplog.messages == ["sandbox.callback_dropped"] * 2


def test_the_repr_of_a_callback_has_no_secret_and_no_number(network: VirtualNetwork) -> None:
    callbacks: list[ProviderCallback] = []
    network.send_callback = callbacks.append
    network.dial(phone=PHONE, number=reverse(network))
    printed = repr(callbacks) + repr(network._calls)
    assert "made-up" not in printed
    assert PHONE[2:] not in printed


# --- every channel --------------------------------------------------------------------------------------------------

CHANNELS: dict[Channel, Callable[[VirtualNetwork, str], object]] = {
    Channel.VOICE: lambda network, phone: network.place(phone=phone, pin="123456", lang=Lang.RU, repeat=2),
    Channel.FLASH_CALL: lambda network, phone: network.place_flash_call(phone=phone),
    Channel.REVERSE_CALL: lambda network, phone: network.place_reverse_call(phone=phone, callback_url=HOOK_URL),
}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    ("phone", "error", "placed"),
    [
        (MagicNumber.REFUSED, CallRefused, 0),
        (MagicNumber.NO_BALANCE, CallRefused, 0),
        (MagicNumber.NO_ACCESS, NoAccess, 0),
        (MagicNumber.NO_REPLY_NOT_PLACED, NoReply, 0),
        (MagicNumber.NO_REPLY_PLACED, NoReply, 1),
    ],
)
def test_a_magic_number_that_refuses_does_so_on_every_channel(
    network: VirtualNetwork, channel: Channel, phone: str, error: type[Exception], placed: int
) -> None:
    with pytest.raises(error):
        CHANNELS[channel](network, phone)
    assert [call.channel for call in network.calls_of(phone)] == [channel] * placed
    assert network.balance == Decimal(10000) - 3 * placed


def test_one_magic_number_refuses_only_voice_calls(network: VirtualNetwork) -> None:
    with pytest.raises(CallRefused):
        CHANNELS[Channel.VOICE](network, MagicNumber.VOICE_REFUSED)
    for channel in (Channel.FLASH_CALL, Channel.REVERSE_CALL):
        CHANNELS[channel](network, MagicNumber.VOICE_REFUSED)
    assert [call.channel for call in network.calls_of(MagicNumber.VOICE_REFUSED)] == ["flash_call", "reverse_call"]
    assert network.balance == Decimal(9994)


@pytest.mark.parametrize("channel", CHANNELS)
def test_with_a_low_balance_every_channel_refuses_until_a_top_up(channel: Channel) -> None:
    network = VirtualNetwork(balance=Decimal("2.99"))
    with pytest.raises(CallRefused):
        CHANNELS[channel](network, PHONE)
    network.balance += Decimal("0.01")
    CHANNELS[channel](network, PHONE)
    assert (network.balance, len(network.calls_of(PHONE))) == (Decimal(0), 1)


def test_calls_of_all_channels_are_listed_oldest_first(network: VirtualNetwork) -> None:
    for place in CHANNELS.values():
        place(network, PHONE)
    assert [call.channel for call in network.calls_of(PHONE)] == list(CHANNELS)


def test_the_number_of_kept_calls_is_configurable() -> None:
    network = VirtualNetwork(calls_kept=2)
    for number in range(3):
        flash(network, f"+7900123456{number}")
    assert [len(network.calls_of(f"+7900123456{number}")) for number in range(3)] == [0, 1, 1]


def test_the_service_would_call_none_of_the_numbers_to_dial() -> None:
    for number in DIAL_NUMBERS:
        with pytest.raises(PhoneNotCallable):
            parse_phone(number)
