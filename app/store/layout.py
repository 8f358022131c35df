"""The layout of the data in Redis: the names of keys, the fields of a verification and its phone, and times.

The names of keys are written here, and in the scripts, without what all begin with: ``ScriptRunner`` adds it.

The keys of a verification and of its phone share the hash tag ``{bucket}``: one of 4,096, from a keyed digest of the
phone. The bucket is part of the id, so a check by id and a check by phone both find the slot without a look-up, and the
id says nothing about the phone.

A verification is a map in MessagePack, its phone another. Their fields have one letter each: both may cost 500 bytes in
all.
Lua scripts use the names of fields; ``Script`` replaces them by the letters. They are no enums, because Python reads a
plain attribute in a third of the time. A flag that is not set is absent. A moment, ``…_AT``, is milliseconds of Redis'
clock; ``…_AFTER`` in milliseconds after the verification was created.
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import Self

from app.verification.model import Consent
from app.verification.phone import Phone
from app.verification.values import value

PREFIX = "pv"
_VERSION = 3  # of what is stored: two versions of the service with different layouts never read each other's keys

_ID = re.compile(r"vrf_([0-9a-f]{3})([0-9a-f]{20})")
_RANDOM_BYTES = 10  # 80 bits: an id cannot be guessed while it lives
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def with_version(prefix: str) -> str:
    """Return what all keys begin with: a deployment's prefix, and the version of this layout."""
    return f"{prefix}{_VERSION}"


def changes_channel(prefix: str) -> str:
    """Return the channel to which the scripts that change a followed verification publish its id."""
    return f"{with_version(prefix)}:changes"


def keyed_digest(key: bytes, text: str) -> str:
    """Return the HMAC-SHA256 of a text, in hex."""
    return hmac.digest(key, text.encode(), hashlib.sha256).hex()


@value
class RecordName:
    """The two parts of a verification's id, which are also the parts of its key."""

    bucket: str
    rest: str

    @property
    def key(self) -> str:
        """The key of the record."""
        return f"{{{self.bucket}}}:{self.rest}"

    @property
    def verification_id(self) -> str:
        """The id that callers see."""
        return f"vrf_{self.bucket}{self.rest}"

    @classmethod
    def from_id(cls, verification_id: str) -> Self | None:
        """Return the name of an id, or none if the text cannot be an id."""
        match = _ID.fullmatch(verification_id)
        return cls(*match.groups()) if match else None


@value
class PhoneName:
    """The two parts of a phone's key: HMAC-SHA256, because a plain hash of a billion mobile numbers can be reversed."""

    bucket: str
    digest: str

    @property
    def key(self) -> str:
        """The key of the phone."""
        return f"{{{self.bucket}}}:p:{self.digest}"

    @classmethod
    @lru_cache(maxsize=1024)  # a start needs that of its phone twice
    def from_phone(cls, key: bytes, phone: Phone) -> Self:
        """Return the name of a phone."""
        digest = keyed_digest(key, phone.e164)
        return cls(digest[:3], urlsafe_b64encode(bytes.fromhex(digest[4:20])).decode()[:10])  # of 12 and 60 bits

    def new_record(self) -> RecordName:
        """Return the name of a new verification of this phone."""
        return RecordName(self.bucket, secrets.token_hex(_RANDOM_BYTES))


def name_journal(bucket: str) -> str:
    """Return the key of the journal of attempts of a bucket."""
    return f"{{{bucket}}}:j"


def name_refused_starts(bucket: str, day: date) -> str:
    """Return the key of the starts of a bucket that were refused before a provider was asked, on a day (UTC)."""
    return f"{{{bucket}}}:refused:{day:%Y%m%d}"


_SHARED_LIMITS = {"calls_per_client", "calls_per_client_day", "calls_per_day"}


