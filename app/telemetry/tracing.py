"""Traces by OpenTelemetry: a request, the scripts that it ran in Redis, and its requests to providers.

Needs the extra ``tracing``, so it is imported only where traces are wanted.
A span has the route, the method, the status and names from the code: no path, no phone, no code.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from time import time_ns

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.verification.channels import Channel

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_SERVER_ERROR = 500
_W3C = TraceContextTextMapPropagator()


class Tracing:
    """Makes the spans of this process."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("plusofon-verify")

    @classmethod
    def to(cls, endpoint: str, *, version: str) -> "Tracing":
        """Send spans to an endpoint, by OTLP over HTTP. Raises ModuleNotFoundError without the extra ``tracing``."""
        exporter: SpanExporter = import_module(_EXPORTER).OTLPSpanExporter(endpoint=endpoint)
        resource = Resource.create({"service.name": "plusofon-verify", "service.version": version})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def close(self) -> None:
        """Send the remaining spans; takes as long as the endpoint does."""
        self._provider.shutdown()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application so that each of its requests is a span, in the caller's trace if it came with one."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 0

            async def send_noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = int(message["status"])
                await send(message)

            method = scope["method"]
            headers = Headers(scope=scope)
            parent = _W3C.extract({name: headers.getlist(name) for name in _W3C.fields})
            with self._tracer.start_as_current_span(
                method, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
            ) as span:
                scope.setdefault("state", {})["trace_id"] = format_trace_id(span.get_span_context().trace_id)
                try:
                    await app(scope, receive, send_noted)
                finally:
                    route = getattr(scope.get("route"), "path", None)
                    span.update_name(f"{method} {route}" if route else method)
                    span.set_attributes({"http.request.method": method, "http.response.status_code": status})
                    if route:
                        span.set_attribute("http.route", route)
                    if not status or status >= _SERVER_ERROR:
                        span.set_status(Status(StatusCode.ERROR))

        return traced

    def waited(self, script: str, seconds: float) -> None:
        """Make a span of the time for which the present request waited for a script in Redis."""
        now = time_ns()
        attributes = {"db.system.name": "redis", "db.operation.name": "EVALSHA", "db.stored_procedure.name": script}
        began = now - int(seconds * 1e9)
        self._tracer.start_span(f"redis {script}", kind=SpanKind.CLIENT, attributes=attributes, start_time=began).end(
            now
        )

    @contextmanager
    def provider_request(
        self, channel: Channel, provider: str, operation: str
    ) -> Iterator[Callable[[str, str | None], None]]:
        """Make a request to a provider a span; call what this yields with the outcome and, if it failed, the error.

        The provider is a third party: no context is sent to it.
        """
        attributes = {"verify.channel": str(channel), "peer.service": provider}
        with self._tracer.start_as_current_span(
            f"provider {operation}", None, SpanKind.CLIENT, attributes,
            record_exception=False, set_status_on_exception=False,
        ) as span:  # fmt: skip

            def end(outcome: str, error_type: str | None) -> None:
                span.set_attribute("verify.outcome", outcome)
                if error_type:
                    span.set_attribute("error.type", error_type)
                    span.set_status(Status(StatusCode.ERROR))

            yield end

    @staticmethod
    def outgoing() -> dict[str, str]:
        """Return the headers that continue the present trace elsewhere (W3C Trace Context)."""
        headers: dict[str, str] = {}
        _W3C.inject(headers)
        return headers
