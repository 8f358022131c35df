"""How one call is placed: what is taken before, by which channel it goes, and what is written down or refunded after.

The order of the steps is what keeps money and codes safe. First everything is only looked at, so that a start that is
refused leaves no trace; then places in the limits are taken, then the phone's own; a code is stored before it can be
heard; a request that may have placed a call is never followed by another; and a call that did not happen costs nothing.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Protocol

from app.verification.channels import Channel
from app.verification.code import CodeDigester, make_code
from app.verification.deferred import DeferredWrites, Write, best_effort, store_deadline
from app.verification.domain_events import CallPlaced, CallRefused, Publish, VerificationStarted
from app.verification.errors import (
    ProviderError,
    ProviderRejected,
    StoreUnavailable,
    VerificationError,
    VerificationNotFound,
)
from app.verification.fraud_guard import FraudGuard
from app.verification.model import CallOutcome, CallState, CallStatus, Lang, Placed, Refused, Started, Unknown
from app.verification.phone import Phone
from app.verification.policy import Allowance, Policy
from app.verification.ports import (
    CallId,
    CallOrder,
    CallSchedule,
    CallSender,
    CallUpdate,
    NewCall,
    RateLimiter,
    StartPreview,
    VerificationStore,
)
from app.verification.routing import route

log = logging.getLogger(__name__)

FIRST_LOOK = timedelta(seconds=1)  # after a call was placed; it hardly rings before
_MOST_AT_ONCE = 32  # starts; each waits for the store for some milliseconds
_SHORTEST_TRY = 1.0  # seconds; with less, no other channel is tried


class StartJournal(Protocol):
    """Remembers a start that may be repeated, so that its repetition places no second call."""

    async def claim(self) -> CallId | None:
        """Claim the request; return the call that an earlier one had begun and died over.

        Raises IdempotencyKeyReused, IdempotencyInProgress, StoreUnavailable, or what carries the answer that was given.
        """
        ...

    async def begin(self, name: CallId) -> None:
        """Note the call that is about to be placed. Without the note it must not be.

        Raises IdempotencyInProgress: somebody else has taken the request over. Raises StoreUnavailable.
        """
        ...

    async def release(self) -> None:
        """Let the request be made again: no call was placed. Harmless when repeated. Raises StoreUnavailable."""
        ...

    async def abandon(self) -> None:
        """Let the request be made again, and then be told of the call that was noted. Raises StoreUnavailable."""
        ...

    async def keep(self, started: Started) -> None:
        """Keep the answer. Raises nothing."""
        ...


class NoJournal:
    """The journal of a start that is not repeated."""

    async def claim(self) -> None:
        """Claim nothing."""

    async def begin(self, name: CallId) -> None:
        """Note nothing."""

    async def release(self) -> None:
        """Release nothing."""

    async def abandon(self) -> None:
        """Abandon nothing."""

    async def keep(self, started: Started) -> None:
        """Keep nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A call that a client wants: by which channels, for whom, by which rules. ``address`` is the end user's.

    ``resend_of`` is the id of the verification that is called again, ``test_code`` the code of a test number.
    """

    client: str
    phone: Phone
    purpose: str
    channels: tuple[Channel, ...]
    lang: Lang
    address: str | None
    resend_of: str | None
    test_code: str | None
    policy: Policy

    def call(
        self, channel: Channel, *, code_digest: bytes | None = None, code_length: int | None = None, token: str = ""
    ) -> NewCall:
        """Describe the call by a channel to the store."""
        return NewCall(
            client=self.client,
            phone=self.phone,
            purpose=self.purpose,
            channel=channel,
            code_digest=code_digest,
            code_length=code_length,
            checks=self.policy.checks_of(channel),
            resend_of=self.resend_of,
            address=self.address,
            token=token,
            test=self.test_code is not None,
        )

    def allowances(self) -> Sequence[Allowance]:
        """List what the call is counted against, beside the phone itself."""
        if self.test_code is not None:
            return tuple(self.policy.for_test_calls(client=self.client))
        return tuple(self.policy.for_calls(client=self.client, phone=self.phone, address=self.address))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A call as it was ordered by one channel, and what came of it."""

    channel: Channel
    sender: CallSender
    outcome: CallOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTools:
    """What placing a call needs.

    ``store_timeout`` (seconds) is for all waits for the store before the provider. The ``gate`` bounds how many starts
    are on their way to the provider at once: each holds places in limits that all share, so a flood of starts that
    another limit will refuse must not hold them all.
    """

    store: VerificationStore
    limits: RateLimiter
    guard: FraudGuard
    senders: Mapping[Channel, CallSender]
    queue: CallSchedule
    digester: CodeDigester
    observe: Publish
    deferred: DeferredWrites
    store_timeout: float
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_AT_ONCE))

    async def never_placed(self, limits_token: str | None, name: CallId, policy: Policy) -> None:
        """Give back what a call took that, as it turns out, was never placed; exactly once, however often asked."""
        verification = await self.store.read(name.verification_id, client=None)
        phone, client = verification.phone, verification.client
        if not await self.store.refund(name, phone=phone, client=client, policy=policy):
            return
        # Without the end user's address, which is not kept: its limit stays taken for its few minutes.
        allowances = tuple(policy.for_calls(client=client, phone=phone, address=None))
        if limits_token:
            await best_effort(self.limits.refund(limits_token, allowances), self.guard.refund(phone, client))


