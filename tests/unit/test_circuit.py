"""Circuit breaker and bulkhead: pause calls to a failing provider, probe it with one, and bound concurrent calls."""

import asyncio
import itertools
import logging
from collections import Counter
from dataclasses import replace

import pytest

from app.providers.circuit import Bulkhead, CircuitBreaker, CircuitState, ProtectedSender
from app.verification.channels import Channel
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallOutcome, CallState, CallStatus, Lang, Placed, Refused, Unknown
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder, CallSender

FAILURES = 3
OPEN_FOR = 30.0
ORDER = CallOrder(call_id=CallId("vrf_made-up", 1), phone=Phone("+79001234567"), code="0421", lang=Lang.RU, repeat=2)

PLACED = Placed("call-1")
UNKNOWN = Unknown("ReadTimeout")
UNAVAILABLE = Refused(ProviderUnavailable(retry_after=5))
REJECTED = Refused(ProviderRejected("no"))
NO_MONEY = Refused(BalanceTooLow())


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Provider:
    """A CallSender that returns ``outcome`` or raises ``error`` once ``answering`` is set."""

    provider = "fake"
    supports_status = True

    def __init__(self) -> None:
        self.outcome: CallOutcome = PLACED
        self.error: BaseException | None = None
        self.not_ready: ProviderError | None = None
        self.state: CallState | ProviderError | None = CallState(CallStatus.RINGING)
        self.answering = at_once()
        self.asked = 0
        self.in_flight = 0
        self.most_in_flight = 0

    def require_ready(self) -> None:
        if self.not_ready:
            raise self.not_ready

    async def place(self, order: CallOrder) -> CallOutcome:
        self.asked += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.answering.wait()
        finally:
            self.in_flight -= 1
        if self.error:
            raise self.error
        return self.outcome

    async def fetch_status(self, call_ref: str) -> CallState | None:
        if isinstance(self.state, ProviderError):
            raise self.state
        return self.state


class Setup:
    """A protected sender and its parts."""

    def __init__(self, most: int = 1000) -> None:
        self.clock = Clock()
        self.provider = Provider()
        self.circuit = CircuitBreaker("fake", failures=FAILURES, open_for=OPEN_FOR, clock=self.clock)
        self.bulkhead = Bulkhead(most)
        self.has_money = True
        self.timed: list[tuple[str, str]] = []
        self.numbers = itertools.count()
        self.sender: CallSender = ProtectedSender(
            self.provider,
            channel=Channel.VOICE,
            circuit=self.circuit,
            bulkhead=self.bulkhead,
            admit=self.admit,
            record_time=self.record_time,
        )

    def record_time(self, _channel: Channel, operation: str, outcome: str, _seconds: float) -> None:
        self.timed.append((operation, outcome))

    def admit(self) -> None:
        if not self.has_money:
            raise BalanceTooLow

    def state(self) -> CircuitState:
        return self.circuit.state

    async def place(self, *outcomes: CallOutcome) -> CallOutcome:
        """Place a call for each of these outcomes, each to another phone."""
        for self.provider.outcome in outcomes:
            last = await self.sender.place(replace(ORDER, phone=Phone(f"+7900{next(self.numbers):07}")))
        return last

    async def open(self) -> None:
        await self.place(*[UNKNOWN] * FAILURES)
        assert self.state() is CircuitState.OPEN

    async def half_open(self) -> None:
        await self.open()
        self.clock.now += OPEN_FOR
        assert self.state() is CircuitState.HALF_OPEN


def at_once() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


def retry_after(outcome: CallOutcome) -> int:
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderUnavailable)
    return outcome.error.retry_after


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


