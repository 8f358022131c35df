"""The use cases: start, check, read, cancel. The order of their steps is what keeps money and codes safe."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from app.verification.code import CodeDigester, make_code
from app.verification.errors import NotAllowed, ProviderError, StoreUnavailable, VerificationNotFound
from app.verification.fixed_codes import FixedCodes
from app.verification.guard import FraudGuard
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
    Started,
    Unknown,
    Verification,
)
from app.verification.phone import Phone, parse_phone
from app.verification.policy import Allowance, Policy
from app.verification.ports import (
    CallName,
    CallOrder,
    CallSender,
    Guess,
    Limits,
    NewCall,
    ProviderAccounts,
    VerificationStore,
)

log = logging.getLogger(__name__)

Keep = Callable[[Started], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """What a client asks for. ``address`` is the end user's, as the client saw it."""

    client: str
    phone: str
    purpose: str
    channel: Channel = Channel.VOICE
    lang: Lang = Lang.RU
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Policies:
    """The rules for each client: its own, or those for everybody."""

    default: Policy
    of_client: Mapping[str, Policy] = field(default_factory=dict)

    def for_client(self, client: str) -> Policy:
        """Return the rules that hold for a client."""
        return self.of_client.get(client, self.default)


@dataclass(frozen=True, slots=True)
class ProviderOverview:
    """The accounts at the provider and the balance in RUB, if it could be read."""

    accounts: Sequence[ProviderAccount]
    balance_rub: Decimal | None


@dataclass(frozen=True, slots=True)
class _Reservation:
    """What a call has taken before it is placed, to be given back if it is not."""

    token: str
    allowances: Sequence[Allowance]
    started: Started


