"""The channels by which a person is reached, and what each of them is: one table."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Channel(StrEnum):
    """The way in which a person is reached; ``CHANNELS`` says what each is."""

    VOICE = "voice"
    FLASH_CALL = "flash_call"
    REVERSE_CALL = "reverse_call"

    @property
    def rules(self) -> "ChannelRules":
        """What this channel is."""
        return CHANNELS[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRules:
    """What a channel is.

    Attributes:
        summary: How the person gets the code, for the API's description.
        has_code: The person types a code. This service makes it, but one that the provider chose instead counts.
            Without a code the person dials a number, and the provider's callback confirms it. Its id alone proves who
            asked for such a verification, so it is not found by phone, no other call joins it, and of a phone only one
            is pending at a time, for all clients.
        code_length: Digits of every code of the channel; none: as ``CODE_LENGTH`` says.
        is_easily_guessed: The checks of a verification are limited by ``CHECK_FLASH_CALL_LIMIT`` too.

    """

    summary: str
    has_code: bool = True
    code_length: int | None = None
    is_easily_guessed: bool = False


CHANNELS: Mapping[Channel, ChannelRules] = {
    Channel.VOICE: ChannelRules(summary="a voice says the code"),
    Channel.FLASH_CALL: ChannelRules(
        summary="the code is the last four digits of the number that calls", code_length=4, is_easily_guessed=True
    ),
    Channel.REVERSE_CALL: ChannelRules(
        summary="there is no code, the person calls the number `dial` of the answer", has_code=False
    ),
}
