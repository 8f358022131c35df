"""The use case of checking a code, or whether a reverse call was made, and of signing the proof if it passed."""

from collections.abc import Awaitable
from dataclasses import dataclass

from app.verification.code import CodeDigester
from app.verification.deferred import DeferredWrites, best_effort
from app.verification.domain_events import CodeChecked, LimitHit, Publish
from app.verification.errors import CodeRequired, RateLimited
from app.verification.fraud_guard import FraudGuard
from app.verification.model import CheckOutcome, CheckPassed, CheckResult, Verified, Waiting
from app.verification.policy import Policies
from app.verification.ports import CodeCheck, ProofTokens, VerificationStore


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckVerification:
    """Checks codes, by the id of a verification or by phone and purpose.

    ``code`` is digits only, or None for a reverse call. With a ``retry_digest``, which only the same request has, a
    check that passed passes again.
    """

    store: VerificationStore
    guard: FraudGuard
    digester: CodeDigester
    policies: Policies
    tokens: ProofTokens
    publish: Publish
    deferred: DeferredWrites

    async def by_id(
        self,
        *,
        client: str,
        verification_id: str,
        code: str | None,
        address: str | None = None,
        retry_digest: str | None = None,
    ) -> CheckResult:
        """Compare a code with all valid codes of a verification.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationAlreadyCanceled, VerificationLocked: no check.
            RateLimited: no check, after too many wrong codes.
            CodeRequired, CodeNotExpected: the verification is no reverse call, or it is one.
            CodeTooShortOrLong: no check; costs nothing.
            StoreUnavailable: the result is unknown; the code may be tried again.

        """
        policy = self.policies.for_client(client)
        check = self._code_check(client, code, address, retry_digest)
        return await self._finish(client, self.store.check_by_id(verification_id, check, policy))

    async def by_phone(
        self,
        *,
        client: str,
        phone: str,
        purpose: str,
        code: str | None,
        address: str | None = None,
        retry_digest: str | None = None,
    ) -> CheckResult:
        """Compare a code with all valid codes of a phone and purpose. Raise as ``by_id`` does, and the following.

        Raises:
            PhoneNotCallable, NotAllowed: there can be no such verification.
            CodeRequired: a check without a code needs the id, which only the one who started the call has.

        """
        if code is None:
            raise CodeRequired
        policy = self.policies.for_client(client)
        policy.require_allowed(purpose)
        number = policy.parse_phone(phone)
        check = self._code_check(client, code, address, retry_digest)
        return await self._finish(client, self.store.check_by_phone(number, purpose, check, policy))

    def _code_check(self, client: str, code: str | None, address: str | None, retry_digest: str | None) -> CodeCheck:
        candidates = self.digester.candidates(client, code) if code else ()
        return CodeCheck(
            client=client, candidates=candidates, length=len(code or ""), address=address, retry_digest=retry_digest
        )

    async def _finish(self, client: str, checking: Awaitable[CheckOutcome]) -> CheckResult:
        """Await the outcome, publish it, and sign the proof of a check that passed."""
        try:
            outcome = await checking
        except RateLimited as error:
            self.publish(LimitHit(error.limit))
            raise
        match outcome:
            case Waiting():
                return outcome
            case CheckPassed():
                if not (outcome.test or outcome.is_repeated):
                    self.publish(CodeChecked(outcome.status))
                    # Counted in the background, so that the person does not wait for it.
                    self.deferred.start(best_effort(self.guard.succeeded(outcome.phone, client)))
                return self._verified(client, outcome)
            case _:
                self.publish(CodeChecked(outcome.status))
                return outcome

    def _verified(self, client: str, passed: CheckPassed) -> Verified:
        token = self.tokens.sign(
            phone=passed.phone,
            purpose=passed.purpose,
            verification_id=passed.verification_id,
            client=client,
            test=passed.test,
        )
        return Verified(
            verification_id=passed.verification_id,
            phone=passed.phone,
            purpose=passed.purpose,
            token=token,
            token_lifetime=self.tokens.lifetime,
            test=passed.test,
            quotas=passed.quotas,
        )
