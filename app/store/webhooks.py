"""Webhook events in Redis: a stream of those to deliver, a set of those to try again, a set of dead letters."""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from app.store.layout import from_ms, ms
from app.store.scripts import Argument, Script, ScriptRunner
from app.verification.phone import Phone
from app.verification.webhooks import DeadLetter, Delivery, Event

log = logging.getLogger(__name__)

TAKE, RESEND = (Script("webhooks", name) for name in ("take", "resend"))
DONE, SET_ASIDE, BACKLOG, LIST_DEAD = (Script("webhooks", name) for name in ("done", "set_aside", "backlog", "dead"))

STREAM = "{events}"
EXPIRY, RETRY, DEAD, BODIES = (f"{STREAM}:{name}" for name in ("expiry", "retry", "dead", "bodies"))
GROUP = "webhooks"
_DEAD_KEPT = timedelta(days=30)
_LONGEST_ERROR = 200


class RedisOutbox:
    """The ``Outbox`` of ``app/verification/webhooks.py`` and the dead letters, in Redis.

    ``claim_after`` is how long a worker may take to settle an event before another one gets it: longer than a delivery
    takes until its time-out.
    """

    def __init__(
        self,
        runner: ScriptRunner,
        *,
        claim_after: timedelta = timedelta(minutes=1),
        most_dead: int = 10_000,
        most_retries: int = 100_000,  # of some 400 bytes
    ) -> None:
        self._runner = runner
        self._claim_after = claim_after
        self._most_dead = most_dead
        self._most_retries = most_retries

    async def take(self, count: int) -> list[Delivery]:
        """Take events: those of dead workers, then new ones."""
        arguments: list[Argument] = [GROUP, count, ms(self._claim_after)]
        claimed, fresh, trimmed = await self._runner.run(TAKE, [STREAM, EXPIRY, RETRY, BODIES], arguments)
        if claimed:
            log.warning("event.taken_over", extra={"count": len(claimed)})
        if trimmed:
            log.error("event.lost", extra={"count": trimmed, "reason": "more events wait than are kept"})
        return [delivery for entry in (*claimed, *fresh) if (delivery := await self._read(*entry))]

    async def done(self, delivery: Delivery) -> None:
        """Remove an event."""
        await self._runner.run(DONE, [STREAM], [GROUP, delivery.entry])

    async def set_aside(self, delivery: Delivery, *, attempts: int, error: str, pause: timedelta | None) -> bool:
        """Keep an event for later, or among the dead letters."""
        arguments: list[Argument] = [GROUP, delivery.entry, "" if pause is None else ms(pause), attempts]
        arguments += [error[:_LONGEST_ERROR], self._most_retries, self._most_dead, ms(_DEAD_KEPT)]
        place = await self._runner.run(SET_ASIDE, [STREAM, RETRY, DEAD, BODIES], arguments)
        return bool(place != b"dead")

    async def gauges(self) -> Mapping[str, float]:
        """Return how delivery stands, for the metrics. Raises StoreUnavailable.

        The lag is how long the oldest event is overdue; a pause before a retry does not count.
        """
        lag, pending, dead = await self._runner.run(BACKLOG, [STREAM, EXPIRY, RETRY, DEAD], [ms(_DEAD_KEPT)])
        return {"webhook_lag_seconds": max(0, lag) / 1000, "webhooks_pending": pending, "webhooks_dead": dead}

    async def dead_letters(self) -> list[DeadLetter]:
        """List the dead letters."""
        found = await self._runner.run(LIST_DEAD, [DEAD, BODIES], [ms(_DEAD_KEPT)])
        bodies = [(json.loads(body), from_ms(died_at)) for died_at, body in found]
        return [
            DeadLetter(event=_event(it, it["event"]), attempts=int(it["attempts"]), error=it["error"], died_at=died_at)
            for it, died_at in bodies
        ]

    async def resend(self, event_id: str) -> bool:
        """Deliver one dead letter again; return False if there is none."""
        is_resent = await self._runner.run(RESEND, [STREAM, DEAD, BODIES], [event_id.removeprefix("msg_")])
        return bool(is_resent)

    async def resend_all(self) -> int:
        """Deliver all dead letters again, without those that die again meanwhile; return how many."""
        return sum([await self.resend(letter.event.id) for letter in await self.dead_letters()])

    async def _read(self, entry: bytes, flat: Sequence[bytes]) -> Delivery | None:
        """Read an entry, or log and remove one that cannot be read."""
        texts = [part.decode() for part in flat]
        name, fields = entry.decode(), dict(zip(texts[::2], texts[1::2], strict=True))
        try:
            return Delivery(
                entry=name,
                event=_event(fields, name),
                attempts=int(fields.get("attempts", 0)),
                error=fields.get("error", ""),
            )
        except (KeyError, ValueError):
            log.error("event.unreadable", extra={"entry": name, "fields": sorted(fields)})
            await self._runner.run(DONE, [STREAM], [GROUP, name])
            return None


def _event(fields: Mapping[str, str], entry: str) -> Event:
    """Return the event of some fields; its id is that of its first entry."""
    return Event(
        id=f"msg_{fields.get('event', entry)}",
        type=fields["type"],
        client=fields["client"],
        verification_id=fields["id"],
        purpose=fields["purpose"],
        channel=fields["channel"],
        phone=Phone(f"+{fields['phone']}"),
        status=fields["status"],
        call_status=fields["call"] or None,
        at=from_ms(fields["at"]),
    )
