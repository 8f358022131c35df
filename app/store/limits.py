"""Limits on calls by address, range of numbers, client and day, in Redis: exact in any window, also in parallel."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.store.layout import ms, name_limit, seconds
from app.store.scripts import Script, ScriptRunner
from app.verification.errors import CallBudgetExhausted, RateLimited
from app.verification.policy import Allowance, Limit, Quota

ROOM, ACQUIRE, REFUND = (Script("limits", name) for name in ("room", "acquire", "refund"))


class RedisRateLimiter:
    """The ``RateLimiter`` of ``app/verification/ports.py``, in Redis: a sorted set of moments for each limit.

    One script counts an event in all its limits, or in none. Each limit is in a slot of its own.
    """

    def __init__(self, runner: ScriptRunner, *, key: bytes) -> None:
        self._runner = runner
        self._key = key

    async def require_room(self, allowances: Sequence[Allowance]) -> None:
        """Return if each limit has room for one event."""
        for allowance, (_, wait) in zip(allowances, await self._run(ROOM, allowances), strict=True):
            if wait:
                raise _refusal(allowance.limit, wait)

    async def acquire(self, token: str, allowances: Sequence[Allowance]) -> list[Quota]:
        """Count one event against each limit; if one has no room, the caller refunds the event."""
        outcome, *facts = await self._run(ACQUIRE, allowances, token)
        if outcome == b"full":
            number, wait = facts
            raise _refusal(allowances[number - 1].limit, wait)
        return [Quota(allowance.limit, left) for allowance, left in zip(allowances, facts, strict=True)]

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        """Refund the event in each limit. Idempotent."""
        await self._runner.run(REFUND, [name_limit(self._key, allowance) for allowance in allowances], [token])

    async def gauges(self, budget: Allowance) -> Mapping[str, float]:
        """Return how much of the call budget is used, for the metrics. Raises StoreUnavailable."""
        ((used, _),) = await self._run(ROOM, [budget])
        return {"call_budget_used": used}

    async def _run(self, script: Script, allowances: Sequence[Allowance], token: str = "") -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
        """Run a script on the limits, and return its reply."""
        keys = [name_limit(self._key, allowance) for allowance in allowances]
        rules = [number for it in allowances for number in (it.limit.count, ms(it.limit.period))]
        return await self._runner.run(script, keys, [*rules, token])


def _refusal(limit: Limit, wait: int) -> RateLimited | CallBudgetExhausted:
    if limit.name == CallBudgetExhausted.limit:
        return CallBudgetExhausted(retry_after=seconds(wait))
    return RateLimited(limit=limit.name, retry_after=seconds(wait))
