"""A client's webhook endpoint, and what it is sent: the body, and the headers that sign it.

As https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md says.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC

from app.standard_webhooks import sign
from app.verification.webhooks import Event

_SIGNATURE = "webhook-signature"


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """A client's endpoint.

    Each of ``secrets`` signs, so that a receiver may know the old or the new one during a rotation. Without ``events``
    all types are sent. With ``full_phone`` the phone is not masked.
    """

    url: str
    secrets: tuple[bytes, ...] = field(repr=False)
    events: frozenset[str] | None = None
    full_phone: bool = False

    def wants(self, event: Event) -> bool:
        """Return whether an event of this type is to be sent."""
        return self.events is None or event.type in self.events

    def body(self, event: Event) -> bytes:
        """Return the body: the same bytes in every attempt, and never a code."""
        payload = {
            "type": event.type,
            "timestamp": event.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": {
                "verification_id": event.verification_id,
                "purpose": event.purpose,
                **({} if event.reference is None else {"reference": event.reference}),
                "channel": event.channel,
                "phone": event.phone.e164 if self.full_phone else event.phone.masked,
                "status": event.status,
                "call": {"status": event.call_status} if event.call_status else None,
            },
        }
        return json.dumps(payload, separators=(",", ":")).encode()

    def headers(self, event: Event, body: bytes, *, timestamp: int) -> dict[str, str]:
        """Return the signed headers of one attempt, made at ``timestamp`` (seconds since 1970)."""
        signed = [sign(secret, message_id=event.id, timestamp=timestamp, body=body) for secret in self.secrets]
        return {**signed[0], _SIGNATURE: " ".join(headers[_SIGNATURE] for headers in signed)}