class TestOpening:
    async def test_failures_of_calls_to_one_phone_alone_do_not_open_the_circuit(self) -> None:
        setup = Setup()
        setup.provider.outcome = UNKNOWN
        for _ in range(3 * FAILURES):
            await setup.sender.place(ORDER)
        assert setup.state() is CircuitState.CLOSED

        await setup.place(*[UNKNOWN] * (FAILURES - 1))

        assert setup.state() is CircuitState.OPEN

    @pytest.mark.parametrize("failure", [UNKNOWN, UNAVAILABLE])
    async def test_it_opens_after_the_configured_number_of_consecutive_failures(
        self, failure: CallOutcome, caplog: pytest.LogCaptureFixture
    ) -> None:
        setup = Setup()
        await setup.place(*[failure] * (FAILURES - 1))
        assert setup.state() is CircuitState.CLOSED
        assert await setup.place(failure) == failure
        assert setup.state() is CircuitState.OPEN
        assert events(caplog) == ["circuit.opened"]

    @pytest.mark.parametrize("success", [PLACED, REJECTED, NO_MONEY])
    async def test_an_answer_between_failures_resets_the_count(self, success: CallOutcome) -> None:
        setup = Setup()
        for _ in range(3):
            await setup.place(*[UNKNOWN] * (FAILURES - 1), success)
        assert setup.state() is CircuitState.CLOSED

    async def test_an_open_circuit_refuses_calls_with_the_remaining_time_as_retry_after(self) -> None:
        setup = Setup()
        await setup.open()
        setup.clock.now += 20.5
        assert retry_after(await setup.place(PLACED)) == 10
        with pytest.raises(ProviderUnavailable) as caught:
            setup.sender.require_ready()
        assert caught.value.retry_after == 10
        assert setup.provider.asked == FAILURES

    @pytest.mark.parametrize("late_outcome", [PLACED, UNKNOWN])
    @pytest.mark.parametrize("passed", [OPEN_FOR - 1, OPEN_FOR])
    async def test_outcomes_of_calls_begun_before_it_opened_do_not_change_its_state(
        self, late_outcome: CallOutcome, passed: float
    ) -> None:
        setup = Setup()
        slow = setup.provider.answering = asyncio.Event()
        late = [asyncio.create_task(setup.sender.place(ORDER)) for _ in range(FAILURES)]
        await settle()
        setup.provider.answering = at_once()
        await setup.open()
        setup.clock.now += passed
        before = setup.state()
        setup.provider.outcome = late_outcome
        slow.set()
        assert await asyncio.gather(*late) == [late_outcome] * FAILURES
        assert setup.state() is before
        setup.clock.now = 1000 + OPEN_FOR
        assert setup.state() is CircuitState.HALF_OPEN


