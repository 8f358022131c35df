"""The use case of following a call after it was placed: fetch its status, or take the provider's callback."""

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass, field

from app.verification import log_context
from app.verification.domain_events import CallEnded, CallNeverPlaced, Segment, UnknownCallStatus
from app.verification.errors import VerificationNotFound
from app.verification.model import Call, CallStatus, Verification
from app.verification.phone import Phone
from app.verification.ports import CallId, CallUpdate, Confirmation, Ports
from app.verification.store_requests import best_effort

log = logging.getLogger(__name__)

_SECRET = re.compile(r"(vrf_[0-9a-f]{1,60})\.([1-9][0-9]{0,3})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class FollowCalls:
    """Follows calls to their end. ``call_following.py`` decides when."""

    ports: Ports

    async def follow(self, call_id: CallId) -> bool:
        """Fetch the status of a call and record it. Return True if the call needs no more following.

        Raise ProviderError (the status could not be fetched) or StoreUnavailable.
        """
        ports = self.ports
        try:
            verification = await ports.store.read(call_id.verification_id, client=None)
            call = verification.call(call_id.call_number)
            _bind(verification)
            if call is None or call.ref is None or call.state.status.is_final or call.channel not in ports.senders:
                return True
            state = await ports.senders[call.channel].fetch_status(call.ref)
            if state is None:
                # Only an unconfirmed call may never have been placed. Any other was, by the provider of that time:
                # the one asked now does not know it.
                if call.state.status is CallStatus.UNCONFIRMED:
                    log.warning("call.never_placed", extra={"channel": call.channel})
                    await self._refund(verification, call)
                return True
            if state.provider_status is not None:
                ports.publish(UnknownCallStatus(call.channel))
            has_ended = await ports.store.record_call(verification, call_id.call_number, CallUpdate(state=state))
        except VerificationNotFound:
            return True
        if has_ended:
            segment = Segment.of(verification.client, call.channel, verification.phone)
            ports.publish(CallEnded(segment, state.status))
        return state.status.is_final

    async def _refund(self, verification: Verification, call: Call) -> None:
        """Refund a call that was never placed; once, however often it is followed."""
        ports, phone, client = self.ports, verification.phone, verification.client
        call_id, policy = CallId(verification.id, call.call_number), ports.policies.for_client(client)
        if not await ports.store.refund(call_id, phone=phone, client=client, policy=policy):
            return
        ports.publish(CallNeverPlaced(Segment.of(client, call.channel, phone)))
        if call.limits_token:
            # Without the end user's address, which is not stored: its limit stays counted for some minutes.
            allowances = tuple(policy.for_calls(client=client, phone=phone, address=None))
            await best_effort(ports.limits.refund(call.limits_token, allowances))

    async def confirm_reverse_call(self, call_id: CallId, *, ref: str, caller: Phone) -> Confirmation:
        """Record the provider's callback that a phone has dialled the number of a reverse call. Idempotent.

        Raise StoreUnavailable if it was not recorded; the provider may repeat the callback.
        """
        try:
            verification = await self.ports.store.read(call_id.verification_id, client=None)
        except VerificationNotFound:
            return Confirmation.NOT_FOUND
        _bind(verification)
        log_context.bind(call_number=call_id.call_number)
        policy = self.ports.policies.for_client(verification.client)
        confirmation = await self.ports.store.confirm(
            verification, call_id.call_number, ref=ref, caller=caller, policy=policy
        )
        if confirmation is Confirmation.CONFIRMED:
            segment = Segment.of(verification.client, verification.channel, verification.phone)
            self.ports.publish(CallEnded(segment, CallStatus.COMPLETED))
        return confirmation


def _bind(verification: Verification) -> None:
    log_context.bind(verification_id=verification.id, client=verification.client, phone=verification.phone.masked)


@dataclass(frozen=True, slots=True)
class CallbackUrls:
    """Makes a URL for the provider's callback of each call: with its id and a MAC, so that nobody can make another."""

    key: bytes = field(repr=False)
    prefix: str

    def url_of(self, call_id: CallId) -> str:
        """Return the URL of a call."""
        return f"{self.prefix}{call_id.verification_id}.{call_id.call_number}.{self._mac(call_id)}"

    def read(self, secret: str) -> CallId | None:
        """Return the call that a secret belongs to, or None if it is not one of ours; compared in constant time."""
        match = _SECRET.fullmatch(secret)
        if not match:
            return None
        call_id = CallId(match[1], int(match[2]))
        return call_id if hmac.compare_digest(match[3], self._mac(call_id)) else None

    def _mac(self, call_id: CallId) -> str:
        """Return 128 bits of HMAC-SHA256 (RFC 2104, section 5, on truncation)."""
        text = f"{call_id.verification_id}.{call_id.call_number}"
        return hmac.digest(self.key, text.encode(), hashlib.sha256).hex()[:32]
