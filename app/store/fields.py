"""The fields of a verification, a JSON object, and of its phone, a hash: what each is called, and its letter in Redis.

One letter each, because a record and its phone may cost 500 bytes. Lua scripts use the same names; ``Script`` replaces
them by the letters. Moments are milliseconds of Redis' clock. A flag that is not set is absent.
"""

from enum import StrEnum


class RecordField(StrEnum):
    """Of ``pv:{bucket}:<rest of the id>``, the record of a verification, which expires with the last of its codes."""

    CLIENT = "c"
    PURPOSE = "u"
    PHONE = "p"
    PHONE_DIGEST = "q"
    STATUS = "s"  # absent: pending
    CHANNEL = "h"  # of the latest placed call; followed by its number, of each call
    CODE_LENGTH = "l"  # likewise; 0: no code
    LAST_CALL = "n"
    CALLS_LEFT = "m"
    CHECKS_ALLOWED = "g"
    WRONG_CHECKS = "b"
    CREATED_AT = "a"
    RESEND_AT = "r"
    VERSION = "v"
    RETRY_DIGEST = "j"  # of the check that verified it: the same request, repeated, verifies again
    IS_TEST = "z"
    IS_DIALLED = "i"  # it has no code: the person dials a number
    IS_FOLLOWED = "f"  # an event stream follows it, or did
    IS_ANNOUNCED = "e"  # the client's webhook has its verification.created


class CallField(StrEnum):
    """Of the same object, followed by the number of a call."""

    CALL_STATUS = "t"
    UNKNOWN_STATUS = "w"
    EXPIRES_AT = "x"
    CODE_DIGEST = "d"
    CALL_REF = "f"
    NUMBER_TO_DIAL = "i"
    HAS_DIALLED = "k"
    LIMITS_TOKEN = "y"  # noqa: S105 - names an event in the limits, if the call may be refunded later
    RESERVATION = "o"  # until it is recorded: "<RESEND_AT> <STREAK and NEXT_CALL before> <checks allowed> <token>"


class PhoneField(StrEnum):
    """Of ``pv:{bucket}:p:<phone digest>``, one phone; beside ``<client>:<purpose>`` → rests of ids, oldest first."""

    STREAK = "n"
    NEXT_CALL = "r"
    OPERATOR = "o"
    CALL_LOG = "l"  # "<moment>,…", oldest first
    FAILED_LOG = "b"  # "<moment>@<address digest>,…" of failed checks, oldest first
    DIALLED_REST = "d"  # rest of the id of its latest verification without a code, for any client
    ASKED_CALL = "w"  # "<rest of the id>:<number>" of the call that the provider is being asked for
