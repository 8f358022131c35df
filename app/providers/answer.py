"""An HTTP answer of a provider: read as far as it can be, what of it may be shown, and what refuses a request."""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import NoReturn

from app.verification.errors import ProviderError, ProviderUnavailable
from app.verification.model import CallStatus

DEFAULT_RETRY_AFTER = 30  # seconds, where the provider sends none
_LONGEST_RETRY_AFTER = 3600
_LONGEST_MESSAGE = 200

# The states of a call, as the relay and the sandbox name them. Those of Plusofon are not documented.
CALL_STATUSES: Mapping[str, CallStatus] = {
    "queued": CallStatus.INITIATED,
    "ringing": CallStatus.RINGING,
    "answered": CallStatus.ANSWERED,
    "completed": CallStatus.COMPLETED,
    "busy": CallStatus.BUSY,
    "no_answer": CallStatus.NO_ANSWER,
    "failed": CallStatus.FAILED,
}


class Redactor:
    """Makes a provider's text fit to be shown: one line, at most 200 characters, without secrets.

    Removed are the ``secrets`` given here and all digits in groups of four or more, whatever punctuation stands between
    them. That covers codes and phone numbers in every spelling, those of this request and any other.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        longest_first = sorted(filter(None, secrets), key=len, reverse=True)
        self._secrets = [re.compile("|".join(map(re.escape, longest_first)))] if longest_first else []
        self._secrets.append(re.compile(r"\d(?:[\W_]*\d){3,}"))

    def __call__(self, text: str) -> str:
        """Return what may be shown of ``text``. Hidden characters go first: they could split a secret in two."""
        shown = printable(text)
        for secret in self._secrets:
            shown = secret.sub("•••", shown)
        return shown.strip()[:_LONGEST_MESSAGE]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; made by ``read_answer``.

    ``fields`` are empty unless the body is a JSON object. They and ``text`` may hold secrets: show only what ``redact``
    returns. ``retry_after`` is in seconds.
    """

    status: int
    retry_after: int
    text: str = field(repr=False)
    fields: Mapping[str, object] = field(repr=False)
    redact: Redactor = field(repr=False)


Refusals = Sequence[tuple[Callable[[Answer], bool], Callable[[Answer], ProviderError]]]
"""The shapes of a provider's refusals, each with the error that it means. The first that fits wins.

A refused call is refunded, so a shape needs a reason to be in the table. An answer of any other shape is unclear.
"""


def raise_refusal(answer: Answer, refusals: Refusals) -> None:
    """Raise what the table says of an answer, if it has its shape."""
    for fits, error in refusals:
        if fits(answer):
            raise error(answer)


def retry_later(answer: Answer) -> ProviderUnavailable:
    """Return the error of a provider that asks to wait."""
    return ProviderUnavailable(retry_after=answer.retry_after, reason=f"status {answer.status}")


def read_answer(status: int, body: bytes, *, retry_after: str | None, redact: Redactor) -> Answer:
    """Read an answer of any shape; ``retry_after`` is the header of that name. Never raises."""
    text = body.removeprefix(BOM_UTF8).decode(errors="replace")
    try:
        fields = _JSON.decode(text)
    # Besides what is not JSON: arrays nested by the thousand, and numbers beyond what a Decimal holds.
    except (ValueError, RecursionError, InvalidOperation):
        fields = {}
    # Retry-After may also be a date, which would need a clock and is ignored.
    wait = int(retry_after) if retry_after and re.fullmatch(r"[0-9]{1,5}", retry_after) else 0
    return Answer(
        status,
        retry_after=wait if 1 <= wait <= _LONGEST_RETRY_AFTER else DEFAULT_RETRY_AFTER,
        text=text,
        fields=fields if isinstance(fields, dict) else {},
        redact=redact,
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant)


def printable(text: str) -> str:
    """Drop control, invisible and surrogate characters; any white space becomes a space."""
    return "".join(" " if char.isspace() else char for char in text if char.isprintable() or char.isspace())
