"""Counters and timings for Prometheus; every label has few possible values, whatever a caller sends."""

import os
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import ClassVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values

from app.verification.channels import Channel
from app.verification.domain_events import (
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeRejected,
    DomainEvent,
    LimitHit,
    Segment,
    UnknownCallStatus,
    VerificationCanceled,
    VerificationStarted,
    VerificationSucceeded,
)
from app.verification.errors import REFUSAL_KINDS
from app.verification.model import CallStatus, Status
from app.verification.stats import CallCounts

# The moment at which each series began would double the number of series.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types here

NAMESPACE = "plusofon_verify"
SHARED_VARIABLE = "PLUSOFON_VERIFY_WORKERS_SHARE_METRICS"
IS_SHARED = SHARED_VARIABLE in os.environ


class _OwnValue(values.MutexValue):
    """A number that one thread alone changes, that of the event loop: the library's lock takes as long as the rest."""

    def inc(self, amount: float) -> None:
        """Add to the number."""
        self._value += amount


class _SharedValue(values.MultiProcessValue()):  # type: ignore[misc] # the library makes the class
    """A number in a file, which all workers read at a scrape.

    What is added stays in memory until ``write``: the library would write each time, which takes ten times as long.
    """

    _unwritten: ClassVar[set["_SharedValue"]] = set()

    def inc(self, amount: float) -> None:
        """Add to the number."""
        self._value += amount
        self._unwritten.add(self)

    @classmethod
    def write(cls) -> None:
        """Write all numbers that have changed."""
        for value in cls._unwritten:
            value.set(value.get())
        cls._unwritten.clear()


# With PROMETHEUS_MULTIPROC_DIR the library would share with other programs; only our workers may.
values.ValueClass = _SharedValue if IS_SHARED else _OwnValue

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_CLIENTS, _MOST_OPERATORS = 50, 20
_OPERATORS = ("mts", "megafon", "beeline", "t2", "unknown")  # whose series begin at once
_CIRCUIT_STATES = ("closed", "half_open", "open")

# In seconds. A check takes one round trip to Redis; a start also waits for the provider, up to 10 s.
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15)
_PROVIDER_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15)
_STORE_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)


class _CallsBy:
    """Counters of calls by one more label, whose values come from outside: the first ``most``, and ``other``."""

    def __init__(self, counter: Counter, *, most: int, known: Iterable[str]) -> None:
        self._counter = counter
        self._most = most
        self._names: set[str] = set()
        for name in known:
            self.add(name, CallCounts())

    def add(self, name: str, counts: CallCounts) -> None:
        if len(self._names) < self._most:
            self._names.add(name)
        name = name if name in self._names else "other"
        for event, count in (
            ("asked", counts["asked"]),
            ("placed", counts.placed),
            ("answered", counts.answered),
            ("unanswered", counts.unanswered),
            ("verified", counts["verified"]),
        ):
            # A counter never falls, though a call that was never placed is taken off the counts.
            self._counter.labels(name, event).inc(max(0, count))


