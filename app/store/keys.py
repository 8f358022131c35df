"""The names of keys in Redis, and how a verification's id and its phone lead to the same slot.

A verification's keys share the hash tag ``{bucket}``: one of 4,096 that a keyed digest of the phone is cut to. The
bucket is part of the id, so that a check by id and a check by phone both find the slot without a look-up, and the id
tells nothing about the phone.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Self

from app.verification.phone import Phone
from app.verification.policy import Allowance

_ID = re.compile(r"vrf_([0-9a-f]{3})([0-9a-f]{20})")
_RANDOM_BYTES = 10  # 80 bits: nobody guesses an id while it lives


@dataclass(frozen=True, slots=True)
class RecordName:
    """Where a verification lies: the two parts of its id, which are also the parts of its key."""

    bucket: str
    rest: str

    @property
    def key(self) -> str:
        """The record's key."""
        return f"pv:{{{self.bucket}}}:{self.rest}"

    @property
    def verification_id(self) -> str:
        """The id that callers see."""
        return f"vrf_{self.bucket}{self.rest}"

    @classmethod
    def from_id(cls, verification_id: str) -> Self | None:
        """Find the record of an id; nothing if the text cannot be one."""
        match = _ID.fullmatch(verification_id)
        return cls(*match.groups()) if match else None


@dataclass(frozen=True, slots=True)
class PhoneName:
    """Where a phone's own key lies; holds no phone in clear."""

    bucket: str
    digest: str

    @property
    def key(self) -> str:
        """The phone's key."""
        return f"pv:{{{self.bucket}}}:p:{self.digest}"

    @classmethod
    def from_phone(cls, key: bytes, phone: Phone) -> Self:
        """Name a phone by its HMAC-SHA256: of only a billion mobile numbers, a plain hash could be reversed."""
        digest = hmac.digest(key, phone.e164.encode(), hashlib.sha256).hex()
        return cls(digest[:3], digest[3:19])

    def new_record(self) -> RecordName:
        """Name a verification of this phone that does not exist yet."""
        return RecordName(self.bucket, secrets.token_hex(_RANDOM_BYTES))


def name_limit(key: bytes, allowance: Allowance) -> str:
    """Name what is counted against a limit; an address or a range of numbers is not in clear."""
    digest = hmac.digest(key, f"{allowance.limit.name}\0{allowance.subject}".encode(), hashlib.sha256).hex()
    return f"pv:{{l:{digest[:20]}}}"