class TestHalfOpen:
    async def test_a_successful_probe_closes_the_circuit(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        setup = Setup()
        await setup.half_open()
        setup.sender.require_ready()
        assert await setup.place(PLACED) == PLACED
        assert setup.state() is CircuitState.CLOSED
        assert events(caplog) == ["circuit.opened", "circuit.closed"]
        await setup.place(*[UNKNOWN] * (FAILURES - 1))
        assert setup.state() is CircuitState.CLOSED

    async def test_a_failed_probe_opens_the_circuit_again_for_the_full_time(self) -> None:
        setup = Setup()
        await setup.half_open()
        assert await setup.place(UNKNOWN) == UNKNOWN
        assert setup.state() is CircuitState.OPEN
        assert retry_after(await setup.place(PLACED)) == OPEN_FOR

    async def test_of_a_hundred_concurrent_calls_exactly_one_is_the_probe(self) -> None:
        setup = Setup()
        await setup.half_open()
        setup.provider.outcome = PLACED
        setup.provider.answering = asyncio.Event()
        calls = [asyncio.create_task(setup.sender.place(ORDER)) for _ in range(100)]
        await settle()
        assert (setup.provider.asked, setup.provider.in_flight) == (FAILURES + 1, 1)
        with pytest.raises(ProviderUnavailable):
            setup.sender.require_ready()
        setup.provider.answering.set()
        outcomes = Counter(isinstance(outcome, Placed) for outcome in await asyncio.gather(*calls))
        assert outcomes == {True: 1, False: 99}
        assert setup.state() is CircuitState.CLOSED

    @pytest.mark.parametrize("end", ["cancelled", "bug"])
    async def test_a_probe_without_an_outcome_leaves_the_circuit_half_open_for_another_probe(self, end: str) -> None:
        setup = Setup()
        await setup.half_open()
        setup.provider.answering = asyncio.Event()
        probe = asyncio.create_task(setup.sender.place(ORDER))
        await settle()
        if end == "cancelled":
            probe.cancel()
        else:
            setup.provider.error = KeyError("bug")
            setup.provider.answering.set()
        with pytest.raises((asyncio.CancelledError, KeyError)):
            await probe
        assert setup.state() is CircuitState.HALF_OPEN
        setup.provider.error = None
        setup.provider.answering = at_once()
        assert await setup.place(PLACED) == PLACED
        assert setup.state() is CircuitState.CLOSED

    async def test_an_earlier_call_that_ends_late_does_not_admit_a_second_probe(self) -> None:
        setup = Setup()
        slow = setup.provider.answering = asyncio.Event()
        late = asyncio.create_task(setup.sender.place(ORDER))
        await settle()
        setup.provider.answering = at_once()
        await setup.half_open()
        setup.provider.answering = asyncio.Event()
        probe = asyncio.create_task(setup.sender.place(ORDER))
        await settle()
        slow.set()
        await late
        other = asyncio.create_task(setup.sender.place(ORDER))
        await settle()
        setup.provider.outcome = PLACED
        setup.provider.answering.set()
        retry_after(await other)
        assert await probe == PLACED


class TestBulkhead:
    async def test_of_a_hundred_concurrent_calls_five_run_and_the_rest_is_refused_at_once(self) -> None:
        setup = Setup(most=5)
        setup.provider.answering = asyncio.Event()
        calls = [asyncio.create_task(setup.sender.place(ORDER)) for _ in range(100)]
        await settle()
        assert (setup.provider.in_flight, setup.bulkhead.in_flight) == (5, 5)
        refused = [retry_after(task.result()) for task in calls if task.done()]
        assert refused == [1] * 95
        with pytest.raises(ProviderUnavailable):
            setup.sender.require_ready()
        setup.provider.answering.set()
        await asyncio.gather(*calls)
        assert (setup.provider.asked, setup.provider.most_in_flight, setup.bulkhead.in_flight) == (5, 5, 0)

    async def test_refusals_by_the_bulkhead_do_not_open_the_circuit(self) -> None:
        setup = Setup(most=1)
        setup.provider.answering = asyncio.Event()
        call = asyncio.create_task(setup.sender.place(ORDER))
        await settle()
        for _ in range(FAILURES * 2):
            retry_after(await setup.sender.place(ORDER))
        assert setup.state() is CircuitState.CLOSED
        setup.provider.answering.set()
        assert await call == PLACED

    async def test_a_canceled_call_and_one_that_raises_release_their_places(self) -> None:
        setup = Setup(most=2)
        setup.provider.answering = asyncio.Event()
        cancelled, broken = (asyncio.create_task(setup.sender.place(ORDER)) for _ in range(2))
        await settle()
        cancelled.cancel()
        setup.provider.error = KeyError("bug")
        setup.provider.answering.set()
        await asyncio.gather(cancelled, broken, return_exceptions=True)
        assert setup.bulkhead.in_flight == 0
        assert setup.state() is CircuitState.CLOSED

    async def test_a_call_refused_by_an_open_circuit_takes_no_place(self) -> None:
        setup = Setup(most=1)
        await setup.open()
        for _ in range(3):
            assert retry_after(await setup.place(PLACED)) == OPEN_FOR
        assert setup.bulkhead.in_flight == 0


class TestProtectedSender:
    async def test_it_is_ready_and_places_calls_when_nothing_prevents_it(self) -> None:
        setup = Setup()
        setup.sender.require_ready()
        assert await setup.place(PLACED) == PLACED

    async def test_it_is_not_ready_when_the_balance_is_too_low(self) -> None:
        setup = Setup()
        setup.has_money = False
        with pytest.raises(BalanceTooLow):
            setup.sender.require_ready()

    async def test_it_is_not_ready_when_the_wrapped_sender_is_not(self) -> None:
        setup = Setup()
        setup.provider.not_ready = ProviderRejected("not now")
        with pytest.raises(ProviderRejected):
            setup.sender.require_ready()

    async def test_only_requests_that_are_sent_and_have_an_outcome_are_observed(self) -> None:
        setup = Setup(most=1)
        setup.provider.answering = asyncio.Event()
        cancelled = asyncio.create_task(setup.sender.place(ORDER))
        await settle()
        retry_after(await setup.sender.place(ORDER))  # there is no place
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert setup.timed == []
        setup.provider.answering = at_once()
        await setup.open()
        retry_after(await setup.place(PLACED))  # the circuit is open
        await setup.sender.fetch_status("call-1")
        assert setup.timed == [("place", "unknown")] * FAILURES + [("fetch_status", "found")]

    async def test_it_has_the_provider_and_the_capabilities_of_the_wrapped_sender(self) -> None:
        setup = Setup()
        assert (setup.sender.provider, setup.sender.supports_status) == ("fake", True)

    async def test_status_lookups_pass_an_open_circuit_and_do_not_change_its_state(self) -> None:
        setup = Setup()
        setup.provider.state = ProviderUnavailable(retry_after=1)
        for _ in range(FAILURES * 2):
            with pytest.raises(ProviderUnavailable):
                await setup.sender.fetch_status("call-1")
        assert setup.state() is CircuitState.CLOSED
        await setup.half_open()
        for setup.provider.state in (CallState(CallStatus.RINGING), None):
            assert await setup.sender.fetch_status("call-1") == setup.provider.state
        assert setup.state() is CircuitState.HALF_OPEN


class TestConstruction:
    @pytest.mark.parametrize(("failures", "open_for"), [(0, 1.0), (1, 0.0), (1, -1.0)])
    def test_a_circuit_needs_at_least_one_failure_to_open_and_a_positive_time_to_stay_open(
        self, failures: int, open_for: float
    ) -> None:
        with pytest.raises(ValueError, match="failures"):
            CircuitBreaker("fake", failures=failures, open_for=open_for)

    def test_a_bulkhead_needs_at_least_one_place(self) -> None:
        with pytest.raises(ValueError, match="most"):
            Bulkhead(0)
