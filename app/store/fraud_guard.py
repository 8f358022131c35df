"""The fraud guard in Redis: its rules and verdicts, the successes, and an index of what is blocked.

The calls of a range or a client are kept with the limit on them, so that ``app/store/limits.py`` counts and judges them
in the script of the limits, or in that of a start. A block takes effect there. Only then it is added to the index,
which is in another slot.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from app.store.layout import from_ms, ms, name_block, name_limit, seconds
from app.store.scripts import Script, ScriptRunner
from app.verification.fraud_guard import Block, GuardAction, GuardRules, Suspect, range_of
from app.verification.phone import Phone
from app.verification.policy import Allowance
from app.verification.store_requests import best_effort, in_one_round_trip

log = logging.getLogger(__name__)

SUCCEED, READ, LIFT, LIST, COUNT, ADD_TO_INDEX, REMOVE_FROM_INDEX = (
    Script("fraud_guard", name)
    for name in ("succeed", "read", "lift", "list", "count", "add_to_index", "remove_from_index")
)

_LIMITS = {GuardAction.BLOCK: "calls_per_range", GuardAction.REPORT: "calls_per_client"}  # whose subjects are judged
_INDEXES = {GuardAction.BLOCK: "{guard}:ranges", GuardAction.REPORT: "{guard}:clients"}
_LISTED_AT_ONCE = 200
_MOST_PUBLISHED = 10_000
_FLUSHED_EVERY = timedelta(seconds=1)
_BUCKET = timedelta(minutes=1)  # a call is judged at most this much later than it could be


class RedisFraudGuard:
    """The ``FraudGuard`` of ``app/verification/fraud_guard.py``, in Redis."""

    def __init__(self, runner: ScriptRunner, rules: GuardRules, *, key: bytes) -> None:
        self._runner = runner
        self._rules = rules
        self._key = key
        self._successes: Counter[str] = Counter()
        self._published: dict[tuple[str, str], int] = {}  # until when each block lasts that this process has published
        self.rules: Sequence[float] = (  # as limits/decision.lua lists them
            *(ms(rules.window), ms(_BUCKET), ms(rules.maturity), rules.min_calls, rules.min_conversion),
            *(ms(rules.first_block), ms(rules.longest_block), ms(rules.memory)),
        )

    def action_on(self, allowance: Allowance) -> GuardAction | None:
        """Return what a low conversion has for consequence, or None if the subject is not judged."""
        return allowance.guard if self._rules.enabled else None

    async def publish(self, allowance: Allowance, block: Sequence[int], *, is_new: bool) -> None:
        """Log a block that is new, and make sure that the index has it.

        A process that dies between the block and the index leaves the range blocked and not listed, until the next
        start that is refused for it: each process adds what it has not added before.
        """
        since, ends, *_ = block
        action, subject = allowance.guard, allowance.subject
        assert action is not None  # noqa: S101 - no other allowance is judged
        if is_new and action is GuardAction.BLOCK:
            _log_verdict("guard.blocked", block, range=subject, retry_after=seconds(ends - since))
        elif is_new:
            _log_verdict("guard.client_reported", block, client=subject)
        if self._published.get((action, subject)) == ends:
            return
        if not await best_effort(self._runner.run(ADD_TO_INDEX, [_INDEXES[action]], [subject, ends])):
            if len(self._published) >= _MOST_PUBLISHED:
                self._published.clear()
            self._published[action, subject] = ends

    def succeeded(self, phone: Phone, client: str) -> None:
        """Count a verification that succeeded, in memory until ``flush``."""
        if self._rules.watches(phone):
            self._successes[self._name(GuardAction.BLOCK, range_of(phone))] += 1
            self._successes[self._name(GuardAction.REPORT, client)] += 1

    async def flush(self) -> timedelta:
        """Add the successes to those in Redis, and return when to do so again.

        Raises StoreUnavailable; as they may have been added, they are dropped. A call is judged minutes after it was
        placed, so a second more does not change a verdict.
        """
        successes, self._successes = self._successes, Counter()
        by_slot: dict[int, list[str]] = {}
        for name in successes:
            by_slot.setdefault(self._runner.slot_of(name), []).append(name)
        results = await in_one_round_trip(
            *(self._runner.run(SUCCEED, names, [successes[name] for name in names]) for names in by_slot.values())
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return _FLUSHED_EVERY

    async def blocks(self) -> list[Block]:
        """List the ranges that are blocked now."""
        found = await self._listed(GuardAction.BLOCK)
        return [Block(range=name, level=block[2], **_findings(block)) for name, block in found]

    async def suspects(self) -> list[Suspect]:
        """List the clients that are reported now."""
        return [Suspect(client=name, **_findings(block)) for name, block in await self._listed(GuardAction.REPORT)]

    async def lift(self, number_range: str) -> bool:
        """End a block, then remove it from the index. One that is left there is not listed, because it has ended."""
        if not self._rules.enabled:
            return False
        ends = await self._runner.run(LIFT, [name_block(self._name(GuardAction.BLOCK, number_range))], [])
        if not ends:
            return False
        log.warning("guard.lifted", extra={"range": number_range})
        await best_effort(self._runner.run(REMOVE_FROM_INDEX, [_INDEXES[GuardAction.BLOCK]], [number_range, ends]))
        return True

    async def gauges(self) -> Mapping[str, float]:
        """Return how many ranges are blocked, for the metrics. Raises StoreUnavailable."""
        if not self._rules.enabled:
            return {"fraud_blocks": 0}
        return {"fraud_blocks": await self._runner.run(COUNT, [_INDEXES[GuardAction.BLOCK]], [])}

    def _name(self, action: GuardAction, subject: str) -> str:
        """Return the key of the limit that a range or a client is judged with."""
        return name_limit(self._key, _LIMITS[action], subject)

    async def _listed(self, action: GuardAction) -> list[tuple[str, Sequence[int]]]:
        """Return the names in an index that are blocked or reported now, the oldest first, each with its block."""
        found: list[tuple[str, Sequence[int]]] = []
        skipped, is_complete = 0, not self._rules.enabled
        while not is_complete:
            listed = await self._runner.run(LIST, [_INDEXES[action]], [skipped, _LISTED_AT_ONCE])
            names = [name.decode() for name in listed]
            blocks = await in_one_round_trip(
                *(self._runner.run(READ, [name_block(self._name(action, name))], []) for name in names)
            )
            for name, block in zip(names, blocks, strict=True):
                if isinstance(block, BaseException):
                    raise block
                if block:
                    found.append((name, block))
            skipped, is_complete = skipped + _LISTED_AT_ONCE, len(names) < _LISTED_AT_ONCE
        return sorted(found, key=lambda entry: entry[1][0])


def _findings(block: Sequence[int]) -> dict[str, Any]:
    """Return what a block and a suspect have in common."""
    since, ends, _, calls, successes = block
    return {"since": from_ms(since), "until": from_ms(ends), "calls": calls, "successes": successes}


def _log_verdict(event: str, block: Sequence[int], **facts: str | int) -> None:
    """Log a block, which the script returns as new to one of the calls that came in parallel."""
    _, _, level, calls, successes = block
    log.warning(event, extra={**facts, "level": level, "calls": calls, "conversion": round(successes / calls, 3)})
