"""The code a person hears: how it is made, read back, and turned into the digest that is kept."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

MIN_LENGTH = 4
MAX_LENGTH = 6  # the provider speaks at most six digits

_SEPARATORS = re.compile(r"[\s\-\u2010-\u2015\u2212]+")
_CODE = re.compile(rf"[0-9]{{{MIN_LENGTH},{MAX_LENGTH}}}")


def make_code(length: int) -> str:
    """Draw a code of ``length`` decimal digits, uniformly and from the system's secure source; zeros may lead."""
    return f"{secrets.randbelow(10**length):0{length}d}"


def normalize_code(text: str) -> str:
    """Drop the spaces and dashes that people put into a code.

    Raises:
        ValueError: what remains is not 4 to 6 digits.

    """
    code = _SEPARATORS.sub("", text)
    if not _CODE.fullmatch(code):
        msg = f"a code is {MIN_LENGTH} to {MAX_LENGTH} digits"
        raise ValueError(msg)
    return code


def derive_key(secret: bytes, label: str) -> bytes:
    """Make the 32-byte key for one use from a secret, so that no two uses share a key (NIST SP 800-108, HMAC)."""
    return hmac.digest(secret, label.encode(), hashlib.sha256)


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
