"""Limits on calls by address, range of numbers, client and day, in Redis: no window has more events than its limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from msgpack import packb

from app.store.fraud_guard import RedisFraudGuard
from app.store.layout import ms, name_block, name_limit, seconds
from app.store.scripts import Script, ScriptRunner
from app.verification.errors import CallBudgetExhausted, LimitReached, RateLimited
from app.verification.fraud_guard import GUARD_LIMIT, GuardAction
from app.verification.policy import Allowance, Limit, Quota
from app.verification.ports import Reservation
from app.verification.store_requests import Request, in_one_round_trip

ACQUIRE, REFUND, USED = (Script("limits", name) for name in ("acquire", "refund", "used"))


@dataclass(slots=True)
class _Group:
    """The limits in one slot, on which one script decides: on one server, all. ``numbers`` are their places.

    ``moment`` is when the script ran, by the clock of its node; a refund finds by it what was counted.
    """

    moment: str = ""
    numbers: list[int] = field(default_factory=list)
    allowances: list[Allowance] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the limits say: how many are left of each, and how many ms each has to be waited for, in their order.

    ``guard_wait`` is how long the fraud guard blocks one of the subjects. ``counted`` are the groups that counted the
    event, if the scripts had a token.
    """

    allowances: Sequence[Allowance]
    groups: Sequence[_Group]
    left: Sequence[int]
    waits: Sequence[int]
    guard_wait: int
    counted: Sequence[_Group]

    def require_room(self) -> None:
        """Raise what refuses the event: the first full limit, or else the guard."""
        for allowance, wait in zip(self.allowances, self.waits, strict=True):
            if wait:
                raise _refusal(allowance.limit, wait)
        if self.guard_wait:
            raise RateLimited(limit=GUARD_LIMIT, retry_after=seconds(self.guard_wait))

    def reservation(self, token: str) -> Reservation:
        """Return the event that was counted with a token."""
        quotas = [Quota(it.limit, left) for it, left in zip(self.allowances, self.left, strict=True)]
        return Reservation(f"{token}@{','.join(group.moment for group in self.groups)}", quotas)


