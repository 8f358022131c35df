"""Metrics: each event counts once, label values are bounded, and several workers are scraped as one."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.providers.circuit import Bulkhead, CircuitBreaker, OpenSpan, ProtectedSender, RecordTime
from app.telemetry.exposition import Exposition, ReadGauges, shared_between_workers
from app.telemetry.metrics import Metrics
from app.verification.channels import Channel
from app.verification.domain_events import (
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeRejected,
    LimitHit,
    Segment,
    UnknownCallStatus,
    VerificationCanceled,
    VerificationStarted,
    VerificationSucceeded,
)
from app.verification.errors import (
    BalanceTooLow,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from app.verification.model import CallState, CallStatus, Lang, Placed, Refused, Status, Unknown
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder, CallSender
from app.verification.stats import CallCounts
from tests.fakes import FakeSender

ROOT = Path(__file__).parents[2]
VOICE, FLASH = Segment("shop", Channel.VOICE, "mts"), Segment("shop", Channel.FLASH_CALL, "t2")
ORDER = CallOrder(
    call_id=CallId("vrf_00000000000000000000000", 1),
    phone=Phone("+79001234567"),
    code="123456",
    lang=Lang.RU,
    repeat=2,
    timeout=10,
)


def observed(sender: CallSender, record_time: RecordTime, open_span: OpenSpan | None = None) -> CallSender:
    """Protect a sender as the service does, by a circuit that is closed."""
    return ProtectedSender(
        sender,
        channel=Channel.VOICE,
        circuit=CircuitBreaker("fake", failures=9, open_for=9),
        bulkhead=Bulkhead(1),
        admit=lambda: None,
        record_time=record_time,
        open_span=open_span,
    )


def read(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name.removeprefix("plusofon_verify_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


class Seen:
    """The metrics as Prometheus reads them."""

    def __init__(self, text: bytes) -> None:
        self.series = read(text)

    def __call__(self, name: str, /, **labels: str) -> float | None:
        return self.series.get((name, frozenset(labels.items())))


async def seen(metrics: Metrics, *gauges: ReadGauges, refresh: Callable[[], None] = lambda: None) -> Seen:
    exposition = Exposition(registry=metrics.registry, version="1.2.3", gauges=gauges, refresh=refresh)
    return Seen(await exposition.render())


async def test_each_domain_event_increments_its_own_counter_once() -> None:
    metrics = Metrics()
    for event in (
        VerificationStarted(VOICE),
        CallPlaced(VOICE, CallStatus.INITIATED),
        CallPlaced(FLASH, CallStatus.UNCONFIRMED),
        CallEnded(VOICE, CallStatus.BUSY),
        CallRefused(Channel.VOICE, BalanceTooLow()),
        UnknownCallStatus(Channel.VOICE),
        LimitHit("fraud_guard", "start", 60),
        CodeRejected(Status.PENDING),
        CodeRejected(Status.LOCKED),
        VerificationSucceeded(VOICE),
        VerificationCanceled(),
    ):
        metrics.observe(event)

    now = await seen(metrics)

    assert now("verifications_started_total", channel="voice") == 1
    assert now("calls_placed_total", channel="voice", status="initiated") == 1
    assert now("calls_placed_total", channel="flash_call", status="unconfirmed") == 1
    assert now("calls_ended_total", channel="voice", status="busy") == 1
    assert now("unknown_call_statuses_total", channel="voice") == 1
    assert now("calls_refused_total", channel="voice", kind="balance_too_low") == 1
    assert now("limits_hit_total", limit="fraud_guard") == 1
    assert now("wrong_codes_total") == 2
    assert [now("verifications_ended_total", status=status) for status in ("verified", "locked", "canceled")] == [1] * 3


async def test_calls_are_counted_by_client_and_by_operator() -> None:
    metrics = Metrics()
    metrics.count_calls(
        {
            VOICE: CallCounts(
                asked=4, initiated=2, unconfirmed=1, completed=1, busy=1, no_answer=1, verified=1, cost=9
            ),
            FLASH: CallCounts(asked=1, unconfirmed=-1),  # it turned out that it was never placed
        }
    )
    metrics.count_calls({FLASH: CallCounts(asked=1)})

    now = await seen(metrics)

    events = ("asked", "placed", "answered", "unanswered", "verified")
    assert [now("client_calls_total", client="shop", event=it) for it in events] == [6, 3, 1, 2, 1]
    assert [now("operator_calls_total", operator="mts", event=it) for it in events] == [4, 3, 1, 2, 1]
    assert [now("operator_calls_total", operator="t2", event=it) for it in events] == [2, 0, 0, 0, 0]


async def test_clients_and_operators_beyond_the_first_share_a_series() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.count_calls({Segment(f"c{number}", Channel.VOICE, f"o{number}"): CallCounts(asked=1)})
    metrics.count_calls({Segment("c0", Channel.VOICE, "o0"): CallCounts(asked=1)})

    series = (await seen(metrics)).series
    by_client = [labels for name, labels in series if name == "client_calls_total"]
    by_operator = [labels for name, labels in series if name == "operator_calls_total"]

    assert (len(by_client), len(by_operator)) == (51 * 5, 21 * 5)
    now = await seen(metrics)
    assert now("client_calls_total", client="c0", event="asked") == 2
    assert now("client_calls_total", client="other", event="asked") == 50
    assert now("operator_calls_total", operator="other", event="asked") == 85  # five series began before


async def test_counters_start_at_0_so_that_a_first_event_is_seen_as_an_increase() -> None:
    now = await seen(Metrics(["shop"]))

    assert now("client_calls_total", client="shop", event="verified") == 0
    assert now("operator_calls_total", operator="mts", event="placed") == 0
    for channel in Channel:
        assert now("verifications_started_total", channel=channel) == 0
        assert now("calls_ended_total", channel=channel, status="completed") == 0
        assert now("calls_refused_total", channel=channel, kind="unavailable") == 0
    assert now("verifications_ended_total", status="verified") == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ProviderRejected("no"), "rejected"),
        (ProviderUnavailable(retry_after=5), "unavailable"),
        (BalanceTooLow(), "balance_too_low"),
        (ProviderError(), "other"),
    ],
)
async def test_a_refused_call_is_counted_by_the_kind_of_its_error(error: ProviderError, kind: str) -> None:
    metrics = Metrics()
    metrics.observe(CallRefused(Channel.VOICE, error))

    assert (await seen(metrics))("calls_refused_total", channel="voice", kind=kind) == 1


async def test_unknown_methods_and_paths_share_one_series() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.request_handled(f"METHOD{number}", None, 404, "http-404", 0.001)

    now = await seen(metrics)
    assert now("requests_total", method="other", route="unmatched", status="4xx", outcome="http-404") == 100
    assert now("request_duration_seconds_count", route="unmatched") == 100


@pytest.mark.parametrize(
    ("outcome", "word"),
    [(Placed("1"), "placed"), (Refused(BalanceTooLow()), "refused"), (Unknown("no answer"), "unknown")],
)
async def test_calls_to_the_provider_are_timed_by_their_outcome(outcome: Placed | Refused | Unknown, word: str) -> None:
    metrics, sender = Metrics(), FakeSender()
    sender.outcome = outcome

    assert await observed(sender, metrics.provider_call).place(ORDER) is outcome

    labels = {"channel": "voice", "operation": "place", "outcome": word}
    assert (await seen(metrics))("provider_request_duration_seconds_count", **labels) == 1


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (CallState(CallStatus.RINGING), "found"),
        (None, "never_placed"),
        (ProviderUnavailable(retry_after=1), "unavailable"),
    ],
)
async def test_status_lookups_are_timed_by_their_outcome(state: CallState | ProviderError | None, word: str) -> None:
    metrics, sender = Metrics(), FakeSender()
    sender.state = state
    timed = observed(sender, metrics.provider_call)

    if isinstance(state, ProviderError):
        with pytest.raises(ProviderUnavailable):
            await timed.fetch_status("1")
    else:
        assert await timed.fetch_status("1") is state

    labels = {"channel": "voice", "operation": "fetch_status", "outcome": word}
    assert (await seen(metrics))("provider_request_duration_seconds_count", **labels) == 1


async def test_an_observed_sender_delegates_everything_else() -> None:
    sender = FakeSender("provider")
    timed = observed(sender, Metrics().provider_call)
    sender.unready = ProviderUnavailable(retry_after=3)

    assert (timed.provider, timed.supports_status) == ("provider", True)
    with pytest.raises(ProviderUnavailable):
        timed.require_ready()


async def test_gauges_of_components_are_read_at_the_scrape_and_absent_while_unknown() -> None:
    balance: list[Decimal | None] = [None]

    async def facts() -> dict[str, Decimal | None]:
        return {"balance_rub": balance[0], "balance_minimum_rub": Decimal(10)}

    async def out_of_reach() -> dict[str, float]:
        raise StoreUnavailable

    metrics = Metrics()

    unknown = await seen(metrics, facts, out_of_reach)
    balance[0] = Decimal("12.50")
    known = await seen(metrics, facts, out_of_reach)

    assert (unknown("balance_rub"), unknown("balance_minimum_rub")) == (None, 10)
    assert known("balance_rub") == 12.5
    assert known("build_info", version="1.2.3") == 1


async def test_an_exception_in_one_source_of_gauges_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> dict[str, float]:
        raise ZeroDivisionError

    async def sound() -> dict[str, float]:
        return {"call_budget": 1000}

    now = await seen(Metrics(), broken, sound)

    assert (now("balance_rub"), now("call_budget")) == (None, 1000)
    assert "metrics.source_failed" in caplog.text


async def test_gauges_of_the_process_are_refreshed_at_each_scrape() -> None:
    states: dict[str, str] = {"voice": "open"}
    metrics = Metrics()

    def refresh() -> None:
        metrics.set_process(circuits=states, listeners=4, background={"follow": 1.5})

    before = await seen(metrics, refresh=refresh)
    states["voice"] = "closed"
    after = await seen(metrics, refresh=refresh)

    assert (before("circuit_state", circuit="voice", state="open"), before("listeners")) == (1, 4)
    assert before("background_lag_seconds", step="follow") == 1.5
    assert after("circuit_state", circuit="voice", state="open") == 0
    assert after("circuit_state", circuit="voice", state="closed") == 1


WORKER = """
import asyncio, sys
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import IS_SHARED, Metrics
from app.verification.channels import Channel
from app.verification.domain_events import Segment, VerificationSucceeded
assert IS_SHARED
metrics = Metrics()
metrics.observe(VerificationSucceeded(Segment("shop", Channel.VOICE, "mts")))
metrics.request_handled("POST", "/verify/check", 200, "ok", 0.002)
state, lag = sys.argv[1], float(sys.argv[2])
refresh = lambda: metrics.set_process(circuits={"voice": state}, listeners=2, background={"f": lag})
exposition = Exposition(registry=metrics.registry, version="1", gauges=(), refresh=refresh)
asyncio.run(exposition.step())
print("ready", flush=True)
for _ in sys.stdin:
    print(asyncio.run(exposition.render()).decode() + "# the end", flush=True)
