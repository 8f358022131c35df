"""A start as the service runs it, for tests of a store."""

from app.verification.model import Started
from app.verification.policy import Policy
from app.verification.ports import NewCall, VerificationStore


async def start(store: VerificationStore, call: NewCall, policy: Policy) -> Started:
    """Preview the start, then store it."""
    preview = await store.preview_start(call, policy)
    return await store.start(preview.call_id, call, policy)
