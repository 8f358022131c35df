"""The event stream of a verification: over real HTTP, through every layer, with one or two instances."""

import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import msgpack
import pytest
from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send

from app.main import create_app
from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork
from app.sandbox.server import SandboxServer
from app.settings import Settings
from app.store.layout import RecordName
from app.store.verifications import RedisVerificationStore
from tests.ageing import age
from tests.integration.conftest import sandbox_settings
from tests.keys import stored
from tests.redis_commands import stopped
from tests.waiting import PATIENCE, eventually, lifespan_of, timing, until

PHONE = "+79001234567"
UNKNOWN = "vrf_" + "0" * 23
Event = dict[str, str]
PING: Event = {"": "ping"}


@asynccontextmanager
async def serve(
    settings: Settings, network: VirtualNetwork, heartbeat: float = 3600
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve over a socket: only there do chunks arrive one by one, and only there can a client disconnect.

    A heartbeat would find what a lost message has not told.
    """
    app = create_app(settings, network)

    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            container = replace(scope["state"]["container"], stream_heartbeat=heartbeat)
            scope = {**scope, "state": {**scope["state"], "container": container}}
        await app(scope, receive, send)

    async with (
        lifespan_of(hasty) as manager,
        SandboxServer(manager.app) as server,
        httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.fixture
async def api(redis: Redis, settings: Settings, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(settings, network) as client:
        yield client


class Stream:
    """An open event stream: ``next`` returns the next event or comment, or None at the end."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self) -> Event | None:
        event: Event = {}
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                if not line:
                    return event
                name, _, value = line.partition(": ")
                assert name not in event
                event[name] = value
        return None

    async def state(self) -> tuple[str, str | None, int]:
        event = await self.next()
        assert event
        assert event["event"] == "verification"
        data = json.loads(event["data"])
        return data["status"], data["call"] and data["call"]["status"], data["checks_left"]


@asynccontextmanager
async def follow(api: httpx.AsyncClient, verification_id: str, **headers: str) -> AsyncIterator[Stream]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with api.stream("GET", f"/verify/{verification_id}/events", headers=names) as answer:
        assert answer.status_code == 200, await answer.aread()
        stream = Stream(answer)
        assert await stream.next() == {"retry": "2000"}
        yield stream


async def start(api: httpx.AsyncClient) -> str:
    return str((await api.post("/verify/start", json={"phone": PHONE})).json()["verification_id"])


async def wrong(api: httpx.AsyncClient, verification_id: str, network: VirtualNetwork) -> None:
    code = await hear(network)
    other = f"{(int(code) + 1) % 10 ** len(code):0{len(code)}}"
    answer = await api.post("/verify/check", json={"verification_id": verification_id, "code": other})
    assert answer.json()["verified"] is False


async def hear(network: VirtualNetwork) -> str:
    await until(lambda: network.calls_of(PHONE)[-1].heard)
    return str(network.calls_of(PHONE)[-1].heard)


async def cancel(api: httpx.AsyncClient, verification_id: str) -> None:
    assert (await api.post(f"/verify/{verification_id}/cancel")).status_code == 200


async def test_a_stream_sends_the_current_state_at_once_and_every_change_until_the_end(
    api: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    verification_id = await start(api)
    async with follow(api, verification_id) as stream:
        event = await stream.next()
        assert event
        sent, read = json.loads(event["data"]), (await api.get(f"/verify/{verification_id}")).json()
        for seconds in ("expires_in", "resend_in"):
            assert abs(sent.pop(seconds) - read.pop(seconds)) <= 1
        assert sent.keys() == read.keys()
        assert (event["event"], sent["status"], sent["checks_left"]) == ("verification", "pending", 5)
        first = int(event["id"])

        await wrong(api, verification_id, network)
        while (await stream.state())[2] == 5:
            pass  # the call rang, or was answered
        code = await hear(network)
        checked = await api.post("/verify/check", json={"verification_id": verification_id, "code": code})
        assert checked.json()["verified"] is True
        while last := await stream.next():
            event = last
        assert json.loads(event["data"])["status"] == "verified"
        assert int(event["id"]) > first
        assert code not in event["data"]


async def test_a_stream_that_showed_a_resend_shows_its_refund_when_the_provider_refuses(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    refund, refused = RedisVerificationStore.refund, asyncio.Event()

    async def waits(store: RedisVerificationStore, *arguments: Any, **named: Any) -> bool:  # noqa: ANN401 - passed on
        await refused.wait()
        return await refund(store, *arguments, **named)

    verification_id = await start(api)
    before = await read_until(api, verification_id, lambda state: state["call"] == {"status": "completed"})
    await age(redis, timedelta(seconds=60))
    network.faults = Faults(share=1, kinds=(Fault.REFUSED,))
    monkeypatch.setattr(RedisVerificationStore, "refund", waits)
    body = {"phone": PHONE, "verification_id": verification_id}
    resend = asyncio.create_task(api.post("/verify/start", json=body))
    await read_until(api, verification_id, lambda state: state["calls_placed"] == 2)

    async with follow(api, verification_id) as stream:
        received = [await stream.next()]
        refused.set()
        received.append(await stream.next())

    assert (await resend).status_code == 502
    states = [json.loads(event["data"]) for event in received if event]
    assert [(state["calls_placed"], state["calls_left"]) for state in states] == [(2, 1), (1, 2)]
    assert states[1]["call"] == before["call"]


async def read_until(
    api: httpx.AsyncClient, verification_id: str, is_there: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        return dict((await api.get(f"/verify/{verification_id}")).json())

    return await eventually(read, is_there)


async def test_the_headers_of_a_stream_keep_proxies_from_buffering_it(api: httpx.AsyncClient) -> None:
    async with follow(api, await start(api)) as stream:
        headers = stream.answer.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["X-Request-ID"]
        assert headers["X-Content-Type-Options"] == "nosniff"


async def test_a_client_that_reconnects_with_the_current_event_id_gets_only_newer_states(
    api: httpx.AsyncClient,
) -> None:
    verification_id = await start(api)
    async with follow(api, verification_id) as stream:
        event = await stream.next()
        assert event

    async with follow(api, verification_id, Last_Event_ID=event["id"]) as stream:
        await cancel(api, verification_id)
        assert (await stream.state())[0] == "canceled"
        assert await stream.next() is None


@pytest.mark.parametrize("garbage", ["", "0", "-1", "x" * 1000, "1e9", "\u00ff"])
async def test_an_invalid_last_event_id_is_ignored(api: httpx.AsyncClient, garbage: str) -> None:
    async with follow(api, await start(api), Last_Event_ID=garbage.encode("latin-1")) as stream:  # type: ignore[arg-type] # bytes
        assert (await stream.state())[0] == "pending"


async def test_a_final_state_is_sent_once_and_a_reconnect_gets_204(api: httpx.AsyncClient) -> None:
    verification_id = await start(api)
    await cancel(api, verification_id)
    async with follow(api, verification_id) as stream:
        event = await stream.next()
        assert event
        assert json.loads(event["data"])["status"] == "canceled"
        assert await stream.next() is None

    again = await api.get(f"/verify/{verification_id}/events", headers={"Last-Event-ID": event["id"]})
    assert (again.status_code, again.content) == (204, b"")


async def test_a_stream_reports_the_expiry_of_its_verification(api: httpx.AsyncClient, redis: Redis) -> None:
    verification_id = await start(api)
    name = RecordName.from_id(verification_id)
    assert name
    await redis.pexpire(stored(name.key), 1000)
    async with follow(api, verification_id) as stream:
        assert (await stream.state())[0] == "pending"
        while (event := await stream.next()) and event["event"] == "verification":
            pass  # the call goes on meanwhile
        assert event
        assert event["event"] == "expired"
        assert json.loads(event["data"]) == {"verification_id": verification_id, "status": "expired"}
        assert await stream.next() is None
    gone = await api.get(f"/verify/{verification_id}/events")
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/verification-not-found")


async def test_other_clients_and_anonymous_requests_get_no_stream(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    named = ",".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("shop", "bank"))
    async with serve(sandbox_settings(redis_url, api={"keys": named}), network) as api:
        api.headers["Authorization"] = "Bearer shop"
        verification_id = await start(api)
        async with follow(api, verification_id):
            pass

        api.headers["Authorization"] = "Bearer bank"
        for other in (verification_id, UNKNOWN, "nonsense"):
            answer = await api.get(f"/verify/{other}/events")
            assert (answer.status_code, answer.json()["type"]) == (404, "/problems/verification-not-found")
        del api.headers["Authorization"]
        assert (await api.get(f"/verify/{verification_id}/events")).status_code == 401


async def test_a_change_made_through_one_instance_reaches_a_stream_of_another(
    api: httpx.AsyncClient, settings: Settings, network: VirtualNetwork
) -> None:
    verification_id = await start(api)
    async with serve(settings, network) as other, follow(other, verification_id) as stream:
        assert (await stream.state())[0] == "pending"
        await cancel(api, verification_id)
        while (state := await stream.state())[0] == "pending":
            pass
        assert state[0] == "canceled"


async def test_the_number_of_streams_is_limited_and_a_disconnect_frees_a_place_at_once(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    async with serve(sandbox_settings(redis_url, events_listeners=1), network) as api:
        verification_id = await start(api)
        for _ in range(3):
            async with follow(api, verification_id) as stream:
                await stream.state()
                refused = await api.get(f"/verify/{verification_id}/events")
                assert (refused.status_code, refused.json()["type"]) == (503, "/problems/too-many-listeners")
                assert refused.headers["Retry-After"] == str(refused.json()["retry_after"])
            await until_free(redis)
        for _ in range(3):  # a stream that was refused takes no place either
            assert (await api.get(f"/verify/{UNKNOWN}/events")).status_code == 404


async def test_one_client_cannot_use_all_streams(redis: Redis, redis_url: str, network: VirtualNetwork) -> None:
    named = ",".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("shop", "bank"))
    settings = sandbox_settings(redis_url, api={"keys": named}, events_listeners=2)
    async with serve(settings, network) as api:
        api.headers["Authorization"] = "Bearer shop"
        of_shop = await start(api)
        async with follow(api, of_shop) as stream:
            await stream.state()
            refused = await api.get(f"/verify/{of_shop}/events")
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/too-many-listeners")

            api.headers["Authorization"] = "Bearer bank"
            assert (await api.get(f"/verify/{UNKNOWN}/events")).status_code == 404  # 404 and not 503: a place was free


async def until_free(redis: Redis) -> None:
    """Wait until Redis has no subscriber but Sentinels."""

    async def subscribers() -> set[str]:
        return {it["name"] for it in await redis.client_list(_type="pubsub")} & {"plusofon-verify"}

    await eventually(subscribers, lambda names: not names)


async def test_a_stream_sends_heartbeats_and_recovers_from_a_lost_message(
    redis: Redis, settings: Settings, network: VirtualNetwork
) -> None:
    async with serve(settings, network, heartbeat=0.1) as api:
        verification_id = await start(api)
        async with follow(api, verification_id) as stream:
            event = await stream.next()
            while event and "event" in event:
                event = await stream.next()
            assert event == PING

            name = RecordName.from_id(verification_id)
            assert name
            record = msgpack.unpackb(await redis.get(stored(name.key)) or b"")
            await redis.set(stored(name.key), msgpack.packb(record | {"s": "locked", "v": 99}), keepttl=True)
            while (event := await stream.next()) == PING:
                pass
            assert event
            assert (event["id"], json.loads(event["data"])["status"]) == ("99", "locked")
            assert await stream.next() is None


async def test_a_redis_outage_keeps_open_streams_and_refuses_new_ones(
    redis: Redis, redis_url: str, network: VirtualNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    settings = sandbox_settings(redis_url, redis={"url": redis_url, "timeout_seconds": 2})
    async with serve(settings, network, heartbeat=0.05) as api:
        verification_id = await start(api)
        async with follow(api, verification_id) as stream:
            await stream.state()
            async with stopped(redis):
                refused = await api.get(f"/verify/{verification_id}/events")
                assert (refused.status_code, refused.json()["type"]) == (503, "/problems/store-unavailable")
                for _ in range(3):
                    assert await stream.next()
                # The refusal, and what the stream tried.
                await until(lambda: caplog.messages.count("store.unavailable") > 1)

            await cancel(api, verification_id)
            while event := await stream.next():
                last = event
            assert json.loads(last["data"])["status"] == "canceled"


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Install a handler of SIGTERM, as a server does; return the signals that it received."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


async def test_streams_end_at_once_on_shutdown(handled: list[int], api: httpx.AsyncClient) -> None:
    async with follow(api, await start(api)) as stream:
        await stream.state()
        signal.raise_signal(signal.SIGTERM)
        async with timing() as seconds:
            while await stream.next():
                pass
            assert seconds() < 1
    assert handled == [signal.SIGTERM]