"""


class Worker:
    """A worker process that counts one event of each kind and answers a scrape."""

    def __init__(self, state: str, lag: str, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-c", WORKER, state, lag]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ready(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def scrape(self) -> Seen:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        lines = iter(self.process.stdout.readline, "# the end\n")
        return Seen("".join(lines).encode())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


async def test_a_scrape_of_any_worker_returns_the_metrics_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    with shared_between_workers() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        first, second = workers = [Worker("open", "1", environment), Worker("closed", "9", environment)]
        try:
            for worker in workers:
                worker.ready()
            for scraped in (first.scrape(), second.scrape()):
                assert scraped("verifications_ended_total", status="verified") == 2
                labels = {"method": "POST", "route": "/verify/check", "status": "2xx", "outcome": "ok"}
                assert scraped("requests_total", **labels) == 2
                assert scraped("request_duration_seconds_bucket", route="/verify/check", le="0.0025") == 2
                assert scraped("circuit_state", circuit="voice", state="open") == 1
                assert scraped("listeners") == 4
                assert scraped("background_lag_seconds", step="f") == 9
                assert scraped("build_info", version="1") == 1

            first.kill()
            left = await asyncio.to_thread(second.scrape)

            # Counters of a dead worker stay, its gauges do not.
            assert left("verifications_ended_total", status="verified") == 2
            assert left("circuit_state", circuit="voice", state="open") == 0
            assert left("listeners") == 2
        finally:
            for worker in workers:
                worker.kill()
    assert not folder.exists()
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


def test_a_configured_multiprocess_folder_is_cleared_of_old_series_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    old = [tmp_path / name for name in ("counter_12.db", "gauge_livesum_12.db", "histogram_7.db")]
    kept = tmp_path / "customers.db"
    for file in (*old, kept):
        file.touch()

    with shared_between_workers() as folder:
        assert folder == tmp_path
        assert list(tmp_path.iterdir()) == [kept]
    assert kept.exists()