class Metrics:
    """The series of one process. Its methods take a few microseconds and raise nothing.

    ``clients`` are those whose series begin at once.
    """

    def __init__(self, clients: Iterable[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        if not IS_SHARED:  # else it would be that of the one worker that is asked
            ProcessCollector(registry=registry)

        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry)
        # Of this process; with several workers the sum, or the worst of those alive.
        sum_gauge = partial(Gauge, namespace=NAMESPACE, registry=registry, multiprocess_mode="livesum")
        max_gauge = partial(Gauge, namespace=NAMESPACE, registry=registry, multiprocess_mode="livemax")

        self._requests = counter("requests", "Requests answered.", ("method", "route", "status", "outcome"))
        self._request_time = histogram(
            "request_duration_seconds", "Time until an answer began.", ("route",), buckets=_REQUEST_BUCKETS
        )
        self._request_series: dict[tuple[str, str, int, str], tuple[Counter, Histogram]] = {}
        self._provider_time = histogram(
            "provider_request_duration_seconds",
            "Time of the provider's answers: place is a call, fetch_status asks about one.",
            ("channel", "operation", "outcome"),
            buckets=_PROVIDER_BUCKETS,
        )
        self._store_time = histogram(
            "store_round_trip_seconds", "Time of round trips to Redis.", buckets=_STORE_BUCKETS
        )
        self._store_failures = counter(
            "store_failures", "Round trips to Redis that failed, took too long or were refused."
        )

        self._started = counter("verifications_started", "Verifications begun, without resends.", ("channel",))
        self._ended = counter("verifications_ended", "Verifications by how they ended.", ("status",))
        self._wrong = counter("wrong_codes", "Wrong codes, those that locked a verification among them.")
        self._placed = counter("calls_placed", "Calls that were placed, or may have been.", ("channel", "status"))
        self._over = counter("calls_ended", "Calls by their final state.", ("channel", "status"))
        self._refused = counter("calls_refused", "Calls that the provider did not place.", ("channel", "kind"))
        self._unknown = counter(
            "unknown_call_statuses", "Look-ups of a call that returned an unknown status.", ("channel",)
        )
        self._events_dropped = counter("webhook_events_dropped", "Webhook events dropped because too many waited.")
        self._limits = counter("limits_hit", "Starts and checks that a limit refused.", ("limit",))

        client_calls = counter("client_calls", "Calls by client.", ("client", "event"))
        operator_calls = counter("operator_calls", "Calls by operator of the phone.", ("operator", "event"))
        self._by_client = _CallsBy(client_calls, most=_MOST_CLIENTS, known=clients)
        self._by_operator = _CallsBy(operator_calls, most=_MOST_OPERATORS, known=_OPERATORS)

        self._circuits = sum_gauge(
            "circuit_state", "Workers whose circuit to the provider is in this state.", ("circuit", "state")
        )
        self._listeners = sum_gauge("listeners", "Open streams of events.")
        self._background = max_gauge(
            "background_lag_seconds", "Seconds since a background step last succeeded, or should have.", ("step",)
        )

        # On the way of each start and check: the library takes ten times as long to find a series.
        for metric in (self._provider_time, self._started, self._ended, self._placed):
            metric.labels = cache(metric.labels)  # type: ignore[assignment, method-assign] # not a mistake

        # Begin at 0: the rate of a series that appears with its first event misses that event.
        for status in (Status.VERIFIED, Status.LOCKED, Status.CANCELED):
            self._ended.labels(status)
        for channel in Channel:
            self._started.labels(channel)
            self._unknown.labels(channel)
            for kind in REFUSAL_KINDS:
                self._refused.labels(channel, kind)
            for placed in (CallStatus.INITIATED, CallStatus.UNCONFIRMED):
                self._placed.labels(channel, placed)
            for final in filter(lambda each: each.is_final, CallStatus):
                self._over.labels(channel, final)

    def observe(self, event: DomainEvent) -> None:  # noqa: C901 - a table, written as a match
        """Count a domain event; a ``Publish``."""
        match event:
            case VerificationSucceeded():
                self._ended.labels(Status.VERIFIED).inc()
            case CodeRejected(status):
                self._wrong.inc()
                if status is Status.LOCKED:
                    self._ended.labels(status).inc()
            case VerificationStarted(segment):
                self._started.labels(segment.channel).inc()
            case CallPlaced(segment, status):
                self._placed.labels(segment.channel, status).inc()
            case UnknownCallStatus(channel):
                self._unknown.labels(channel).inc()
            case CallEnded(segment, status):
                self._over.labels(segment.channel, status).inc()
            case CallRefused(channel, error):
                self._refused.labels(channel, error.kind).inc()
            case LimitHit(name):
                self._limits.labels(name).inc()
            case VerificationCanceled():
                self._ended.labels(Status.CANCELED).inc()

    def count_calls(self, calls: Mapping[Segment, CallCounts]) -> None:
        """Count calls by client and by operator: once a second, because each call would have eight series more."""
        for segment, counts in calls.items():
            self._by_client.add(segment.client, counts)
            self._by_operator.add(segment.operator, counts)

    def request_handled(self, method: str, route: str | None, status: int, outcome: str, seconds: float) -> None:
        """Count a request by its route's template, never by its path; ``outcome`` is a problem's slug, or ``ok``."""
        key = (method if method in _METHODS else "other", route or "unmatched", status, outcome)
        if key not in self._request_series:
            requests = self._requests.labels(*key[:2], f"{status // 100}xx", outcome)
            self._request_series[key] = requests, self._request_time.labels(key[1])
        requests, request_time = self._request_series[key]
        requests.inc()
        request_time.observe(seconds)

    def round_trip(self, seconds: float, *, failed: bool) -> None:
        """Time a round trip to Redis; several commands may share one."""
        self._store_time.observe(seconds)
        if failed:
            self._store_failures.inc()

    def webhook_events_dropped(self, count: int) -> None:
        """Count webhook events that were dropped."""
        self._events_dropped.inc(count)

    def provider_call(self, channel: Channel, operation: str, outcome: str, seconds: float) -> None:
        """Time a request to a provider."""
        self._provider_time.labels(channel, operation, outcome).observe(seconds)

    def set_process(self, *, circuits: Mapping[str, str], listeners: int, background: Mapping[str, float]) -> None:
        """Set the gauges of this process: the states of its circuits, its open event streams, its lags in seconds.

        Then share all series with the other workers.
        """
        for circuit, state in circuits.items():
            for each in _CIRCUIT_STATES:
                self._circuits.labels(circuit, each).set(each == state)
        self._listeners.set(listeners)
        for step, lag in background.items():
            self._background.labels(step).set(lag)
        self.share()

    def share(self) -> None:
        """Let the other workers see what was counted, if there are some."""
        _SharedValue.write()
