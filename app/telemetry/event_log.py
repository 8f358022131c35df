"""Logs domain events. The fields of the request or of the followed call come from ``log_context``."""

import logging
from collections.abc import Mapping
from dataclasses import fields, replace

import structlog

from app.verification.attempts import Attempt, Ending
from app.verification.domain_events import (
    AttemptFinished,
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeRejected,
    DomainEvent,
    LimitHit,
    VerificationCanceled,
    VerificationSucceeded,
)
from app.verification.model import CallStatus, Status
from app.verification.phone import mask_phones

events = structlog.get_logger()  # past the standard library, by which a line would cost four times as much

_REJECTED: Mapping[Status, str] = {
    Status.PENDING: "verification.code_wrong",
    Status.LOCKED: "verification.locked",
}
_REFUSED: Mapping[str, str] = {"start": "start.refused", "check": "check.refused"}
_ATTEMPT = [field.name for field in fields(Attempt)]
_FOR_A_PERSON = frozenset({"calls_per_day", "fraud_guard"})
"""Limits that refuse everybody, or many, until somebody acts."""


def log_event(event: DomainEvent) -> None:
    """Log a domain event; a ``Publish``."""
    match event:
        case CallPlaced(segment, CallStatus.UNCONFIRMED, why):
            _log(logging.WARNING, "call.unconfirmed", channel=str(segment.channel), why=why)
        case CallPlaced(segment, _, _):
            _log(logging.INFO, "call.placed", channel=str(segment.channel))
        case CallRefused(channel, error):
            _log(logging.WARNING, "call.refused", channel=str(channel), kind=error.kind, reason=error.reason)
        case CallEnded(segment, status):
            _log(logging.INFO, "call.ended", channel=str(segment.channel), status=str(status))
        case LimitHit(limit, operation, retry_after):
            level = logging.WARNING if limit in _FOR_A_PERSON else logging.INFO
            _log(level, _REFUSED[operation], limit=limit, retry_after=retry_after)
        case VerificationSucceeded(segment):
            _log(logging.INFO, "verification.verified", channel=str(segment.channel))
        case CodeRejected(status):
            _log(logging.INFO, _REJECTED[status])
        case VerificationCanceled():
            _log(logging.INFO, "verification.canceled")
        case AttemptFinished(attempt):
            _log_attempt(attempt)


def _log_attempt(attempt: Attempt) -> None:
    """Log an attempt with all its facts, for a database, and before that the expiry of its verification."""
    facts = {name: getattr(attempt, name) for name in _ATTEMPT}
    # What clients write themselves may have a phone in it.
    if attempt.reference:
        facts["reference"] = mask_phones(attempt.reference)
    if attempt.consent:
        facts["consent"] = replace(attempt.consent, version=mask_phones(attempt.consent.version))
    last = attempt.timeline[-1]
    if last.event == Ending.EXPIRED:
        context = {name: facts[name] for name in ("client", "verification_id", "call_number", "channel", "phone")}
        _log(logging.INFO, "verification.expired", expired_at=last.at, **context)
    _log(logging.INFO, "attempt.finished", **facts)


def _log(level: int, name: str, **fields: object) -> None:
    events.bind().log(level, name, logger=__name__, **fields)
