"""What admin keys changed: a stream in Redis."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.store.layout import from_ms, ms, to_ms
from app.store.scripts import Script, ScriptRunner

RECORD, READ = (Script("audit", name) for name in ("record", "read"))

_KEY = "{audit}"
_MOST, _KEPT = 10_000, timedelta(days=400)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A request with an admin key that was about to change something; ``admin`` is the name of the key."""

    at: datetime
    admin: str
    action: str


class RedisAudit:
    """Records requests that change something, and lists the last 10,000. Both methods raise StoreUnavailable."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner

    async def record(self, admin: str, action: str) -> None:
        """Record a request before it changes anything."""
        await self._runner.run(RECORD, [_KEY], [admin, action, _MOST, ms(_KEPT)])

    async def read(self, *, before: datetime | None, most: int) -> Sequence[AuditEntry]:
        """Return the latest entries, or the latest before a moment."""
        latest = str(max(to_ms(before) - 1, 0)) if before else "+"
        found = await self._runner.run(READ, [_KEY], [latest, most])
        return [
            AuditEntry(at=from_ms(entry_id.partition(b"-")[0]), admin=fields[1].decode(), action=fields[3].decode())
            for entry_id, fields in found
        ]
