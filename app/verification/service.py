"""All use cases of verifications, with the two that need no file of their own."""

from app.verification import log_context
from app.verification.check import CheckVerification
from app.verification.domain_events import VerificationCanceled
from app.verification.follow import FollowCalls
from app.verification.model import Verification
from app.verification.ports import Ports
from app.verification.start import StartVerification


class VerificationService:
    """Proves that a person has a phone."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self.start = StartVerification(ports)
        self.check = CheckVerification(ports)
        self.calls = FollowCalls(ports)

    async def read(self, *, client: str | None, verification_id: str, follow: bool = False) -> Verification:
        """Return a verification and its calls as last recorded; without ``client``, that of any client.

        Raise VerificationNotFound or StoreUnavailable.
        """
        log_context.bind_verification(verification_id)
        verification = await self._ports.store.read(verification_id, client=client, follow=follow)
        policy = self._ports.policies.for_client(verification.client)
        return verification.without_lost_calls(lifetime=policy.lifetime, call_timeout=policy.call_timeout)

    async def cancel(self, *, client: str, verification_id: str) -> Verification:
        """Cancel a pending verification; a canceled one stays as it is.

        Raise VerificationNotFound, VerificationAlreadyUsed, VerificationLocked or StoreUnavailable.
        """
        log_context.bind_verification(verification_id)
        verification = await self._ports.store.cancel(client, verification_id)
        log_context.bind(phone=verification.phone.masked, channel=verification.channel)
        if not verification.test:
            self._ports.publish(VerificationCanceled())
        return verification
