"""Keeps a failing provider from taking the service with it: a circuit breaker and a bulkhead in front of its senders.

No library: those count exceptions, and the outcome of a call is a value (``Placed``, ``Refused``, ``Unknown``).
Both live in one process and take no lock: nothing here waits between reading a state and writing it.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from math import ceil
from time import monotonic, perf_counter
from types import NoneType
from typing import TypeVar

from app.verification.channels import Channel
from app.verification.errors import ProviderError, ProviderUnavailable
from app.verification.model import CallOutcome, CallState, Placed, Refused, Unknown
from app.verification.ports import CallOrder, CallSender

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CIRCUIT_OPEN = "circuit_open"
_SOON = 1  # seconds after which to try again, where a place may be free at any moment

RecordTime = Callable[[Channel, str, str, float], None]
"""Takes the channel, the operation, its outcome and how many seconds it took."""

OpenSpan = Callable[[Channel, str, str], AbstractContextManager[Callable[[str, str | None], None]]]
"""Takes the channel, the provider and the operation; then the outcome, and the kind of its error if it failed."""

# The outcome of an operation, by what it returns. One that raises a ProviderError has the kind of the error.
_OUTCOMES: Mapping[type, str] = {
    Placed: "placed",
    Refused: "refused",
    Unknown: "unknown",
    CallState: "found",
    NoneType: "never_placed",
}


class CircuitState(StrEnum):
    """``closed``: all calls pass. ``open``: none does. ``half_open``: one at a time, to see if the provider works."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Opens after ``failures`` in a row, and after ``open_for`` seconds lets one attempt at a time (a probe) pass.

    Failures over the same subject (a phone) count once in such a row: what fails for one phone alone, however often it
    is tried, must not open the circuit for all.

    A probe that succeeds closes the circuit, one that fails opens it again. An attempt that began before the circuit
    last changed says nothing about the time since, and is not counted. ``name`` is for the log.
    """

    def __init__(self, name: str, *, failures: int, open_for: float, clock: Callable[[], float] = monotonic) -> None:
        if failures < 1 or open_for <= 0:
            raise ValueError("failures must be at least 1, and open_for more than zero")
        self._name = name
        self._max_failures = failures
        self._open_for = open_for
        self._clock = clock
        self._failing: set[Hashable] = set()
        self._open_until: float | None = None
        self._is_probing = False
        self._changes = 0

    @property
    def state(self) -> CircuitState:
        """The state at this moment."""
        if self._open_until is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self._clock() < self._open_until else CircuitState.HALF_OPEN

    def require_passable(self) -> None:
        """Return if an attempt would pass now. Raises ProviderUnavailable with the time that remains."""
        if self._open_until is None:
            return
        remaining = self._open_until - self._clock()
        if remaining > 0:
            raise ProviderUnavailable(retry_after=ceil(remaining), reason=_CIRCUIT_OPEN)
        if self._is_probing:
            raise ProviderUnavailable(retry_after=_SOON, reason=_CIRCUIT_OPEN)

    def begin(self) -> int:
        """Let one attempt pass, and return what ``end`` is to be given. Raises ProviderUnavailable if it may not."""
        self.require_passable()
        self._is_probing = self._open_until is not None
        return self._changes

    def end(self, begun: int, subject: Hashable, *, failed: bool | None) -> None:
        """Count the outcome of an attempt over a subject; without an outcome nothing is counted.

        Failures stay counted while the circuit is open, so one failing probe opens it again.
        """
        if begun != self._changes:
            return
        self._is_probing = False
        if failed is None:
            return
        if failed:
            self._failing.add(subject)
        else:
            self._failing.clear()
        failures = len(self._failing)
        if failures >= self._max_failures:
            self._open_until = self._clock() + self._open_for
            self._changes += 1
            log.warning(
                "circuit.opened",
                extra={"circuit": self._name, "failures": failures, "open_for_seconds": self._open_for},
            )
        elif self._open_until is not None:
            self._open_until = None
            self._changes += 1
            log.info("circuit.closed", extra={"circuit": self._name})


class Bulkhead:
    """Allows ``most`` calls at once: a context manager that holds a place, or raises ProviderUnavailable.

    It has no queue: a call that waited would be late for the person who asked.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError("most must be at least 1")
        self.most = most
        self.in_flight = 0

    def require_room(self) -> None:
        """Return if there is a place now. Raises ProviderUnavailable."""
        if self.in_flight >= self.most:
            raise ProviderUnavailable(retry_after=_SOON, reason="too_many_calls_at_once")

    def __enter__(self) -> None:
        self.require_room()
        self.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1


class ProtectedSender:
    """The CallSender of ``channel``: asks ``sender`` unless that is of no use or too many calls are under way.

    Senders of one provider should share one ``circuit`` and one ``bulkhead``. ``admit`` returns if the account can pay
    for a call as far as is known here, or raises BalanceTooLow. Each request that passes is timed by ``record_time``,
    and a span by ``open_span``.
    """

    def __init__(
        self,
        sender: CallSender,
        *,
        channel: Channel,
        circuit: CircuitBreaker,
        bulkhead: Bulkhead,
        admit: Callable[[], None],
        record_time: RecordTime,
        open_span: OpenSpan | None = None,
    ) -> None:
        self.provider = sender.provider
        self.supports_status = sender.supports_status
        self._sender = sender
        self._channel = channel
        self._circuit = circuit
        self._bulkhead = bulkhead
        self._admit = admit
        self._record_time = record_time
        self._open_span = open_span or (lambda *_: nullcontext(lambda *_: None))

    def require_ready(self) -> None:
        """Return if a call may be placed now, else raise a ProviderError.

        It takes no place: between this and ``place`` others may.
        """
        self._admit()
        self._circuit.require_passable()
        self._bulkhead.require_room()
        self._sender.require_ready()

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call, and count whether the provider answered; refuse it where the circuit or the bulkhead does.

        The balance is not asked again: the provider refuses a call that it does not pay for.
        """
        failed = None
        try:
            with self._bulkhead:
                begun = self._circuit.begin()
                try:
                    outcome = await self._observe("place", self._sender.place(order))
                    # A refusal with a reason is an answer, and so no failure.
                    is_unavailable = isinstance(outcome, Refused) and isinstance(outcome.error, ProviderUnavailable)
                    failed = is_unavailable or isinstance(outcome, Unknown)
                    return outcome
                finally:
                    self._circuit.end(begun, order.phone, failed=failed)
        except ProviderUnavailable as refusal:
            return Refused(refusal)

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call, whatever the state of the circuit. Raises ProviderError.

        Look-ups cost nothing and settle calls. They are not counted: calls may work where look-ups do not.
        """
        return await self._observe("fetch_status", self._sender.fetch_status(call_ref))

    async def _observe(self, operation: str, request: Awaitable[_T]) -> _T:
        """Wait for the answer to a request, and time it, unless it is cancelled."""
        began, outcome, refusal = perf_counter(), None, None
        with self._open_span(self._channel, self.provider, operation) as end_span:
            try:
                answer = await request
            except ProviderError as raised:
                outcome = refusal = raised.kind
                raise
            else:
                outcome = _OUTCOMES[type(answer)]
                refusal = answer.error.kind if isinstance(answer, Refused) else None
                return answer
            finally:
                if outcome:
                    self._record_time(self._channel, operation, outcome, perf_counter() - began)
                    end_span(outcome, refusal)
