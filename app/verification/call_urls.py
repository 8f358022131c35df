"""Names of calls that go into URLs given away: whoever is told one can use it, and nobody can make another."""

import hashlib
import hmac
import re

from app.verification.ports import CallId

_SECRET = re.compile(r"(vrf_[0-9a-f]{1,60})\.([1-9][0-9]{0,3})\.([0-9a-f]{32})")


class CallbackUrls:
    """Makes and reads the secret part of a URL that belongs to one call."""

    def __init__(self, key: bytes, prefix: str) -> None:
        self._key = key
        self._prefix = prefix

    def url_of(self, name: CallId) -> str:
        """Make the URL of a call."""
        return f"{self._prefix}{name.verification_id}.{name.call_number}.{self._mac(name)}"

    def read(self, secret: str) -> CallId | None:
        """Return which call a secret belongs to, if it was made here; compared in constant time."""
        match = _SECRET.fullmatch(secret)
        if not match:
            return None
        name = CallId(match[1], int(match[2]))
        return name if hmac.compare_digest(match[3], self._mac(name)) else None

    def _mac(self, name: CallId) -> str:
        """Authenticate a name by 128 bits of HMAC-SHA256 (RFC 2104, section 5, on shortening)."""
        return hmac.digest(self._key, f"{name.verification_id}.{name.call_number}".encode(), hashlib.sha256).hex()[:32]
