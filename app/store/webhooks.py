"""Webhook events in Redis: an outbox for each bucket of verifications, an index of buckets, and the dead letters."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from urllib.parse import unquote

from app.store.layout import RecordName, from_ms, ms, to_ms
from app.store.scripts import Argument, Script, ScriptRunner
from app.verification.errors import StoreUnavailable
from app.verification.phone import Phone
from app.verification.webhooks import DeadLetter, Delivery, Event

log = logging.getLogger(__name__)

LEASE, TAKE, RELEASE, DONE, RETRY, ADD_DEAD, LIST_DEAD, DELETE_DEAD, RESEND, BACKLOG = (
    Script("webhooks", name)
    for name in (
        "lease",
        "take",
        "release",
        "done",
        "retry",
        "add_dead",
        "list_dead",
        "delete_dead",
        "resend",
        "backlog",
    )
)

DUE, SWEPT, WAITING, DEAD, DEAD_EVENTS = (
    f"{{webhooks}}:{name}" for name in ("due", "swept", "waiting", "dead", "dead_events")
)
_LEASE = timedelta(seconds=10)  # longer than it takes to take their events, even in vain
_MOST_BUCKETS = 256  # at once
_MOST_NEW, _MOST_RETRIES = 64, 64  # of each of the 4,096 buckets; of some 300 bytes, and the reference
_DEAD_KEPT = timedelta(days=30)
_DEAD_PAGE = 1000
_LONGEST_ERROR = 200


def outbox_key(bucket: str) -> str:
    """Return the key of a bucket's events that no worker has taken yet."""
    return f"{{{bucket}}}:o"


def retries_key(bucket: str) -> str:
    """Return the key of a bucket's events that a worker has taken, until they are delivered."""
    return f"{{{bucket}}}:r"


