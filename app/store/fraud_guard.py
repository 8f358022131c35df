"""The fraud guard in Redis: in one slot, so that one script judges, blocks and counts."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic_core import from_json

from app.store.layout import from_ms, ms, seconds
from app.store.scripts import Argument, Script, ScriptRunner
from app.verification.errors import RateLimited
from app.verification.fraud_guard import GUARD_LIMIT, Block, GuardRules, Suspect, range_of
from app.verification.phone import Phone

log = logging.getLogger(__name__)

ADMIT, REFUND, SUCCEED, LIST, LIFT = (
    Script("fraud_guard", name) for name in ("admit", "refund", "succeed", "list", "lift")
)

_BLOCKS = "{guard}:blocks"
_RANGE, _CLIENT = "range:", "client:"  # prefixes of the names of both kinds
_FLUSHED_EVERY = timedelta(seconds=1)
_BUCKET = timedelta(minutes=1)  # a call is judged at most this much later than it could be


class RedisFraudGuard:
    """The ``FraudGuard`` of ``app/verification/fraud_guard.py``, in Redis."""

    def __init__(self, runner: ScriptRunner, rules: GuardRules) -> None:
        self._runner = runner
        self._rules = rules
        self._successes: Counter[str] = Counter()
        self._arguments: list[Argument] = [
            *(ms(rules.window), ms(_BUCKET), ms(rules.maturity), rules.min_calls, str(rules.min_conversion)),
            *(ms(rules.first_block), ms(rules.longest_block), ms(rules.memory)),
        ]

    async def require_open(self, phone: Phone, client: str) -> None:
        """Return if a call would be admitted. Its range is judged here too: a start may get no further than this."""
        await self._judge(phone, client, counts=False)

    async def admit(self, phone: Phone, client: str) -> None:
        """Count a call that is about to be placed, unless its range is blocked."""
        await self._judge(phone, client, counts=True)

    async def _judge(self, phone: Phone, client: str, *, counts: bool) -> None:
        if not self._rules.watches(phone):
            return
        number_range, caller = _names(phone, client)
        keys = [_BLOCKS, _buckets(number_range), _buckets(caller)]
        arguments = [number_range, caller, *self._arguments, int(counts)]
        wait, block, report = await self._runner.run(ADMIT, keys, arguments)
        if block:
            _log_verdict("guard.blocked", block, range=range_of(phone), retry_after=seconds(wait))
        if report:
            _log_verdict("guard.client_reported", report, client=client)
        if wait:
            raise RateLimited(limit=GUARD_LIMIT, retry_after=seconds(wait))

    async def refund(self, phone: Phone, client: str) -> None:
        """Refund an admitted call that did not happen."""
        if self._rules.watches(phone):
            await self._runner.run(REFUND, list(map(_buckets, _names(phone, client))), [])

    def succeeded(self, phone: Phone, client: str) -> None:
        """Count a verification that succeeded, in memory until ``flush``."""
        if self._rules.watches(phone):
            for name in _names(phone, client):
                self._successes[_buckets(name)] += 1

    async def flush(self) -> timedelta:
        """Add the successes to those in Redis, and return when to do so again.

        Raises StoreUnavailable; as they may have been added, they are dropped. A call is judged minutes after it was
        placed, so a second more does not change a verdict.
        """
        if self._successes:
            successes, self._successes = self._successes, Counter()
            await self._runner.run(SUCCEED, list(successes), list(successes.values()))
        return _FLUSHED_EVERY

    async def blocks(self) -> list[Block]:
        """List the ranges that are blocked now."""
        found = await self._listed(_RANGE)
        return [Block(range=name, level=facts["level"], **_findings(facts)) for name, facts in found]

    async def suspects(self) -> list[Suspect]:
        """List the clients that are reported now."""
        return [Suspect(client=name, **_findings(facts)) for name, facts in await self._listed(_CLIENT)]

    async def lift(self, number_range: str) -> bool:
        """End a block."""
        if not self._rules.enabled:
            return False
        name = f"{_RANGE}{number_range}"
        lifted = bool(await self._runner.run(LIFT, [_BLOCKS], [name]))
        if lifted:
            log.warning("guard.lifted", extra={"range": number_range})
        return lifted

    async def gauges(self) -> Mapping[str, float]:
        """Return how many ranges are blocked, for the metrics. Raises StoreUnavailable."""
        return {"fraud_blocks": len(await self.blocks())}

    async def _listed(self, kind: str) -> list[tuple[str, Mapping[str, int]]]:
        """Return the entries of one kind, without its prefix, the oldest first."""
        if not self._rules.enabled:
            return []
        found = await self._runner.run(LIST, [_BLOCKS], [ms(self._rules.memory)])
        entries = [(name.decode(), from_json(block)) for name, block in found]
        entries.sort(key=lambda entry: entry[1]["since"])
        return [(name.removeprefix(kind), block) for name, block in entries if name.startswith(kind)]


def _names(phone: Phone, client: str) -> tuple[str, str]:
    return f"{_RANGE}{range_of(phone)}", f"{_CLIENT}{client}"


def _buckets(name: str) -> str:
    """Return the key of the buckets of a range or a client."""
    return f"{{guard}}:n:{name}"


def _findings(facts: Mapping[str, int]) -> dict[str, Any]:
    """Return what a block and a suspect have in common."""
    times = {"since": from_ms(facts["since"]), "until": from_ms(facts["ends"])}
    return {**times, "calls": facts["calls"], "successes": facts["successes"]}


def _log_verdict(event: str, verdict: Sequence[int], **facts: str | int) -> None:
    """Log a verdict, which the script returns to one of the calls that came in parallel."""
    level, calls, successes = verdict
    log.warning(event, extra={**facts, "level": level, "calls": calls, "conversion": round(successes / calls, 3)})
