"""The ways in which a person is reached."""

from enum import StrEnum


class Channel(StrEnum):
    """The way in which a person is reached.

    ``voice``: a voice says the code. ``flash_call``: the code is the last four digits of the number that calls.
    ``reverse_call``: there is no code; the person calls a number that they are told.
    """

    VOICE = "voice"
    FLASH_CALL = "flash_call"
    REVERSE_CALL = "reverse_call"
