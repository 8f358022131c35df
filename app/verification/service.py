"""All use cases of verifications over one set of ports, with the two that need no file of their own."""

from collections.abc import Mapping

from app.verification.channels import Channel
from app.verification.check import CheckVerification
from app.verification.code import CodeDigester
from app.verification.deferred import DeferredWrites
from app.verification.domain_events import Publish, VerificationCanceled
from app.verification.follow import FollowCalls
from app.verification.fraud_guard import FraudGuard
from app.verification.model import Verification
from app.verification.policy import Policies
from app.verification.ports import CallSchedule, CallSender, ProofTokens, RateLimiter, VerificationStore
from app.verification.start import StartVerification
from app.verification.test_numbers import TestNumbers


class VerificationService:
    """Proves that a person has a phone: ``start``, ``check``, ``follow``, ``read`` and ``cancel``."""

    def __init__(
        self,
        *,
        store: VerificationStore,
        limits: RateLimiter,
        guard: FraudGuard,
        senders: Mapping[Channel, CallSender],
        schedule: CallSchedule,
        digester: CodeDigester,
        policies: Policies,
        test_numbers: TestNumbers,
        tokens: ProofTokens,
        publish: Publish,
        deferred: DeferredWrites,
        store_timeout: float,
    ) -> None:
        self._store = store
        self._policies = policies
        self._publish = publish
        self.start = StartVerification(
            store, limits, guard, senders, schedule, digester, policies, test_numbers, publish, deferred, store_timeout
        )
        self.check = CheckVerification(store, guard, digester, policies, tokens, publish)
        self.calls = FollowCalls(store, limits, guard, senders, policies, publish)

    async def read(self, *, client: str | None, verification_id: str, follow: bool = False) -> Verification:
        """Return a verification and its calls as last recorded; without ``client``, that of any client.

        Raise VerificationNotFound or StoreUnavailable.
        """
        verification = await self._store.read(verification_id, client=client, follow=follow)
        policy = self._policies.for_client(verification.client)
        return verification.without_lost_calls(lifetime=policy.lifetime, call_timeout=policy.call_timeout)

    async def cancel(self, *, client: str, verification_id: str) -> Verification:
        """Cancel a pending verification; a canceled one stays as it is.

        Raise VerificationNotFound, VerificationAlreadyUsed, VerificationLocked or StoreUnavailable.
        """
        verification = await self._store.cancel(client, verification_id)
        if not verification.test:
            self._publish(VerificationCanceled())
        return verification
