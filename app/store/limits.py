"""Limits on calls by address, range of numbers, client and day, in Redis: exact in any window, also in parallel."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from pydantic_core import to_json

from app.store.keys import name_limit
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.units import ms, seconds
from app.verification.errors import CallBudgetExhausted, RateLimited
from app.verification.policy import Allowance, Limit, Quota

ROOM, ACQUIRE, REFUND = (Script("limits", name) for name in ("room", "acquire", "refund"))


class RedisRateLimiter:
    """The ``RateLimiter`` of ``app/verification/ports.py``, in Redis: a sorted set of moments for each limit.

    One script counts an event in all its limits, or in none; on a ``cluster``, where each limit is in a slot of its
    own, a script for each of them, all in one write.
    """

    def __init__(self, runner: ScriptRunner, *, key: bytes, cluster: bool = False) -> None:
        self._runner = runner
        self._key = key
        self._cluster = cluster

    async def require_room(self, allowances: Sequence[Allowance]) -> None:
        """Return if each limit has room for one event."""
        replies = await self._run(ROOM, allowances)
        for allowance, (_, wait) in zip(allowances, chain.from_iterable(replies), strict=True):
            if wait:
                raise _refusal(allowance.limit, wait)

    async def acquire(self, token: str, allowances: Sequence[Allowance]) -> list[Quota]:
        """Count one event against each limit; if one has no room, the caller refunds the event."""
        quotas = []
        replies = await self._run(ACQUIRE, allowances, token)
        for group, (outcome, *facts) in zip(self._groups(allowances), replies, strict=True):
            if outcome == b"full":
                number, wait = facts
                raise _refusal(group[number - 1].limit, wait)
            quotas += [Quota(allowance.limit, left) for allowance, left in zip(group, facts, strict=True)]
        return quotas

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        """Refund the event in each limit. Idempotent."""
        await self._run(REFUND, allowances, token)

    async def used(self, allowance: Allowance) -> int:
        """Return how many events count against a limit now. Raises StoreUnavailable."""
        (((used, _),),) = await self._run(ROOM, [allowance])
        return int(used)

    async def gauges(self, budget: Allowance) -> Mapping[str, float]:
        """Return how much of the call budget is used, for the metrics. Raises StoreUnavailable."""
        return {"call_budget_used": await self.used(budget)}

    def _groups(self, allowances: Sequence[Allowance]) -> list[Sequence[Allowance]]:
        """Return the limits of each script."""
        return [[allowance] for allowance in allowances] if self._cluster else [allowances]

    async def _run(self, script: Script, allowances: Sequence[Allowance], token: str = "") -> Sequence[Any]:
        """Run a script on the limits, and return its replies."""
        runs: list[tuple[Sequence[str], Sequence[Argument]]] = [
            ([name_limit(self._key, it) for it in group], [limit_list(it.limit for it in group), token])
            for group in self._groups(allowances)
        ]
        return await self._runner.run_each(script, runs)


def limit_list(limits: Iterable[Limit]) -> bytes:
    """Return limits as the JSON array that scripts take."""
    return to_json([(limit.name, limit.count, ms(limit.period)) for limit in limits])


def _refusal(limit: Limit, wait: int) -> RateLimited | CallBudgetExhausted:
    if limit.name == CallBudgetExhausted.limit:
        return CallBudgetExhausted(retry_after=seconds(wait))
    return RateLimited(limit=limit.name, retry_after=seconds(wait))
