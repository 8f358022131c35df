"""Logs domain events. The fields of the request or of the followed call come from ``log_context``."""

import logging
from collections.abc import Mapping

import structlog

from app.verification.domain_events import (
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeChecked,
    DomainEvent,
    LimitHit,
    VerificationCanceled,
)
from app.verification.model import CallStatus, Status

events = structlog.get_logger()  # past the standard library, by which a line would cost four times as much

_CHECKED: Mapping[Status, str] = {
    Status.VERIFIED: "verification.verified",
    Status.PENDING: "verification.code_wrong",
    Status.LOCKED: "verification.locked",
}
_REFUSED: Mapping[str, str] = {"start": "start.refused", "check": "check.refused"}
_FOR_A_PERSON = frozenset({"calls_per_day", "fraud_guard"})
"""Limits that refuse everybody, or many, until somebody acts."""


def log_event(event: DomainEvent) -> None:
    """Log a domain event; a ``Publish``."""
    match event:
        case CallPlaced(channel, CallStatus.UNCONFIRMED, why):
            _log(logging.WARNING, "call.unconfirmed", channel=channel.value, why=why)
        case CallPlaced(channel, _, _):
            _log(logging.INFO, "call.placed", channel=channel.value)
        case CallRefused(channel, error):
            _log(logging.WARNING, "call.refused", channel=channel.value, kind=error.kind, reason=error.reason)
        case CallEnded(channel, status):
            _log(logging.INFO, "call.ended", channel=channel.value, status=status.value)
        case LimitHit(limit, operation, retry_after):
            level = logging.WARNING if limit in _FOR_A_PERSON else logging.INFO
            _log(level, _REFUSED[operation], limit=limit, retry_after=retry_after)
        case CodeChecked(status):
            _log(logging.INFO, _CHECKED[status])
        case VerificationCanceled():
            _log(logging.INFO, "verification.canceled")


def _log(level: int, name: str, **fields: object) -> None:
    events.bind().log(level, name, logger=__name__, **fields)
