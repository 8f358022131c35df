"""URLs for provider callbacks. Each holds the id of its call and a MAC, so that nobody can make another."""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

from app.verification.ports import CallId

_SECRET = re.compile(r"(vrf_[0-9a-f]{1,60})\.([1-9][0-9]{0,3})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class CallbackUrls:
    """Makes the callback URLs of calls, and reads their secret parts."""

    key: bytes = field(repr=False)
    prefix: str

    def url_of(self, call_id: CallId) -> str:
        """Return the URL of a call."""
        return f"{self.prefix}{call_id.verification_id}.{call_id.call_number}.{self._mac(call_id)}"

    def read(self, secret: str) -> CallId | None:
        """Return the call that a secret belongs to, or None if it is not one of ours; compared in constant time."""
        match = _SECRET.fullmatch(secret)
        if not match:
            return None
        call_id = CallId(match[1], int(match[2]))
        return call_id if hmac.compare_digest(match[3], self._mac(call_id)) else None

    def _mac(self, call_id: CallId) -> str:
        """Return 128 bits of HMAC-SHA256 (RFC 2104, section 5, on truncation)."""
        text = f"{call_id.verification_id}.{call_id.call_number}"
        return hmac.digest(self.key, text.encode(), hashlib.sha256).hex()[:32]
