"""What was told, heard and delivered under chaos, and which of it does not add up."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TERMINAL = {"verified", "locked", "canceled", "expired"}


@dataclass(slots=True, kw_only=True)
class Told:
    """What clients were told of one verification: that it was ``created`` (a 201), and how it ended, if they know.

    ``is_unsure``: the answer that would have told how it ended never came.
    """

    phone: str
    created: bool = False
    end: str | None = None
    is_unsure: bool = False


@dataclass(slots=True)
class Delivered:
    """One event, by its webhook-id: what it says, and how often it was taken."""

    type: str
    verification_id: str
    phone: str
    times: int = 0


@dataclass(slots=True)
class Ledger:
    """Counts everything, and keeps the evidence for what must not happen."""

    counts: Counter[str] = field(default_factory=Counter)
    placed_twice: list[str] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    without_ttl: set[str] = field(default_factory=set)
    told: dict[str, Told] = field(default_factory=dict)
    events: dict[str, Delivered] = field(default_factory=dict)
    attributed: Counter[str] = field(default_factory=Counter)  # calls, by phone

    def note_start(self, phone: str, outcome: str, calls: int) -> None:
        """Write down one start, with all its repetitions: what was answered, and how many calls came of it."""
        self.counts["starts"] += 1
        self.counts[f"start {outcome}"] += 1
        self.attributed[phone] += calls
        if calls > 1:
            self.placed_twice.append(f"{phone}: {calls} calls for one request, answered '{outcome}'")
        if calls and outcome == "refused":
            self.not_verified.append(f"{phone}: refused, and called all the same")

    def note_created(self, verification_id: str, phone: str) -> None:
        """Write down a 201."""
        self.of(verification_id, phone).created = True

    def note_end(self, verification_id: str, phone: str, end: str) -> None:
        """Write down how a verification ended, as a client was told."""
        self.of(verification_id, phone).end = end
        self.counts[f"told {end}"] += 1

    def of(self, verification_id: str, phone: str) -> Told:
        """Return what is known of a verification."""
        return self.told.setdefault(verification_id, Told(phone=phone))

    def note_calls(self, calls: Mapping[str, int]) -> None:
        """Compare with the network's own list in the end: a call that came later belongs to no request."""
        for phone, count in calls.items():
            if count != self.attributed[phone]:
                self.placed_twice.append(f"{phone}: {count} calls in the end, {self.attributed[phone]} attributed")

    def events_of(self) -> Mapping[str, Counter[str]]:
        """Count the events of each verification by type; a call's states are many, and are left out."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for event in self.events.values():
            kind, _, what = event.type.partition(".")
            if kind == "verification":
                found[event.verification_id][what] += 1
        return found

    def lost_webhooks(self) -> Iterator[str]:
        """Compare what was delivered with what was told."""
        events = self.events_of()
        for verification_id, told in self.told.items():
            found = events.get(verification_id, Counter())
            for missing in _missing(told, found):
                yield f"{verification_id} {told.phone}: no event {missing}; told {told}, delivered {dict(found)}"
        for verification_id, found in events.items():
            if repeated := [what for what, times in found.items() if times > 1]:
                yield f"{verification_id}: more than one event {repeated}"
            if len(TERMINAL & found.keys()) > 1:
                yield f"{verification_id}: ended more than once {dict(found)}"

    def unexplained_events(self, unanswered: set[str]) -> Iterator[str]:
        """Find events of verifications that nobody was told of, and count those of starts that nobody was answered."""
        for event in self.events.values():
            if event.verification_id in self.told:
                continue
            if event.phone in unanswered:
                self.counts["events of starts that nobody was answered"] += 1
            else:
                yield f"{event.type} of {event.verification_id}, which nobody started"


def _missing(told: Told, found: Mapping[str, int]) -> Iterator[str]:
    if told.created and "created" not in found:
        yield "created"
    if told.end:
        if told.end not in found:
            yield told.end
    elif told.created and told.is_unsure:
        if not TERMINAL & found.keys():
            yield " or ".join(sorted(TERMINAL))
    elif told.created and "expired" not in found:
        yield "expired"
