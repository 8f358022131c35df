"""The virtual telephone network: whom it can call, on which channel, who pays, and what was heard."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import cycle
from uuid import uuid4

from app.sandbox.calls import CallRecord, VirtualCall
from app.sandbox.errors import CallRefused, CallUnknown, NoAccess, NobodyWaits, NoReply, WrongNumber
from app.sandbox.faults import Faults
from app.sandbox.hooks import Hook
from app.sandbox.numbers import (
    DIAL_NUMBERS,
    MagicNumber,
    another,
    flash_caller,
    local,
    make_pin,
    operator_of,
    same_line,
)
from app.verification.channels import Channel
from app.verification.model import Lang

log = logging.getLogger(__name__)

CALLS_KEPT_PER_PHONE = 20
CALLS_KEPT = 10_000
NO_BALANCE = "Недостаточно средств на балансе"  # our own guess; how the vendor words it is not known
REFUSAL = "error find flashcall account: not found"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashCall:
    """A flash call as it was placed. ``pin`` and ``operator`` are set where the account tells them."""

    call: VirtualCall
    pin: str | None = field(default=None, repr=False)
    operator: str | None = None


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _post_nowhere(_hook: Hook) -> None:
    log.warning("sandbox.hook_dropped", extra={"attempts": 0})


class VirtualNetwork:
    """Places calls that nobody pays for. ``pace`` is the length of a phase: answered after two, completed after five.

    Calls move on with the ``monotonic`` clock alone: no task runs behind them. The last 20 calls of a phone and the
    last ``calls_kept`` in all are kept. Each costs ``price`` of the ``balance``, in roubles. ``tells_pin`` is a setting
    of the account: whether it answers the code and the operator of a flash call. Requests to place a call over HTTP
    meet ``faults``. Balance and faults can be set at any time.
    """

    def __init__(
        self,
        *,
        pace: float = 1.0,
        balance: Decimal = Decimal("10000.00"),
        price: Decimal = Decimal("3.00"),
        tells_pin: bool = False,
        faults: Faults | None = None,
        calls_kept: int = CALLS_KEPT,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.pace = pace
        self.balance = balance
        self.price = price
        self._tells_pin = tells_pin
        self.faults = faults or Faults()  # none at all
        self._calls_kept = calls_kept
        self._monotonic = monotonic
        self._now = now
        self._records: dict[str, CallRecord] = {}  # by call id, oldest first
        self._of_phone: dict[str, deque[str]] = {}  # call ids, each oldest first
        self._dial_numbers = cycle(DIAL_NUMBERS)
        self._as_form = cycle((False, True))
        self._post: Callable[[Hook], None] = _post_nowhere

    def top_up(self, amount: Decimal) -> None:
        """Pay ``amount`` roubles into the account."""
        self.balance += amount

    @contextmanager
    def posting(self, post: Callable[[Hook], None]) -> Iterator[None]:
        """Have hooks posted by ``post`` while the context is open; at other times they are dropped."""
        self._post = post
        try:
            yield
        finally:
            self._post = _post_nowhere

    def place(self, *, phone: str, pin: str, lang: Lang, repeat: int) -> VirtualCall:
        """Call ``phone``, a number in E.164, to speak ``pin``.

        Raises:
            CallRefused, NoAccess: the number is magic, or the balance is too low; nothing was placed.
            NoReply: the number is magic.

        """
        if phone == MagicNumber.VOICE_REFUSED:
            raise CallRefused(REFUSAL)
        record = self._begin(phone, Channel.VOICE)
        return self._answer(replace(record, pin=pin, lang=lang, repeat=repeat))

    def place_flash_call(self, *, phone: str, pin: str | None = None) -> FlashCall:
        """Let ``phone`` ring, from a number that ends with ``pin``, or with a code made up here.

        Raises:
            CallRefused, NoAccess, NoReply: as for ``place``.

        """
        ignored = phone == MagicNumber.OTHER_PIN
        seen_pin = make_pin(other_than=pin) if ignored or pin is None else pin
        record = self._begin(phone, Channel.FLASH_CALL)
        call = self._answer(replace(record, pin=seen_pin, caller=flash_caller(seen_pin)))
        if not (self._tells_pin or ignored):
            return FlashCall(call=call)
        return FlashCall(call=call, pin=seen_pin, operator=operator_of(phone))

    def is_pin(self, call_id: str, pin: str) -> bool:
        """Return whether ``pin`` is the code of a flash call.

        Raises:
            CallUnknown: there is no such flash call, or it was forgotten.

        """
        record = self._records.get(call_id)
        if record is None or record.channel is not Channel.FLASH_CALL:
            raise CallUnknown(call_id)
        return record.pin == pin

    def place_reverse_call(self, *, phone: str, hook_url: str) -> VirtualCall:
        """Wait five minutes for ``phone`` to dial a number, and announce that number to ``hook_url`` at once.

        Raises:
            CallRefused, NoAccess, NoReply: as for ``place``.

        """
        record = replace(
            self._begin(phone, Channel.REVERSE_CALL),
            dial=next(self._dial_numbers),
            hook_url=hook_url,
            hooks_as_form=next(self._as_form) or phone == MagicNumber.HOOK_AS_FORM,
        )
        self._post_hook(record, record.dial or "")
        return self._answer(record)

    def dial(self, *, phone: str, number: str) -> VirtualCall:
        """Let ``phone`` dial ``number``, in any spelling; the reverse call that waits for it is confirmed by a hook.

        Raises:
            NobodyWaits: no reverse call waits for the phone.
            WrongNumber: none waits at this number.

        """
        waiting = [self._records[call.call_id] for call in self.calls_of(phone) if call.dial]
        if not waiting:
            raise NobodyWaits
        meant = [record for record in waiting if same_line(record.dial or "", number)]
        if not meant:
            raise WrongNumber
        record = replace(meant[-1], dialled=True)
        self._records[record.call_id] = record
        self._post_hook(record, local(another(phone) if phone == MagicNumber.HOOK_OF_ANOTHER else phone))
        return self._seen_now(record)

    def status(self, call_id: str) -> VirtualCall:
        """Look a call up.

        Raises:
            CallUnknown: there is none, or it was forgotten.

        """
        try:
            return self._seen_now(self._records[call_id])
        except KeyError:
            raise CallUnknown(call_id) from None

    def calls_of(self, phone: str) -> list[VirtualCall]:
        """List the calls to ``phone``, a number in E.164, on all channels, oldest first."""
        return [self._seen_now(self._records[call_id]) for call_id in self._of_phone.get(phone, ())]

    def _begin(self, phone: str, channel: Channel) -> CallRecord:
        """Pay for a call, if it can be placed at all."""
        _refuse_magic(phone)
        if self.balance < self.price:
            raise CallRefused(NO_BALANCE)
        self.balance -= self.price
        return CallRecord(
            call_id=uuid4().hex, channel=channel, phone=phone, placed_at=self._now(), began=self._monotonic()
        )

    def _answer(self, record: CallRecord) -> VirtualCall:
        """Keep a call that was placed, and tell of it if the number lets anybody know."""
        self._keep(record)
        if record.phone == MagicNumber.NO_REPLY_PLACED:
            raise NoReply
        return self._seen_now(record)

    def _post_hook(self, record: CallRecord, number: str) -> None:
        hook = Hook(url=record.hook_url, body={"key": record.call_id, "phone": number}, as_form=record.hooks_as_form)
        for _ in range(2 if record.phone == MagicNumber.HOOK_TWICE else 1):
            self._post(hook)

    def _seen_now(self, record: CallRecord) -> VirtualCall:
        return record.seen(at=self._monotonic(), pace=self.pace)

    def _keep(self, record: CallRecord) -> None:
        self._records[record.call_id] = record
        of_phone = self._of_phone.setdefault(record.phone, deque())
        of_phone.append(record.call_id)
        if len(of_phone) > CALLS_KEPT_PER_PHONE:
            self._forget(of_phone[0])
        elif len(self._records) > self._calls_kept:
            self._forget(next(iter(self._records)))

    def _forget(self, call_id: str) -> None:
        """Drop the oldest call of its phone, and the phone with its last call."""
        phone = self._records.pop(call_id).phone
        of_phone = self._of_phone[phone]
        of_phone.popleft()
        if not of_phone:
            del self._of_phone[phone]


def _refuse_magic(phone: str) -> None:
    match phone:
        case MagicNumber.REFUSED:
            raise CallRefused(REFUSAL)
        case MagicNumber.NO_BALANCE:
            raise CallRefused(NO_BALANCE)
        case MagicNumber.NO_ACCESS:
            raise NoAccess
        case MagicNumber.NO_REPLY_NOT_PLACED:
            raise NoReply
