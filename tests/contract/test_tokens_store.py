"""Redemptions in Redis: each token is redeemed once, and this is stored longer than the token is valid."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from app.store.connection import connect
from app.store.layout import RecordName
from app.store.scripts import ScriptRunner
from app.store.tokens import RedisRedemptions
from app.verification.errors import StoreUnavailable, TokenExpired, TokenInvalid
from tests.keys import stored
from tests.waiting import eventually

VERIFICATION_ID = "vrf_0a11b22c33d44e55f667788"
KEY = "pv3{0a1}:t:1b22c33d44e55f667788"


@pytest.fixture
def redemptions(redis: Redis) -> RedisRedemptions:
    return RedisRedemptions(ScriptRunner(redis, timeout=5))


def after(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


async def test_only_the_first_redemption_succeeds(redemptions: RedisRedemptions) -> None:
    expires_at = after(minutes=10)

    assert [await redemptions.redeem(VERIFICATION_ID, expires_at) for _ in range(3)] == [True, False, False]


async def test_of_a_hundred_concurrent_redemptions_exactly_one_succeeds(redis: Redis) -> None:
    """From two instances of the service, so that not all commands are sent in one write."""
    expires_at = after(minutes=10)
    instances = [RedisRedemptions(ScriptRunner(redis, timeout=5)) for _ in range(2)]

    attempts = [instances[number % 2].redeem(VERIFICATION_ID, expires_at) for number in range(100)]
    assert sorted(await asyncio.gather(*attempts)) == [False] * 99 + [True]


async def test_redemptions_of_different_verifications_are_independent(redemptions: RedisRedemptions) -> None:
    expires_at = after(minutes=10)
    ids = [f"vrf_{bucket:03x}{rest:020x}" for bucket in range(10) for rest in range(10)]

    assert all(await asyncio.gather(*[redemptions.redeem(name, expires_at) for name in ids]))


async def test_a_redemption_is_stored_a_minute_longer_than_the_token_is_valid(
    redis: Redis, redemptions: RedisRedemptions
) -> None:
    await redemptions.redeem(VERIFICATION_ID, after(minutes=10))

    assert await redis.keys() == [KEY.encode()]
    assert 650_000 < await redis.pttl(KEY) <= 660_000


async def test_redeeming_again_does_not_change_the_expiry(redis: Redis, redemptions: RedisRedemptions) -> None:
    await redemptions.redeem(VERIFICATION_ID, after(minutes=10))
    await redemptions.redeem(VERIFICATION_ID, after(hours=10))

    assert await redis.pttl(KEY) <= 660_000


async def test_a_token_that_expired_less_than_a_minute_ago_is_redeemed_once(redemptions: RedisRedemptions) -> None:
    """The clock of Redis may be ahead of the one that verified the token."""
    expires_at = after(seconds=-30)

    assert [await redemptions.redeem(VERIFICATION_ID, expires_at) for _ in range(2)] == [True, False]


async def test_a_token_whose_redemption_could_not_be_stored_is_refused(
    redis: Redis, redemptions: RedisRedemptions
) -> None:
    """Redis deletes a key that expires in the past at once, so every redemption would be the first."""
    for _ in range(2):
        with pytest.raises(TokenExpired):
            await redemptions.redeem(VERIFICATION_ID, after(seconds=-61))
    assert await redis.keys() == []


async def test_a_token_cannot_be_redeemed_after_its_redemption_expired(redemptions: RedisRedemptions) -> None:
    """With any clock difference, the time to redeem ends before the key does."""
    expires_at = after(seconds=-57)
    assert await redemptions.redeem(VERIFICATION_ID, expires_at)

    async def redeem_again() -> bool:
        assert not await redemptions.redeem(VERIFICATION_ID, expires_at)
        return False

    with pytest.raises(TokenExpired):
        await eventually(redeem_again)


async def test_the_key_is_in_the_cluster_slot_of_its_verification() -> None:
    record = RecordName.from_id(VERIFICATION_ID)

    assert record
    assert key_slot(KEY.encode()) == key_slot(stored(record.key).encode())
    assert stored(record.key) != KEY


@pytest.mark.parametrize(
    "verification_id", ["", "vrf_", "vrf_0a1", "x" * 64, "vrf_{}:*", "vrf_0A11B22C33D44E55F667788"]
)
async def test_a_malformed_verification_id_is_an_invalid_token(
    redis: Redis, redemptions: RedisRedemptions, verification_id: str
) -> None:
    with pytest.raises(TokenInvalid):
        await redemptions.redeem(verification_id, after(minutes=10))
    assert await redis.keys() == []


async def test_a_flushed_script_is_loaded_again_and_run_once(redis: Redis, redemptions: RedisRedemptions) -> None:
    expires_at = after(minutes=10)
    await redis.script_flush()
    assert await redemptions.redeem(VERIFICATION_ID, expires_at)
    await redis.script_flush()

    assert not await redemptions.redeem(VERIFICATION_ID, expires_at)


async def test_redeeming_without_redis_raises_store_unavailable() -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)
    redemptions = RedisRedemptions(ScriptRunner(nowhere, timeout=0.1))

    with pytest.raises(StoreUnavailable):
        await redemptions.redeem(VERIFICATION_ID, after(minutes=10))
    await nowhere.aclose()
