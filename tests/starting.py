"""A start, and an update of its call, for tests of a store."""

from app.verification.model import Verification
from app.verification.policy import Policy
from app.verification.ports import CallUpdate, NewCall, StoredCall, VerificationStore


async def start(store: VerificationStore, call: NewCall, policy: Policy) -> StoredCall:
    """Preview the start, then store it."""
    preview = await store.preview_start(call, policy)
    return await store.start(preview.call_id, call, policy)


async def record(
    store: VerificationStore, verification: Verification, call_number: int, update: CallUpdate
) -> Verification:
    """Record what happened to a call, and return the verification after that."""
    await store.record_call(verification, call_number, update)
    return await store.read(verification.id, client=None)
