"""All use cases of verifications, with the one that needs no file of its own."""

from app.verification import log_context
from app.verification.check import CheckVerification
from app.verification.domain_events import VerificationCanceled
from app.verification.follow import FollowCalls
from app.verification.model import Verification
from app.verification.ports import Ports
from app.verification.read import ReadVerification
from app.verification.start import StartVerification


class VerificationService:
    """Proves that a person has a phone."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self.start = StartVerification(ports)
        self.check = CheckVerification(ports)
        self.calls = FollowCalls(ports)
        self.read = ReadVerification(ports.store, ports.policies)

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
