"""The webhook request of a client: its body, without a code, and its signature."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from app.verification.phone import Phone
from app.verification.webhooks import Event, EventType
from app.webhooks.endpoint import WebhookEndpoint

SECRET, OTHER = b"s" * 24, b"o" * 32
NOW = int(datetime.now(UTC).timestamp())
EVENT = Event(
    id="msg_0a11b22c33d44e55f667788-3",
    type=EventType.CALL_STATUS_CHANGED,
    client="shop",
    verification_id="vrf_0a11b22c33d44e55f667788",
    purpose="login",
    reference=None,
    channel="voice",
    phone=Phone("+79001234567"),
    status="pending",
    call_status="ringing",
    at=datetime(2026, 1, 31, 9, 0, 0, 123_000, tzinfo=UTC),
)


def written(secret: bytes) -> str:
    return f"whsec_{base64.b64encode(secret).decode()}"


def test_the_body_describes_the_event_with_a_masked_phone() -> None:
    endpoint = WebhookEndpoint("https://shop.example/hook", (SECRET,))

    assert json.loads(endpoint.body(EVENT)) == {
        "type": "call.status_changed",
        "timestamp": "2026-01-31T09:00:00.123Z",
        "data": {
            "verification_id": "vrf_0a11b22c33d44e55f667788",
            "purpose": "login",
            "channel": "voice",
            "phone": "+7900•••4567",
            "status": "pending",
            "call": {"status": "ringing"},
        },
    }


def test_the_body_has_the_reference_if_there_is_one() -> None:
    endpoint = WebhookEndpoint("https://shop.example/hook", (SECRET,))

    assert json.loads(endpoint.body(replace(EVENT, reference="Заказ | 7")))["data"]["reference"] == "Заказ | 7"


def test_the_body_has_the_full_phone_if_configured_and_null_without_a_call() -> None:
    endpoint = WebhookEndpoint("https://shop.example/hook", (SECRET,), full_phone=True)

    data = json.loads(endpoint.body(replace(EVENT, call_status=None)))["data"]
    assert (data["phone"], data["call"]) == ("+79001234567", None)


@pytest.mark.parametrize("known", [SECRET, OTHER])
def test_each_of_the_secrets_verifies_the_signature(known: bytes) -> None:
    endpoint = WebhookEndpoint("https://shop.example/hook", (SECRET, OTHER))
    body = endpoint.body(EVENT)

    headers = endpoint.headers(EVENT, body, timestamp=NOW)

    assert headers["webhook-id"] == EVENT.id
    assert [part.partition(",")[0] for part in headers["webhook-signature"].split(" ")] == ["v1", "v1"]
    assert Webhook(written(known)).verify(body, headers)["type"] == "call.status_changed"


def test_an_endpoint_receives_all_events_unless_a_list_is_configured() -> None:
    endpoint = WebhookEndpoint("https://shop.example/hook", (SECRET,))

    assert endpoint.wants(EVENT)
    assert replace(endpoint, events=frozenset({EventType.CALL_STATUS_CHANGED})).wants(EVENT)
    assert not replace(endpoint, events=frozenset({EventType.VERIFIED})).wants(EVENT)


def test_the_repr_of_an_endpoint_shows_no_secret() -> None:
    assert "ssss" not in repr(WebhookEndpoint("https://shop.example/hook", (SECRET,)))
