"""Make the rate limiter with its fraud guard, as the container does, and have it count calls."""

import secrets

from redis.asyncio import Redis

from app.store.fraud_guard import RedisFraudGuard
from app.store.limits import RedisRateLimiter
from app.store.scripts import ScriptRunner
from app.verification.fraud_guard import GuardRules
from app.verification.phone import Phone
from app.verification.policy import Policy
from app.verification.ports import Reservation
from tests.policies import make_guard_rules

KEY = b"a key of the tests, known to all"


def make_limiter(
    redis: Redis, rules: GuardRules | None = None, *, key: bytes = KEY, runner: ScriptRunner | None = None
) -> RedisRateLimiter:
    """Return a limiter whose guard has these rules, or the default ones."""
    runner = runner or ScriptRunner(redis, timeout=5)
    guard = RedisFraudGuard(runner, rules or make_guard_rules(), key=key)
    return RedisRateLimiter(runner, key=key, guard=guard)


async def count_call(limiter: RedisRateLimiter, phone: Phone, client: str, policy: Policy) -> Reservation:
    """Count a call in all its limits and in the fraud guard."""
    token = secrets.token_hex(6)
    return await limiter.acquire(token, policy.for_calls(client=client, phone=phone, address=None))
