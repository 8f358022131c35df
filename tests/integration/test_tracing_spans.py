"""Traces: request, Redis and provider in one trace, which continues the caller's, and no secret in any span."""

import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send

from app.api.routing import RequestMiddleware
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.settings import SettingsError
from app.store.scripts import ScriptRunner
from app.store.stats import RedisStats
from app.telemetry.tracing import Tracing
from app.verification.errors import ProviderUnavailable
from app.verification.model import CallState, CallStatus, Refused
from tests.fakes import FakeSender
from tests.integration.conftest import run, sandbox_settings
from tests.policies import make_prices
from tests.unit.test_metrics_series import ORDER, observed

ROOT = Path(__file__).parents[2]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PHONE = "+79161234567"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


@pytest.fixture
async def traced(
    redis: Redis, redis_url: str, network: VirtualNetwork, tracing: Tracing
) -> AsyncIterator[httpx.AsyncClient]:
    settings = sandbox_settings(redis_url)
    async with run(create_app(settings, network, tracing=tracing)) as client:
        yield client


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def id_of(span: ReadableSpan) -> int:
    assert span.context
    return int(span.context.span_id)


async def test_a_start_is_one_trace_through_redis_and_the_provider(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    await traced.post("/verify/start", json={"phone": PHONE}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})

    spans = named(exporter)
    request = spans["POST /verify/start"]
    assert request.context
    assert f"{request.context.trace_id:032x}" == TRACE
    assert parent_of(request) == int(PARENT, 16)
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST", "http.response.status_code": 201, "http.route": "/verify/start",
    }  # fmt: skip
    assert {"redis verification.start", "redis verification.record_call"} <= set(spans)
    for name in ("redis verification.start", "redis verification.record_call", "provider place"):
        assert parent_of(spans[name]) == id_of(request), name
    assert dict(spans["provider place"].attributes or {})["verify.outcome"] == "placed"
    assert (
        (spans["redis verification.start"].end_time or 0)
        >= (spans["redis verification.start"].start_time or 0)
        >= (request.start_time or 0)
    )


async def test_a_request_without_a_valid_traceparent_starts_a_new_trace(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    await traced.get("/livez")
    await traced.get("/livez", headers={"traceparent": "00-nonsense"})

    first, second = exporter.get_finished_spans()
    assert (first.parent, second.parent) == (None, None)
    assert first.context
    assert second.context
    assert first.context.trace_id != second.context.trace_id


async def test_spans_contain_no_phone_code_path_or_id(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    started = (await traced.post("/verify/start", json={"phone": PHONE})).json()
    await traced.post("/verify/start", json={"phone": MagicNumber.REFUSED})
    await traced.post("/verify/check", json={"phone": PHONE, "code": "908172"})
    await traced.get(f"/verify/{started['verification_id']}")
    await traced.get(f"/{PHONE}?code=908172", headers={"X-Request-ID": PHONE})

    text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "POST /verify/check" in text
    for secret in (PHONE[2:], MagicNumber.REFUSED[2:], "908172", started["verification_id"]):
        assert secret not in text


async def test_a_refused_call_and_a_failed_status_request_are_error_spans(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    sender = FakeSender()
    traced = observed(sender, lambda *_: None, tracing.provider_request)
    sender.outcome = Refused(ProviderUnavailable(retry_after=1))
    sender.unready = sender.state = ProviderUnavailable(retry_after=1)

    await traced.place(ORDER)
    with pytest.raises(ProviderUnavailable):
        await traced.fetch_status("1")
    with pytest.raises(ProviderUnavailable):
        traced.require_ready()
    sender.state = CallState(CallStatus.RINGING)
    assert await traced.fetch_status("1") is sender.state

    place, failed, found = exporter.get_finished_spans()
    for span in (place, failed):
        assert not span.status.is_ok
        assert dict(span.attributes or {})["error.type"] == "unavailable"
        assert not span.events
    assert found.status.is_ok or found.status.is_unset
    assert (traced.provider, traced.supports_status) == ("fake", True)


async def test_an_exception_is_an_error_span_without_its_message(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async def crash(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(PHONE)

    transport = httpx.ASGITransport(app=tracing.middleware(RequestMiddleware(crash, (), {})))
    async with httpx.AsyncClient(transport=transport, base_url="http://verify") as client:
        assert (await client.get("/")).status_code == 500

    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok
    assert PHONE not in span.to_json()


async def test_the_trace_context_is_passed_to_outgoing_requests(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    seen: list[dict[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append({**tracing.outgoing(), "trace_id": scope["state"]["trace_id"]})

    scope = {"type": "http", "method": "GET", "headers": [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]}
    await tracing.middleware(app)(scope, None, None)  # type: ignore[arg-type] # not used

    (span,) = exporter.get_finished_spans()
    assert seen == [{"traceparent": f"00-{TRACE}-{id_of(span):016x}-01", "trace_id": TRACE}]
    assert tracing.outgoing() == {}


async def test_background_work_has_its_own_trace(
    redis: Redis, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    runner = ScriptRunner(redis, timeout=5, waited=tracing.waited)
    await RedisStats(runner, prices=make_prices(), zone=UTC, count_calls=lambda _: None).read()

    (span,) = exporter.get_finished_spans()
    assert (span.name, span.parent) == ("redis stats.read", None)


def test_tracing_is_not_imported_without_an_endpoint() -> None:
    program = (
        "import sys; from app.main import create_app; from app.settings import Settings;"
        " create_app(Settings(mode='sandbox'));"
        " print('app.telemetry.tracing' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_an_endpoint_without_the_tracing_extra_is_a_settings_error(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)  # as if it were not installed
    settings = sandbox_settings(redis_url, tracing_endpoint="http://127.0.0.1:4318/v1/traces")

    with pytest.raises(SettingsError, match="TRACING_ENDPOINT"):
        create_app(settings)
