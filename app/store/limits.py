"""Limits over addresses, ranges of numbers, clients and everybody: exact in any window, whoever fires in parallel."""

from collections.abc import Sequence

from app.store.keys import name_limit
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.units import ms, seconds
from app.verification.errors import CallBudgetExhausted, RateLimited, VerificationError
from app.verification.policy import Allowance, Limit, Quota

ROOM, ACQUIRE = (Script("limits", name, after=["limits/window"]) for name in ("room", "acquire"))
REFUND = Script("limits", "refund")


class RedisRateLimiter:
    """The Limits of ``app/verification/ports.py``: a sorted set of moments for each, so no window ever holds more.

    Each limit lies in a slot of its own; those of one event share one write.
    """

    def __init__(self, runner: ScriptRunner, *, key: bytes) -> None:
        self._runner = runner
        self._key = key

    async def require_room(self, allowances: Sequence[Allowance]) -> None:
        """Return if each has room for one event."""
        runs: list[tuple[list[str], list[Argument]]] = [
            ([self._name(allowance)], [allowance.limit.count, ms(allowance.limit.period)]) for allowance in allowances
        ]
        for allowance, (_, wait) in zip(allowances, await self._runner.run_each(ROOM, runs), strict=True):
            if wait:
                raise _refusal(allowance.limit, wait)

    async def acquire(self, token: str, allowances: Sequence[Allowance]) -> list[Quota]:
        """Count one event against each that has room; the caller gives it back if one has not."""
        runs: list[tuple[list[str], list[Argument]]] = [
            ([self._name(allowance)], [token, allowance.limit.count, ms(allowance.limit.period)])
            for allowance in allowances
        ]
        replies = await self._runner.run_each(ACQUIRE, runs)
        answers = [_answer(allowance.limit, *reply) for allowance, reply in zip(allowances, replies, strict=True)]
        refusals = [answer for answer in answers if isinstance(answer, VerificationError)]
        if refusals:
            raise refusals[0]
        return [answer for answer in answers if isinstance(answer, Quota)]

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        """Take the event back from each."""
        await self._runner.run_each(REFUND, [([self._name(allowance)], [token]) for allowance in allowances])

    def _name(self, allowance: Allowance) -> str:
        return name_limit(self._key, allowance)


def _answer(limit: Limit, taken: int, fact: int) -> Quota | VerificationError:
    """Read a reply of acquire.lua."""
    return Quota(limit, fact) if taken else _refusal(limit, fact)


def _refusal(limit: Limit, wait: int) -> VerificationError:
    if limit.name == CallBudgetExhausted.limit:
        return CallBudgetExhausted(retry_after=seconds(wait))
    return RateLimited(limit=limit.name, retry_after=seconds(wait))
