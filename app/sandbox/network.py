"""The virtual telephone network: places calls, charges the account, and answers what each phone heard."""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import cycle, islice
from uuid import uuid4

from app.sandbox.calls import VirtualCall
from app.sandbox.faults import Faults
from app.sandbox.numbers import DIAL_NUMBERS, MagicNumber
from app.sandbox.provider_callbacks import ProviderCallback
from app.verification.channels import Channel
from app.verification.model import Lang

log = logging.getLogger(__name__)

CALLS_KEPT_PER_PHONE = 20
CALLS_KEPT = 10_000
NO_BALANCE = "Недостаточно средств на балансе"  # a guess: Plusofon's own message is not known
REFUSAL = "error find flashcall account: not found"
NO_SUCH_CALL = "error find call: not found"
_FLASH_CALLER = "+7495000"  # no subscriber's number in Moscow begins with a zero


class CallRefused(Exception):
    """The call was not placed; the text is a message of the provider."""


class NoAccess(Exception):
    """The call was not placed, because the account lacks a right."""


class NoReply(Exception):
    """The request gets no response, whether or not the call was placed."""


class CallUnknown(Exception):
    """There is no such call, or it was dropped; the text is a message of the provider."""


class NoCallWaiting(Exception):
    """No reverse call waits for this phone: there was none, it was dialled, or its five minutes are over."""


