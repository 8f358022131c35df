"""The records of the chaos test: responses, calls and webhook deliveries, and the contradictions between them."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_NEAR = 6.0  # seconds
_LOST_BEFORE = 1.0  # seconds before a failure, of which a promoted replica may lack the writes
_FOLLOWED_WITHIN = 2.0  # seconds until every worker has found the new primary, and its write has ended
TERMINAL = {"verified", "locked", "canceled", "expired"}


@dataclass(slots=True, kw_only=True)
class Reported:
    """What clients know of one verification: when it was created, and how it ended.

    ``created_at`` are the times of its 201s (seconds): the first, and one for each further call. ``is_unsure``: the
    response that would have reported the end was lost.
    """

    phone: str
    created_at: list[float] = field(default_factory=list)
    end: str | None = None
    is_unsure: bool = False


@dataclass(slots=True)
class Delivered:
    """The content of one webhook event, and how often it was accepted."""

    type: str
    verification_id: str
    phone: str
    times: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """A check of a right code, or of a reverse call that was made, with all its repetitions.

    ``answer`` is the last response in short. ``has_key``: the request had an ``Idempotency-Key``. ``is_unsure``: at
    least one response was lost or was a 503, so the check may have been evaluated. ``excused`` is the reason why it
    need not verify, if there is one. ``began`` is when the first request was sent (seconds).
    """

    verification_id: str
    phone: str
    began: float
    request: str
    answer: str
    verified_id: str | None
    has_key: bool
    is_unsure: bool
    excused: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request with an ``Idempotency-Key``: when it was sent and when it ended (seconds), and the result in short.

    ``is_held``: it was refused because another one was reported as in progress. ``worker`` is the URL it was sent to.
    """

    began: float
    ended: float
    word: str = ""
    worker: str = ""
    is_held: bool = False
    is_answered: bool = True


@dataclass(slots=True)
class Failure:
    """A failure of Redis that was played: when it ``began`` and when Redis could be used again (seconds).

    ``may_lose_writes``: a replica was promoted that may lack the last ones.
    """

    name: str
    began: float
    ended: float = math.inf
    may_lose_writes: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """When a response came, how long it took (seconds), and whether it was a 503 because of Redis."""

    at: float
    took: float
    is_refusal: bool