class RedisRateLimiter:
    """The ``RateLimiter`` of ``app/verification/ports.py``, in Redis: a bounded string for each limit.

    One script counts an event in all limits of a slot, or in none of them, and has the fraud guard judge.
    """

    def __init__(self, runner: ScriptRunner, *, key: bytes, guard: RedisFraudGuard) -> None:
        self._runner = runner
        self._key = key
        self._guard = guard

    async def require_room(self, allowances: Sequence[Allowance]) -> None:
        """Return if each limit has room for one event, and no subject is blocked."""
        (await self._decide("", allowances)).require_room()

    async def acquire(self, token: str, allowances: Sequence[Allowance]) -> Reservation:
        """Count one event against each limit."""
        decision = await self._decide(token, allowances)
        try:
            decision.require_room()
        except LimitReached:
            await self._refund(token, decision.counted)
            raise
        return decision.reservation(token)

    def keys_and_rules(self, allowances: Sequence[Allowance]) -> tuple[Sequence[str], bytes]:
        """Return the keys and the rules (``decision.lua``) for a script that counts in limits in one slot itself."""
        return self._keys_and_rules([self._name(it) for it in allowances], allowances)

    async def reservation(self, token: str, allowances: Sequence[Allowance], *, decision: Sequence[Any]) -> Reservation:
        """Return what such a script has counted. Raise what refuses the event, by its decision."""
        group = _Group(numbers=[*range(len(allowances))], allowances=[*allowances])
        read = await self._read([decision], [group], allowances)
        read.require_room()
        return read.reservation(token)

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        """Refund the event in each limit."""
        event, _, moments = token.partition("@")
        groups = self._groups(allowances)
        if moments:
            for group, moment in zip(groups, moments.split(","), strict=True):
                group.moment = moment
        await self._refund(event, groups)

    async def gauges(self, budget: Allowance) -> Mapping[str, float]:
        """Return how much of the call budget is used, for the metrics. Raises StoreUnavailable."""
        (group,) = self._groups([budget])
        return {"call_budget_used": await self._runner.run(USED, group.keys, [ms(budget.limit.period)])}

    def _groups(self, allowances: Sequence[Allowance]) -> Sequence[_Group]:
        """Return the limits by their slots."""
        groups: dict[int, _Group] = {}
        for number, allowance in enumerate(allowances):
            key = self._name(allowance)
            slot = self._runner.slot_of(key)
            if slot not in groups:
                groups[slot] = _Group()
            group = groups[slot]
            group.numbers.append(number)
            group.allowances.append(allowance)
            group.keys.append(key)
        return list(groups.values())

    def _name(self, allowance: Allowance) -> str:
        return name_limit(self._key, allowance.limit.name, allowance.subject)

    def _keys_and_rules(self, limits: Sequence[str], allowances: Sequence[Allowance]) -> tuple[Sequence[str], bytes]:
        actions = [self._guard.action_on(it) for it in allowances]
        blocks = [name_block(limit) for limit, action in zip(limits, actions, strict=True) if action]
        return [*limits, *blocks], _pack_rules(
            self._guard.rules, tuple([it.limit for it in allowances]), tuple(actions)
        )

    async def _read(
        self, decisions: Sequence[Sequence[Any]], groups: Sequence[_Group], allowances: Sequence[Allowance]
    ) -> _Decision:
        """Read what was decided on each group, and publish whom the fraud guard has blocked."""
        guard_wait, counted = 0, []
        all_left, all_waits = [0] * len(allowances), [0] * len(allowances)
        for group, (now, verdicts, *facts) in zip(groups, decisions, strict=True):
            group.moment = str(now)
            waits = facts[1::2]
            for number, left_of_it, wait in zip(group.numbers, facts[::2], waits, strict=True):
                all_left[number], all_waits[number] = left_of_it, wait
            blocked_until = 0
            for number, is_new, *block in verdicts:
                allowance = group.allowances[number - 1]
                await self._guard.publish(allowance, block, is_new=bool(is_new))
                if allowance.guard is GuardAction.BLOCK:
                    blocked_until = block[1]
            if blocked_until:
                guard_wait = blocked_until - now
            elif not any(waits):
                counted.append(group)
        return _Decision(allowances, groups, all_left, all_waits, guard_wait, counted)

    async def _decide(self, token: str, allowances: Sequence[Allowance]) -> _Decision:
        """Count the event in each group that has room, or without a token only ask."""
        groups = self._groups(allowances)
        return await self._read(await _all([self._ask(token, group) for group in groups]), groups, allowances)

    def _ask(self, token: str, group: _Group) -> Request:
        keys, rules = self._keys_and_rules(group.keys, group.allowances)
        return self._runner.run(ACQUIRE, keys, [token, rules])

    async def _refund(self, event: str, groups: Sequence[_Group]) -> None:
        requests: list[Request] = []
        for group in groups:
            keys, rules = self._keys_and_rules(group.keys, group.allowances)
            requests.append(self._runner.run(REFUND, keys, [event, group.moment, rules]))
        await _all(requests)


async def _all(requests: Sequence[Request]) -> list[Any]:
    """Make requests in one round trip, and return their results. Raise the first of their errors."""
    results = await in_one_round_trip(*requests)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@lru_cache
def _pack_rules(guard_rules: Sequence[float], limits: Sequence[Limit], actions: Sequence[GuardAction | None]) -> bytes:
    """Return the rules for a script, which are the same for all calls of a client."""
    rules = [[it.count, ms(it.period), action or ""] for it, action in zip(limits, actions, strict=True)]
    packed: bytes = packb([guard_rules, rules])
    return packed


def _refusal(limit: Limit, wait: int) -> RateLimited | CallBudgetExhausted:
    if limit.name == CallBudgetExhausted.limit:
        return CallBudgetExhausted(retry_after=seconds(wait))
    return RateLimited(limit=limit.name, retry_after=seconds(wait))
