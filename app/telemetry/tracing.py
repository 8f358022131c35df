"""Traces by OpenTelemetry: a request, the scripts it ran in Redis, and what it asked the provider.

Needs the extra ``tracing``, so it is imported only where traces are wanted; without them nothing of it costs anything.
A span has the route, the method, the status and the names of things that the code chose: no path, no phone, no code.
"""

from importlib import import_module
from time import time_ns

from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.verification.channels import Channel
from app.verification.errors import ProviderError
from app.verification.model import CallOutcome, CallState, Refused
from app.verification.ports import CallOrder, CallSender
from app.verification.refusals import refusal_kind
from app.verification.senders import SenderWrapper

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
        """Send what was not sent yet; takes as long as the endpoint does."""
        self._provider.shutdown()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application so that each of its requests is a span."""
        return _Traced(app, self._tracer)

    def waited(self, script: str, seconds: float) -> None:
        """Note that the present request waited for a script in Redis; what ``ScriptRunner`` takes as ``waited``."""
        now = time_ns()
        attributes = {"db.system.name": "redis", "db.operation.name": "EVALSHA", "db.stored_procedure.name": script}
        began = now - int(seconds * 1e9)
        self._tracer.start_span(f"redis {script}", kind=SpanKind.CLIENT, attributes=attributes, start_time=began).end(
            now
        )

    def traced(self, channel: Channel, sender: CallSender) -> CallSender:
        """Wrap a sender so that its requests are spans. The provider is a third party: it is told no context."""
        return _TracedSender(channel, sender, self._tracer)

    @staticmethod
    def outgoing() -> dict[str, str]:
        """Return the headers that carry the present trace on, to whoever may know of it (W3C Trace Context)."""
        headers: dict[str, str] = {}
        _W3C.inject(headers)
        return headers


class _HeadersGetter(Getter[Headers]):
    """Reads the context from the headers of a request."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        """Return the values of a header."""
        return carrier.getlist(key) or None

    def keys(self, carrier: Headers) -> list[str]:
        """Return the names of the headers."""
        return list(carrier.keys())


_HEADERS = _HeadersGetter()


class _Traced:
    """A pure ASGI middleware: each request is a span, of the caller's trace if it came with one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self.app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        method = scope["method"]
        parent = _W3C.extract(Headers(scope=scope), getter=_HEADERS)
        with self._tracer.start_as_current_span(
            method, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            scope.setdefault("state", {})["trace_id"] = format_trace_id(span.get_span_context().trace_id)
            try:
                await self.app(scope, receive, send_noted)
            finally:
                route = getattr(scope.get("route"), "path", None)
                span.update_name(f"{method} {route}" if route else method)
                span.set_attributes({"http.request.method": method, "http.response.status_code": status})
                if route:
                    span.set_attribute("http.route", route)
                if not status or status >= _SERVER_ERROR:
                    span.set_status(Status(StatusCode.ERROR))


class _TracedSender(SenderWrapper):
    """A CallSender whose requests are spans."""

    def __init__(self, channel: Channel, sender: CallSender, tracer: Tracer) -> None:
        super().__init__(sender)
        self._channel = channel
        self._tracer = tracer

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call."""
        attributes = {"verify.channel": str(self._channel), "peer.service": self.provider}
        with self._tracer.start_as_current_span("provider place", kind=SpanKind.CLIENT, attributes=attributes) as span:
            outcome = await super().place(order)
            span.set_attribute("verify.outcome", type(outcome).__name__.lower())
            if isinstance(outcome, Refused):
                span.set_attribute("error.type", refusal_kind(outcome.error))
                span.set_status(Status(StatusCode.ERROR))
            return outcome

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call. Raises ProviderError."""
        attributes = {"verify.channel": str(self._channel), "peer.service": self.provider}
        with self._tracer.start_as_current_span(
            "provider look_up", None, SpanKind.CLIENT, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                return await self._sender.fetch_status(call_ref)
            except ProviderError as error:
                span.set_attribute("error.type", refusal_kind(error))
                span.set_status(Status(StatusCode.ERROR))
                raise
