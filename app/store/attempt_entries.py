"""The entries of the journal of attempts, as ``lua/attempts/journal.lua`` lists them, and the attempts in them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from app.store.layout import from_ms, read_consent
from app.verification.attempts import Attempt, Ending, Outcome, TimelineEntry
from app.verification.channels import Channel
from app.verification.model import CallStatus
from app.verification.stats import CallPrices

BEGUN, STATE, REFUSED, WRONG_CODE, ENDED = "bsrwe"

_MARK = slice(1, 9)  # of the text of an entry
_STATES: Mapping[str, CallStatus] = {status[0]: status for status in CallStatus}
_OUTCOMES = {CallStatus.INITIATED: Outcome.PLACED, CallStatus.UNCONFIRMED: Outcome.UNCONFIRMED}
_ENDINGS: Mapping[str, Ending] = {ending[0]: ending for ending in (Ending.VERIFIED, Ending.LOCKED, Ending.CANCELED)}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry: its id, which begins with its time in ms, and its text in parts."""

    id: str
    kind: str
    mark: str
    fields: Sequence[str]

    @classmethod
    def parse(cls, entry_id: bytes, text: bytes) -> "Entry":
        """Parse an entry as Redis returns it."""
        words = text.decode()
        return cls(entry_id.decode(), words[0], words[_MARK], words[_MARK.stop :].split("\t"))

    @property
    def at(self) -> datetime:
        """When it was written, by the clock of Redis."""
        return from_ms(self.id.partition("-")[0])

    def field(self, number: int) -> str:
        """Return a field, or '': those that are empty at the end are left out."""
        return self.fields[number] if number < len(self.fields) else ""


def read_attempts(
    bucket: str, entries: Iterable[Entry], *, now: datetime, lifetime: timedelta, prices: CallPrices
) -> Iterator[Attempt]:
    """Return the attempts whose begin is among the entries of a bucket, which are in their order."""
    of_verifications: dict[str, list[Entry]] = {}
    for entry in entries:
        of_verifications.setdefault(entry.mark, []).append(entry)
    for story in of_verifications.values():
        yield from _Verification(bucket, story, now, lifetime, prices).attempts()


class _Verification:
    """One verification, by its entries."""

    def __init__(
        self, bucket: str, entries: Sequence[Entry], now: datetime, lifetime: timedelta, prices: CallPrices
    ) -> None:
        self._bucket = bucket
        self._now = now
        self._prices = prices
        self._calls: dict[
            str, list[Entry]
        ] = {}  # by their numbers; what happens to the verification is with the latest
        latest: list[Entry] = []
        for entry in entries:
            if entry.kind == BEGUN:
                latest = self._calls[entry.fields[0]] = [entry]
            elif entry.kind in {STATE, REFUSED}:
                self._calls.get(entry.fields[0], []).append(entry)
            else:
                latest.append(entry)
        self._wrong_codes = sum(entry.kind == WRONG_CODE for entry in entries)
        self._latest = latest
        placed = [call for call in self._calls.values() if all(entry.kind != REFUSED for entry in call)]
        self._expires_at = max((call[0].at + lifetime for call in placed), default=None)
        self._ending = self._read_ending(entries)

    def _read_ending(self, entries: Sequence[Entry]) -> Ending | None:
        if self._expires_at is None:
            return None
        for entry in entries:
            if entry.kind == ENDED:
                return _ENDINGS[entry.fields[0]]
        return Ending.EXPIRED if self._expires_at <= self._now else Ending.PENDING

    def attempts(self) -> Iterator[Attempt]:
        """Return its attempts, the oldest first."""
        for number, call in self._calls.items():
            begun, *later = call
            _, rest, client, purpose, channel, phone, phone_digest, *_ = begun.fields
            states = [entry for entry in later if entry.kind == STATE]
            refused = next((entry for entry in later if entry.kind == REFUSED), None)
            status = _STATES[states[-1].fields[1]] if states else None
            outcome = self._outcome(status, refused)
            yield Attempt(
                verification_id=f"vrf_{self._bucket}{begun.mark}{rest}",
                call_number=int(number),
                started_at=begun.at,
                client=client,
                purpose=purpose,
                reference=begun.field(7) or None,
                consent=read_consent(consent) if (consent := begun.field(8)) else None,
                channel=channel,
                phone=f"+7{phone[:3]}•••{phone[3:]}",
                phone_digest=self._bucket + phone_digest,
                outcome=outcome,
                reason=_reason(refused) if refused else "",
                call_ref=next((entry.field(2) for entry in states if entry.field(2)), None),
                operator=next((entry.field(3) for entry in states if entry.field(3)), None),
                call_status=status,
                wrong_codes=self._wrong_codes,
                ending=self._ending,
                cost_rub=self._cost(channel, outcome, status),
                timeline=tuple(self._timeline(call)),
            )

    def _cost(self, channel: str, outcome: Outcome, status: CallStatus | None) -> Decimal:
        if outcome not in {Outcome.PLACED, Outcome.UNCONFIRMED}:
            return Decimal(0)
        return self._prices.price(Channel(channel), status or CallStatus.UNCONFIRMED)

    def _outcome(self, status: CallStatus | None, refused: Entry | None) -> Outcome:
        if refused:
            return Outcome.REFUSED
        if status is None:  # the provider is being asked, or the process that asked it has died
            is_over = self._expires_at is not None and self._expires_at <= self._now
            return Outcome.UNCONFIRMED if is_over else Outcome.ASKED
        return Outcome.UNCONFIRMED if status is CallStatus.UNCONFIRMED else Outcome.PLACED

    def _timeline(self, call: Sequence[Entry]) -> Iterator[TimelineEntry]:
        for entry in call:
            match entry.kind:
                case "b":
                    yield TimelineEntry(at=entry.at, event=Outcome.ASKED)
                case "s":
                    status = _STATES[entry.fields[1]]
                    yield TimelineEntry(at=entry.at, event=_OUTCOMES.get(status, status), reason=entry.field(4))
                case "r":
                    yield TimelineEntry(at=entry.at, event=Outcome.REFUSED, reason=_reason(entry))
                case "w":
                    yield TimelineEntry(at=entry.at, event="wrong_code")
                case "e":
                    yield TimelineEntry(at=entry.at, event=_ENDINGS[entry.fields[0]])
        if call is self._latest and self._ending is Ending.EXPIRED and self._expires_at:
            yield TimelineEntry(at=self._expires_at, event=Ending.EXPIRED)


def _reason(refused: Entry) -> str:
    """Return why a call was refused. Without a kind the provider was not asked, or does not know the call."""
    kind, words = refused.field(1), refused.field(2)
    return ": ".join(filter(None, (kind, words))) or "not_placed"
