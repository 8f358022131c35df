"""What is counted and timed for Prometheus; every label is one of a few known words, whatever a caller sends."""

import os
import time
from collections.abc import Callable, Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values

from app.verification.channels import Channel
from app.verification.domain_events import (
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeChecked,
    DomainEvent,
    LimitHit,
    UnknownCallStatus,
    VerificationCanceled,
    VerificationStarted,
)
from app.verification.errors import ProviderError
from app.verification.model import CallOutcome, CallState, CallStatus, Status
from app.verification.ports import CallOrder, CallSender
from app.verification.refusals import REFUSAL_KINDS, refusal_kind
from app.verification.senders import SenderWrapper

# Next to each series, the moment at which it began: twice as many series, and nobody asks.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types here

PREFIX = "plusofon_verify_"
SHARED_VARIABLE = "PLUSOFON_VERIFY_WORKERS_SHARE_METRICS"
IS_SHARED = SHARED_VARIABLE in os.environ
if not IS_SHARED:  # the library would share with whomever PROMETHEUS_MULTIPROC_DIR names; only our own workers are to
    values.ValueClass = values.MutexValue
UNMATCHED = "unmatched"  # the route of a path that no route has

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_WORDS = 64  # of one label whose words come from elsewhere in the code
_CIRCUIT_STATES = ("closed", "half_open", "open")

# In seconds. A check takes one round trip to Redis; a start also waits for the provider, up to 10 s.
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15)
_PROVIDER_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15)
_STORE_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)

ProviderCall = Callable[[Channel, str, str, float], None]


