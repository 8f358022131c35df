"""Reading a verification, for its client or for an operator."""

from app.verification import log_context
from app.verification.model import Verification
from app.verification.policy import Policies
from app.verification.ports import VerificationStore


class ReadVerification:
    """Reads a verification; calls that a crash has lost count as lost by the policy of its client."""

    def __init__(self, store: VerificationStore, policies: Policies) -> None:
        self._store = store
        self._policies = policies

    async def __call__(self, *, client: str | None, verification_id: str, follow: bool = False) -> Verification:
        """Return a verification and its calls as last recorded; without ``client``, that of any client.

        Raise VerificationNotFound or StoreUnavailable.
        """
        log_context.bind_verification(verification_id)
        verification = await self._store.read(verification_id, client=client, follow=follow)
        policy = self._policies.for_client(verification.client)
        return verification.without_lost_calls(lifetime=policy.lifetime, call_timeout=policy.call_timeout)
