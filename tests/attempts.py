"""The journal of attempts, with the rules that tests use."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

from app.store.attempts import RedisAttempts
from app.store.scripts import ScriptRunner
from tests.policies import make_policy, make_prices

KEPT = timedelta(days=30)
PRICE = Decimal("2.50")


def attempts_on(
    runner: ScriptRunner,
    *,
    phone_key: bytes,
    kept: timedelta = KEPT,
    clock: Callable[[], datetime] = partial(datetime.now, UTC),  # noqa: B008 - it makes nothing
) -> RedisAttempts:
    lifetime = make_policy().lifetime
    prices = make_prices(str(PRICE))
    return RedisAttempts(runner, phone_key=phone_key, lifetime=lifetime, kept=kept, prices=prices, clock=clock)