class Metrics:
    """The series of one process. Each of its methods takes a few microseconds and raises nothing."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        if not IS_SHARED:  # else it would be that of the one worker that happens to be asked
            ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(PREFIX + name, text, labels, registry=registry, buckets=buckets)

        self._requests = counter("requests", "Requests answered.", "method", "route", "status", "outcome")
        self._request_time = histogram(
            "request_duration_seconds", "Time until an answer began.", _REQUEST_BUCKETS, "route"
        )
        self._request_series: dict[tuple[str, str, int, str], tuple[Counter, Histogram]] = {}
        self._provider_time = histogram(
            "provider_request_duration_seconds",
            "Time of the provider's answers: place is a call, look_up asks about one.",
            _PROVIDER_BUCKETS, "channel", "operation", "outcome",
        )  # fmt: skip
        self._store_time = histogram("store_round_trip_seconds", "Time of round trips to Redis.", _STORE_BUCKETS)
        self._store_failures = counter(
            "store_failures", "Round trips to Redis that failed, took too long or were refused."
        )

        self._started = counter("verifications_started", "Verifications begun, without resends.", "channel")
        self._ended = counter("verifications_ended", "Verifications by how they ended.", "status")
        self._wrong = counter("wrong_codes", "Wrong codes, those that locked a verification among them.")
        self._placed = counter("calls_placed", "Calls that were placed, or may have been.", "channel", "status")
        self._over = counter("calls_ended", "Calls by their final state.", "channel", "status")
        self._refused = counter("calls_refused", "Calls that the provider did not place.", "channel", "kind")
        self._unknown = counter("unknown_call_statuses", "Looks at a call that met a word not known here.", "channel")
        self._limits = counter("limits_hit", "Starts and checks that a limit refused.", "limit")
        self._limit_names: set[str] = set()

        # Of this process; over several workers the sum, or the worst of those that live.
        circuits = "Workers whose circuit to the provider is in this state."
        self._circuits = self._gauge("circuit_state", circuits, "livesum", "circuit", "state")
        self._listeners = self._gauge("listeners", "Open streams of events.", "livesum")
        steps = "Seconds since a background step last succeeded, or should have."
        self._background = self._gauge("background_lag_seconds", steps, "livemax", "step")
        self._begin_at_zero()

    def _gauge(self, name: str, text: str, over_workers: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry, multiprocess_mode=over_workers)  # type: ignore[arg-type] # a Literal

    def _begin_at_zero(self) -> None:
        """Show what has not happened yet as 0: the rate of a series that appears with its first event misses it."""
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
        """Count what the domain tells; an ``Observe``."""
        match event:
            case CodeChecked(status):
                if status is not Status.VERIFIED:
                    self._wrong.inc()
                if status is not Status.PENDING:
                    self._ended.labels(status).inc()
            case VerificationStarted(channel):
                self._started.labels(channel).inc()
            case CallPlaced(channel, status):
                self._placed.labels(channel, status).inc()
            case UnknownCallStatus(channel):
                self._unknown.labels(channel).inc()
            case CallEnded(channel, status):
                self._over.labels(channel, status).inc()
            case CallRefused(channel, error):
                self._refused.labels(channel, refusal_kind(error)).inc()
            case LimitHit(name):
                self._limits.labels(self._known_limit(name)).inc()
            case VerificationCanceled():
                self._ended.labels(Status.CANCELED).inc()

    def _known_limit(self, name: str) -> str:
        if len(self._limit_names) < _MOST_WORDS:
            self._limit_names.add(name)
        return name if name in self._limit_names else "other"

    def request_handled(self, method: str, route: str | None, status: int, outcome: str, seconds: float) -> None:
        """Count a request by its route's template, never by its path; ``outcome`` is a problem's slug, or ``ok``."""
        key = (method if method in _METHODS else "other", route or UNMATCHED, status, outcome)
        series = self._request_series.get(key) or self._request_series.setdefault(key, self._series_of(*key))
        series[0].inc()
        series[1].observe(seconds)

    def _series_of(self, method: str, route: str, status: int, outcome: str) -> tuple[Counter, Histogram]:
        requests = self._requests.labels(method, route, f"{status // 100}xx", outcome)
        return requests, self._request_time.labels(route)

    def round_trip(self, seconds: float, *, failed: bool) -> None:
        """Time a round trip to Redis, whatever number of commands shared it."""
        self._store_time.observe(seconds)
        if failed:
            self._store_failures.inc()

    def provider_call(self, channel: Channel, operation: str, outcome: str, seconds: float) -> None:
        """Time a request to the provider."""
        self._provider_time.labels(channel, operation, outcome).observe(seconds)

    def timed(self, channel: Channel, sender: CallSender) -> CallSender:
        """Wrap a sender so that its requests are timed; what stands in front of it (a circuit) is not."""
        return TimedSender(channel, sender, self.provider_call)

    def set_circuits(self, states: Mapping[str, str]) -> None:
        """Show the state of each circuit of this process: ``closed``, ``half_open`` or ``open``."""
        for circuit, state in states.items():
            for each in _CIRCUIT_STATES:
                self._circuits.labels(circuit, each).set(each == state)

    def set_listeners(self, count: int) -> None:
        """Show how many streams of events are open in this process."""
        self._listeners.set(count)

    def set_background(self, lags: Mapping[str, float]) -> None:
        """Show how far behind each background step of this process is, in seconds."""
        for step, lag in lags.items():
            self._background.labels(step).set(lag)


class TimedSender(SenderWrapper):
    """A CallSender that tells how long the one behind it took, and how that ended."""

    def __init__(self, channel: Channel, sender: CallSender, timed: ProviderCall) -> None:
        super().__init__(sender)
        self._channel = channel
        self._timed = timed

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call."""
        began = time.perf_counter()
        outcome = await super().place(order)
        self._tell("place", type(outcome).__name__.lower(), began)  # placed, refused or unknown
        return outcome

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call. Raises ProviderError."""
        began = time.perf_counter()
        try:
            state = await super().fetch_status(call_ref)
        except ProviderError as error:
            self._tell("look_up", refusal_kind(error), began)
            raise
        self._tell("look_up", "found" if state else "never_placed", began)
        return state

    def _tell(self, operation: str, outcome: str, began: float) -> None:
        self._timed(self._channel, operation, outcome, time.perf_counter() - began)