@dataclass(slots=True)
class Ledger:
    """Counts everything, and keeps the evidence of faults."""

    counts: Counter[str] = field(default_factory=Counter)
    placed_twice: list[str] = field(default_factory=list)
    verified_twice: list[str] = field(default_factory=list)
    lost_proofs: list[str] = field(default_factory=list)
    verified_by: dict[str, str] = field(default_factory=dict)  # verification → the request that verified it
    attempts: defaultdict[tuple[str, str], list[Attempt]] = field(default_factory=lambda: defaultdict(list))
    not_verified: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    without_ttl: set[str] = field(default_factory=set)
    reported: dict[str, Reported] = field(default_factory=dict)
    events: dict[str, Delivered] = field(default_factory=dict)
    attributed: Counter[str] = field(default_factory=Counter)  # calls, by phone
    disturbances: list[tuple[float, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)  # of Redis, one after the other
    responses: list[Response] = field(default_factory=list)
    lost_in_failovers: list[str] = field(default_factory=list)  # heard codes that did not verify
    worker_ends: list[tuple[float, str]] = field(default_factory=list)  # when, and the worker's URL
    longest_held: float = 0.0  # seconds for which a key was in progress without a request

    def note_start(self, phone: str, key: str, outcome: str, calls: Sequence[float]) -> None:
        """Record one start with all its repetitions: the outcome, and when each call was placed (seconds)."""
        self.counts["starts"] += 1
        self.counts[f"start {outcome}"] += 1
        self.attributed[phone] += len(calls)
        if len(calls) > 1:
            placed = ", ".join(f"{at - calls[0]:+.1f} s" for at in calls)
            story = f"{self._story('/verify/start', key, calls[0])}; {self.disturbances_near(calls[0])}"
            self.placed_twice.append(f"{phone}: called at {placed} for one request, answered '{outcome}': {story}")
        if calls and outcome == "refused":
            self.not_verified.append(f"{phone}: refused, but called")

    def note_repeated_start(self, phone: str, first_id: str, again_id: str | None) -> None:
        """Record the verification that a repetition of an answered start returned; another one is a fault."""
        self.counts["answered starts repeated"] += 1
        if again_id != first_id:
            self.placed_twice.append(f"{phone}: repeated, answered with {again_id} in place of {first_id}")

    def note_right(self, right: Right) -> None:
        """Record the response to a right code: it must verify, once, and a repetition must return the token again."""
        if right.verified_id:
            if right.verified_id != right.verification_id:
                self.not_verified.append(f"{right.phone}: verified {right.verified_id}, not {right.verification_id}")
            first = self.verified_by.setdefault(right.verified_id, right.request)
            if first != right.request:
                self.verified_twice.append(f"{right.verified_id} {right.phone}: by {first} and by {right.request}")
            self.note_end(right.verified_id, right.phone, "verified")
            return
        was_used = "verification-already-used" in right.answer
        key = f"key {right.request}" if right.has_key else "no key"
        evidence = f"{right.verification_id} {right.phone}, {key}, unsure {right.is_unsure}: answered '{right.answer}'"
        if was_used and right.verification_id in self.verified_by:
            self.counts["right codes refused because they had been used"] += 1
        elif was_used and right.is_unsure:
            self.note_end(right.verification_id, right.phone, "verified")  # the response with the success was lost
            if right.has_key:
                self.lost_proofs.append(evidence)
            else:
                self.counts["verified without a key, and the token lost"] += 1
        elif right.excused:
            self.of(right.verification_id, right.phone).is_unsure = True
            self.counts[f"not verified, excused: {right.excused}"] += 1
        elif self._was_in_failover(right):
            self.of(right.verification_id, right.phone).is_unsure = True
            self.lost_in_failovers.append(evidence)
        else:
            self.not_verified.append(evidence)

    def _was_in_failover(self, right: Right) -> bool:
        """Return whether Redis may have lost writes around a 201 of the verification, or while its code was checked."""
        moments = [(at, at) for at in self.of(right.verification_id, right.phone).created_at]
        return any(
            failure.began - _LOST_BEFORE < ended and began < failure.ended + _FOLLOWED_WITHIN
            for failure in self.failures
            if failure.may_lose_writes
            for began, ended in [*moments, (right.began, time.monotonic())]
        )

    def _story(self, path: str, key: str, moment: float) -> str:
        """Return all requests with a key as text, with their times after a moment."""
        return ", ".join(
            f"'{one.word}' by {one.worker} from {one.began - moment:+.1f} to {one.ended - moment:+.1f} s"
            for one in self.attempts[path, key]
        )

    def held_claims(self, *, after_answer: float, after_silence: float) -> Iterator[str]:
        """Yield keys that were refused as in progress although no request was being processed.

        No request is being processed once all requests with the key have ended, except those refused as in progress. A
        key may be in progress for ``after_answer`` seconds after the last of them, or for ``after_silence`` seconds
        after the last one without a response. A request whose worker ended after its response counts as one without:
        the worker had not yet released the key, if Redis was away.
        """
        for (path, key), attempts in self.attempts.items():
            for held in (attempt for attempt in attempts if attempt.is_held):
                work = [attempt for attempt in attempts if not attempt.is_held and attempt.began <= held.began]
                if not work or any(attempt.ended > held.began for attempt in work):
                    continue
                since_work = held.began - max(attempt.ended for attempt in work)
                self.longest_held = max(self.longest_held, since_work)
                silences = (held.began - attempt.ended for attempt in work if self._is_silent(attempt, held.began))
                if since_work > after_answer and min(silences, default=after_silence + 1) > after_silence:
                    story, near = self._story(path, key, held.began), self.disturbances_near(held.began - since_work)
                    yield f"{path} {key}: in progress {since_work:.1f} s after the last request ended: {story}; {near}"

    def _is_silent(self, attempt: Attempt, until: float) -> bool:
        """Return whether an attempt got no response, or its worker ended between the response and a moment."""
        return not attempt.is_answered or any(
            worker == attempt.worker and attempt.began < at < until for at, worker in self.worker_ends
        )

    def note_created(self, verification_id: str, phone: str) -> None:
        """Record a 201."""
        self.of(verification_id, phone).created_at.append(time.monotonic())

    def note_end(self, verification_id: str, phone: str, end: str) -> None:
        """Record how a verification ended, according to a response."""
        self.of(verification_id, phone).end = end
        self.counts[f"reported {end}"] += 1

    def note_disturbance(self, what: str) -> None:
        """Record a disturbance of the service, with the current time."""
        self.disturbances.append((time.monotonic(), what))

    def note_worker_end(self, how: str, worker: str) -> None:
        """Record that a worker is about to be ended."""
        self.note_disturbance(f"{how} of {worker}")
        self.worker_ends.append((time.monotonic(), worker))

    def note_failure(self, name: str, *, may_lose_writes: bool) -> Failure:
        """Record that Redis is about to fail; the caller sets when it could be used again."""
        self.note_disturbance(name)
        self.failures.append(Failure(name, time.monotonic(), may_lose_writes=may_lose_writes))
        return self.failures[-1]

    def seconds_of_refusals(self) -> list[float]:
        """Return for each failure of Redis how long after it the last 503 came; 0 if none did before the next one."""
        ends = [*(failure.began for failure in self.failures[1:]), math.inf]
        refused = [response.at for response in self.responses if response.is_refusal]
        return [
            max((at - failure.began for at in refused if failure.began < at < end), default=0.0)
            for failure, end in zip(self.failures, ends, strict=False)
        ]

    def times(self, *, in_failures: bool) -> list[float]:
        """Return how long responses took (seconds), during failures of Redis, or the others."""
        return sorted(
            response.took
            for response in self.responses
            if in_failures
            == any(failure.began < response.at < failure.ended + _FOLLOWED_WITHIN for failure in self.failures)
        )

    def disturbances_near(self, moment: float) -> str:
        """Return the disturbances near a moment, as text."""
        near = ((at - moment, what) for at, what in self.disturbances if abs(at - moment) < _NEAR)
        return ", ".join(f"{what} {after:+.1f} s" for after, what in near) or "nothing"

    def of(self, verification_id: str, phone: str) -> Reported:
        """Return the record of a verification."""
        return self.reported.setdefault(verification_id, Reported(phone=phone))

    def note_calls(self, calls: Mapping[str, int]) -> None:
        """Compare with the network's own list of calls at the end: a later call belongs to no request."""
        for phone, count in calls.items():
            if count != self.attributed[phone]:
                self.placed_twice.append(f"{phone}: {count} calls in the end, {self.attributed[phone]} attributed")

    def events_of(self) -> Mapping[str, Counter[str]]:
        """Count the events of each verification by type, without those of call states."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for event in self.events.values():
            kind, _, what = event.type.partition(".")
            if kind == "verification":
                found[event.verification_id][what] += 1
        return found

    def lost_webhooks(self) -> Iterator[str]:
        """Yield contradictions between the delivered events and the responses."""
        events = self.events_of()
        for verification_id, reported in self.reported.items():
            found = events.get(verification_id, Counter())
            for missing in _missing(reported, found):
                near = self.disturbances_near(max(reported.created_at, default=0))
                delivered = f"delivered {dict(found)}; near the last 201: {near}"
                yield f"{verification_id}: no event {missing}; {reported}; {delivered}"
        for verification_id, found in events.items():
            if repeated := [what for what, times in found.items() if times > 1]:
                yield f"{verification_id}: more than one event {repeated}"
            if len(TERMINAL & found.keys()) > 1:
                yield f"{verification_id}: ended more than once {dict(found)}"

    def unexplained_events(self, unanswered: set[str]) -> Iterator[str]:
        """Yield events of unknown verifications, and count those of starts without a response."""
        for event in self.events.values():
            if event.verification_id in self.reported:
                continue
            if event.phone in unanswered:
                self.counts["events of starts without a response"] += 1
            else:
                yield f"{event.type} of {event.verification_id}, which no client started"


def _missing(reported: Reported, found: Mapping[str, int]) -> Iterator[str]:
    if reported.created_at and "created" not in found:
        yield "created"
    if reported.end:
        if reported.end not in found:
            yield reported.end
    elif reported.created_at and reported.is_unsure:
        if not TERMINAL & found.keys():
            yield " or ".join(sorted(TERMINAL))
    elif reported.created_at and "expired" not in found:
        yield "expired"
