"""Chooses the order in which channels are tried for a phone."""

from collections.abc import Mapping, Sequence

from phonenumbers import carrier, parse

from app.verification.channels import Channel
from app.verification.phone import Phone
from app.verification.ports import CallHistory

# The prefixes of MTS in the Russian numbering plan, which phonenumbers does not name.
_MTS = tuple(f"+7{prefix}" for prefix in (*range(910, 920), *range(980, 990)))


def operator_of(phone: Phone) -> str | None:
    """Return the operator that a number range is assigned to: ``mts``, ``beeline``, ``megafon``, ``t2`` or another.

    Numbers are portable, so the subscriber may have moved: what the provider reports takes precedence.
    """
    if phone.e164.startswith(_MTS):
        return "mts"
    return carrier.name_for_number(parse(phone.e164), "en").lower() or None


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
