"""The use case of following a call after it was placed: fetch its status, or take the provider's callback."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from app.verification.channels import Channel
from app.verification.deferred import best_effort
from app.verification.domain_events import CallEnded, Publish, UnknownCallStatus
from app.verification.errors import VerificationNotFound
from app.verification.fraud_guard import FraudGuard
from app.verification.model import CallStatus, Verification
from app.verification.phone import Phone
from app.verification.policy import Policies
from app.verification.ports import CallId, CallSender, CallUpdate, Confirmation, RateLimiter, VerificationStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FollowCalls:
    """Follows calls to their end. ``call_following.py`` decides when."""

    store: VerificationStore
    limits: RateLimiter
    guard: FraudGuard
    senders: Mapping[Channel, CallSender]
    policies: Policies
    publish: Publish

    async def follow(self, call_id: CallId) -> bool:
        """Fetch the status of a call and record it. Return True if the call needs no more following.

        Raise ProviderError (the status could not be fetched) or StoreUnavailable.
        """
        try:
            verification = await self.store.read(call_id.verification_id, client=None)
            call = verification.call(call_id.call_number)
            if call is None or call.ref is None or call.state.status.is_final or call.channel not in self.senders:
                return True
            state = await self.senders[call.channel].fetch_status(call.ref)
            if state is None:
                # Only an unconfirmed call may never have been placed. Any other was, by the provider of that time:
                # the one asked now does not know it.
                if call.state.status is CallStatus.UNCONFIRMED:
                    log.warning("call.never_placed", extra={"verification_id": verification.id})
                    await self._refund(call_id, verification, call.limits_token)
                return True
            if state.provider_status is not None:
                self.publish(UnknownCallStatus(call.channel))
            has_ended = await self.store.record_call(verification, call_id.call_number, CallUpdate(state=state))
        except VerificationNotFound:
            return True
        if has_ended:
            self.publish(CallEnded(call.channel, state.status))
        return state.status.is_final

    async def _refund(self, call_id: CallId, verification: Verification, limits_token: str | None) -> None:
        """Refund a call that was never placed; once, however often it is followed."""
        phone, client = verification.phone, verification.client
        policy = self.policies.for_client(client)
        if await self.store.refund(call_id, phone=phone, client=client, policy=policy) and limits_token:
            # Without the end user's address, which is not stored: its limit stays counted for some minutes.
            allowances = tuple(policy.for_calls(client=client, phone=phone, address=None))
            await best_effort(self.limits.refund(limits_token, allowances), self.guard.refund(phone, client))

    async def confirm_reverse_call(self, call_id: CallId, *, ref: str, caller: Phone) -> Confirmation:
        """Record the provider's callback that a phone has dialled the number of a reverse call. Idempotent.

        Raise StoreUnavailable if it was not recorded; the provider may repeat the callback.
        """
        try:
            verification = await self.store.read(call_id.verification_id, client=None)
        except VerificationNotFound:
            return Confirmation.NOT_FOUND
        policy = self.policies.for_client(verification.client)
        confirmation = await self.store.confirm(
            verification, call_id.call_number, ref=ref, caller=caller, policy=policy
        )
        if confirmation is Confirmation.CONFIRMED:
            self.publish(CallEnded(verification.channel, CallStatus.COMPLETED))
        return confirmation
