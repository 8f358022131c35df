"""The use case of starting a verification: check the rules, reserve the call, place it, and record or refund it.

The order of the steps keeps money and codes safe. The call is counted in the limits and stored for the phone, in one
step where the store can; a store that cannot is only asked before, so that a refused start changes nothing. A code is
stored before it can be heard. A request that may have placed a call is never followed by another, and a call that was
not placed is refunded.
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from datetime import timedelta
from functools import partial
from typing import Any

from app.verification import log_context
from app.verification.channels import Channel
from app.verification.code import make_code
from app.verification.domain_events import (
    CallAsked,
    CallPlaced,
    CallRefused,
    LimitHit,
    NoProviderReady,
    Segment,
    VerificationStarted,
)
from app.verification.errors import (
    LimitReached,
    ProviderError,
    ProviderRejected,
    StoreUnavailable,
    VerificationError,
    VerificationNotFound,
)
from app.verification.idempotency import StartJournal
from app.verification.model import CallState, CallStatus, Consent, Lang, Placed, Refused, Started, Unknown, Verification
from app.verification.policy import Allowance, Quota
from app.verification.ports import CallId, CallOrder, CallUpdate, NewCall, Ports, StartPreview, StoredCall
from app.verification.routing import route
from app.verification.store_requests import Request, StoreDeadline, Write, best_effort, in_one_round_trip
from app.verification.values import value

log = logging.getLogger(__name__)

FIRST_STATUS_DELAY = timedelta(seconds=1)  # after a call was placed; it hardly rings before
_MAX_CONCURRENT = 32  # starts before they reach the provider; each waits for the store for some milliseconds
_MIN_TRY_SECONDS = 1.0  # with less time left no other channel is tried


@value
class StartRequest:
    """A client's request to call a phone.

    ``verification_id`` is that of a resend. ``channels`` are tried in this order; without any, those that the client
    may use. ``address`` is the end user's, as the client saw it. ``reference`` is the client's own name for the
    verification; a resend may leave it out, and keeps it. ``consent`` is the subscriber's; a resend without one keeps
    the one before.
    """

    _: KW_ONLY
    client: str
    phone: str
    purpose: str
    verification_id: str | None = None
    channels: tuple[Channel, ...] = ()
    lang: Lang = Lang.RU
    address: str | None = None
    reference: str | None = None
    consent: Consent | None = None


class StartVerification:
    """Places a call for a new verification, or another one for a pending verification (a resend).

    The gate bounds how many starts ask the store at once: on a cluster each holds places in limits that all share, so a
    flood of starts that another limit will refuse must not hold them all.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._gate = asyncio.Semaphore(_MAX_CONCURRENT)

    async def __call__(self, request: StartRequest, *, journal: StartJournal | None = None) -> Started:
        """Place at most one call: another channel is tried only after a call definitely was not placed.

        The digest of a code is stored before the call is placed, so that a code that was heard always verifies. With a
        ``journal`` a repetition of the request places no second call.

        Raises:
            PhoneNotCallable, NotAllowed: the rules do not allow the request.
            VerificationNotFound: a resend of a verification that is not pending, or of another phone, purpose or
                reference.
            LimitReached: a limit refuses the start; nothing was changed.
            ProviderError: no call was placed; what was counted is refunded.
            StoreUnavailable: no call was placed; or one was, whose code the provider chose and that is not stored yet.

        """
        start = _Start(self._ports, request, journal)
        try:
            return await start.run(self._gate)
        except LimitReached as error:
            self._ports.publish(LimitHit(error.limit, "start", error.retry_after, start.phone))
            raise


