"""The webhook events that the sandbox has sent: each attempt of the last day, and the route that lists them."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

_KEPT, _KEPT_FOR = 1000, timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentWebhook:
    """One attempt to deliver an event: its ``body`` as it was sent to ``url``, and the ``error`` if it failed.

    Without a ``url`` the client has no endpoint, and the event was only recorded. Later attempts have a higher
    ``number``.
    """

    number: int
    sent_at: datetime
    event_id: str
    client: str
    body: bytes = field(repr=False)
    url: str | None
    error: str

    @property
    def event(self) -> dict[str, Any]:
        """The body, parsed."""
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


@dataclass(slots=True, kw_only=True)
class WebhookLog:
    """Keeps the attempts of a day, and at most ``kept``."""

    kept: int = _KEPT
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _attempts: deque[SentWebhook] = field(init=False)
    _numbers: "count[int]" = field(default_factory=lambda: count(1), init=False)

    def __post_init__(self) -> None:
        self._attempts = deque(maxlen=self.kept)

    def record(self, *, event_id: str, client: str, body: bytes, url: str | None, error: str) -> None:
        """Record an attempt that has just ended; ``error`` is empty if the receiver accepted the event."""
        self._attempts.append(
            SentWebhook(
                number=next(self._numbers),
                sent_at=self.now(),
                event_id=event_id,
                client=client,
                body=body,
                url=url,
                error=error,
            )
        )

    def after(self, number: int) -> list[SentWebhook]:
        """Return the attempts with a higher number, oldest first."""
        oldest = self.now() - _KEPT_FOR
        return [sent for sent in self._attempts if sent.number > number and sent.sent_at > oldest]


class WebhookAttempt(BaseModel):
    """One attempt to deliver a webhook event."""

    model_config = ConfigDict(from_attributes=True)

    number: int = Field(description="Grows with each attempt: `after` for the next page.", examples=[1])
    sent_at: datetime = Field(description="When the attempt ended, in UTC.", examples=["2026-11-02T09:30:00Z"])
    event_id: str = Field(description="The header `webhook-id`.", examples=["msg_0a11b22c33d44e55f667788-3"])
    client: str = Field(description="The client whose verification it is.", examples=["sandbox"])
    url: str | None = Field(
        description="Where it was sent; null: the client has no `webhook_url`.", examples=["http://127.0.0.1:9000/hook"]
    )
    error: str = Field(description="Why it failed; empty if it was accepted.", examples=[""])
    event: dict[str, Any] = Field(
        description="The body: a `WebhookEvent`.", examples=[{"type": "verification.verified"}]
    )


class WebhookAttempts(BaseModel):
    """Attempts to deliver webhook events, oldest first."""

    attempts: list[WebhookAttempt] = Field(description="At most 1,000, of the last day, oldest first.")


class WebhookAttemptsQuery(BaseModel):
    """Which attempts."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, description="Only attempts with a higher number.")


def webhook_log_router(webhook_log: WebhookLog) -> APIRouter:
    """Return the route that lists the attempts, for the main app in sandbox mode."""
    router = APIRouter(prefix="/sandbox", tags=["sandbox"])

    @router.get("/events", operation_id="listSandboxEvents", summary="List the webhook events sent")
    async def list_sandbox_events(query: Annotated[WebhookAttemptsQuery, Query()]) -> WebhookAttempts:
        """Return each attempt to deliver a webhook event of the last day, oldest first.

        Here every client has events, also one without a `webhook_url`. `plusofon-verify events tail` prints them as
        they happen, and can forward them.
        """
        return WebhookAttempts.model_validate({"attempts": webhook_log.after(query.after)})

    return router
