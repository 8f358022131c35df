"""A start as the service makes it, for tests of a store."""

from app.verification.model import Started
from app.verification.policy import Policy
from app.verification.ports import NewCall, VerificationStore


async def start(store: VerificationStore, call: NewCall, policy: Policy) -> Started:
    """Look first, then store the call."""
    preview = await store.preview_start(call, policy)
    return await store.start(preview.call_id, call, policy)
