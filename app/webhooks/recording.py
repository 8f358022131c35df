"""Records what the sandbox sends, also the events of clients that have no endpoint."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from app.verification.webhooks import Event
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import Attempt, Outcome, WebhookSender

_NOWHERE = WebhookEndpoint(url="", secrets=())


class Log(Protocol):
    """Where attempts are recorded."""

    def record(self, *, event_id: str, client: str, body: bytes, url: str | None, error: str) -> None:
        """Record an attempt; without a ``url`` it was not sent, and without an ``error`` it was accepted."""


def with_all_clients(endpoints: Mapping[str, WebhookEndpoint], clients: Iterable[str]) -> dict[str, WebhookEndpoint]:
    """Return the endpoints of all ``clients``; the events of those without one are recorded and sent nowhere."""
    return {**dict.fromkeys(clients, _NOWHERE), **endpoints}


@dataclass(kw_only=True, repr=False, eq=False)
class RecordingSender(WebhookSender):
    """A sender that records each attempt in ``log``."""

    log: Log

    async def send(self, endpoint: WebhookEndpoint, event: Event) -> Attempt:
        """Make one attempt, and record it."""
        attempt = Attempt(Outcome.DELIVERED) if endpoint is _NOWHERE else await super().send(endpoint, event)
        self.log.record(
            event_id=event.id,
            client=event.client,
            body=endpoint.body(event),
            url=endpoint.url or None,
            error=attempt.error,
        )
        return attempt
