"""Observes the requests to providers: times each, and makes it a span where traces are wanted."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter

from app.verification.channels import Channel
from app.verification.errors import ProviderError
from app.verification.refusals import refusal_kind

RecordTime = Callable[[Channel, str, str, float], None]
"""Takes the channel, the operation, its outcome and how many seconds it took."""

EndSpan = Callable[[str, str | None], None]
"""Takes the outcome of an operation, and the kind of its error if it failed."""

OpenSpan = Callable[[Channel, str, str], AbstractContextManager[EndSpan]]
"""Takes the channel, the provider and the operation."""


class ProviderRequest:
    """A request under observation. One that gets no ``outcome`` (it was cancelled, say) is not timed."""

    outcome: str | None = None
    error: ProviderError | None = None


class ProviderObserver:
    """Times requests by ``record_time``, and makes spans by ``open_span``."""

    def __init__(self, *, record_time: RecordTime, open_span: OpenSpan | None = None) -> None:
        self._record_time = record_time
        self._open_span = open_span or (lambda *_: nullcontext(lambda *_: None))

    @contextmanager
    def request(self, channel: Channel, provider: str, operation: str) -> Iterator[ProviderRequest]:
        """Observe one request. Its outcome is what is set on it meanwhile, or the kind of a ProviderError raised."""
        request, began = ProviderRequest(), perf_counter()
        with self._open_span(channel, provider, operation) as end_span:
            try:
                yield request
            except ProviderError as error:
                request.outcome, request.error = refusal_kind(error), error
                raise
            finally:
                if request.outcome is not None:
                    self._record_time(channel, operation, request.outcome, perf_counter() - began)
                    end_span(request.outcome, refusal_kind(request.error) if request.error else None)
