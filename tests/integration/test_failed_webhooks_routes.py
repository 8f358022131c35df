"""The operator's routes of the webhooks that were given up: the list, and sending one again."""

import hashlib
from datetime import datetime

import httpx
import pytest
from redis.asyncio import Redis

from app.settings import Settings
from app.store.scripts import ScriptRunner
from app.store.webhooks import RedisOutbox
from tests.integration.conftest import sandbox_settings
from tests.webhook_events import add_events

ADMIN = {"Authorization": "Bearer a-key-of-an-operator"}
FAILED = "/admin/webhooks/failed"


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return sandbox_settings(redis_url, admin={"keys": [f"ops:{hashlib.sha256(b'a-key-of-an-operator').hexdigest()}"]})


@pytest.fixture
async def event_id(redis: Redis) -> str:
    """Give up an event, and return its id."""
    await add_events(redis, type="call.status_changed", call="busy")
    outbox = RedisOutbox(ScriptRunner(redis, timeout=5))
    (taken,) = await outbox.take(1)
    await outbox.set_aside(taken, attempts=7, error="status 500", pause=None)
    return taken.event.id


async def test_a_webhook_that_was_given_up_is_listed_without_its_phone(api: httpx.AsyncClient, event_id: str) -> None:
    answer = await api.get(FAILED, headers=ADMIN)
    (event,) = answer.json()["events"]

    assert datetime.fromisoformat(event.pop("given_up_at")).tzinfo
    assert event == {
        "id": event_id,
        "type": "call.status_changed",
        "client": "shop",
        "verification_id": "vrf_0a11b22c33d44e55f667788",
        "attempts": 7,
        "error": "status 500",
        "happened_at": "2026-01-31T09:00:00Z",
    }
    assert "9001234567" not in answer.text


async def test_it_is_sent_again_once_and_the_request_is_recorded(
    api: httpx.AsyncClient, redis: Redis, event_id: str
) -> None:
    answers = [await api.post(f"{FAILED}/{event_id}/resend", headers=ADMIN) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 404]
    assert (await api.get(FAILED, headers=ADMIN)).json() == {"events": []}
    assert [delivery.event.id for delivery in await RedisOutbox(ScriptRunner(redis, timeout=5)).take(1)] == [event_id]
    entries = (await api.get("/admin/audit", headers=ADMIN)).json()["entries"]
    assert {(entry["admin"], entry["action"]) for entry in entries} == {("ops", f"POST {FAILED}/{event_id}/resend")}


async def test_without_an_admin_key_nothing_is_listed_or_sent(api: httpx.AsyncClient, event_id: str) -> None:
    for answer in (await api.get(FAILED), await api.post(f"{FAILED}/{event_id}/resend")):
        assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")

    assert len((await api.get(FAILED, headers=ADMIN)).json()["events"]) == 1
