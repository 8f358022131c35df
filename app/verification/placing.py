"""How one call is placed: what is taken before, by which channel it goes, and what is written down or given back after.

The order of the steps is what keeps money and codes safe: a code is stored before it can be heard, a request that may
have placed a call is never followed by another, and a call that did not happen costs nothing.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from app.verification.channel import Channel
from app.verification.code import CodeDigester, make_code
from app.verification.errors import (
    ProviderError,
    ProviderRejected,
    StoreUnavailable,
    VerificationError,
    VerificationNotFound,
)
from app.verification.guard import FraudGuard
from app.verification.happenings import CallPlaced, CallRefused, Observe, VerificationStarted
from app.verification.idempotency import IdempotencyInProgress
from app.verification.model import CallOutcome, CallState, CallStatus, Lang, Placed, Refused, Started, Unknown
from app.verification.phone import Phone
from app.verification.policy import Allowance, Policy
from app.verification.ports import (
    CallName,
    CallOrder,
    CallReport,
    CallSchedule,
    CallSender,
    Limits,
    NewCall,
    Tried,
    VerificationStore,
)
from app.verification.routing import route

log = logging.getLogger(__name__)


class Keep(Protocol):
    """Keeps the answer of a start that may be repeated. Neither method raises StoreUnavailable."""

    async def begin(self, note: str) -> None:
        """Note which call is about to be placed: a repetition of a start that died tells of it and places no other.

        Raises IdempotencyInProgress: such a repetition has taken this start for dead, and does what it asked.
        """
        ...

    async def __call__(self, started: Started, /) -> None:
        """Keep the answer that tells of this."""
        ...


FIRST_LOOK = timedelta(seconds=1)  # after a call was placed; it hardly rings before
_SHORTEST_TRY = 1.0  # seconds; with less, no other channel is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A call that a client wants: by which channels, for whom, by which rules. ``address`` is the end user's."""

    client: str
    phone: Phone
    purpose: str
    channels: tuple[Channel, ...]
    lang: Lang
    address: str | None
    policy: Policy


