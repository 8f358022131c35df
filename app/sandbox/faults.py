"""Deliberate faults of the provider: which of the requests that place a call meet one, and which one."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random


class Fault(StrEnum):
    """A fault of a request that places a call."""

    REFUSED = "refused"  # HTTP 200 with success: false
    TOO_MANY_REQUESTS = "too_many_requests"  # HTTP 429
    SERVER_ERROR = "server_error"  # HTTP 500 with a page
    BAD_GATEWAY = "bad_gateway"  # HTTP 502 without a body
    CLOSED_BEFORE = "closed_before"  # the connection is closed, and no call was placed
    CLOSED_AFTER = "closed_after"  # the connection is closed, and the call was placed
    DELAYED = "delayed"  # the response is late
    STALLED = "stalled"  # no response
    MALFORMED = "malformed"  # HTTP 200 with truncated JSON

    @property
    def placed(self) -> bool:
        """Whether the call is placed despite the fault."""
        return self in {Fault.CLOSED_AFTER, Fault.DELAYED, Fault.STALLED, Fault.MALFORMED}


@dataclass(slots=True, kw_only=True)
class Faults:
    """A ``share`` of requests, from 0 to 1, meets one of ``kinds``; the same ``seed`` draws the same faults again.

    ``delay`` is how late a delayed response is, in seconds. ``met`` counts the faults drawn.
    """

    share: float = 0.0
    seed: int | None = None
    kinds: tuple[Fault, ...] = tuple(Fault)
    delay: float = 0.3
    met: Counter[Fault] = field(init=False, default_factory=Counter)
    _random: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.kinds:
            raise ValueError("a share is from 0 to 1, of at least one kind of fault")
        self._random = Random(self.seed)  # noqa: S311 - not for secrets

    def draw(self) -> Fault | None:
        """Return the fault of the next request, or None."""
        if self._random.random() >= self.share:
            return None
        fault = self._random.choice(self.kinds)
        self.met[fault] += 1
        return fault
