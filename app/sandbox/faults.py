"""Failing on purpose: which of the requests that place a call meet a fault, and which one."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Self


class Fault(StrEnum):
    """What can happen to a request that places a call. ``placed``: the call is placed all the same."""

    placed: bool

    def __new__(cls, name: str, placed: bool) -> Self:  # noqa: FBT001 - called by the lines below alone
        """Make the member a string that knows whether the call is placed."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.placed = placed
        return member

    REFUSED = "refused", False  # HTTP 200 with success: false
    TOO_MANY_REQUESTS = "too_many_requests", False  # HTTP 429
    SERVER_ERROR = "server_error", False  # HTTP 500 with a page
    BAD_GATEWAY = "bad_gateway", False  # HTTP 502 without a body
    CLOSED_BEFORE = "closed_before", False  # the connection is closed, and nothing was placed
    CLOSED_AFTER = "closed_after", True  # the connection is closed, and the call was placed
    DELAYED = "delayed", True  # the answer comes, a little late
    STALLED = "stalled", True  # no answer
    MALFORMED = "malformed", True  # HTTP 200 with JSON that breaks off


@dataclass(slots=True, kw_only=True)
class Faults:
    """A ``share`` of requests, from 0 to 1, meets one of ``kinds``; the same ``seed`` draws the same ones again.

    ``delay`` and ``stall`` are seconds: how late a delayed answer is, and how long a request without an answer is held
    (none: as long as the stand-in holds all of them). ``met`` counts what was drawn.

    Raises:
        ValueError: the share is none, or there is no kind to draw from.

    """

    share: float = 0.0
    seed: int | None = None
    kinds: tuple[Fault, ...] = tuple(Fault)
    delay: float = 0.3
    stall: float | None = None
    met: Counter[Fault] = field(init=False, default_factory=Counter)
    _random: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.kinds:
            raise ValueError("a share is from 0 to 1, of at least one kind of fault")
        self._random = Random(self.seed)  # noqa: S311 - it picks faults, no secrets

    def draw(self) -> Fault | None:
        """Decide about one request; usually none."""
        if self._random.random() >= self.share:
            return None
        fault = self._random.choice(self.kinds)
        self.met[fault] += 1
        return fault
