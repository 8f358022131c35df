"""The names of keys in Redis.

The keys of a verification and of its phone share the hash tag ``{bucket}``: one of 4,096, from a keyed digest of the
phone. The bucket is part of the id, so a check by id and a check by phone both find the slot without a look-up, and the
id says nothing about the phone.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from app.verification.phone import Phone
from app.verification.policy import Allowance

_ID = re.compile(r"vrf_([0-9a-f]{3})([0-9a-f]{20})")
_RANDOM_BYTES = 10  # 80 bits: an id cannot be guessed while it lives


@lru_cache(maxsize=1024)  # a start needs its names twice, and those of its client's limits are always the same
def keyed_digest(key: bytes, text: str) -> str:
    """Return the HMAC-SHA256 of a text, in hex."""
    return hmac.digest(key, text.encode(), hashlib.sha256).hex()


@dataclass(frozen=True, slots=True)
class RecordName:
    """The two parts of a verification's id, which are also the parts of its key."""

    bucket: str
    rest: str

    @property
    def key(self) -> str:
        """The key of the record."""
        return f"pv:{{{self.bucket}}}:{self.rest}"

    @property
    def verification_id(self) -> str:
        """The id that callers see."""
        return f"vrf_{self.bucket}{self.rest}"

    @classmethod
    def from_id(cls, verification_id: str) -> Self | None:
        """Return the name of an id, or none if the text cannot be an id."""
        match = _ID.fullmatch(verification_id)
        return cls(*match.groups()) if match else None


@dataclass(frozen=True, slots=True)
class PhoneName:
    """The two parts of a phone's key: HMAC-SHA256, because a plain hash of a billion mobile numbers can be reversed."""

    bucket: str
    digest: str

    @property
    def key(self) -> str:
        """The key of the phone."""
        return f"pv:{{{self.bucket}}}:p:{self.digest}"

    @classmethod
    def from_phone(cls, key: bytes, phone: Phone) -> Self:
        """Return the name of a phone."""
        digest = keyed_digest(key, phone.e164)
        return cls(digest[:3], digest[3:19])

    def new_record(self) -> RecordName:
        """Return the name of a new verification of this phone."""
        return RecordName(self.bucket, secrets.token_hex(_RANDOM_BYTES))


def name_limit(key: bytes, allowance: Allowance) -> str:
    """Return the key of a limit; an address or a range of numbers is not in clear."""
    digest = keyed_digest(key, f"{allowance.limit.name}\0{allowance.subject}")
    return f"pv:{{l:{digest[:20]}}}"
