"""Chooses the order in which channels are tried for a phone."""

from collections.abc import Mapping, Sequence

from app.verification.channels import Channel
from app.verification.operators import operator_of
from app.verification.phone import Phone
from app.verification.ports import CallHistory


def route(
    channels: Sequence[Channel], *, phone: Phone, history: CallHistory, operator_channels: Mapping[str, Channel]
) -> tuple[Channel, ...]:
    """Sort channels: that of the phone's operator first, and last those of earlier calls without an answer."""
    operator = history.operator or (operator_of(phone) if operator_channels else None)
    first = operator_channels.get(operator or "")
    # Of a number that is shown to be dialled nothing else is known: the person would be verified by now.
    unanswered = {it for it, status in history.calls if status.is_unanswered or not it.rules.has_code}
    # False sorts before True, and what is equal stays in its order.
    return tuple(sorted(channels, key=lambda channel: (channel in unanswered, channel is not first)))
