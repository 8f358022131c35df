"""The virtual telephone network: whom it can call, what becomes of each call, and what was heard in it.

What can go wrong when a call is placed or looked up:

NetworkError
├── CallRefused    said no, with a message
├── NoAccess       the "no access" of the vendor's pages
├── NoReply        the answer never comes; the call may have been placed all the same
└── CallUnknown    no call by that name, or one long forgotten
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Self
from uuid import uuid4

from app.verification.model import Lang

CALLS_KEPT_PER_PHONE = 20
CALLS_KEPT = 10_000
NO_BALANCE = "Недостаточно средств на балансе"  # our own guess; how the vendor words it is not known


class MagicNumber(StrEnum):
    """The numbers, all made up, to which something else happens than a call that is answered."""

    effect: str

    def __new__(cls, phone: str, effect: str) -> Self:
        """Make the member a string, the number in E.164, with the sentence that the docs print beside it."""
        member = str.__new__(cls, phone)
        member._value_ = phone
        member.effect = effect
        return member

    BUSY = "+79000000001", "The line is busy; the code is never heard."
    NO_ANSWER = "+79000000002", "It rings and nobody answers; the code is never heard."
    REFUSED = "+79000000003", "The provider refuses the call: HTTP 200 with success: false."
    NO_BALANCE = "+79000000004", "The account cannot pay for the call: HTTP 200 with success: false."
    NO_ACCESS = "+79000000005", "The provider answers HTTP 500 with the text 'no access'."
    NO_REPLY_PLACED = "+79000000006", "The call is placed and heard, but the provider's answer never comes."
    NO_REPLY_NOT_PLACED = "+79000000007", "Nothing is placed, and the provider's answer never comes."
    FAILED = "+79000000008", "The call is placed and fails in the network; the code is never heard."
    ODD_STATUS = "+79000000009", "The call passes through the unheard-of status 'rerouted' before it completes."


class NetworkStatus(StrEnum):
    """The network's word on a call. ``rerouted`` is there for clients to meet a word that they do not know."""

    QUEUED = "queued"
    RINGING = "ringing"
    REROUTED = "rerouted"
    ANSWERED = "answered"
    COMPLETED = "completed"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    FAILED = "failed"


class NetworkError(Exception):
    """Base of all that can go wrong in the network."""


class CallRefused(NetworkError):
    """The call was not placed; ``message`` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NoAccess(NetworkError):
    """The call was not placed, for want of some right."""


class NoReply(NetworkError):
    """Whoever asked gets no answer, whether or not the call was placed."""


class CallUnknown(NetworkError):
    """There is no such call, or it was forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCall:
    """A call as it stands at this moment. ``heard`` is its code from the moment it was answered."""

    call_id: str
    status: NetworkStatus
    heard: str | None
    lang: Lang
    repeat: int
    placed_at: datetime


# What a call passes through: each status with the number of phases after which it begins.
_Journey = tuple[tuple[int, NetworkStatus], ...]
_ORDINARY: _Journey = (
    (0, NetworkStatus.QUEUED),
    (1, NetworkStatus.RINGING),
    (2, NetworkStatus.ANSWERED),
    (5, NetworkStatus.COMPLETED),
)
_JOURNEYS: Mapping[str, _Journey] = {
    MagicNumber.BUSY: ((0, NetworkStatus.QUEUED), (1, NetworkStatus.BUSY)),
    MagicNumber.NO_ANSWER: ((0, NetworkStatus.QUEUED), (1, NetworkStatus.RINGING), (5, NetworkStatus.NO_ANSWER)),
    MagicNumber.FAILED: ((0, NetworkStatus.QUEUED), (1, NetworkStatus.FAILED)),
    MagicNumber.ODD_STATUS: ((0, NetworkStatus.QUEUED), (1, NetworkStatus.REROUTED), (5, NetworkStatus.COMPLETED)),
}
_HEARD = frozenset({NetworkStatus.ANSWERED, NetworkStatus.COMPLETED})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What is kept of a call; its state follows from the time since ``began``."""

    call_id: str
    phone: str = field(repr=False)
    pin: str = field(repr=False)
    lang: Lang
    repeat: int
    placed_at: datetime
    began: float

    def seen(self, *, at: float, pace: float) -> VirtualCall:
        journey = _JOURNEYS.get(self.phone, _ORDINARY)
        status = [status for phases, status in journey if phases * pace <= at - self.began][-1]
        return VirtualCall(
            call_id=self.call_id,
            status=status,
            heard=self.pin if status in _HEARD else None,
            lang=self.lang,
            repeat=self.repeat,
            placed_at=self.placed_at,
        )


def _utc_now() -> datetime:
    return datetime.now(UTC)


class VirtualNetwork:
    """Places calls that nobody pays for. ``pace`` is the length of a phase: answered after two, completed after five.

    Calls move on with the ``monotonic`` clock alone: no task runs behind them. The last 20 calls of a phone and the
    last 10,000 in all are kept.
    """

    def __init__(
        self,
        *,
        pace: float = 1.0,
        balance: Decimal = Decimal("10000.00"),
        price: Decimal = Decimal("3.00"),
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._pace = pace
        self._balance = balance
        self._price = price
        self._monotonic = monotonic
        self._now = now
        self._records: dict[str, _Record] = {}  # by call id, oldest first
        self._of_phone: dict[str, deque[_Record]] = {}  # each oldest first

    @property
    def balance(self) -> Decimal:
        """What is left of the account's money, in roubles."""
        return self._balance

    def place(self, *, phone: str, pin: str, lang: Lang, repeat: int) -> VirtualCall:
        """Call ``phone``, a number in E.164, to speak ``pin``.

        Raises:
            CallRefused, NoAccess: the number is magic, or the balance is too low; nothing was placed.
            NoReply: the number is magic.

        """
        _refuse_magic(phone)
        if self._balance < self._price:
            raise CallRefused(NO_BALANCE)
        self._balance -= self._price
        record = _Record(
            call_id=uuid4().hex,
            phone=phone,
            pin=pin,
            lang=lang,
            repeat=repeat,
            placed_at=self._now(),
            began=self._monotonic(),
        )
        self._keep(record)
        if phone == MagicNumber.NO_REPLY_PLACED:
            raise NoReply
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
        """List the calls to ``phone``, a number in E.164, oldest first."""
        return [self._seen_now(record) for record in self._of_phone.get(phone, ())]

    def _seen_now(self, record: _Record) -> VirtualCall:
        return record.seen(at=self._monotonic(), pace=self._pace)

    def _keep(self, record: _Record) -> None:
        self._records[record.call_id] = record
        of_phone = self._of_phone.setdefault(record.phone, deque())
        of_phone.append(record)
        if len(of_phone) > CALLS_KEPT_PER_PHONE:
            self._forget(of_phone[0])
        elif len(self._records) > CALLS_KEPT:
            self._forget(next(iter(self._records.values())))

    def _forget(self, record: _Record) -> None:
        """Drop the oldest call of its phone, and the phone with its last call."""
        del self._records[record.call_id]
        of_phone = self._of_phone[record.phone]
        of_phone.popleft()
        if not of_phone:
            del self._of_phone[record.phone]


def _refuse_magic(phone: str) -> None:
    match phone:
        case MagicNumber.REFUSED:
            raise CallRefused("error find flashcall account: not found")
        case MagicNumber.NO_BALANCE:
            raise CallRefused(NO_BALANCE)
        case MagicNumber.NO_ACCESS:
            raise NoAccess
        case MagicNumber.NO_REPLY_NOT_PLACED:
            raise NoReply
