"""What keeps a failing provider from taking the service with it: a circuit breaker and a bulkhead.

No library: those count exceptions, and what becomes of a call comes by value (``Placed``, ``Refused``, ``Unknown``).
Both are shared by nothing but the process, and take no lock: nothing here waits between reading a state and writing it.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from math import ceil
from time import monotonic

from app.verification.errors import ProviderUnavailable
from app.verification.model import CallOutcome, CallState, Refused, Unknown
from app.verification.ports import CallOrder, CallSender
from app.verification.senders import SenderWrapper

log = logging.getLogger(__name__)

_SOON = 1  # seconds after which to try again, where a place may be free at any moment


class CircuitState(StrEnum):
    """``closed``: all may pass. ``open``: nobody may. ``half_open``: one at a time may, to see if it works again."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Trial:
    """One attempt that a circuit let pass. Say how it went at most once; one that says nothing counts as neither."""

    failed: bool | None = None

    def __init__(self, subject: Hashable) -> None:
        self.subject = subject

    def settle(self, *, failed: bool) -> None:
        """Return the outcome."""
        self.failed = failed


class CircuitBreaker:
    """Opens after ``failures`` in a row, and after ``open_for`` seconds lets one attempt at a time try again.

    Failures over the same subject (a phone) count once in such a row: what fails for one alone, whoever asks for it
    again and again, must not close the door to everybody.

    The success of such a probe closes it, its failure opens it anew. What was begun before the circuit last changed
    says nothing about the time since, and is not counted.

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
        self._most_failures = failures
        self._open_for = open_for
        self._clock = clock
        self._failing: set[Hashable] = set()
        self._open_until: float | None = None
        self._probe: Trial | None = None
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
    def attempt(self, subject: Hashable) -> Iterator[Trial]:
        """Let one attempt pass, over a subject.

        Left without a word, by a cancellation say, it frees its place and changes nothing.

        Raises:
            ProviderUnavailable: it may not.

        """
        self.require_passable()
        trial, begun_at = Trial(subject), self._changes
        if self._open_until is not None:
            self._probe = trial
        try:
            yield trial
        finally:
            if self._probe is trial:
                self._probe = None
            if begun_at == self._changes and trial.failed is not None:
                self._count(trial, failed=trial.failed)

    def _count(self, trial: Trial, *, failed: bool) -> None:
        """Count on where a probe fails: the failures in a row go on, and are more than enough."""
        if failed:
            self._failing.add(trial.subject)
        else:
            self._failing.clear()
        if len(self._failing) >= self._most_failures:
            self._open()
        elif self._open_until is not None:
            self._close()

    def _open(self) -> None:
        self._open_until = self._clock() + self._open_for
        self._changes += 1
        log.warning(
            "circuit.opened",
            extra={"circuit": self._name, "failures": len(self._failing), "open_for_seconds": self._open_for},
        )

    def _close(self) -> None:
        self._open_until = None
        self._changes += 1
        log.info("circuit.closed", extra={"circuit": self._name})


class Bulkhead:
    """Holds ``most`` at once, and has no queue: a call that had to wait would be late for the person who asked."""

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError("most must be at least 1")
        self.most = most
        self.in_flight = 0

    def require_room(self) -> None:
        """Return if there is a place now. Raises ProviderUnavailable."""
        if self.in_flight >= self.most:
            raise ProviderUnavailable(retry_after=_SOON)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Take one of the places. Raises ProviderUnavailable if none is free."""
        self.require_room()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class ProtectedSender(SenderWrapper):
    """A CallSender that keeps another from being asked when that is of no use, or too many ask at once.

    Senders that reach the same machines should share one ``circuit`` and one ``bulkhead``.

    ``admit`` returns if the account can pay for a call, and raises BalanceTooLow if not; it asks nobody.
    """

    def __init__(
        self, sender: CallSender, *, circuit: CircuitBreaker, bulkhead: Bulkhead, admit: Callable[[], None]
    ) -> None:
        super().__init__(sender)
        self._circuit = circuit
        self._bulkhead = bulkhead
        self._admit = admit

    def require_ready(self) -> None:
        """Return if a call may be placed now. It takes no place: between this and ``place`` others may.

        Raises:
            BalanceTooLow: says ``admit``.
            ProviderUnavailable: the circuit is open, or there is no place in the bulkhead.

        """
        self._admit()
        self._circuit.require_passable()
        self._bulkhead.require_room()
        super().require_ready()

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call, and count whether the provider answered; refuse it where ``require_ready`` would by now.

        With a half-open circuit, this is the probe. The balance is not asked after again: a call that it does not pay
        for, the provider refuses.
        """
        try:
            with self._bulkhead.hold(), self._circuit.attempt(order.phone) as trial:
                outcome = await super().place(order)
                trial.settle(failed=_is_failure(outcome))
                return outcome
        except ProviderUnavailable as refusal:
            return Refused(refusal)

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call, whatever the state of the circuit: a look-up costs nothing, and settles a call.

        It is not counted either. Calls may work where look-ups do not, and their failures must not keep calls back.
        Raises ProviderError.
        """
        return await super().fetch_status(call_ref)


def _is_failure(outcome: CallOutcome) -> bool:
    """Return whether the provider did not do its part. A refusal with a reason is an answer, and so no failure."""
    return isinstance(outcome, Unknown) or (
        isinstance(outcome, Refused) and isinstance(outcome.error, ProviderUnavailable)
    )
