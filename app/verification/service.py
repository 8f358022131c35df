"""The use cases: start, check, read, cancel, and what becomes of calls after they were placed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from app.verification.channels import Channel
from app.verification.code import CodeDigester
from app.verification.deferred import DeferredWrites, best_effort
from app.verification.domain_events import (
    CallEnded,
    CodeChecked,
    LimitHit,
    Publish,
    UnknownCallStatus,
    VerificationCanceled,
)
from app.verification.errors import (
    CallBudgetExhausted,
    CallCooldown,
    CodeRequired,
    NotAllowed,
    RateLimited,
    VerificationNotFound,
)
from app.verification.fixed_codes import FixedCodes
from app.verification.fraud_guard import FraudGuard
from app.verification.model import CallStatus, CheckResult, Lang, Started, Status, Verification
from app.verification.phone import Phone, parse_phone
from app.verification.policy import Policies, Policy
from app.verification.ports import (
    CallId,
    CallSchedule,
    CallSender,
    CallUpdate,
    CodeCheck,
    Confirmation,
    ProviderAccounts,
    RateLimiter,
    VerificationStore,
)
from app.verification.provider_account import AccountReader, ProviderOverview
from app.verification.start import CallPlacement, CallTools, NoJournal, StartJournal, Wish

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """What a client asks for.

    ``verification_id`` names the verification that is called again (a resend); without it the start is of a new one.
    ``channels`` are tried in this order; without any, those that the client may use. ``address`` is the end user's, as
    the client saw it.
    """

    client: str
    phone: str
    purpose: str
    verification_id: str | None = None
    channels: tuple[Channel, ...] = ()
    lang: Lang = Lang.RU
    address: str | None = None


class VerificationService:
    """Proves that a person holds a phone number."""

    def __init__(
        self,
        *,
        store: VerificationStore,
        limits: RateLimiter,
        guard: FraudGuard,
        senders: Mapping[Channel, CallSender],
        accounts: ProviderAccounts,
        queue: CallSchedule,
        digester: CodeDigester,
        policies: Policies,
        fixed_codes: FixedCodes,
        observe: Publish,
        deferred: DeferredWrites,
        store_timeout: float,
    ) -> None:
        self._store = store
        self._guard = guard
        self._senders = senders
        self._accounts = AccountReader(accounts)
        self._digester = digester
        self._policies = policies
        self._fixed_codes = fixed_codes
        self._observe = observe
        self._deferred = deferred
        self._tools = CallTools(
            store=store,
            limits=limits,
            guard=guard,
            senders=senders,
            queue=queue,
            digester=digester,
            observe=observe,
            deferred=deferred,
            store_timeout=store_timeout,
        )

    async def start(self, request: StartRequest, *, journal: StartJournal | None = None) -> Started:
        """Place a call for a new verification, or for the one that the request names (a resend).

        The digest of a code is stored before the call is placed, so that a code that was heard always verifies. One
        call at most is placed: another channel is tried only after one definitely was not. With a ``journal`` the
        start may be repeated, and places one call all the same.

        Raises:
            PhoneNotCallable, NotAllowed: the request asks for what is not done.
            VerificationNotFound: it names a verification that is not pending, or of another phone or purpose.
            CallCooldown, RateLimited, CallBudgetExhausted: not now; nothing was changed.
            ProviderError: the call did not happen; what it took is given back.
            StoreUnavailable: no call was placed; or one was, whose code the provider chose and nobody can check yet.

        """
        policy = self._policies.for_client(request.client)
        _require("purpose", request.purpose, policy.purposes)
        for channel in request.channels:
            _require("channel", channel, policy.channels)
        phone = _parse(request.phone, policy)
        wish = Wish(
            client=request.client,
            phone=phone,
            purpose=request.purpose,
            channels=request.channels or policy.channels,
            lang=request.lang,
            address=request.address,
            resend_of=request.verification_id,
            test_code=self._fixed_codes.code_of(phone),
            policy=policy,
        )
        with self._noting_limits():
            return await CallPlacement(self._tools, wish, journal or NoJournal()).run()

    async def check_by_id(
        self,
        *,
        client: str,
        verification_id: str,
        code: str | None,
        address: str | None = None,
        retry_digest: str | None = None,
    ) -> CheckResult:
        """Check what the person typed against every live code of the verification; ``code`` is digits only.

        Without a code, tell whether the person has dialled the number of a reverse call. With a ``retry_digest``, which
        only the same request has, a check that verified verifies again.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationCanceled, VerificationLocked: not evaluated.
            RateLimited: not evaluated, too many wrong ones before.
            CodeRequired, CodeNotExpected: it is no reverse call, or it is one.
            CodeTooShortOrLong: not evaluated, and free.
            StoreUnavailable: nothing is known; the code may be tried again.

        """
        policy = self._policies.for_client(client)
        guess = self._guess(client, code, address, retry_digest)
        with self._noting_limits():
            return self._noted(await self._store.check_by_id(verification_id, guess, policy), client, code)

    async def check_by_phone(
        self,
        *,
        client: str,
        phone: str,
        purpose: str,
        code: str | None,
        address: str | None = None,
        retry_digest: str | None = None,
    ) -> CheckResult:
        """Check a code for all pending verifications of a phone and purpose; raises as ``check_by_id`` does.

        Raises:
            PhoneNotCallable, NotAllowed: there can be no such verification.
            CodeRequired: without a code, only who has the id of a verification can be who asked for it.

        """
        if code is None:
            raise CodeRequired
        policy = self._policies.for_client(client)
        _require("purpose", purpose, policy.purposes)
        number = _parse(phone, policy)
        guess = self._guess(client, code, address, retry_digest)
        with self._noting_limits():
            return self._noted(await self._store.check_by_phone(number, purpose, guess, policy), client, code)

    async def read(self, *, client: str, verification_id: str) -> Verification:
        """Return the state of a verification and its calls, as far as it was followed.

        Raises:
            VerificationNotFound, StoreUnavailable: there is nothing to tell.

        """
        policy = self._policies.for_client(client)
        verification = await self._store.read(verification_id, client=client)
        return verification.without_lost_calls(lifetime=policy.lifetime, patience=policy.patience)

    async def cancel(self, *, client: str, verification_id: str) -> Verification:
        """Call a pending verification off.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationLocked, StoreUnavailable: it was not.

        """
        verification = await self._store.cancel(client, verification_id)
        if not verification.test:
            self._observe(VerificationCanceled())
        return verification

    async def follow(self, name: CallId) -> bool:
        """Look a call up and write down what became of it; true when it needs no more following.

        Raises:
            ProviderError: it could not be told now.
            StoreUnavailable: it could not be read or written.

        """
        try:
            verification = await self._store.read(name.verification_id, client=None)
            call = verification.call(name.call_number)
            if call is None or call.ref is None or call.state.status.is_final or call.channel not in self._senders:
                return True
            state = await self._senders[call.channel].fetch_status(call.ref)
            if state is None and call.state.status is not CallStatus.UNCONFIRMED:
                return True  # it was placed, by whoever was asked then; another provider does not know it
            if state is None:
                policy = self._policies.for_client(verification.client)
                log.warning("call.never_placed", extra={"verification_id": verification.id})
                await self._tools.never_placed(call.limits_token, name, policy)
                return True
            if state.provider_status is not None:
                self._observe(UnknownCallStatus(call.channel))
            recorded = await self._store.record_call(verification, name.call_number, CallUpdate(state=state))
        except VerificationNotFound:
            return True
        if recorded.ended:
            self._observe(CallEnded(call.channel, state.status))
        return state.status.is_final

    async def confirm_reverse_call(self, name: CallId, *, ref: str, caller: Phone) -> Confirmation:
        """Take the provider's word that a phone has dialled the number of a reverse call. Harmless when repeated.

        Raises:
            StoreUnavailable: it was not written; the provider may say it again.

        """
        try:
            verification = await self._store.read(name.verification_id, client=None)
        except VerificationNotFound:
            return Confirmation.NOT_FOUND
        policy = self._policies.for_client(verification.client)
        confirmation = await self._store.confirm(verification, name.call_number, ref=ref, caller=caller, policy=policy)
        if confirmation is Confirmation.CONFIRMED:
            self._observe(CallEnded(verification.channel, CallStatus.COMPLETED))
        return confirmation

    async def provider_overview(self) -> ProviderOverview:
        """Read the provider's accounts and balance.

        Raises:
            ProviderError: the accounts could not be read.

        """
        return await self._accounts.read()

    async def ready(self) -> None:
        """Return if verifications can be started and checked. Raises StoreUnavailable."""
        await self._store.ping()

    def _guess(self, client: str, code: str | None, address: str | None, retry_digest: str | None) -> CodeCheck:
        candidates = self._digester.candidates(client, code) if code else ()
        return CodeCheck(
            client=client, candidates=candidates, length=len(code or ""), address=address, retry_digest=retry_digest
        )

    def _noted(self, result: CheckResult, client: str, code: str | None) -> CheckResult:
        """Publish an evaluated check; the guard hears of a success, without letting the person wait for it."""
        waits_for_a_call = code is None and result.status is Status.PENDING
        if result.test or result.is_repeated or waits_for_a_call:
            return result
        self._observe(CodeChecked(result.status))
        if result.phone:
            self._deferred.start(best_effort(self._guard.succeeded(result.phone, client)))
        return result

    @contextmanager
    def _noting_limits(self) -> Iterator[None]:
        try:
            yield
        except (CallCooldown, RateLimited, CallBudgetExhausted) as error:
            self._observe(LimitHit(error.limit))
            raise


def _parse(text: str, policy: Policy) -> Phone:
    return parse_phone(text, denied_prefixes=policy.denied_prefixes, allowed_prefixes=policy.allowed_prefixes)


def _require(field_name: str, value: str, allowed: frozenset[str] | tuple[str, ...]) -> None:
    if value not in allowed:
        raise NotAllowed(field_name, frozenset(allowed))