@dataclass(frozen=True, slots=True)
class _Reservation:
    """What a call has taken before it is placed, to be given back if it is not."""

    token: str
    allowances: Sequence[Allowance]
    started: Started

    @property
    def name(self) -> CallName:
        verification = self.started.verification
        return CallName(verification.id, verification.calls[-1].serial)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A call as it was ordered by one channel, and what came of it."""

    channel: Channel
    sender: CallSender
    outcome: CallOutcome


class CallPlacer:
    """Places calls."""

    def __init__(
        self,
        *,
        store: VerificationStore,
        limits: Limits,
        guard: FraudGuard,
        senders: Mapping[Channel, CallSender],
        queue: CallSchedule,
        digester: CodeDigester,
        observe: Observe,
    ) -> None:
        self._store = store
        self._limits = limits
        self._guard = guard
        self._senders = senders
        self._queue = queue
        self._digester = digester
        self._observe = observe

    async def place(self, wish: Wish, keep: Keep | None) -> Started:
        """Place one call, by the first channel that takes it. Raises as ``VerificationService.start`` does."""
        channels = await self._route(wish)
        code = _make_code(channels[0], wish.policy)
        reservation = await self._reserve(self.new_call(wish, channels[0], code), wish.address, wish.policy)
        await self._note(reservation, wish.policy, keep)
        reservation, attempt = await self._try_each(reservation, channels, code, wish, keep)
        return await self._settle(reservation, attempt, wish.policy, keep)

    def new_call(self, wish: Wish, channel: Channel, code: str | None, *, test: bool = False) -> NewCall:
        """Describe a call to the store."""
        return NewCall(
            client=wish.client,
            phone=wish.phone,
            purpose=wish.purpose,
            channel=channel,
            code_digest=self._digest(wish.client, code),
            code_length=len(code) if code else None,
            checks=wish.policy.checks_of(channel),
            test=test,
        )

    async def never_placed(self, limits_token: str | None, name: CallName, policy: Policy) -> None:
        """Give back what a call took that, as it turns out, was never placed; exactly once, however often asked."""
        verification = await self._store.read(name.verification_id, client=None)
        if not await self._store.take_back(verification, name.serial, policy):
            return
        # Without the end user's address, which is not kept: its limit stays taken for its few minutes.
        allowances = tuple(policy.for_calls(client=verification.client, phone=verification.phone, address=None))
        if limits_token:
            await at_best(
                self._limits.give_back(limits_token, allowances),
                self._guard.retract(verification.phone, verification.client),
            )

    async def _route(self, wish: Wish) -> tuple[Channel, ...]:
        """Choose the channels to try; what was tried before matters only if there is a choice."""
        tried = Tried(None, ())
        if len(wish.channels) > 1:
            tried = await self._store.tried(wish.client, wish.phone, wish.purpose)
        ordered = route(wish.channels, phone=wish.phone, tried=tried, operator_channels=wish.policy.operator_channels)
        ready, refusals = [], []
        for channel in ordered:
            try:
                self._senders[channel].require_ready()
            except ProviderError as error:
                self._observe(CallRefused(channel, error))
                refusals.append(error)
            else:
                ready.append(channel)
        if not ready:
            raise refusals[0]
        return tuple(ready)

    async def _reserve(self, call: NewCall, address: str | None, policy: Policy) -> _Reservation:
        """Take what a call needs, all in one round trip: its place in every limit, and the guard's word."""
        token = secrets.token_hex(6)
        allowances = tuple(policy.for_calls(client=call.client, phone=call.phone, address=address))
        started, taken, admitted = await asyncio.gather(
            self._store.start(call, policy),
            self._limits.take(token, allowances),
            self._guard.admit(call.phone, call.client),
            return_exceptions=True,
        )
        if not (
            isinstance(started, BaseException)
            or isinstance(taken, BaseException)
            or isinstance(admitted, BaseException)
        ):
            return _Reservation(token, allowances, replace(started, quotas=(*started.quotas, *taken)))
        undo: list[Awaitable[object]] = []
        if not isinstance(started, BaseException):
            undo.append(self._store.take_back(started.verification, started.verification.calls[-1].serial, policy))
        if not isinstance(taken, BaseException):
            undo.append(self._limits.give_back(token, allowances))
        if not isinstance(admitted, BaseException):
            undo.append(self._guard.retract(call.phone, call.client))
        await at_best(*undo)
        raise next(refusal for refusal in (started, taken, admitted) if isinstance(refusal, BaseException))

    async def _try_each(
        self,
        reservation: _Reservation,
        channels: Sequence[Channel],
        code: str | None,
        wish: Wish,
        keep: Keep | None,
    ) -> tuple[_Reservation, _Attempt]:
        """Try one channel after the other until a call was placed, or may have been, or no other can help."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + wish.policy.patience.total_seconds()
        attempt = await self._try(reservation, channels[0], code, wish, deadline - clock())
        for channel in channels[1:]:
            if not (_may_help(attempt, self._senders[channel]) and deadline - clock() > _SHORTEST_TRY):
                continue
            code = _make_code(channel, wish.policy)
            try:
                reservation = await self._replace(reservation, self.new_call(wish, channel, code), wish.policy)
            except VerificationError:
                break  # somebody else's start came between, or Redis has gone: the refusal before is still the truth
            await self._note(reservation, wish.policy, keep)
            attempt = await self._try(reservation, channel, code, wish, deadline - clock())
        return reservation, attempt

    async def _try(
        self, reservation: _Reservation, channel: Channel, code: str | None, wish: Wish, within: float
    ) -> _Attempt:
        order = CallOrder(
            name=reservation.name, phone=wish.phone, code=code, lang=wish.lang, repeat=wish.policy.repeat, within=within
        )
        sender = self._senders[channel]
        outcome = await sender.place(order)
        if isinstance(outcome, Refused):
            self._observe(CallRefused(channel, outcome.error))
        return _Attempt(channel, sender, outcome)

    async def _note(self, reservation: _Reservation, policy: Policy, keep: Keep | None) -> None:
        """Note which call is about to be placed, where the start may be repeated."""
        if keep:
            try:
                await keep.begin(str(reservation.name))
            except IdempotencyInProgress:
                await self._give_back(reservation, policy)
                raise

    async def _replace(self, reservation: _Reservation, call: NewCall, policy: Policy) -> _Reservation:
        """Take back a call that was refused and start another in its place, which may be another verification's.

        The places in the other limits stay taken. Raises as the store's ``start`` does.
        """
        await self._store.take_back(reservation.started.verification, reservation.name.serial, policy)
        started = await self._store.start(call, policy)
        return replace(reservation, started=replace(started, quotas=reservation.started.quotas))

    async def _settle(self, reservation: _Reservation, attempt: _Attempt, policy: Policy, keep: Keep | None) -> Started:
        """Write the outcome of a call down, or take the call back."""
        verification = reservation.started.verification
        match attempt.outcome:
            case Refused(error):
                await self._give_back(reservation, policy)
                raise error
            case Unknown(why, ref):
                log.warning("call.unconfirmed", extra={"verification_id": verification.id, "why": why})
                token = reservation.token if ref else None
                report = CallReport(state=CallState(CallStatus.UNCONFIRMED), ref=ref, limits_token=token)
            case Placed(ref, code, operator, dial):
                report = CallReport(
                    state=CallState(CallStatus.INITIATED),
                    ref=ref,
                    code_digest=self._digest(verification.client, code),
                    code_length=len(code) if code else None,
                    dial=dial,
                    operator=operator,
                )
        started = await self.write_down(reservation.started, report, keep, followed=attempt.sender.is_followed)
        self._observe(CallPlaced(attempt.channel, report.state.status))
        if verification.calls_placed == 1:
            self._observe(VerificationStarted(attempt.channel))
        return started

    async def _give_back(self, reservation: _Reservation, policy: Policy) -> None:
        """Give back all that a call took that did not happen."""
        verification = reservation.started.verification
        await at_best(
            self._store.take_back(verification, reservation.name.serial, policy),
            self._limits.give_back(reservation.token, reservation.allowances),
            self._guard.retract(verification.phone, verification.client),
        )

    async def write_down(self, started: Started, report: CallReport, keep: Keep | None, *, followed: bool) -> Started:
        """Record a placed call. Without a store it is still placed and its code verifies, so the caller is told.

        Unless the provider chose the code: then only this write makes it verify, and its failure is told.
        """
        verification = started.verification
        serial = verification.calls[-1].serial
        writes: list[Awaitable[object]] = []
        if report.code_digest:
            await self._record_chosen_code(started, report)
        else:
            writes.append(self._store.record_call(verification, serial, report))
        told = replace(started, verification=verification.with_latest_call(report.state, report.ref, report.dial))
        if followed and report.ref:
            writes.append(self._queue.schedule(CallName(verification.id, serial), FIRST_LOOK))
        if keep:
            writes.append(keep(told))
        await at_best(*writes)
        return told

    async def _record_chosen_code(self, started: Started, report: CallReport) -> None:
        """Record the code, again if need be: whoever hears it and types it must not be refused."""
        serial = started.verification.calls[-1].serial
        try:
            await self._store.record_call(started.verification, serial, report)
        except StoreUnavailable:
            await self._store.record_call(started.verification, serial, report)

    def _digest(self, client: str, code: str | None) -> bytes | None:
        return self._digester.digest(client, code) if code else None


def _make_code(channel: Channel, policy: Policy) -> str | None:
    length = policy.code_length_of(channel)
    return make_code(length) if length else None


def _may_help(attempt: _Attempt, other: CallSender) -> bool:
    """Tell whether another channel may do what one refused: after a no, any; after a failure, another provider's."""
    match attempt.outcome:
        case Refused(ProviderRejected()):
            return True
        case Refused():
            return other.provider != attempt.sender.provider
        case _:
            return False


async def at_best(*writes: Awaitable[object]) -> None:
    """Do what should be done, in one round trip, and go on if it cannot be: the caller has a truth to hear first.

    What was to be given back stays taken then: too strict for a while, never too lax.
    """
    for result in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(result, StoreUnavailable | VerificationNotFound):
            log.error("store.not_written", extra={"error": repr(result)})
        elif isinstance(result, BaseException):
            raise result
