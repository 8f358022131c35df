"""The queue of calls whose status is polled, in Redis, for all workers: in one slot, so that one script does all."""

import logging
from collections.abc import Mapping
from datetime import timedelta

from app.store.layout import ms
from app.store.scripts import Script, ScriptRunner
from app.verification.call_following import DueCall
from app.verification.ports import CallId

log = logging.getLogger(__name__)

SCHEDULE, CLAIM, RETRY, DONE, LAG = (
    Script("call_following", name) for name in ("schedule", "claim", "retry", "done", "lag")
)

_DUE, _ATTEMPTS, _POLLS = (f"{{queue}}:{name}" for name in ("due", "attempts", "polls"))
_MEMORY = timedelta(hours=1)  # far longer than a verification lives
_SECOND = timedelta(seconds=1)


class RedisCallQueue:
    """The ``CallQueue`` of ``app/verification/call_following.py``, in Redis.

    ``lease`` is how long a claim lasts: longer than a poll can take. ``per_second`` is how many calls all workers
    together claim in any second.
    """

    def __init__(self, runner: ScriptRunner, *, per_second: int = 5, lease: timedelta = timedelta(seconds=30)) -> None:
        self._runner = runner
        self._per_second = per_second
        self._lease = lease

    async def schedule(self, call_id: CallId, delay: timedelta) -> None:
        """Schedule the first poll of a call after ``delay``."""
        # More than all workers may claim in that time would wait for nothing, and without a bound.
        most = self._per_second * _MEMORY // _SECOND
        if not await self._runner.run(SCHEDULE, [_DUE, _ATTEMPTS], [str(call_id), ms(delay), ms(_MEMORY), most]):
            log.warning("call_queue.full", extra={"calls": most})

    async def claim(self, most: int) -> list[DueCall]:
        """Claim up to ``most`` calls that are due, the longest due first."""
        arguments = [most, self._per_second, ms(self._lease), ms(_MEMORY)]
        dropped, claimed = await self._runner.run(CLAIM, [_DUE, _ATTEMPTS, _POLLS], arguments)
        if dropped:
            log.warning("call_queue.dropped", extra={"calls": dropped})
        return [DueCall(CallId.parse(member.decode()), attempt) for member, attempt in claimed]

    async def retry(self, call: DueCall, delay: timedelta) -> None:
        """Schedule another poll of a claimed call after ``delay``, unless the claim is over."""
        await self._runner.run(RETRY, [_DUE, _ATTEMPTS], [str(call.call_id), call.attempt, ms(delay), ms(_MEMORY)])

    async def done(self, call_id: CallId) -> None:
        """Remove a call from the queue. Idempotent."""
        await self._runner.run(DONE, [_DUE, _ATTEMPTS], [str(call_id)])

    async def lag(self) -> timedelta:
        """Return how long the call that is longest due has waited to be claimed."""
        return timedelta(milliseconds=int(await self._runner.run(LAG, [_DUE], [])))

    async def gauges(self) -> Mapping[str, float]:
        """Return the lag in seconds, for the metrics. Raises StoreUnavailable."""
        return {"watcher_lag_seconds": (await self.lag()).total_seconds()}