@lru_cache(maxsize=1024)  # a start needs its names twice, and those of its client's limits are always the same
def name_limit(key: bytes, limit: str, subject: str) -> str:
    """Return the key of a limit; an address or a range of numbers is not in clear.

    It is in a slot of its own. The limits that every start of a client needs share one, because all starts meet in that
    of ``calls_per_day`` in any case: with a script less for each, the busiest node of a cluster has less to do.
    """
    digest = hmac.digest(key, f"{limit}\0{subject}".encode(), hashlib.sha256)
    name = urlsafe_b64encode(digest[:9]).decode()
    return f"{{limits}}:{name}" if limit in _SHARED_LIMITS else f"{{l:{name}}}"


def name_block(limit: str) -> str:
    """Return the key of the fraud guard's block of a limit's subject, in the slot of the limit."""
    return f"{limit}:b"


class RecordField:
    """Of ``{bucket}:<rest of the id>``, the record of a verification, which expires with the last of its codes."""

    CLIENT = "c"
    PURPOSE = "u"
    PHONE = "p"
    PHONE_DIGEST = "q"
    STATUS = "s"  # absent: pending
    CHANNEL = "h"  # of the latest placed call; followed by its number, of a call with another one
    CODE_LENGTH = "l"  # likewise; 0: no code
    LAST_CALL = "n"
    CALLS_LEFT = "m"
    CHECKS_ALLOWED = "g"
    WRONG_CHECKS = "b"
    CREATED_AT = "a"
    RESEND_AFTER = "r"
    VERSION = "v"
    RETRY_DIGEST = "j"  # of the check that verified it: the same request, repeated, verifies again
    IS_TEST = "z"
    IS_DIALLED = "i"  # it has no code: the person dials a number
    IS_FOLLOWED = "f"  # an event stream follows it, or did
    IS_ANNOUNCED = "e"  # the client's webhook has its verification.created
    REFERENCE = "k"  # the client's own name for it
    CONSENT = "t"  # the latest that the client gave: "<moment> <version>"


class CallField:
    """Of the same map, followed by the number of a call."""

    CALL_STATUS = "t"
    UNKNOWN_STATUS = "w"
    EXPIRES_AFTER = "x"
    CODE_DIGEST = "d"
    CALL_REF = "f"
    NUMBER_TO_DIAL = "i"
    HAS_DIALLED = "k"
    LIMITS_TOKEN = "y"  # noqa: S105 - names an event in the limits, if the call may be refunded later
    RESERVATION = (
        "o"  # until it is recorded: "<moment of RESEND_AFTER> <STREAK and NEXT_CALL before> <checks allowed> <token>"
    )


class PhoneField:
    """Of ``{bucket}:p:<phone digest>``, one phone; beside ``<client>:<purpose>`` → rests of ids, oldest first."""

    STREAK = "n"
    NEXT_CALL = "r"
    OPERATOR = "o"
    CALL_LOG = "l"  # moments, oldest first
    FAILED_LOG = "b"  # [moment, address digest or ""] of failed checks, oldest first
    DIALLED_REST = "d"  # rest of the id of its latest verification without a code, for any client
    ASKED_CALL = "w"  # "<rest of the id>:<number>" of the call that the provider is being asked for


LETTERS = {
    name: letter
    for kind in (RecordField, CallField, PhoneField)
    for name, letter in vars(kind).items()
    if name.isupper()
}


def write_consent(consent: Consent) -> str:
    """Return a consent as it is stored."""
    return f"{to_ms(consent.at)} {consent.version}"


def read_consent(text: str) -> Consent:
    """Parse the result of ``write_consent``."""
    moment, _, version = text.partition(" ")
    return Consent(version, from_ms(moment))


def ms(duration: timedelta) -> int:
    """Return a duration in milliseconds."""
    return duration // _MS


def to_ms(moment: datetime) -> int:
    """Return a moment in milliseconds since 1970."""
    return ms(moment - _EPOCH)


def from_ms(moment: str | bytes | int) -> datetime:
    """Return the moment that is so many milliseconds after 1970."""
    return datetime.fromtimestamp(int(moment) / 1000, UTC)


def seconds(wait: int) -> int:
    """Round milliseconds up to seconds, at least one: a caller who waits that long is not refused again."""
    return max(1, ceil(wait / 1000))
