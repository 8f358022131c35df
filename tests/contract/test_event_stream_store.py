"""Listeners are notified of every change of their verification over one shared connection, also after reconnects."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest
from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.store.connection import connect
from app.store.event_stream import RedisChanges
from app.store.layout import PREFIX, changes_channel
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.verification.channels import Channel
from app.verification.errors import TooManyListeners
from app.verification.model import CallState, CallStatus
from app.verification.phone import Phone
from app.verification.ports import CallUpdate, CodeCheck, NewCall
from tests.limiters import make_limiter
from tests.policies import make_policy
from tests.starting import start
from tests.waiting import PATIENCE, eventually

CHANNEL = changes_channel(PREFIX)
ONE, OTHER = "vrf_" + "1" * 23, "vrf_" + "2" * 23
NEVER = 0.1


@pytest.fixture
async def changes(redis: Redis) -> AsyncIterator[RedisChanges]:
    changes = RedisChanges(redis)
    yield changes
    await changes.aclose()


async def connections(redis: Redis) -> list[str]:
    """Return the ids of the service's connections; Sentinels have some too."""
    subscribed = await redis.client_list(_type="pubsub")
    return [client["id"] for client in subscribed if client["name"] == "plusofon-verify"]


async def until_connected(redis: Redis, number: int) -> None:
    await eventually(lambda: connections(redis), lambda found: len(found) == number)


def new_call(number: int = 0) -> NewCall:
    return NewCall(
        client="shop",
        phone=Phone(f"+790012345{number:02}"),
        purpose="login",
        channel=Channel.VOICE,
        code_digest=b"r" * 32,
        code_length=6,
        checks=5,
    )


