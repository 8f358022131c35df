"""Signs outgoing messages as the Standard Webhooks specification says.

Its library (``standardwebhooks``) checks the signatures in the tests, and is not needed for these lines here.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac

_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64  # bytes of a secret, by the specification


def parse_secret(text: str) -> bytes:
    """Read a secret written as ``whsec_`` and base64. Raises ValueError, which does not repeat the value."""
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:  # binascii.Error is one, and so is what is not ASCII
        secret = b""
    if not text.startswith(_PREFIX) or not _SHORTEST <= len(secret) <= _LONGEST:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes") from None
    return secret


def sign(secret: bytes, *, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a message; ``timestamp`` is that of this attempt, in seconds since 1970."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}
