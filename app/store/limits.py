"""Limits on calls by address, range of numbers, client and day, in Redis: exact in any window, also in parallel."""

from collections.abc import Mapping, Sequence

from app.store.keys import name_limit
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.units import ms, seconds
from app.verification.errors import CallBudgetExhausted, RateLimited
from app.verification.policy import Allowance, Limit, Quota

ROOM, ACQUIRE = (Script("limits", name, after=["limits/window"]) for name in ("room", "acquire"))
REFUND = Script("limits", "refund")


class RedisRateLimiter:
    """The ``RateLimiter`` of ``app/verification/ports.py``, in Redis: a sorted set of moments for each limit.

    Each limit is in a slot of its own; those of one event share one write.
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
        """Count one event against each limit that has room; if one has none, the caller refunds the event."""
        quotas = []
        replies = await self._run(ACQUIRE, allowances, token)
        for allowance, (is_counted, fact) in zip(allowances, replies, strict=True):
            if not is_counted:
                raise _refusal(allowance.limit, fact)
            quotas.append(Quota(allowance.limit, fact))
        return quotas

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        """Refund the event in each limit. Idempotent."""
        await self._runner.run_each(REFUND, [([name_limit(self._key, it)], [token]) for it in allowances])

    async def used(self, allowance: Allowance) -> int:
        """Return how many events count against a limit now. Raises StoreUnavailable."""
        ((used, _),) = await self._run(ROOM, [allowance])
        return used

    async def gauges(self, budget: Allowance) -> Mapping[str, float]:
        """Return how much of the call budget is used, for the metrics. Raises StoreUnavailable."""
        return {"call_budget_used": await self.used(budget)}

    async def _run(
        self, script: Script, allowances: Sequence[Allowance], *first: Argument
    ) -> Sequence[tuple[int, int]]:
        """Run a script on each limit; its count and period are the last arguments."""
        limits = [(name_limit(self._key, it), it.limit) for it in allowances]
        runs = [([key], [*first, limit.count, ms(limit.period)]) for key, limit in limits]
        return await self._runner.run_each(script, runs)


def _refusal(limit: Limit, wait: int) -> RateLimited | CallBudgetExhausted:
    if limit.name == CallBudgetExhausted.limit:
        return CallBudgetExhausted(retry_after=seconds(wait))
    return RateLimited(limit=limit.name, retry_after=seconds(wait))
