"""Calls of the virtual telephone network: their state follows from the channel, the number and the time."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

from app.sandbox.numbers import MagicNumber, NetworkStatus, Timeline
from app.verification.channels import Channel
from app.verification.model import Lang
from app.verification.operators import operator_of
from app.verification.phone import Phone

REVERSE_CALL_SECONDS = 300.0  # how long a reverse call may be dialled


_VOICE_CALL: Timeline = (
    (0, NetworkStatus.QUEUED),
    (1, NetworkStatus.RINGING),
    (2, NetworkStatus.ANSWERED),
    (5, NetworkStatus.COMPLETED),
)
_FLASH_CALL: Timeline = ((0, NetworkStatus.QUEUED), (1, NetworkStatus.RINGING), (2, NetworkStatus.COMPLETED))
_NOT_RUNG: Timeline = ((0, NetworkStatus.QUEUED), (5, NetworkStatus.NO_ANSWER))
_MAGIC: Mapping[str, Timeline] = {number: number.timeline for number in MagicNumber if number.timeline}
_HEARD: Mapping[Channel, frozenset[NetworkStatus]] = {
    Channel.VOICE: frozenset({NetworkStatus.ANSWERED, NetworkStatus.COMPLETED}),
    Channel.FLASH_CALL: frozenset({NetworkStatus.RINGING, NetworkStatus.COMPLETED}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCall:
    """A call, as it is at one moment: the network keeps it as it was placed, and shows it as it is ``at`` the time.

    ``heard`` is its ``pin`` once it was answered; for a flash call once it rang, together with ``caller``, the calling
    number. ``dial`` is the number to dial while a reverse call waits. Only voice calls have ``lang`` and ``repeat``.
    ``began`` is a time of the monotonic clock, in seconds.
    """

    call_id: str
    channel: Channel
    phone: str = field(repr=False)
    placed_at: datetime
    began: float
    status: NetworkStatus = NetworkStatus.QUEUED
    pin: str | None = field(default=None, repr=False)
    heard: str | None = field(default=None, repr=False)
    lang: Lang | None = None
    repeat: int | None = None
    caller: str | None = field(default=None, repr=False)
    dial: str | None = None
    dialled: bool = False
    callback_url: str = field(default="", repr=False)  # it holds a secret
    callbacks_as_form: bool = False

    def at(self, moment: float, *, pace: float) -> Self:
        """Return the call at a time of the monotonic clock; a phase takes ``pace`` seconds."""
        status = self._status(moment - self.began, pace)
        is_heard = status in _HEARD.get(self.channel, ())
        return replace(
            self,
            status=status,
            heard=self.pin if is_heard else None,
            caller=self.caller if is_heard else None,
            dial=self.dial if status is NetworkStatus.QUEUED else None,
        )

    def _status(self, age: float, pace: float) -> NetworkStatus:
        if self.channel is not Channel.REVERSE_CALL:
            return [status for phases, status in self._timeline() if phases * pace <= age][-1]
        if self.dialled:
            return NetworkStatus.COMPLETED
        return NetworkStatus.QUEUED if age < REVERSE_CALL_SECONDS else NetworkStatus.NO_ANSWER

    def _timeline(self) -> Timeline:
        flash = self.channel is Channel.FLASH_CALL
        # Plusofon: flash calls may not reach subscribers of MTS. One that rings gives its code away.
        if flash and (self.phone == MagicNumber.NO_ANSWER or operator_of(Phone(self.phone)) == "mts"):
            return _NOT_RUNG
        return _MAGIC.get(self.phone, _FLASH_CALL if flash else _VOICE_CALL)
