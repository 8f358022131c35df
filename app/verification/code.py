"""The code a person hears: how it is made, read back, and turned into the digest that is kept."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

from app.verification.keys import derive_key
from app.verification.typed_text import read_digits

MIN_LENGTH = 4
MAX_LENGTH = 6  # the provider speaks at most six digits

_CODE = re.compile(rf"[0-9]{{{MIN_LENGTH},{MAX_LENGTH}}}")
# A calling number in full: international (E.164), or Russian or Kazakh with 8, 7 or nothing before its ten digits.
_CALLER = re.compile(r"(?:\+[0-9]{6,11}|[78]?[3-9][0-9]{5})([0-9]{4})")


def make_code(length: int) -> str:
    """Draw a code of ``length`` decimal digits, uniformly and from the system's secure source; zeros may lead."""
    return f"{secrets.randbelow(10**length):0{length}d}"


def normalize_code(text: str) -> str:
    """Return the digits of a typed code; of a whole phone number its last four, which are the code of a flash call.

    Raises:
        ValueError: it is neither 4 to 6 digits nor a phone number.

    """
    try:
        digits = read_digits(text)
    except ValueError:
        digits = ""
    if caller := _CALLER.fullmatch(digits):
        return caller[1]
    if not _CODE.fullmatch(digits):
        raise ValueError(f"a code is {MIN_LENGTH} to {MAX_LENGTH} digits")
    return digits


class CodeDigester:
    """Turns codes into keyed digests (HMAC-SHA256): a plain hash of six digits is a million guesses, no hash at all.

    New codes are digested under the first of ``secrets``; a code to be checked is digested under each, so that
    codes given before a rotation still verify. The store binds the digest to the verification it was made for.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._keys = [derive_key(secret, "code") for secret in secrets]

    def digest(self, client: str, code: str) -> bytes:
        """Digest a new code."""
        return _digest(self._keys[0], client, code)

    def candidates(self, client: str, code: str) -> list[bytes]:
        """Digest a code to be checked: one candidate for each key it may have been made under."""
        return [_digest(key, client, code) for key in self._keys]


def _digest(key: bytes, client: str, code: str) -> bytes:
    return hmac.digest(key, f"{client}\0{code}".encode(), hashlib.sha256)
