"""Redemptions in Redis: once each, whoever asks, and remembered as long as a token might come again."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from app.store.connection import connect
from app.store.keys import RecordName
from app.store.scripts import ScriptRunner
from app.store.tokens import RedisRedemptions
from app.verification.errors import StoreUnavailable, TokenExpired, TokenInvalid

VERIFICATION_ID = "vrf_0a11b22c33d44e55f667788"
KEY = "pv:{0a1}:t:1b22c33d44e55f667788"


@pytest.fixture
def redemptions(redis: Redis) -> RedisRedemptions:
    return RedisRedemptions(ScriptRunner(redis, timeout=1))


def after(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


async def test_the_first_redemption_is_told_from_all_others(redemptions: RedisRedemptions) -> None:
    expires_at = after(minutes=10)

    assert [await redemptions.redeem(VERIFICATION_ID, expires_at) for _ in range(3)] == [True, False, False]


async def test_of_a_hundred_redemptions_at_once_one_is_the_first(redis: Redis) -> None:
    """From two instances of the service, so that not all of them travel in one write."""
    expires_at = after(minutes=10)
    instances = [RedisRedemptions(ScriptRunner(redis, timeout=1)) for _ in range(2)]

    attempts = [instances[number % 2].redeem(VERIFICATION_ID, expires_at) for number in range(100)]
    assert sorted(await asyncio.gather(*attempts)) == [False] * 99 + [True]


async def test_redemptions_of_different_verifications_do_not_meet(redemptions: RedisRedemptions) -> None:
    expires_at = after(minutes=10)
    ids = [f"vrf_{bucket:03x}{rest:020x}" for bucket in range(10) for rest in range(10)]

    assert all(await asyncio.gather(*[redemptions.redeem(name, expires_at) for name in ids]))


async def test_a_redemption_is_remembered_a_minute_longer_than_the_token_is_good(
    redis: Redis, redemptions: RedisRedemptions
) -> None:
    await redemptions.redeem(VERIFICATION_ID, after(minutes=10))

    assert await redis.keys() == [KEY.encode()]
    assert 650_000 < await redis.pttl(KEY) <= 660_000


async def test_asking_again_moves_no_expiry(redis: Redis, redemptions: RedisRedemptions) -> None:
    await redemptions.redeem(VERIFICATION_ID, after(minutes=10))
    await redemptions.redeem(VERIFICATION_ID, after(hours=10))

    assert await redis.pttl(KEY) <= 660_000


async def test_a_token_that_expired_within_the_minute_is_still_redeemed_once(redemptions: RedisRedemptions) -> None:
    """The clock of Redis may be ahead of the one that found the token good."""
    expires_at = after(seconds=-30)

    assert [await redemptions.redeem(VERIFICATION_ID, expires_at) for _ in range(2)] == [True, False]


async def test_a_token_that_could_not_be_remembered_is_refused(redis: Redis, redemptions: RedisRedemptions) -> None:
    """Redis drops a key at once that expires in the past: every redemption would be the first."""
    for _ in range(2):
        with pytest.raises(TokenExpired):
            await redemptions.redeem(VERIFICATION_ID, after(seconds=-61))
    assert await redis.keys() == []


async def test_a_token_is_not_redeemed_again_when_its_redemption_is_forgotten(redemptions: RedisRedemptions) -> None:
    """Whatever clock is wrong: when the key is gone, the time to redeem is over as well."""
    expires_at = after(seconds=-59.9)
    assert await redemptions.redeem(VERIFICATION_ID, expires_at)
    await asyncio.sleep(0.15)

    with pytest.raises(TokenExpired):
        await redemptions.redeem(VERIFICATION_ID, expires_at)


async def test_the_key_lies_in_the_slot_of_its_verification() -> None:
    record = RecordName.from_id(VERIFICATION_ID)

    assert record
    assert key_slot(KEY.encode()) == key_slot(record.key.encode())
    assert record.key != KEY


@pytest.mark.parametrize(
    "verification_id", ["", "vrf_", "vrf_0a1", "x" * 64, "vrf_{}:*", "vrf_0A11B22C33D44E55F667788"]
)
async def test_an_impossible_id_is_invalid(redis: Redis, redemptions: RedisRedemptions, verification_id: str) -> None:
    with pytest.raises(TokenInvalid):
        await redemptions.redeem(verification_id, after(minutes=10))
    assert await redis.keys() == []


async def test_a_script_that_redis_forgot_is_loaded_again_and_counts_once(
    redis: Redis, redemptions: RedisRedemptions
) -> None:
    expires_at = after(minutes=10)
    await redis.script_flush()
    assert await redemptions.redeem(VERIFICATION_ID, expires_at)
    await redis.script_flush()

    assert not await redemptions.redeem(VERIFICATION_ID, expires_at)


async def test_without_redis_nothing_is_redeemed() -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)
    redemptions = RedisRedemptions(ScriptRunner(nowhere, timeout=0.1))

    with pytest.raises(StoreUnavailable):
        await redemptions.redeem(VERIFICATION_ID, after(minutes=10))
    await nowhere.aclose()
