"""Keeps a failing provider from taking the service with it: a circuit breaker and a bulkhead in front of its senders.

No library: those count exceptions, and the outcome of a call is a value (``Placed``, ``Refused``, ``Unknown``).
Both live in one process and take no lock: nothing here waits between reading a state and writing it.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from math import ceil
from time import monotonic

from app.providers.observe import ProviderObserver
from app.verification.channels import Channel
from app.verification.errors import ProviderUnavailable
from app.verification.model import CallOutcome, CallState, Refused, Unknown
from app.verification.ports import CallOrder, CallSender

log = logging.getLogger(__name__)

_SOON = 1  # seconds after which to try again, where a place may be free at any moment


class CircuitState(StrEnum):
    """``closed``: all calls pass. ``open``: none does. ``half_open``: one at a time, to see if the provider works."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Attempt:
    """An attempt that a circuit let pass. Set ``failed`` to its outcome; one without an outcome is not counted."""

    failed: bool | None = None


class CircuitBreaker:
    """Opens after ``failures`` in a row, and after ``open_for`` seconds lets one attempt at a time (a probe) pass.

    Failures over the same subject (a phone) count once in such a row: what fails for one phone alone, however often it
    is tried, must not open the circuit for all.

    A probe that succeeds closes the circuit, one that fails opens it again. An attempt that began before the circuit
    last changed says nothing about the time since, and is not counted.

    Args:
        name: for the log.
        failures: in a row, at least one.
        open_for: seconds, more than zero.
        clock: seconds of a clock that never goes back.

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
        self._probe: Attempt | None = None
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
            raise ProviderUnavailable(retry_after=ceil(remaining))
        if self._probe:
            raise ProviderUnavailable(retry_after=_SOON)

    @contextmanager
    def attempt(self, subject: Hashable) -> Iterator[Attempt]:
        """Let one attempt pass, over a subject. Raises ProviderUnavailable if it may not."""
        self.require_passable()
        attempt, changes = Attempt(), self._changes
        if self._open_until is not None:
            self._probe = attempt
        try:
            yield attempt
        finally:
            if self._probe is attempt:
                self._probe = None
            if changes == self._changes and attempt.failed is not None:
                self._count(subject, failed=attempt.failed)

    def _count(self, subject: Hashable, *, failed: bool) -> None:
        """Count an outcome. Failures stay counted while the circuit is open, so one failing probe opens it again."""
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
            raise ProviderUnavailable(retry_after=_SOON)

    def __enter__(self) -> None:
        self.require_room()
        self.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1


class ProtectedSender:
    """The CallSender of ``channel``: asks ``sender`` unless that is of no use or too many calls are under way.

    Senders of one provider should share one ``circuit`` and one ``bulkhead``. The ``observer`` sees the requests that
    pass. ``admit`` returns if the account can pay for a call as far as is known here, or raises BalanceTooLow.
    """

    def __init__(
        self,
        sender: CallSender,
        *,
        channel: Channel,
        circuit: CircuitBreaker,
        bulkhead: Bulkhead,
        observer: ProviderObserver,
        admit: Callable[[], None],
    ) -> None:
        self.provider = sender.provider
        self.supports_status = sender.supports_status
        self._sender = sender
        self._channel = channel
        self._circuit = circuit
        self._bulkhead = bulkhead
        self._observer = observer
        self._admit = admit

    def require_ready(self) -> None:
        """Return if a call may be placed now. It takes no place: between this and ``place`` others may.

        Raises:
            BalanceTooLow: by ``admit``.
            ProviderUnavailable: the circuit is open, or the bulkhead is full.

        """
        self._admit()
        self._circuit.require_passable()
        self._bulkhead.require_room()
        self._sender.require_ready()

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call, and count whether the provider answered; refuse it where the circuit or the bulkhead does.

        With a half-open circuit, this is the probe. The balance is not asked again: the provider refuses a call
        that it does not pay for.
        """
        try:
            with self._bulkhead, self._circuit.attempt(order.phone) as attempt:
                with self._observer.request(self._channel, self.provider, "place") as request:
                    outcome = await self._sender.place(order)
                    request.outcome = type(outcome).__name__.lower()  # placed, refused or unknown
                    request.error = outcome.error if isinstance(outcome, Refused) else None
                # A refusal with a reason is an answer, and so no failure.
                attempt.failed = isinstance(outcome, Unknown) or isinstance(request.error, ProviderUnavailable)
                return outcome
        except ProviderUnavailable as refusal:
            return Refused(refusal)

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call, whatever the state of the circuit. Raises ProviderError.

        Look-ups cost nothing and settle calls. They are not counted: calls may work where look-ups do not.
        """
        with self._observer.request(self._channel, self.provider, "fetch_status") as request:
            state = await self._sender.fetch_status(call_ref)
            request.outcome = "found" if state else "never_placed"
            return state
