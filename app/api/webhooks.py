"""The description of the webhooks, which ``app/webhooks`` sends: their requests, and the responses of a client."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from app.api.schemas import ReferenceView
from app.verification.channels import Channel
from app.verification.model import CallStatus
from app.verification.webhooks import EventType


class WebhookCall(BaseModel):
    """The latest call."""

    status: CallStatus


class WebhookEventData(BaseModel):
    """The verification as it was when the event happened, never with a code."""

    verification_id: str
    purpose: str
    reference: ReferenceView = None
    channel: Channel
    phone: Annotated[str, Field(description="masked, or in E.164 with `webhook_full_phone`")]
    status: Literal["pending", "verified", "locked", "canceled", "expired"]
    call: Annotated[WebhookCall | None, Field(description="null if there is none")]


class WebhookEvent(BaseModel):
    """A change of a verification."""

    type: EventType
    timestamp: Annotated[datetime, Field(description="when it happened")]
    data: WebhookEventData


# What each type reports, and an example of the verification's status and of its latest call's.
_EVENTS: Mapping[EventType, tuple[str, str, str | None]] = {
    EventType.CREATED: ("The first call of a verification was placed, or may have been", "pending", "initiated"),
    EventType.CALL_STATUS_CHANGED: (
        "A call rings, is answered or ends, or another one was placed",
        "pending",
        "ringing",
    ),
    EventType.VERIFIED: ("The right code was checked", "verified", "completed"),
    EventType.LOCKED: ("The last wrong code was checked", "locked", "completed"),
    EventType.CANCELED: ("The client canceled the verification", "canceled", "ringing"),
    EventType.EXPIRED: ("The verification expired while it was pending", "expired", None),
}
_DESCRIPTION = (
    "Posted to the `webhook_url` of the client, signed as [Standard Webhooks](https://www.standardwebhooks.com)"
    " specifies.\n\n"
    "An event may come twice, and after a later one. Any 2xx accepts it. After anything else, a redirect included, or"
    " no answer within 10 seconds, it is sent again later."
)
_HEADERS = [
    {
        "name": name,
        "in": "header",
        "required": True,
        "description": text,
        "schema": {"type": "string"},
        "example": value,
    }
    for name, text, value in (
        ("webhook-id", "the id of the event, the same in every attempt", "msg_0a11b22c33d44e55f667788-3"),
        ("webhook-timestamp", "when this attempt was made, in seconds since 1970", "1769850000"),
        (
            "webhook-signature",
            "one signature by each of the client's secrets, separated by spaces",
            "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
        ),
    )
]


def describe_webhooks() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ``webhooks`` of an OpenAPI description, and the component schemas that they refer to.

    They are no routes of FastAPI, which drops each null from the examples.
    """
    _, models = models_json_schema([(WebhookEvent, "validation")], ref_template="#/components/schemas/{model}")
    return {kind.value: {"post": _operation(kind)} for kind in EventType}, models["$defs"]


def _operation(kind: EventType) -> dict[str, Any]:
    subject, *words = re.split("[._]", kind)
    summary, status, call_status = _EVENTS[kind]
    data = {
        "verification_id": "vrf_0a11b22c33d44e55f667788",
        "purpose": "login",
        "reference": "order-1024",
        "channel": "voice",
        "phone": "+7900•••4567",
        "status": status,
        "call": {"status": call_status} if call_status else None,
    }
    example = {"type": kind.value, "timestamp": "2026-01-31T09:00:00.123Z", "data": data}
    media_type = {"schema": {"$ref": "#/components/schemas/WebhookEvent"}, "example": example}
    return {
        "operationId": subject + "".join(map(str.capitalize, words)),
        "summary": summary,
        "description": _DESCRIPTION,
        "security": [],
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": {"application/json": media_type}},
        "responses": {
            "2XX": {"description": "The event was received."},
            "410": {"description": "The event is not sent again."},
        },
    }
