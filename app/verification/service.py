"""The use cases: start, check, read, cancel. The order of their steps is what keeps money and codes safe."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from app.verification.code import CodeDigester, make_code
from app.verification.errors import NotAllowed, ProviderError, StoreUnavailable, VerificationNotFound
from app.verification.model import (
    CallOutcome,
    CallState,
    CallStatus,
    Channel,
    CheckResult,
    Lang,
    Placed,
    ProviderAccount,
    Refused,
    Unknown,
    Verification,
)
from app.verification.phone import Phone, parse_phone
from app.verification.policy import Policy
from app.verification.ports import CallProvider, NewCall, VerificationStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProviderOverview:
    """The accounts at the provider and the balance in RUB, if it could be read."""

    accounts: Sequence[ProviderAccount]
    balance_rub: Decimal | None


class VerificationService:
    """Proves that a person holds a phone number."""

    def __init__(
        self, *, store: VerificationStore, provider: CallProvider, digester: CodeDigester, policy: Policy
    ) -> None:
        self._store = store
        self._provider = provider
        self._digester = digester
        self._policy = policy

    async def start(self, *, client: str, phone: str, purpose: str, channel: Channel, lang: Lang) -> Verification:
        """Place a call that speaks a new code, for a new verification or for the pending one (a resend).

        The digest is stored before the call is placed, so that a code that was heard always verifies.

        Raises:
            PhoneNotCallable, NotAllowed: the request asks for what is not done.
            CallCooldown, RateLimited, VerificationLocked: not now; nothing was changed.
            ProviderError: the call did not happen; what it took is given back.
            StoreUnavailable: no call was placed.

        """
        number = self._parse_phone(phone)
        self._require_purpose(purpose)
        code = make_code(self._policy.code_length)
        call = NewCall(
            client=client,
            phone=number,
            purpose=purpose,
            channel=channel,
            code_digest=self._digester.digest(client, code),
        )
        verification = await self._store.start(call, self._policy)
        outcome = await self._provider.initiate_call(number, code, lang, self._policy.repeat)
        return await self._settle(verification, outcome)

    async def check_by_id(self, *, client: str, verification_id: str, code: str) -> CheckResult:
        """Check what the person typed against every live code of the verification; ``code`` is digits only.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationCanceled, VerificationLocked: not evaluated.
            StoreUnavailable: nothing is known; the code may be tried again.

        """
        return await self._store.check_by_id(client, verification_id, self._digester.candidates(client, code))

    async def check_by_phone(self, *, client: str, phone: str, purpose: str, code: str) -> CheckResult:
        """Check a code for the latest verification of a phone and purpose; raises as ``check_by_id`` does.

        Raises:
            PhoneNotCallable, NotAllowed: there can be no such verification.

        """
        number = self._parse_phone(phone)
        self._require_purpose(purpose)
        return await self._store.check_by_phone(client, number, purpose, self._digester.candidates(client, code))

    async def read(self, *, client: str, verification_id: str) -> Verification:
        """Tell the state of a verification, asking the provider for the latest call's where that is due.

        A provider that does not answer is no reason not to answer: the last known state is told.

        Raises:
            VerificationNotFound, StoreUnavailable: there is nothing to tell.

        """
        reading = await self._store.read(client, verification_id, self._policy)
        call = reading.verification.latest_call
        if not reading.lookup_due or call is None or call.ref is None:
            return reading.verification
        try:
            state = await self._provider.check_call_status(call.ref)
        except ProviderError as error:
            log.warning("call.lookup_failed", extra={"verification_id": verification_id, "error": repr(error)})
            return reading.verification
        return await self._store.record_call(reading.verification, call.serial, state)

    async def cancel(self, *, client: str, verification_id: str) -> Verification:
        """Call a pending verification off.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationLocked, StoreUnavailable: it was not.

        """
        return await self._store.cancel(client, verification_id)

    async def provider_overview(self) -> ProviderOverview:
        """Read the provider's accounts and balance. An unreadable balance is unknown, which is not the same as low.

        Raises:
            ProviderError: the accounts could not be read.

        """
        accounts = await self._provider.get_account()
        try:
            balance = await self._provider.get_balance()
        except ProviderError as error:
            log.warning("provider.balance_unknown", extra={"error": repr(error)})
            return ProviderOverview(accounts, None)
        return ProviderOverview(accounts, balance)

    async def ready(self) -> None:
        """Return if verifications can be started and checked. Raises StoreUnavailable."""
        await self._store.ping()

    def _parse_phone(self, text: str) -> Phone:
        return parse_phone(text, denied_prefixes=self._policy.denied_prefixes)

    def _require_purpose(self, purpose: str) -> None:
        if purpose not in self._policy.purposes:
            raise NotAllowed("purpose", self._policy.purposes)

    async def _settle(self, verification: Verification, outcome: CallOutcome) -> Verification:
        """Write the outcome of a call down, or take the call back."""
        match outcome:
            case Placed(call_ref):
                return await self._record(verification, CallState(CallStatus.INITIATED), call_ref)
            case Unknown(why):
                log.warning("call.unconfirmed", extra={"verification_id": verification.id, "why": why})
                return await self._record(verification, CallState(CallStatus.UNCONFIRMED), None)
            case Refused(error):
                await self._take_back(verification)
                raise error

    async def _record(self, verification: Verification, state: CallState, ref: str | None) -> Verification:
        """Write a placed call down. Without a store it is still placed and its code verifies, so the caller is told."""
        try:
            return await self._store.record_call(verification, _serial(verification), state, ref)
        except (StoreUnavailable, VerificationNotFound) as error:
            log.error("call.not_recorded", extra={"verification_id": verification.id, "error": repr(error)})
            return verification.with_latest_call(state)

    async def _take_back(self, verification: Verification) -> None:
        """Give back what a call took. Without a store it stays taken: too strict for minutes, never too lax."""
        try:
            await self._store.take_back(verification, _serial(verification))
        except StoreUnavailable as error:
            log.error("call.not_taken_back", extra={"verification_id": verification.id, "error": repr(error)})


def _serial(verification: Verification) -> int:
    """Name the call that ``start`` has just stored."""
    return verification.calls[-1].serial
