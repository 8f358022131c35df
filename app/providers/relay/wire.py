"""What is sent to a relay and what its answers mean; the protocol is this project's own, told in ``docs/relay.md``."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from app.outbound import Redactor, Unclear, json_object, seconds
from app.verification.channels import Channel
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallState, CallStatus
from app.verification.ports import CallId, CallOrder

_TAKEN_STATUSES = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED})
_TAKEN_WORDS = frozenset({"accepted", "placed"})

# The whole vocabulary. A word besides is no state: a relay that repeats the code in its place must not get it shown.
_STATUS_WORDS = {
    "queued": CallStatus.INITIATED,
    "ringing": CallStatus.RINGING,
    "answered": CallStatus.ANSWERED,
    "completed": CallStatus.COMPLETED,
    "busy": CallStatus.BUSY,
    "no_answer": CallStatus.NO_ANSWER,
    "failed": CallStatus.FAILED,
}

# Fits a path, a header and a signature as it is: no full stop, which Standard Webhooks forbids in an id that others
# choose, and so no ".." either.
CALL_REF = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of the relay, read as far as it can be; made by ``read_answer``.

    ``fields`` (empty unless the body is a JSON object) are the relay's own and may hold secrets; ``reason`` holds none.
    ``retry_after`` is in seconds.
    """

    status: int
    retry_after: int
    reason: str
    fields: Mapping[str, object] = field(repr=False)

    @property
    def says_taken(self) -> bool:
        """Whether the body says that the call will be, or was, placed."""
        return self._word in _TAKEN_WORDS

    @property
    def says_refused(self) -> bool:
        """Whether the body says that the call was not placed, and will not be."""
        return self._word == "refused"

    @property
    def _word(self) -> str:
        word = self.fields.get("status")
        return word if isinstance(word, str) else ""


def read_answer(status: int, body: bytes, *, retry_after: str | None, redact: Redactor) -> Answer:
    """Read an answer of whatever shape; ``retry_after`` is the header of that name. Never raises."""
    fields = json_object(body.decode("utf-8-sig", errors="replace"))
    reason = fields.get("reason")
    return Answer(status, seconds(retry_after), redact(reason) if isinstance(reason, str) else "", fields)


def name_call(name: CallId, channel: Channel) -> str:
    """Name a call to the relay. The channel belongs to it: what one channel refused may go by another."""
    return f"{name.verification_id}-{name.call_number}-{channel}"


def write_order(order: CallOrder, channel: Channel, call: str) -> bytes:
    """Write the body of the request that places a call, as it is sent and signed."""
    body = {
        "call": call,
        "channel": channel.value,
        "phone": order.phone.e164,
        "code": order.code,
        "lang": order.lang.value,
        "repeat": order.repeat,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _told_to_wait(answer: Answer) -> ProviderError:
    return ProviderUnavailable(retry_after=answer.retry_after)


def _rejected(answer: Answer) -> ProviderError:
    if answer.fields.get("reason") == "balance_too_low":
        return BalanceTooLow()
    return ProviderRejected(answer.reason or f"HTTP {answer.status}")


def _may_say_refused(status: int) -> bool:
    return status == HTTPStatus.OK or HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR


# What an answer to an order may be; the first row that fits wins. A refusal gives the attempt back to the person who
# asked, so a row needs a reason to be here. What is in no row is unclear: 401, 403, 404 and 5xx without the word,
# redirects, HTML, empty bodies, a yes under a status that says no. A proxy in between may have written those, before
# the relay saw the request or after.
_REFUSALS: tuple[tuple[Callable[[Answer], bool], Callable[[Answer], ProviderError]], ...] = (
    # 429, whatever the body: who limits a rate does so before anything is done, a proxy too.
    (lambda answer: answer.status == HTTPStatus.TOO_MANY_REQUESTS, _told_to_wait),
    # 503 with {"status": "refused"}: the relay is there and cannot now. Without the word it may be a proxy that lost
    # the relay half-way, so it is unclear, with Retry-After or not.
    (lambda answer: answer.status == HTTPStatus.SERVICE_UNAVAILABLE and answer.says_refused, _told_to_wait),
    # {"status": "refused", "reason": "…"} under 200 or any 4xx; the reason "balance_too_low" has a meaning of its own.
    (lambda answer: answer.says_refused and _may_say_refused(answer.status), _rejected),
)


def parse_placed(answer: Answer, *, call: str) -> str:
    """Return the name by which the call is looked up: the relay's own if it gave a usable one, else ``call``.

    ``{"status": "accepted"}`` or ``"placed"``, under 200, 201 or 202, is a call that was taken, with ``"call"`` or
    without.

    Raises:
        ProviderError: it definitely was not placed.
        Unclear: it may have been.

    """
    if answer.says_taken:
        if answer.status not in _TAKEN_STATUSES:
            raise Unclear(f"HTTP {answer.status} with the word of a success")
        ref = answer.fields.get("call")
        return ref if isinstance(ref, str) and CALL_REF.fullmatch(ref) else call
    for fits, error in _REFUSALS:
        if fits(answer):
            raise error(answer)
    raise Unclear(f"HTTP {answer.status} without a verdict")


def parse_state(answer: Answer) -> CallState | None:
    """Read ``{"status": "ringing"}``; none for 404 with ``{"error": "unknown_call"}``: it was never placed.

    A 404 alone is a wrong path or a proxy, and proves nothing.

    Raises:
        ProviderUnavailable: the relay asks to wait, by 429 or 503.
        Unclear: neither.

    """
    word = answer.fields.get("status")
    if answer.status == HTTPStatus.OK and isinstance(word, str) and word in _STATUS_WORDS:
        return CallState(_STATUS_WORDS[word])
    if answer.status == HTTPStatus.NOT_FOUND and answer.fields.get("error") == "unknown_call":
        return None
    if answer.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        raise ProviderUnavailable(retry_after=answer.retry_after)
    raise Unclear(f"HTTP {answer.status} without a state")
