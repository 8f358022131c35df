"""What becomes of a call of the virtual telephone network: a matter of its channel, its number and the time alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from app.sandbox.numbers import MTS, MagicNumber, operator_of
from app.verification.channels import Channel
from app.verification.model import Lang

REVERSE_CALL_WAITS = 300.0  # seconds


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


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCall:
    """A call as it stands at this moment.

    ``heard`` is its code from the moment it was answered; for a flash call from the moment it rang, and with it
    ``caller``, the number that called. ``dial`` is the number that a reverse call waits for the phone to dial. Nothing
    is spoken but in a voice call: the others have neither ``lang`` nor ``repeat``.
    """

    call_id: str
    channel: Channel
    status: NetworkStatus
    heard: str | None
    caller: str | None = None
    dial: str | None = None
    lang: Lang | None = None
    repeat: int | None = None
    placed_at: datetime


# What a call passes through: each status with the number of phases after which it begins.
_Journey = tuple[tuple[int, NetworkStatus], ...]
_SPOKEN: _Journey = (
    (0, NetworkStatus.QUEUED),
    (1, NetworkStatus.RINGING),
    (2, NetworkStatus.ANSWERED),
    (5, NetworkStatus.COMPLETED),
)
_FLASHED: _Journey = ((0, NetworkStatus.QUEUED), (1, NetworkStatus.RINGING), (2, NetworkStatus.COMPLETED))
_NEVER_ARRIVED: _Journey = ((0, NetworkStatus.QUEUED), (5, NetworkStatus.NO_ANSWER))
_NO_ANSWER: _Journey = ((0, NetworkStatus.QUEUED), (1, NetworkStatus.RINGING), (5, NetworkStatus.NO_ANSWER))
_MAGIC: Mapping[str, _Journey] = {
    MagicNumber.BUSY: ((0, NetworkStatus.QUEUED), (1, NetworkStatus.BUSY)),
    MagicNumber.FAILED: ((0, NetworkStatus.QUEUED), (1, NetworkStatus.FAILED)),
    MagicNumber.ODD_STATUS: ((0, NetworkStatus.QUEUED), (1, NetworkStatus.REROUTED), (5, NetworkStatus.COMPLETED)),
}
_HEARD: Mapping[Channel, frozenset[NetworkStatus]] = {
    Channel.VOICE: frozenset({NetworkStatus.ANSWERED, NetworkStatus.COMPLETED}),
    Channel.FLASH_CALL: frozenset({NetworkStatus.RINGING, NetworkStatus.COMPLETED}),
    Channel.REVERSE_CALL: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """What is kept of a call; its state follows from the time since ``began``, and whether it was ``dialled``.

    Voice and flash calls have a ``pin``, reverse calls a ``dial`` and a ``hook_url``.
    """

    call_id: str
    channel: Channel
    phone: str = field(repr=False)
    placed_at: datetime
    began: float
    pin: str | None = field(default=None, repr=False)
    lang: Lang | None = None
    repeat: int | None = None
    caller: str | None = field(default=None, repr=False)
    dial: str | None = None
    hook_url: str = field(default="", repr=False)  # it holds a secret of whoever gave it
    hooks_as_form: bool = False
    dialled: bool = False

    def seen(self, *, at: float, pace: float) -> VirtualCall:
        """Return how the call stands at the moment ``at``, if each phase takes ``pace`` seconds."""
        status = self._status(at - self.began, pace)
        heard = status in _HEARD[self.channel]
        waiting = self.channel is Channel.REVERSE_CALL and status is NetworkStatus.QUEUED
        return VirtualCall(
            call_id=self.call_id,
            channel=self.channel,
            status=status,
            heard=self.pin if heard else None,
            caller=self.caller if heard else None,
            dial=self.dial if waiting else None,
            lang=self.lang,
            repeat=self.repeat,
            placed_at=self.placed_at,
        )

    def _status(self, age: float, pace: float) -> NetworkStatus:
        if self.channel is not Channel.REVERSE_CALL:
            return [status for phases, status in self._journey if phases * pace <= age][-1]
        if self.dialled:
            return NetworkStatus.COMPLETED
        return NetworkStatus.QUEUED if age < REVERSE_CALL_WAITS else NetworkStatus.NO_ANSWER

    @property
    def _journey(self) -> _Journey:
        flash = self.channel is Channel.FLASH_CALL
        if flash and operator_of(self.phone) == MTS:  # docs: flash calls may not reach subscribers of MTS
            return _NEVER_ARRIVED
        if self.phone == MagicNumber.NO_ANSWER:  # where the code is in the ringing, the phone must not ring
            return _NEVER_ARRIVED if flash else _NO_ANSWER
        return _MAGIC.get(self.phone, _FLASHED if flash else _SPOKEN)