class _Start:
    """One start in progress. What it has taken is refunded if no call is placed."""

    def __init__(self, ports: Ports, request: StartRequest, journal: StartJournal | None) -> None:
        policy = ports.policies.for_client(request.client)
        policy.require_allowed(request.purpose, request.channels)
        phone = policy.parse_phone(request.phone)
        log_context.bind(phone=phone.masked)
        if request.verification_id is not None:
            log_context.bind_verification(request.verification_id)
        self.ports, self.request, self.journal, self.policy, self.phone = ports, request, journal, policy, phone
        self.channels = request.channels or policy.channels
        self.test_code = ports.test_numbers.code_of(phone)
        self.is_test = self.test_code is not None
        self.allowances = policy.for_calls(
            client=request.client, phone=phone, address=request.address, test=self.is_test
        )
        # Identifies this start in the limits and in the store; it is not a secret.
        self.token = self.limits_token = f"{random.getrandbits(48):012x}"
        self.call_id: CallId | None = None  # of the call that is, or may be, counted in the limits and stored
        self.is_counted_by_store = False  # with that call: one refund ends both, even if it is not known when it was
        self.undone: CallId | None = None  # a call that the journal may have noted, and that was not placed
        self.code: str | None = None  # of the call that is stored
        self.error: ProviderError | None = None  # if the provider has refused it
        self.quotas: tuple[Quota, ...] = ()

    async def run(self, gate: asyncio.Semaphore) -> Started:
        """Choose, reserve, place and record the call."""
        deferred = self.ports.deferred
        try:
            async with StoreDeadline(self.ports.store_timeout), gate:
                chosen = await self._choose()
                if isinstance(chosen, Started):
                    return chosen
                call_id, channels = chosen
                verification = await self._reserve(call_id, channels[0])
        except (StoreUnavailable, asyncio.CancelledError):
            # Whether the store has run the commands is unknown, and nobody waits until it is known.
            deferred.write_later(*self._refunds())
            raise
        except Exception:
            await deferred.write(*self._refunds())
            raise
        if self.is_test:
            log.info("verification.test_started")
            return await self._record(verification, CallUpdate(state=CallState(CallStatus.COMPLETED), ref="test"))
        try:
            return await self._place(verification, channels)
        except (StoreUnavailable, asyncio.CancelledError):  # the call may have been placed, and is not handled any more
            if self.journal:
                deferred.write_later(self.journal.release)
            raise

    async def _choose(self) -> tuple[CallId, tuple[Channel, ...]] | Started:
        """Claim the request, and choose the id of the call and the channels to try. Raise what refuses the start.

        If an earlier request began the call and died, return the verification with that call. What depends on the
        store is read in the round trip of the claim.
        """
        if self.journal:
            begun, *answers = await in_one_round_trip(self.journal.claim(), *self._previews())
            _require_all([begun])
            if begun:
                if resumed := await self._resume(begun):
                    return resumed
                self.undone = begun
                answers = await in_one_round_trip(*self._previews())  # the first have counted that call
        else:
            answers = await in_one_round_trip(*self._previews())
        if not self.is_test:
            self.ports.publish(CallAsked(self._segment(self.channels[0])))
        if not answers:
            return CallId(self.ports.store.new_id(self.phone), 1), self.channels
        channels, previews = self.channels, dict(zip(self._kinds(), answers, strict=False))
        accepted = next((preview for preview in previews.values() if isinstance(preview, StartPreview)), None)
        if accepted and not self.is_test:
            channels = self._ready_channels(accepted)
        preview, *_ = _require_all([previews[channels[0].rules.has_code], *answers[len(previews) :]])
        return preview.call_id, channels

    def _previews(self) -> list[Request]:
        """Ask the store, once for each kind of channel, and the limits if the store does not count in them.

        Nothing has to be asked for a new verification by one channel that is ready, if the store counts in the limits.
        """
        ports, (channel, *others) = self.ports, self.channels
        is_decided = not others and self.request.verification_id is None and self._is_ready(channel)
        if is_decided and ports.store.counts_in_allowances:
            return []
        previews: list[Request] = [
            ports.store.preview_start(self._new_call(channel), self.policy) for channel in self._kinds().values()
        ]
        if not ports.store.counts_in_allowances:
            previews.append(ports.limits.require_room(self.allowances))
        return previews

    def _kinds(self) -> Mapping[bool, Channel]:
        """Return the first channel of each kind, since their rules differ: True for one that has a code."""
        return {channel.rules.has_code: channel for channel in reversed(self.channels)}

    def _is_ready(self, channel: Channel) -> bool:
        try:
            if not self.is_test:
                self.ports.senders[channel].require_ready()
        except ProviderError:
            return False
        return True

    def _ready_channels(self, preview: StartPreview) -> tuple[Channel, ...]:
        """Return the channels in the order to try, without those whose provider is unavailable. Raise ProviderError."""
        channels, ready, errors = self.channels, [], []
        if len(channels) > 1:
            operator_channels = self.policy.operator_channels
            channels = route(channels, phone=self.phone, history=preview.history, operator_channels=operator_channels)
        for channel in channels:
            try:
                self.ports.senders[channel].require_ready()
            except ProviderError as error:
                self.ports.publish(CallRefused(channel, error))
                errors.append(error)
            else:
                ready.append(channel)
        if not ready:
            self.ports.publish(NoProviderReady(self.phone, errors[0]))
            raise errors[0]
        return tuple(ready)

    async def _resume(self, call_id: CallId) -> Started | None:
        """Return the verification of a call that an earlier request began; None if the call may be placed anew.

        Raise StoreUnavailable: it may have been placed, so no other may be.
        """
        ports, client = self.ports, self.request.client
        try:
            verification = await ports.store.read(call_id.verification_id, client=client)
            call = verification.call(call_id.call_number)
            if call is None:
                return None
            self._bind(call_id, call.channel)
            if not call.channel.rules.has_code and call.dial is None:
                # Nobody knows the number to call. The event in the limits is not known here, and stays counted.
                await ports.store.refund(call_id, phone=verification.phone, client=client, policy=self.policy)
                return None
            if call.ref is None and call.state.status is CallStatus.INITIATED:
                update = CallUpdate(state=CallState(CallStatus.UNCONFIRMED))
                await ports.store.record_call(verification, call_id.call_number, update)
                verification = await ports.store.read(call_id.verification_id, client=client)
                segment = self._segment(call.channel)
                ports.publish(CallPlaced(segment, CallStatus.UNCONFIRMED, "its process ended"))
        except VerificationNotFound:
            return None
        log.warning("verification.start_resumed")
        started = Started(verification)
        if self.journal:
            await self.journal.keep(started)
        return started

    async def _reserve(self, call_id: CallId, channel: Channel) -> Verification:
        """Count the call in the limits and store it."""
        self.call_id = call_id
        try:
            if self.ports.store.counts_in_allowances:
                self.is_counted_by_store = True
                stored = await self._store(call_id, channel, self.allowances)
                self.quotas = stored.quotas
                return stored.verification
            reservation = await self.ports.limits.acquire(self.token, self.allowances)
        except LimitReached:
            self.call_id, self.is_counted_by_store = None, False  # nothing is counted, so there is nothing to refund
            raise
        self.limits_token = reservation.token
        stored = await self._store(call_id, channel)
        self.quotas = (*stored.quotas, *reservation.quotas)
        return stored.verification

    async def _store(self, call_id: CallId, channel: Channel, allowances: Sequence[Allowance] = ()) -> StoredCall:
        """Make a code and store the call, together with the note in the journal that it is about to be placed."""
        self.call_id, self.error = call_id, None
        length = self.policy.code_length_of(channel)
        self.code = self.test_code or (make_code(length) if length else None)
        call = self._new_call(channel, self.code)
        requests: list[Request] = [self.ports.store.start(call_id, call, self.policy, allowances)]
        if self.journal:
            self.undone = call_id
            requests.append(self.journal.begin(call_id))
        results = await in_one_round_trip(*requests)
        stored: StoredCall
        if allowances and isinstance(results[0], StoredCall):
            self.limits_token = results[0].limits_token
        if not isinstance(results[0], LimitReached):  # then there is, or may be, this call
            self._bind(call_id, channel)
        stored, *_ = _require_all(results)
        return stored

    def _bind(self, call_id: CallId, channel: Channel) -> None:
        log_context.bind(verification_id=call_id.verification_id, call_number=call_id.call_number, channel=str(channel))

    def _new_call(self, channel: Channel, code: str | None = None) -> NewCall:
        request = self.request
        return NewCall(
            client=request.client,
            phone=self.phone,
            purpose=request.purpose,
            channel=channel,
            code_digest=self.ports.digester.digest(request.client, code) if code else None,
            code_length=len(code) if code else None,
            checks=self.policy.checks_of(channel),
            resend_of=request.verification_id,
            address=request.address,
            token=self.token,
            test=self.is_test,
            reference=request.reference,
            consent=request.consent,
        )

    def _segment(self, channel: Channel) -> Segment:
        return Segment.of(self.request.client, channel, self.phone)

    async def _place(self, verification: Verification, channels: Sequence[Channel]) -> Started:
        """Try one channel after the other until a call was placed, or may have been, or no other can help.

        After a rejection any other channel may help; after a failure, only one of another provider.
        """
        ports, clock, error, provider = self.ports, asyncio.get_running_loop().time, None, ""
        deadline = clock() + self.policy.call_timeout.total_seconds()
        for channel in channels:
            sender = ports.senders[channel]
            if error:
                may_help = isinstance(error, ProviderRejected) or sender.provider != provider
                if not may_help or deadline - clock() <= _MIN_TRY_SECONDS:
                    continue
                try:
                    verification = await self._replace(channel)
                except StoreUnavailable:  # the refusal before still holds, but scripts may run late
                    ports.deferred.write_later(*self._refunds())
                    raise error from None
                except VerificationError:
                    break  # another start came between: the refusal before still holds
                except (Exception, asyncio.CancelledError):
                    ports.deferred.write_later(*self._refunds())
                    raise
            order = CallOrder(
                call_id=_latest_call(verification),
                phone=self.phone,
                code=self.code,
                lang=self.request.lang,
                repeat=self.policy.repeat,
                timeout=deadline - clock(),
            )
            # From here on the call may have been placed, unless the outcome is a refusal.
            outcome = await sender.place(order)
            if not isinstance(outcome, Refused):
                return await self._record_outcome(verification, channel, outcome)
            self.error = error = outcome.error
            provider = sender.provider
            ports.publish(CallRefused(channel, error))
        await ports.deferred.write(*self._refunds())
        assert error  # noqa: S101 - every call that was tried was refused
        raise error

    async def _replace(self, channel: Channel) -> Verification:
        """Refund a call that was refused, and store another, which may be of another verification.

        The other limits stay as they are counted. Raise as the store's ``start`` does.
        """
        self.is_counted_by_store = False
        async with StoreDeadline(self.ports.store_timeout):
            await self._refund_call()
            preview = await self.ports.store.preview_start(self._new_call(channel), self.policy)
            return (await self._store(preview.call_id, channel)).verification

    async def _record_outcome(self, verification: Verification, channel: Channel, outcome: Placed | Unknown) -> Started:
        """Record a call that was placed, or may have been, and publish it."""
        ports = self.ports
        why: str | None = None
        match outcome:
            case Unknown(why, ref):
                token = self.limits_token if ref else None
                update = CallUpdate(state=CallState(CallStatus.UNCONFIRMED), ref=ref, limits_token=token)
            case Placed(ref, code, operator, dial):
                update = CallUpdate(
                    state=CallState(CallStatus.INITIATED),
                    ref=ref,
                    code_digest=ports.digester.digest(verification.client, code) if code else None,
                    code_length=len(code) if code else None,
                    dial=dial,
                    operator=operator,
                )
        started = await self._record(verification, update, follow=ports.senders[channel].supports_status)
        segment = self._segment(channel)
        ports.publish(CallPlaced(segment, update.state.status, why))
        if verification.calls_placed == 1:
            ports.publish(VerificationStarted(segment))
        return started

    async def _record(self, verification: Verification, update: CallUpdate, *, follow: bool = False) -> Started:
        """Record a call that was placed, and return the verification with it even if the store is away.

        Only a code that the provider chose must be stored for that: without it, the code cannot be checked.

        Raises:
            StoreUnavailable: that code is not stored. It is stored once the store answers, unless the verification was
                lost (an erasure, a failover).

        """
        ports, call_id = self.ports, _latest_call(verification)

        async def record() -> None:
            await ports.store.record_call(verification, call_id.call_number, update)

        writes: list[Write] = [record]
        if update.code_digest:
            try:
                await record()
            except StoreUnavailable:
                ports.deferred.write_later(record)
                raise
            except VerificationNotFound as error:
                raise StoreUnavailable from error
            writes = []
        if follow and update.ref:
            writes.append(partial(ports.schedule.schedule, call_id, FIRST_STATUS_DELAY))
        started = Started(verification.with_latest_call(update.state, update.ref, update.dial), self.quotas)
        requests = [write() for write in writes]
        if self.journal:
            requests.append(self.journal.keep(started))
        if await best_effort(*requests):
            ports.deferred.write_later(*writes)  # the client's webhook and the following of the call depend on them
        return started

    def _refunds(self) -> list[Write]:
        """Return the writes that undo all that this start took, and release its request; each is idempotent."""
        refunds: list[Write] = [partial(self.journal.release, self.undone)] if self.journal else []
        if self.is_counted_by_store:
            refunds.append(partial(self._refund_call, self.allowances))
        elif self.call_id:
            refunds += [self._refund_call, self._refund_limits]
        return refunds

    async def _refund_limits(self) -> None:
        token, self.limits_token = self.limits_token, self.token  # that of the reservation is given once
        await self.ports.limits.refund(token, self.allowances)

    async def _refund_call(self, allowances: Sequence[Allowance] = ()) -> None:
        assert self.call_id  # noqa: S101 - only a call that has an id is refunded
        await self.ports.store.refund(
            self.call_id,
            phone=self.phone,
            client=self.request.client,
            policy=self.policy,
            token=self.token,
            error=self.error,
            allowances=allowances,
        )


def _require_all(results: Sequence[Any]) -> Sequence[Any]:
    """Return results, or raise the first that is an exception."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _latest_call(verification: Verification) -> CallId:
    return CallId(verification.id, verification.calls[-1].call_number)
