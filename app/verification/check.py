"""The use case of checking a code, or whether a reverse call was made, and of signing the proof if it passed."""

from collections.abc import Awaitable
from dataclasses import dataclass

from app.verification import log_context
from app.verification.domain_events import CodeRejected, LimitHit, Segment, VerificationSucceeded
from app.verification.errors import CodeRequired, LimitReached
from app.verification.model import CheckOutcome, CheckPassed, CheckResult, Locked, Verified, Waiting, WrongCode
from app.verification.ports import CodeCheck, Ports
from app.verification.values import value


@value
class CheckRequest:
    """A client's request to check a code, which is digits only; None for a reverse call.

    ``address`` is the end user's. ``retry_digest`` is a keyed digest of a request with an ``Idempotency-Key``: a check
    that passed, repeated with it, passes again.
    """

    client: str
    code: str | None
    address: str | None = None
    retry_digest: str | None = None


@dataclass(frozen=True, slots=True)
class CheckVerification:
    """Checks codes, by the id of a verification or by phone and purpose."""

    ports: Ports

    async def by_id(self, request: CheckRequest, verification_id: str) -> CheckResult:
        """Compare a code with all valid codes of a verification.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationAlreadyCanceled, VerificationLocked: no check.
            RateLimited: no check, after too many wrong codes.
            CodeRequired, CodeNotExpected: the verification is no reverse call, or it is one.
            CodeTooShortOrLong: no check; costs nothing.
            StoreUnavailable: the result is unknown; the code may be tried again.

        """
        policy = self.ports.policies.for_client(request.client)
        log_context.bind_verification(verification_id)
        checking = self.ports.store.check_by_id(verification_id, self._code_check(request), policy)
        return await self._finish(request, checking)

    async def by_phone(self, request: CheckRequest, phone: str, purpose: str) -> CheckResult:
        """Compare a code with all valid codes of a phone and purpose. Raise as ``by_id`` does, and the following.

        Raises:
            PhoneNotCallable, NotAllowed: there can be no such verification.
            CodeRequired: a check without a code needs the id, which only the one who started the call has.

        """
        if request.code is None:
            raise CodeRequired
        policy = self.ports.policies.for_client(request.client)
        policy.require_allowed(purpose)
        number, check = policy.parse_phone(phone), self._code_check(request)
        log_context.bind(phone=number.masked)
        return await self._finish(request, self.ports.store.check_by_phone(number, purpose, check, policy))

    def _code_check(self, request: CheckRequest) -> CodeCheck:
        code = request.code or ""
        return CodeCheck(
            client=request.client,
            candidates=self.ports.digester.candidates(request.client, code) if code else (),
            length=len(code),
            address=request.address,
            retry_digest=request.retry_digest,
        )

    async def _finish(self, request: CheckRequest, checking: Awaitable[CheckOutcome]) -> CheckResult:
        """Await the outcome, publish it, and sign the proof of a check that passed."""
        try:
            outcome = await checking
        except LimitReached as error:
            self.ports.publish(LimitHit(error.limit, "check", error.retry_after))
            raise
        log_context.bind(verification_id=outcome.verification_id)
        match outcome:
            case Waiting():
                return outcome
            case WrongCode() | Locked():
                self.ports.publish(CodeRejected(outcome.status))
                return outcome
            case CheckPassed(
                verification_id=verification_id, phone=phone, purpose=purpose, test=test, reference=reference
            ):
                log_context.bind(phone=phone.masked)
                if not (test or outcome.is_repeated):
                    self.ports.publish(VerificationSucceeded(Segment.of(request.client, outcome.channel, phone)))
                    self.ports.guard.succeeded(phone, request.client)
                token = self.ports.tokens.sign(
                    phone=phone,
                    purpose=purpose,
                    verification_id=verification_id,
                    client=request.client,
                    reference=reference,
                    test=test,
                )
                return Verified(
                    verification_id=verification_id,
                    phone=phone,
                    purpose=purpose,
                    token=token,
                    token_lifetime=self.ports.tokens.lifetime,
                    test=test,
                    quotas=outcome.quotas,
                    reference=reference,
                )
