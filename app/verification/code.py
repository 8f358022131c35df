"""Codes: making them, reading what a person typed, and the keyed digests that are stored."""

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
    """Return a random code of ``length`` decimal digits, uniform, from the system's secure source; zeros may lead."""
    return f"{secrets.randbelow(10**length):0{length}d}"


def normalize_code(text: str) -> str:
    """Return the digits of a typed code; of a phone number the last four, which are the code of a flash call.

    Raise ValueError if it is neither 4 to 6 digits nor a phone number.
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
    """Computes keyed digests of codes (HMAC-SHA256), since a plain hash of six digits takes a million guesses.

    New codes are digested under the first of ``secrets``; a code to be checked is digested under each, so that codes
    from before a rotation still verify.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._keys = [derive_key(secret, "code") for secret in secrets]

    def digest(self, client: str, code: str) -> bytes:
        """Return the digest of a new code."""
        return self.candidates(client, code)[0]

    def candidates(self, client: str, code: str) -> list[bytes]:
        """Return the digests of a code to be checked, one for each key."""
        text = f"{client}\0{code}".encode()
        return [hmac.digest(key, text, hashlib.sha256) for key in self._keys]