async def changed(feed: asyncio.Event, seconds: float) -> bool:
    """Wait for a change, at most so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await feed.wait()
    was_set = feed.is_set()
    feed.clear()
    return was_set


async def settled(feed: asyncio.Event) -> asyncio.Event:
    """Wait for the notification that follows a new connection."""
    assert await changed(feed, PATIENCE)
    return feed


async def test_a_change_notifies_only_listeners_of_its_verification(redis: Redis, changes: RedisChanges) -> None:
    async with (
        changes.listen(ONE, client="shop") as one,
        changes.listen(ONE, client="shop") as same,
        changes.listen(OTHER, client="shop") as other,
    ):
        for feed in (one, same, other):
            await settled(feed)

        await redis.publish(CHANNEL, ONE)

        assert await changed(one, PATIENCE)
        assert await changed(same, PATIENCE)
        assert not await changed(other, NEVER)


async def test_a_burst_of_changes_is_one_notification(redis: Redis, changes: RedisChanges) -> None:
    async with changes.listen(ONE, client="shop") as one, changes.listen(OTHER, client="shop") as other:
        await settled(one)
        await settled(other)

        for verification_id in [ONE] * 20 + [OTHER]:
            await redis.publish(CHANNEL, verification_id)
        assert await changed(other, PATIENCE)

        assert await changed(one, PATIENCE)
        assert not await changed(one, NEVER)


async def test_a_malformed_message_is_ignored(redis: Redis, changes: RedisChanges) -> None:
    async with changes.listen(ONE, client="shop") as one:
        await settled(one)

        for garbage in (b"", b"\xff\xfe", b"vrf_"):
            await redis.publish(CHANNEL, garbage)
        await redis.publish(CHANNEL, ONE)

        assert await changed(one, PATIENCE)


async def test_all_listeners_share_one_connection_that_closes_with_the_last_one(
    redis: Redis, changes: RedisChanges
) -> None:
    assert await connections(redis) == []
    async with changes.listen(ONE, client="shop") as one:
        async with changes.listen(OTHER, client="shop"):
            await settled(one)
            assert len(await connections(redis)) == 1
        assert len(await connections(redis)) == 1
    await until_connected(redis, 0)

    async with changes.listen(ONE, client="shop") as again:
        await settled(again)
        await redis.publish(CHANNEL, ONE)
        assert await changed(again, PATIENCE)


async def test_closing_ends_the_connection_despite_listeners(redis: Redis, changes: RedisChanges) -> None:
    async with changes.listen(ONE, client="shop") as one:
        await settled(one)
        await changes.aclose()
        await until_connected(redis, 0)


async def test_after_a_lost_connection_all_listeners_are_notified_and_subscribed_again(
    redis: Redis, changes: RedisChanges
) -> None:
    async with changes.listen(ONE, client="shop") as one, changes.listen(OTHER, client="shop") as other:
        await settled(one)
        await settled(other)

        await redis.client_kill_filter(_type="pubsub")
        assert await changed(one, PATIENCE)
        assert await changed(other, PATIENCE)

        await redis.publish(CHANNEL, ONE)
        assert await changed(one, PATIENCE)
        assert not await changed(other, NEVER)


async def test_listeners_are_notified_again_after_redis_restarts() -> None:
    with EmbeddedServer() as server:
        redis = connect(server.url, timeout=5)
        async with RedisChanges(redis).listen(ONE, client="shop") as one:
            await settled(one)

            os.kill(int((await redis.info("server"))["process_id"]), signal.SIGKILL)

            assert await changed(one, PATIENCE)
            await redis.publish(CHANNEL, ONE)
            assert await changed(one, PATIENCE)
        await redis.aclose()


async def test_a_connection_that_does_not_answer_pings_is_replaced(redis: Redis) -> None:
    async with RedisChanges(redis, quiet=0.05).listen(ONE, client="shop") as one:
        await settled(one)
        assert not await changed(one, 0.3)  # pings are answered, so nothing happens
        before = await connections(redis)

        await redis.client_pause(3000, all=True)  # the nodes of a cluster are asked meanwhile

        assert await changed(one, PATIENCE)
        await until_connected(redis, 1)
        assert await connections(redis) != before


async def test_of_a_hundred_concurrent_listeners_exactly_the_maximum_is_admitted(redis: Redis) -> None:
    changes = RedisChanges(redis, listeners=10)
    async with AsyncExitStack() as stack:
        entered = await asyncio.gather(
            *(stack.enter_async_context(changes.listen(f"vrf_{number:023x}", client="shop")) for number in range(100)),
            return_exceptions=True,
        )
        assert sum(isinstance(feed, asyncio.Event) for feed in entered) == 10
        assert sum(isinstance(refusal, TooManyListeners) for refusal in entered) == 90
    async with changes.listen(ONE, client="shop"):
        pass


async def test_listeners_of_one_client_are_limited(redis: Redis) -> None:
    changes = RedisChanges(redis, listeners=3, listeners_of_client=2)
    async with changes.listen(ONE, client="shop"), changes.listen(OTHER, client="shop"):
        with pytest.raises(TooManyListeners):
            async with changes.listen(OTHER, client="shop"):
                raise AssertionError
        async with changes.listen(OTHER, client="bank"):
            assert changes.listeners == 3
            with pytest.raises(TooManyListeners):
                async with changes.listen(OTHER, client="cafe"):
                    raise AssertionError
    async with changes.listen(ONE, client="shop"):
        assert changes.listeners == 1


async def test_listeners_of_one_verification_are_limited_and_their_places_released(redis: Redis) -> None:
    changes = RedisChanges(redis, listeners_of_one=2)
    async with changes.listen(ONE, client="shop"), changes.listen(OTHER, client="shop"):
        async with changes.listen(ONE, client="shop"):
            with pytest.raises(TooManyListeners) as refusal:
                async with changes.listen(ONE, client="shop"):
                    raise AssertionError
            assert refusal.value.retry_after > 0
        async with changes.listen(ONE, client="shop"):
            pass


async def test_a_canceled_listener_releases_its_place(redis: Redis) -> None:
    changes = RedisChanges(redis, listeners=1)

    async def listen() -> None:
        async with changes.listen(ONE, client="shop") as one:
            while True:
                await changed(one, PATIENCE)

    for _ in range(3):
        listener = asyncio.create_task(listen())
        await asyncio.sleep(0)
        with pytest.raises(TooManyListeners):
            async with changes.listen(OTHER, client="shop"):
                raise AssertionError
        listener.cancel()
        await asyncio.wait({listener})
    await until_connected(redis, 0)


async def test_every_change_of_a_verification_increases_its_version_and_notifies_listeners(
    redis: Redis, changes: RedisChanges, store: RedisVerificationStore
) -> None:
    policy = make_policy()
    verification = (await start(store, new_call(), policy)).verification
    wrong = CodeCheck(client="shop", candidates=[b"w" * 32], length=6)
    async with changes.listen(verification.id, client="shop") as feed:
        await settled(feed)
        await store.read(verification.id, client="shop", follow=True)
        for change in (
            lambda: store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.RINGING))),
            lambda: store.check_by_id(verification.id, wrong, policy),
            lambda: store.cancel("shop", verification.id),
        ):
            before = (await store.read(verification.id, client="shop")).version
            await change()
            assert await changed(feed, PATIENCE)
            assert (await store.read(verification.id, client="shop")).version > before


async def test_a_change_is_seen_by_the_first_read_of_a_follower_or_signalled_after_it(
    redis: Redis, changes: RedisChanges, store: RedisVerificationStore
) -> None:
    ringing = CallUpdate(state=CallState(CallStatus.RINGING))
    limits = make_limiter(redis, key=b"k" * 32)
    others = RedisVerificationStore(ScriptRunner(redis, timeout=5), phone_key=b"k" * 32, limits=limits)
    signalled = 0
    for number in range(100):
        verification = (await start(store, new_call(number), make_policy())).verification
        async with changes.listen(ONE, client="shop"), changes.listen(verification.id, client="shop") as feed:
            if number == 0:
                await settled(feed)
            feed.clear()
            first, last = (store, others) if number % 2 else (others, store)
            seen, _ = await asyncio.gather(
                first.read(verification.id, client="shop", follow=True), last.record_call(verification, 1, ringing)
            )
            if seen.version == verification.version:
                assert await changed(feed, PATIENCE)
                signalled += 1
    assert signalled


async def test_changes_of_a_verification_that_nobody_follows_are_not_published(
    redis: Redis, changes: RedisChanges, store: RedisVerificationStore
) -> None:
    verification = (await start(store, new_call(), make_policy())).verification
    async with changes.listen(verification.id, client="shop") as feed:
        await settled(feed)
        await store.read(verification.id, client="shop")

        await store.cancel("shop", verification.id)

        assert not await changed(feed, NEVER)