class CallPlacement:
    """One start on its way: what it has taken is given back if no call is placed."""

    def __init__(self, tools: CallTools, wish: Wish, journal: StartJournal) -> None:
        self._tools = tools
        self._wish = wish
        self._journal = journal
        self._token = secrets.token_hex(6)  # names this start in the limits
        self._allowances = wish.allowances()
        self._took_places = False
        self._is_admitted = False
        self._name: CallId | None = None  # of the call that is, or may be, stored

    async def run(self) -> Started:
        """Place one call, by the first channel that takes it. Raises as ``VerificationService.start`` does."""
        try:
            async with store_deadline(self._tools.store_timeout), self._tools.gate:
                seen = await self._look()
                if isinstance(seen, Started):
                    return seen
                preview, channels = self._choose(seen)
                code = self._make_code(channels[0])
                started = await self._reserve(preview.name, channels[0], code)
        except (StoreUnavailable, asyncio.CancelledError):
            # What the store has done of it is not known, and nobody waits until that can be.
            self._tools.deferred.write_later(*self._refunds())
            raise
        except BaseException:
            await self._tools.deferred.write(*self._refunds())
            raise
        if self._wish.test_code is not None:
            log.info("verification.test_started", extra={"verification_id": started.verification.id, "test": True})
            update = CallUpdate(state=CallState(CallStatus.COMPLETED), ref="test")
            return await self._record(started, update, supports_status=False)
        try:
            started, attempt = await self._try_each(started, channels, code)
            return await self._settle(started, attempt)
        except (StoreUnavailable, asyncio.CancelledError):  # the call may have been placed, and nobody is at work on it
            self._tools.deferred.write_later(self._journal.abandon)
            raise

    async def _look(self) -> Sequence[object] | Started:
        """Claim the request, and ask what would refuse the start; all in one round trip.

        Return the answers; or what a repeated request is to be told, where one before it has begun a call and died.
        """
        claiming = asyncio.ensure_future(self._journal.claim())
        _, *seen = await asyncio.gather(claiming, *self._questions(), return_exceptions=True)
        begun = claiming.result()
        if begun and (resumed := await self._resume(begun)):
            return resumed
        if begun:  # what was seen before counted the call that was begun
            seen = await asyncio.gather(*self._questions(), return_exceptions=True)
        return seen

    def _questions(self) -> list[Awaitable[object]]:
        """Ask the phone, the limits and the guard what they would say, without changing anything.

        A channel without a code meets other rules than one with a code, so where both are wanted both are asked after.
        """
        wish, tools = self._wish, self._tools
        questions: list[Awaitable[object]] = [
            tools.store.preview_start(wish.call(channel), wish.policy) for channel in self._kinds.values()
        ]
        questions.append(tools.limits.require_room(self._allowances))
        if wish.test_code is None:
            questions.append(tools.guard.require_open(wish.phone, wish.client))
        return questions

    @property
    def _kinds(self) -> dict[bool, Channel]:
        """The first channel of each kind that is wanted; the key says whether it has a code."""
        return {channel.rules.has_code: channel for channel in reversed(self._wish.channels)}

    def _choose(self, answers: Sequence[object]) -> tuple[StartPreview, tuple[Channel, ...]]:
        """Return the channels to try, and the preview of the first. Raises what refuses the start."""
        channels = self._wish.channels
        previews = dict(zip(self._kinds, answers, strict=False))
        known = next((preview for preview in previews.values() if isinstance(preview, StartPreview)), None)
        if known and self._wish.test_code is None:
            channels = self._route(known)
        preview = previews[channels[0].rules.has_code]
        for answer in (preview, *answers[len(previews) :]):
            if isinstance(answer, BaseException):
                raise answer
        assert isinstance(preview, StartPreview)  # noqa: S101 - mypy cannot know that no exception is left
        return preview, channels

    def _route(self, preview: StartPreview) -> tuple[Channel, ...]:
        """Order the channels, and leave out those whose provider cannot be asked. Raises ProviderError."""
        ordered, policy = self._wish.channels, self._wish.policy
        if len(ordered) > 1:
            operators = policy.operator_channels
            ordered = route(ordered, phone=self._wish.phone, history=preview.history, operator_channels=operators)
        ready, refusals = [], []
        for channel in ordered:
            try:
                self._tools.senders[channel].require_ready()
            except ProviderError as error:
                self._tools.observe(CallRefused(channel, error))
                refusals.append(error)
            else:
                ready.append(channel)
        if not ready:
            raise refusals[0]
        return tuple(ready)

    async def _resume(self, name: CallId) -> Started | None:
        """Return the call that an earlier request began before it died; none if it may be placed anew.

        Raises:
            StoreUnavailable: nothing is known, so nothing may be done.

        """
        tools, client = self._tools, self._wish.client
        try:
            verification = await tools.store.read(name.verification_id, client=client)
            call = verification.call(name.call_number)
            if call is None:
                return None
            # Nobody was called, or told whom to call. Its place in the limits is not known here, and stays taken.
            if not call.channel.rules.has_code and call.dial is None:
                await tools.never_placed(None, name, self._wish.policy)
                return None
            if call.ref is None and call.state.status is CallStatus.INITIATED:
                update = CallUpdate(state=CallState(CallStatus.UNCONFIRMED))
                verification = (await tools.store.record_call(verification, name.call_number, update)).verification
                tools.observe(CallPlaced(call.channel, CallStatus.UNCONFIRMED))
        except VerificationNotFound:
            return None
        log.warning("verification.start_resumed", extra={"verification_id": verification.id})
        started = Started(verification)
        await self._journal.keep(started)
        return started

    async def _reserve(self, name: CallId, channel: Channel, code: str | None) -> Started:
        """Take the places that the call needs, then store it together with the note that it is about to be placed."""
        tools = self._tools
        self._took_places = True
        quotas, admitted = await asyncio.gather(
            tools.limits.acquire(self._token, self._allowances), self._admit(), return_exceptions=True
        )
        for answer in (quotas, admitted):
            if isinstance(answer, BaseException):
                raise answer
        assert not isinstance(quotas, BaseException)  # noqa: S101 - mypy cannot know that no exception is left
        started = await self._store(name, channel, code)
        return replace(started, quotas=(*started.quotas, *quotas))

    async def _admit(self) -> None:
        if self._wish.test_code is None:
            await self._tools.guard.admit(self._wish.phone, self._wish.client)
            self._is_admitted = True

    async def _store(self, name: CallId, channel: Channel, code: str | None) -> Started:
        wish, tools = self._wish, self._tools
        digest = tools.digester.digest(wish.client, code) if code else None
        self._name = name
        call = wish.call(channel, code_digest=digest, code_length=len(code) if code else None, token=self._token)
        started, noted = await asyncio.gather(
            tools.store.start(name, call, wish.policy), self._journal.begin(name), return_exceptions=True
        )
        for answer in (started, noted):
            if isinstance(answer, BaseException):
                raise answer
        assert isinstance(started, Started)  # noqa: S101 - mypy cannot know that no exception is left
        return started

    async def _try_each(
        self, started: Started, channels: Sequence[Channel], code: str | None
    ) -> tuple[Started, Attempt]:
        """Try one channel after the other until a call was placed, or may have been, or no other can help."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._wish.policy.patience.total_seconds()
        attempt = await self._try(started, channels[0], code, deadline - clock())
        for channel in channels[1:]:
            if not (_may_help(attempt, self._tools.senders[channel]) and deadline - clock() > _SHORTEST_TRY):
                continue
            code = self._make_code(channel)
            try:
                started = await self._replace(started, channel, code)
            except VerificationError:
                break  # somebody else's start came between, or Redis has gone: the refusal before is still the truth
            except BaseException:
                self._tools.deferred.write_later(*self._refunds())
                raise
            attempt = await self._try(started, channel, code, deadline - clock())
        return started, attempt

    async def _try(self, started: Started, channel: Channel, code: str | None, seconds: float) -> Attempt:
        """Ask the provider. From here on the call may have been placed, unless the outcome says that it was not."""
        wish = self._wish
        verification = started.verification
        order = CallOrder(
            name=CallId(verification.id, verification.calls[-1].call_number),
            phone=wish.phone,
            code=code,
            lang=wish.lang,
            repeat=wish.policy.repeat,
            within=seconds,
        )
        sender = self._tools.senders[channel]
        outcome = await sender.place(order)
        if isinstance(outcome, Refused):
            self._tools.observe(CallRefused(channel, outcome.error))
        return Attempt(channel=channel, sender=sender, outcome=outcome)

    async def _replace(self, started: Started, channel: Channel, code: str | None) -> Started:
        """Give back a call that was refused and store another in its place, which may be another verification's.

        The places in the other limits stay taken. Raises as the store's ``start`` does.
        """
        wish, tools = self._wish, self._tools
        async with store_deadline(tools.store_timeout):
            await self._refund_call()
            preview = await tools.store.preview_start(wish.call(channel), wish.policy)
            replacement = await self._store(preview.name, channel, code)
        return replace(replacement, quotas=started.quotas)

    async def _settle(self, started: Started, attempt: Attempt) -> Started:
        """Write the outcome of a call down, or give everything back."""
        verification, tools = started.verification, self._tools
        match attempt.outcome:
            case Refused(error):
                await tools.deferred.write(*self._refunds())
                raise error
            case Unknown(why, ref):
                log.warning("call.unconfirmed", extra={"verification_id": verification.id, "why": why})
                token = self._token if ref else None
                update = CallUpdate(state=CallState(CallStatus.UNCONFIRMED), ref=ref, limits_token=token)
            case Placed(ref, code, operator, dial):
                update = CallUpdate(
                    state=CallState(CallStatus.INITIATED),
                    ref=ref,
                    code_digest=tools.digester.digest(verification.client, code) if code else None,
                    code_length=len(code) if code else None,
                    dial=dial,
                    operator=operator,
                )
        started = await self._record(started, update, supports_status=attempt.sender.supports_status)
        tools.observe(CallPlaced(attempt.channel, update.state.status))
        if verification.calls_placed == 1:
            tools.observe(VerificationStarted(attempt.channel))
        return started

    async def _record(self, started: Started, update: CallUpdate, *, supports_status: bool) -> Started:
        """Record a placed call. Without a store it is still placed and its code verifies, so the caller is told.

        Unless the provider chose the code: then only this write makes it verify, and its failure is told.
        """
        verification, tools = started.verification, self._tools
        call_number = verification.calls[-1].call_number
        writes: list[Write] = []
        if update.code_digest:
            await self._record_chosen_code(started, update)
        else:
            writes.append(lambda: tools.store.record_call(verification, call_number, update))
        told = replace(started, verification=verification.with_latest_call(update.state, update.ref, update.dial))
        if supports_status and update.ref:
            writes.append(lambda: tools.queue.schedule(CallId(verification.id, call_number), FIRST_LOOK))
        if not await best_effort(*(write() for write in writes), self._journal.keep(told)):
            tools.deferred.write_later(*writes)  # the client's webhook is told by it, and the call is followed
        return told

    async def _record_chosen_code(self, started: Started, update: CallUpdate) -> None:
        """Record the code, again if need be: whoever hears it and types it must not be refused.

        Where the store does not answer in time the caller is told, and the code is still written once it does. Where it
        has lost the verification (an erasure, a failover), nobody can check the code.
        """
        verification, tools = started.verification, self._tools
        call_number = verification.calls[-1].call_number

        async def record() -> None:
            await tools.store.record_call(verification, call_number, update)

        try:
            await record()
        except StoreUnavailable:
            tools.deferred.write_later(record)
            raise
        except VerificationNotFound as error:
            raise StoreUnavailable from error

    def _refunds(self) -> list[Write]:
        """List what undoes all that this start took, and lets its request be made again; each may run twice."""
        tools = self._tools
        refunds: list[Write] = [self._journal.release]
        if self._name:
            refunds.append(self._refund_call)
        if self._took_places:
            refunds.append(lambda: tools.limits.refund(self._token, self._allowances))
        return [*refunds, self._refund_guard]

    async def _refund_guard(self) -> None:
        if self._is_admitted:
            self._is_admitted = False  # it counts down, so it is not repeated, even where its reply was lost
            await self._tools.guard.refund(self._wish.phone, self._wish.client)

    async def _refund_call(self) -> None:
        assert self._name  # noqa: S101 - only a call that was named is taken back
        wish = self._wish
        await self._tools.store.refund(
            self._name, phone=wish.phone, client=wish.client, policy=wish.policy, token=self._token
        )

    def _make_code(self, channel: Channel) -> str | None:
        if self._wish.test_code is not None:
            return self._wish.test_code
        length = self._wish.policy.code_length_of(channel)
        return make_code(length) if length else None


def _may_help(attempt: Attempt, other: CallSender) -> bool:
    """Return whether another channel may do what one refused: after a no, any; after a failure, another provider's."""
    match attempt.outcome:
        case Refused(ProviderRejected()):
            return True
        case Refused():
            return other.provider != attempt.sender.provider
        case _:
            return False