class VerificationService:
    """Proves that a person holds a phone number."""

    def __init__(
        self,
        *,
        store: VerificationStore,
        limits: Limits,
        guard: FraudGuard,
        senders: Mapping[Channel, CallSender],
        accounts: ProviderAccounts,
        digester: CodeDigester,
        policies: Policies,
        fixed_codes: FixedCodes,
    ) -> None:
        self._store = store
        self._limits = limits
        self._guard = guard
        self._senders = senders
        self._accounts = accounts
        self._digester = digester
        self._policies = policies
        self._fixed_codes = fixed_codes
        self._background: set[asyncio.Task[None]] = set()
        self._overview: asyncio.Task[ProviderOverview] | None = None

    async def aclose(self) -> None:
        """Wait for what was begun and not waited for."""
        await asyncio.gather(*self._background)

    async def start(self, request: StartRequest, *, keep: Keep | None = None) -> Started:
        """Place a call that speaks a new code, for a new verification or for the pending one (a resend).

        The digest is stored before the call is placed, so that a code that was heard always verifies. ``keep`` is
        awaited together with writing the outcome down, so that both share a round trip.

        Raises:
            PhoneNotCallable, NotAllowed: the request asks for what is not done.
            CallCooldown, RateLimited, CallBudgetExhausted, VerificationLocked: not now; nothing was changed.
            ProviderError: the call did not happen; what it took is given back.
            StoreUnavailable: no call was placed.

        """
        policy = self._policies.for_client(request.client)
        _require("purpose", request.purpose, policy.purposes)
        _require("channel", request.channel, policy.channels)
        phone = _parse(request.phone, policy)
        if (test_code := self._fixed_codes.code_of(phone)) is not None:
            return await self._start_test(request, phone, test_code, policy, keep)
        code = make_code(policy.code_length)
        reservation = await self._reserve(self._new_call(request, phone, code), request.address, policy)
        name = CallName(reservation.started.verification.id, _serial(reservation.started))
        order = CallOrder(name=name, phone=phone, code=code, lang=request.lang, repeat=policy.repeat)
        outcome = await self._senders[request.channel].place(order)
        return await self._settle(reservation, outcome, keep)

    async def check_by_id(
        self, *, client: str, verification_id: str, code: str, address: str | None = None
    ) -> CheckResult:
        """Check what the person typed against every live code of the verification; ``code`` is digits only.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationCanceled, VerificationLocked: not evaluated.
            RateLimited: not evaluated, too many wrong ones before.
            StoreUnavailable: nothing is known; the code may be tried again.

        """
        policy = self._policies.for_client(client)
        result = await self._store.check_by_id(verification_id, self._guess(client, code, address), policy)
        return self._noted(result, client)

    async def check_by_phone(
        self, *, client: str, phone: str, purpose: str, code: str, address: str | None = None
    ) -> CheckResult:
        """Check a code for the latest verification of a phone and purpose; raises as ``check_by_id`` does.

        Raises:
            PhoneNotCallable, NotAllowed: there can be no such verification.

        """
        policy = self._policies.for_client(client)
        _require("purpose", purpose, policy.purposes)
        number = _parse(phone, policy)
        guess = self._guess(client, code, address)
        return self._noted(await self._store.check_by_phone(number, purpose, guess, policy), client)

    async def read(self, *, client: str, verification_id: str) -> Verification:
        """Tell the state of a verification, asking the provider for the latest call's where that is due.

        A provider that does not answer is no reason not to answer: the last known state is told.

        Raises:
            VerificationNotFound, StoreUnavailable: there is nothing to tell.

        """
        reading = await self._store.read(client, verification_id, self._policies.for_client(client))
        call = reading.verification.latest_call
        if not reading.lookup_due or call is None or call.ref is None:
            return reading.verification
        try:
            state = await self._senders[call.channel].look_up(call.ref)
        except ProviderError as error:
            log.warning("call.lookup_failed", extra={"verification_id": verification_id, "error": repr(error)})
            return reading.verification
        if state is None:
            return reading.verification
        return await self._store.record_call(reading.verification, call.serial, state)

    async def cancel(self, *, client: str, verification_id: str) -> Verification:
        """Call a pending verification off.

        Raises:
            VerificationNotFound, VerificationAlreadyUsed, VerificationLocked, StoreUnavailable: it was not.

        """
        return await self._store.cancel(client, verification_id)

    async def provider_overview(self) -> ProviderOverview:
        """Read the provider's accounts and balance; all who ask at the same moment share one answer.

        They would else take the places of calls in the pool of connections.

        Raises:
            ProviderError: the accounts could not be read.

        """
        if self._overview is None:
            self._overview = asyncio.create_task(self._read_overview())
            self._overview.add_done_callback(self._forget_overview)
        return await asyncio.shield(self._overview)

    async def _read_overview(self) -> ProviderOverview:
        """Read both. An unreadable balance is unknown, which is not the same as low."""
        accounts = await self._accounts.get_account()
        try:
            balance = await self._accounts.get_balance()
        except ProviderError as error:
            log.warning("provider.balance_unknown", extra={"error": repr(error)})
            return ProviderOverview(accounts, None)
        return ProviderOverview(accounts, balance)

    def _forget_overview(self, _: object) -> None:
        self._overview = None

    async def ready(self) -> None:
        """Return if verifications can be started and checked. Raises StoreUnavailable."""
        await self._store.ping()

    def _new_call(self, request: StartRequest, phone: Phone, code: str, *, test: bool = False) -> NewCall:
        return NewCall(
            client=request.client,
            phone=phone,
            purpose=request.purpose,
            channel=request.channel,
            code_digest=self._digester.digest(request.client, code),
            code_length=len(code),
            test=test,
        )

    def _guess(self, client: str, code: str, address: str | None) -> Guess:
        return Guess(client=client, candidates=self._digester.candidates(client, code), address=address)

    def _noted(self, result: CheckResult, client: str) -> CheckResult:
        """Tell the guard of a success, without letting the person wait for it."""
        if result.phone and not result.test:
            task = asyncio.create_task(_at_best(self._guard.succeeded(result.phone, client)))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        return result

    async def _start_test(
        self, request: StartRequest, phone: Phone, code: str, policy: Policy, keep: Keep | None
    ) -> Started:
        """Start a verification of a test number: nobody is called, and nothing is counted."""
        started = await self._store.start(self._new_call(request, phone, code, test=True), policy)
        log.info("verification.test_started", extra={"verification_id": started.verification.id, "test": True})
        reservation = _Reservation("", (), started)
        return await self._write_down(reservation, CallState(CallStatus.COMPLETED), "test", keep)

    async def _reserve(self, call: NewCall, address: str | None, policy: Policy) -> _Reservation:
        """Take what a call needs, all in one round trip: its place in every limit, and the guard's word."""
        token = secrets.token_hex(6)
        allowances = tuple(policy.for_calls(client=call.client, phone=call.phone, address=address))
        started, taken, admitted = await asyncio.gather(
            self._store.start(call, policy),
            self._limits.take(token, allowances),
            self._guard.admit(call.phone, call.client),
            return_exceptions=True,
        )
        if not (
            isinstance(started, BaseException)
            or isinstance(taken, BaseException)
            or isinstance(admitted, BaseException)
        ):
            return _Reservation(token, allowances, Started(started.verification, (*started.quotas, *taken)))
        undo: list[Awaitable[object]] = []
        if not isinstance(started, BaseException):
            undo.append(self._store.take_back(started.verification, _serial(started)))
        if not isinstance(taken, BaseException):
            undo.append(self._limits.give_back(token, allowances))
        if not isinstance(admitted, BaseException):
            undo.append(self._guard.retract(call.phone, call.client))
        await _at_best(*undo)
        raise next(refusal for refusal in (started, taken, admitted) if isinstance(refusal, BaseException))

    async def _give_back(self, reservation: _Reservation) -> None:
        """Give back all that a call took that did not happen."""
        verification = reservation.started.verification
        await _at_best(
            self._store.take_back(verification, _serial(reservation.started)),
            self._limits.give_back(reservation.token, reservation.allowances),
            self._guard.retract(verification.phone, verification.client),
        )

    async def _settle(self, reservation: _Reservation, outcome: CallOutcome, keep: Keep | None) -> Started:
        """Write the outcome of a call down, or take the call back."""
        verification = reservation.started.verification
        match outcome:
            case Placed(call_ref):
                return await self._write_down(reservation, CallState(CallStatus.INITIATED), call_ref, keep)
            case Unknown(why):
                log.warning("call.unconfirmed", extra={"verification_id": verification.id, "why": why})
                return await self._write_down(reservation, CallState(CallStatus.UNCONFIRMED), None, keep)
            case Refused(error):
                await self._give_back(reservation)
                raise error

    async def _write_down(
        self, reservation: _Reservation, state: CallState, ref: str | None, keep: Keep | None
    ) -> Started:
        """Record a placed call. Without a store it is still placed and its code verifies, so the caller is told."""
        verification = reservation.started.verification
        started = Started(verification.with_latest_call(state, ref), reservation.started.quotas)
        writes: list[Awaitable[object]] = [
            self._store.record_call(verification, _serial(reservation.started), state, ref)
        ]
        if keep:
            writes.append(keep(started))
        await _at_best(*writes)
        return started


def _serial(started: Started) -> int:
    """Name the call that ``start`` has just stored."""
    return started.verification.calls[-1].serial


async def _at_best(*writes: Awaitable[object]) -> None:
    """Do what should be done, in one round trip, and go on if it cannot be: the caller has a truth to hear first.

    What was to be given back stays taken then: too strict for a while, never too lax.
    """
    for result in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(result, StoreUnavailable | VerificationNotFound):
            log.error("store.not_written", extra={"error": repr(result)})
        elif isinstance(result, BaseException):
            raise result


def _parse(text: str, policy: Policy) -> Phone:
    return parse_phone(text, denied_prefixes=policy.denied_prefixes, allowed_prefixes=policy.allowed_prefixes)


def _require(field_name: str, value: str, allowed: frozenset[str]) -> None:
    if value not in allowed:
        raise NotAllowed(field_name, allowed)
