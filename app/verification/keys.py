"""Keys: one secret of the settings, and a key of its own for each use."""

import hashlib
import hmac


def derive_key(secret: bytes, label: str) -> bytes:
    """Return the 32-byte key for one use of a secret, so that no two uses share a key (NIST SP 800-108, HMAC)."""
    return hmac.digest(secret, label.encode(), hashlib.sha256)
