"""The fraud guard in Redis: in one slot, so that one script judges, blocks and counts."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from app.store.scripts import Argument, Script, ScriptRunner
from app.store.units import from_ms, ms, seconds
from app.verification.errors import RateLimited
from app.verification.fraud_guard import GUARD_LIMIT, Block, Evidence, GuardRules, Suspect, range_of
from app.verification.phone import Phone

log = logging.getLogger(__name__)

ADMIT, REFUND, SUCCEED, LIST, LIFT = (
    Script("fraud_guard", name) for name in ("admit", "refund", "succeed", "list", "lift")
)

_SLOT = "pv:{guard}"
_LIST = f"{_SLOT}:list"
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
        keys = [_LIST, *_keys(number_range), *_keys(caller)]
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
            await self._runner.run(REFUND, [_keys(name)[0] for name in _names(phone, client)], [])

    def succeeded(self, phone: Phone, client: str) -> None:
        """Count a verification that succeeded, in memory until ``flush``."""
        if self._rules.watches(phone):
            for name in _names(phone, client):
                self._successes[_keys(name)[0]] += 1

    async def step(self) -> timedelta:
        """Flush, and return when to do so again. Raises StoreUnavailable."""
        await self.flush()
        return _FLUSHED_EVERY

    async def flush(self) -> None:
        """Add the successes to those in Redis. Raises StoreUnavailable; as they may have been added, they are dropped.

        A call is judged minutes after it was placed, so a second more does not change a verdict.
        """
        if self._successes:
            successes, self._successes = self._successes, Counter()
            await self._runner.run(SUCCEED, list(successes), list(successes.values()))

    async def blocks(self) -> list[Block]:
        """List the ranges that are blocked now."""
        return [
            Block(range=name, since=since, until=until, level=level, evidence=evidence)
            for name, since, until, level, evidence in await self._listed(_RANGE)
        ]

    async def suspects(self) -> list[Suspect]:
        """List the clients that are reported now."""
        return [
            Suspect(client=name, since=since, until=until, evidence=evidence)
            for name, since, until, _, evidence in await self._listed(_CLIENT)
        ]

    async def lift(self, number_range: str) -> bool:
        """End a block."""
        if not self._rules.enabled:
            return False
        name = f"{_RANGE}{number_range}"
        lifted = bool(await self._runner.run(LIFT, [_LIST, _keys(name)[1]], [name]))
        if lifted:
            log.warning("guard.lifted", extra={"range": number_range})
        return lifted

    async def gauges(self) -> Mapping[str, float]:
        """Return how many ranges are blocked, for the metrics. Raises StoreUnavailable."""
        return {"fraud_blocks": len(await self.blocks())}

    async def _listed(self, kind: str) -> list[tuple[str, datetime, datetime, int, Evidence]]:
        """Return the entries of one kind, without its prefix, the oldest first."""
        if not self._rules.enabled:
            return []
        found = sorted(await self._runner.run(LIST, [_LIST], []), key=lambda entry: int(entry[1]))
        return [
            (name.decode().removeprefix(kind), from_ms(since), from_ms(until), int(level), _evidence(counts))
            for name, since, until, level, *counts in found
            if name.decode().startswith(kind)
        ]


def _names(phone: Phone, client: str) -> tuple[str, str]:
    return f"{_RANGE}{range_of(phone)}", f"{_CLIENT}{client}"


def _keys(name: str) -> tuple[str, str]:
    """Return the keys of the buckets of a range or a client, and of its block or report."""
    return f"{_SLOT}:n:{name}", f"{_SLOT}:b:{name}"


def _evidence(counts: Sequence[bytes | int]) -> Evidence:
    calls, successes = map(int, counts)
    return Evidence(calls=calls, successes=successes)


def _log_verdict(event: str, verdict: Sequence[int], **facts: str | int) -> None:
    """Log a verdict, which the script returns to one of the calls that came in parallel."""
    level, *counts = verdict
    evidence = _evidence(counts)
    facts |= {"level": level, "calls": evidence.calls}
    log.warning(event, extra={**facts, "conversion": round(evidence.conversion, 3)})