class RedisOutbox:
    """The ``Outbox`` of ``app/verification/webhooks.py`` and the dead letters, in Redis.

    The scripts that change a verification of one of ``clients`` add its event to the outbox of its bucket. Which
    buckets changed is kept in memory until the next ``take`` or ``flush``; if the process dies before, a sweep over all
    buckets finds the event within a minute.

    ``claim_after`` is how long a worker may take to settle an event before another one gets it: longer than a delivery
    takes until its time-out. ``dropped`` is called with how many events were dropped because too many wait.
    """

    def __init__(
        self,
        runner: ScriptRunner,
        *,
        clients: Collection[str] = (),
        claim_after: timedelta = timedelta(minutes=1),
        most_dead: int = 10_000,
        dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._runner = runner
        self._clients = frozenset(clients)
        self._claim_after = claim_after
        self._most_dead = most_dead
        self._dropped = dropped
        self._changed: set[str] = set()

    def keys_for(self, client: str, bucket: str) -> list[str]:
        """Return the key of the outbox for a script that changes a verification; none if the client has no webhook."""
        return [outbox_key(bucket)] if client in self._clients else []

    def note_change(self, bucket: str) -> None:
        """Make a bucket due: a script may have added an event, or changed when one is due."""
        self._changed.add(bucket)

    async def flush(self) -> None:
        """Write which buckets changed, so that another worker takes their events."""
        if self._changed:
            await self._lease(0)

    async def take(self, count: int) -> list[Delivery]:
        """Take events; with a ``count`` of 0, leave those of this worker's own changes to others."""
        leased_until, buckets = await self._lease(min(count, _MOST_BUCKETS))
        taken: list[Delivery] = []
        states: dict[str, tuple[bytes, int]] = {}
        of_bucket: Counter[str] = Counter()
        errors: list[StoreUnavailable] = []
        # Each bucket gives its share, and those that may have more another one, until there is no room.
        while buckets and (share := (count - len(taken)) // len(buckets)):
            replies = await asyncio.gather(*[self._take_from(it, share) for it in buckets], return_exceptions=True)
            full = []
            for bucket, reply in zip(buckets, replies, strict=True):
                if isinstance(reply, StoreUnavailable):  # another node's: it is due again after the lease
                    errors.append(reply)
                    states.pop(bucket, None)
                elif isinstance(reply, BaseException):
                    raise reply
                else:
                    next_due, waiting, deliveries, is_full = reply
                    states[bucket] = next_due, waiting - of_bucket[bucket]
                    of_bucket[bucket] += len(deliveries)
                    taken += deliveries
                    if is_full:
                        full.append(bucket)
            buckets = full
        if states:
            arguments = [fact for bucket, state in states.items() for fact in (bucket, *state)]
            try:
                await self._runner.run(RELEASE, [DUE, WAITING], [leased_until, *arguments])
            except StoreUnavailable as error:
                errors.append(error)
        if errors and not states:
            raise errors[0]
        return taken

    async def done(self, delivery: Delivery) -> None:
        """Delete an event."""
        await self._delete(_bucket(delivery.event), _text(delivery))

    async def set_aside(self, delivery: Delivery, *, attempts: int, error: str, pause: timedelta | None) -> bool:
        """Keep an event for later, or among the dead letters."""
        bucket = _bucket(delivery.event)
        failed = _text(Delivery(event=delivery.event, attempts=attempts, error=error[:_LONGEST_ERROR]))
        arguments: list[Argument] = [_text(delivery), failed, "" if pause is None else ms(pause)]
        arguments += [ms(self._claim_after), _MOST_RETRIES]
        outcome = await self._change(RETRY, retries_key(bucket), arguments, bucket)
        if outcome != b"dead":
            return True
        dead_letter: list[Argument] = [delivery.event.id, failed, self._most_dead, ms(_DEAD_KEPT)]
        await self._runner.run(ADD_DEAD, [DEAD, DEAD_EVENTS], dead_letter)
        if not await self._delete(bucket, failed):  # it was erased meanwhile, or another worker has it by now
            await self._runner.run(DELETE_DEAD, [DEAD, DEAD_EVENTS], [delivery.event.id])
        return False

    async def gauges(self) -> Mapping[str, float]:
        """Return how delivery stands, for the metrics. Raises StoreUnavailable.

        The lag is how long a bucket is overdue; a pause before a retry does not count.
        """
        lag, waiting, dead = await self._runner.run(BACKLOG, [DUE, WAITING, DEAD], [ms(_DEAD_KEPT)])
        return {"webhook_lag_seconds": lag / 1000, "webhooks_pending": waiting, "webhooks_dead": dead}

    async def dead_letters(self) -> list[DeadLetter]:
        """List the dead letters."""
        found: list[Sequence[bytes]] = []
        while len(found) % _DEAD_PAGE == 0:
            page = await self._runner.run(LIST_DEAD, [DEAD, DEAD_EVENTS], [ms(_DEAD_KEPT), len(found), _DEAD_PAGE])
            if not page:
                break
            found += page
        return [
            DeadLetter(event=letter.event, attempts=letter.attempts, error=letter.error, died_at=from_ms(died_at))
            for event_id, died_at, text in found
            if (letter := _delivery(event_id.decode()[4:7], text))
        ]

    async def resend(self, event_id: str) -> bool:
        """Deliver one dead letter again; return False if there is none."""
        return bool(await self._resend([it for it in await self.dead_letters() if it.event.id == event_id]))

    async def resend_all(self) -> int:
        """Deliver all dead letters again, without those that die again meanwhile; return how many."""
        return await self._resend(await self.dead_letters())

    async def _resend(self, letters: Sequence[DeadLetter]) -> int:
        count = 0
        for letter in letters:
            bucket = _bucket(letter.event)
            await self._change(RESEND, retries_key(bucket), [_text(Delivery(event=letter.event))], bucket)
            count += await self._runner.run(DELETE_DEAD, [DEAD, DEAD_EVENTS], [letter.event.id])
        await self.flush()
        return count

    async def _lease(self, most: int) -> tuple[int, list[str]]:
        """Write which buckets changed, and lease up to ``most``; return until when, and which."""
        changed, self._changed = self._changed, set()
        try:
            until, *buckets = await self._runner.run(LEASE, [DUE, SWEPT], [most, ms(_LEASE), *changed])
        except BaseException:
            self._changed |= changed
            raise
        return until, [bucket.decode() for bucket in buckets]

    async def _take_from(self, bucket: str, most: int) -> tuple[bytes, int, list[Delivery], bool]:
        """Take events of a bucket; return when the next is due, how many others wait, them, and if there were ``most``.

        Also those that were taken before, and are not settled yet, wait.
        """
        keys = [outbox_key(bucket), retries_key(bucket)]
        arguments = [most, ms(self._claim_after), _MOST_NEW]
        next_due, waiting, dropped, texts = await self._runner.run(TAKE, keys, arguments)
        if dropped:
            log.error("event.lost", extra={"count": dropped})
            self._dropped(dropped)
        deliveries = []
        for text in texts:
            if delivery := _delivery(bucket, text):
                deliveries.append(delivery)
            else:
                log.error("event.unreadable", extra={"bucket": bucket, "fields": text.count(b"|") + 1})
                await self._delete(bucket, text)
        return next_due, waiting, deliveries, len(texts) == most

    async def _delete(self, bucket: str, text: str | bytes) -> bool:
        return bool(await self._runner.run(DONE, [retries_key(bucket)], [text]))

    async def _change(self, script: Script, key: str, arguments: Sequence[Argument], bucket: str) -> bytes:
        """Run a script after which a bucket may be due earlier than before."""
        try:
            reply: bytes = await self._runner.run(script, [key], arguments)
        finally:
            self.note_change(bucket)  # also if the reply is lost
        return reply


def _bucket(event: Event) -> str:
    name = RecordName.from_id(event.verification_id)
    assert name is not None  # noqa: S101 - it was read from a bucket
    return name.bucket


def _text(delivery: Delivery) -> str:
    """Return an event as ``take.lua`` describes it."""
    event = delivery.event
    purpose = event.purpose
    if event.reference is not None:
        purpose += ":" + event.reference.replace("%", "%25").replace("|", "%7C")
    fields = [event.id.removeprefix(f"msg_{_bucket(event)}"), event.type, event.client, purpose, event.channel]
    fields += [event.phone.e164.removeprefix("+"), event.status, event.call_status or "", str(to_ms(event.at))]
    if delivery.attempts:
        fields += [str(delivery.attempts), delivery.error]
    return "|".join(fields)


def _delivery(bucket: str, text: bytes) -> Delivery | None:
    """Read an event of a bucket; return None if the text is none."""
    try:
        entry, kind, client, purpose, channel, phone, status, call, at, *failures = text.decode().split("|", 10)
        attempts, error = failures or ("0", "")
        rest, _, number = entry.partition("-")
        purpose, _, reference = purpose.partition(":")
        event = Event(
            id=f"msg_{bucket}{entry}",
            type=kind,
            client=client,
            verification_id=RecordName(bucket, rest).verification_id,
            purpose=purpose,
            reference=unquote(reference) or None,
            channel=channel,
            phone=Phone(f"+{phone}"),
            status=status,
            call_status=call or None,
            at=from_ms(at),
        )
        return Delivery(event=event, attempts=int(attempts), error=error) if number else None
    except ValueError:
        return None