class WrongNumber(Exception):
    """A reverse call waits for this phone, at another number than the dialled one."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class VirtualNetwork:
    """Places virtual calls. A call is answered after two phases of ``pace`` seconds, and completed after five.

    The state of a call follows from the ``monotonic`` clock; there are no background tasks. The last 20 calls of a
    phone and the last ``calls_kept`` in all are kept. A call costs ``price`` of the ``balance``, in roubles. With
    ``returns_pin`` the account returns the code and the operator of each flash call. Requests over HTTP that place a
    call meet ``faults``. Balance and faults can be set at any time.
    """

    pace: float = 1.0
    balance: Decimal = Decimal("10000.00")
    price: Decimal = Decimal("3.00")
    returns_pin: bool = False
    faults: Faults = field(default_factory=Faults)
    calls_kept: int = CALLS_KEPT
    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    send_callback: Callable[[ProviderCallback], None] | None = field(default=None, init=False)  # None: they are dropped
    _calls: dict[str, VirtualCall] = field(default_factory=dict, init=False)  # by call id, oldest first
    _of_phone: dict[str, deque[str]] = field(default_factory=dict, init=False)  # call ids, each oldest first
    _dial_numbers: Iterator[str] = field(default_factory=lambda: cycle(DIAL_NUMBERS), init=False)
    _as_form: Iterator[bool] = field(default_factory=lambda: cycle((False, True)), init=False)

    def place(self, *, phone: str, pin: str, lang: Lang, repeat: int) -> VirtualCall:
        """Call ``phone``, a number in E.164, and speak ``pin``.

        Raise CallRefused or NoAccess (the number is magic, or the balance is too low; nothing was placed), or NoReply.
        """
        if phone == MagicNumber.VOICE_REFUSED:
            raise CallRefused(REFUSAL)
        return self._add(replace(self._charge(phone, Channel.VOICE), pin=pin, lang=lang, repeat=repeat))

    def place_flash_call(self, *, phone: str, pin: str | None = None) -> VirtualCall:
        """Let ``phone`` ring, from a number that ends with ``pin``, or with four random digits. Raise as ``place``."""
        if pin is None:
            pin = f"{secrets.randbelow(10_000):04}"
        elif phone == MagicNumber.OTHER_PIN:  # any other of the 10,000 codes
            pin = f"{(int(pin) + 1 + secrets.randbelow(9_999)) % 10_000:04}"
        return self._add(replace(self._charge(phone, Channel.FLASH_CALL), pin=pin, caller=_FLASH_CALLER + pin))

    def place_reverse_call(self, *, phone: str, callback_url: str) -> VirtualCall:
        """Wait five minutes for ``phone`` to dial a number, which a callback announces at once. Raise as ``place``."""
        call = replace(
            self._charge(phone, Channel.REVERSE_CALL),
            dial=next(self._dial_numbers),
            callback_url=callback_url,
            callbacks_as_form=next(self._as_form) or phone == MagicNumber.CALLBACK_AS_FORM,
        )
        self._notify(call, call.dial or "")
        return self._add(call)

    def dial(self, *, phone: str, number: str) -> VirtualCall:
        """Let ``phone`` dial ``number``, in any format; a callback confirms the reverse call that waits for it.

        Raise NoCallWaiting, or WrongNumber if it waits at another number.
        """
        waiting = [call for call in self.calls_of(phone) if call.dial]
        if not waiting:
            raise NoCallWaiting
        national = "".join(filter(str.isdigit, number))[-10:]
        dialled = [call.call_id for call in waiting if call.dial and call.dial[-10:] == national]
        if not dialled:
            raise WrongNumber
        placed = self._calls[dialled[-1]] = replace(self._calls[dialled[-1]], dialled=True)
        caller = phone.replace("+7", "8", 1)  # as Plusofon writes it
        if phone == MagicNumber.CALLBACK_OF_ANOTHER:
            caller = f"{caller[:-1]}{(int(caller[-1]) + 1) % 10}"
        self._notify(placed, caller)
        return self.status(placed.call_id)

    def status(self, call_id: str) -> VirtualCall:
        """Return the state of a call. Raise CallUnknown if there is none, or it was dropped."""
        if call_id not in self._calls:
            raise CallUnknown(NO_SUCH_CALL)
        return self._calls[call_id].at(self.monotonic(), pace=self.pace)

    def calls_of(self, phone: str) -> list[VirtualCall]:
        """Return the calls to ``phone``, a number in E.164, on all channels, oldest first."""
        return [self.status(call_id) for call_id in self._of_phone.get(phone, ())]

    def latest_calls(self, count: int) -> list[VirtualCall]:
        """Return the last ``count`` calls to any phone, newest first."""
        return [self.status(call_id) for call_id in islice(reversed(self._calls), count)]

    def _charge(self, phone: str, channel: Channel) -> VirtualCall:
        """Charge the account for a new call, unless it is refused."""
        match phone:
            case MagicNumber.REFUSED:
                raise CallRefused(REFUSAL)
            case MagicNumber.NO_ACCESS:
                raise NoAccess
            case MagicNumber.NO_REPLY_NOT_PLACED:
                raise NoReply
        if phone == MagicNumber.NO_BALANCE or self.balance < self.price:
            raise CallRefused(NO_BALANCE)
        self.balance -= self.price
        return VirtualCall(
            call_id=uuid4().hex, channel=channel, phone=phone, placed_at=self.now(), began=self.monotonic()
        )

    def _add(self, call: VirtualCall) -> VirtualCall:
        """Store a placed call, and drop the oldest one of its phone, or of all, if there are too many."""
        self._calls[call.call_id] = call
        of_phone = self._of_phone.setdefault(call.phone, deque())
        of_phone.append(call.call_id)
        if len(of_phone) > CALLS_KEPT_PER_PHONE:
            self._drop(of_phone[0])
        elif len(self._calls) > self.calls_kept:
            self._drop(next(iter(self._calls)))
        if call.phone == MagicNumber.NO_REPLY_PLACED:
            raise NoReply
        return self.status(call.call_id)

    def _drop(self, call_id: str) -> None:
        """Drop the oldest call of its phone."""
        phone = self._calls.pop(call_id).phone
        of_phone = self._of_phone[phone]
        of_phone.popleft()
        if not of_phone:
            del self._of_phone[phone]

    def _notify(self, call: VirtualCall, number: str) -> None:
        callback = ProviderCallback(
            url=call.callback_url, body={"key": call.call_id, "phone": number}, as_form=call.callbacks_as_form
        )
        for _ in range(2 if call.phone == MagicNumber.CALLBACK_TWICE else 1):
            if self.send_callback:
                self.send_callback(callback)
            else:
                log.warning("sandbox.callback_dropped", extra={"attempts": 0})
