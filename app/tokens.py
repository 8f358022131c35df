"""Proof tokens: JWTs (RFC 7519) signed with ES256, whose public keys are a JWK Set (RFC 7517)."""

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeyParameters, KeySet
from joserfc.jws import JWSRegistry
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from app.verification.errors import TokenExpired, TokenInvalid
from app.verification.model import Proof
from app.verification.phone import Phone

_ALGORITHM = "ES256"
_REGISTRY = JWSRegistry(algorithms=[_ALGORITHM])
_ECDSA, _NUMBER_BYTES = ECDSA(SHA256()), 32  # each of the two numbers of a signature
_MAX_LENGTH = 4096  # characters; a token of ours has about 400
_MAX_KID_LENGTH = 64
_NO_KEYS = "must be a private EC key on P-256 as JSON (JWK), or a JWK Set of them; `plusofon-verify keygen` makes one"
_LEEWAY = timedelta(seconds=30)  # between the clocks of two instances

_LAST_SECOND = int(datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp())
_Moment = Annotated[int, Field(ge=0, le=_LAST_SECOND)]  # a NumericDate


class _Claims(BaseModel):
    """The claims of a token. Unknown ones are ignored (RFC 7519, section 4): a newer version may add some."""

    model_config = ConfigDict(strict=True, frozen=True)

    iss: str
    sub: Annotated[str, Field(pattern=r"^\+[1-9][0-9]{1,14}$")]
    purpose: str
    jti: str
    aud: str
    iat: _Moment
    exp: _Moment
    test: bool = False
    reference: str | None = None


class TokenSigner:
    """Signs and verifies tokens: the ProofTokens of ``app/verification/ports.py``.

    ``keys`` is a private JWK or a JWK Set, as JSON. Its first key signs; all of them verify and are published. To
    rotate the key: add the new one at the end, so that clients that cache the published keys get it; move it to the
    front; remove the old one when its last token has expired. A key that does not sign needs no private part.

    Verification follows RFC 8725: one algorithm, not chosen by the token (3.1), with keys of its type only (3.2);
    issuer, audience and type are those that ``sign`` writes (3.8, 3.9, 3.11).
    """

    def __init__(self, keys: str, *, issuer: str, lifetime: timedelta, now: Callable[[], float] = time.time) -> None:
        self._keys = read_keys(keys)
        first = self._keys.keys[0]
        assert isinstance(first, ECKey) and first.private_key  # noqa: PT018, S101 - read_keys has checked it
        self._private_key = first.private_key
        self._header = _base64url(to_json(_header(first.kid)))
        self._issuer = issuer
        self._now = now
        self.lifetime = lifetime
        self.jwks: dict[str, Any] = {**self._keys.as_dict(private=False)}

    def sign(
        self,
        *,
        phone: Phone,
        purpose: str,
        verification_id: str,
        client: str,
        reference: str | None = None,
        test: bool = False,
    ) -> str:
        """Return the token for ``client`` of a verification that succeeded; ``test`` marks that of a test number.

        The client's ``reference`` is in it, so that the proof for one order does not serve for another. Its consent is
        not: the token does not prove that.
        """
        issued_at = int(self._now())
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "sub": phone.e164,
            "purpose": purpose,
            "jti": verification_id,
            "aud": client,
            "iat": issued_at,
            "exp": issued_at + int(self.lifetime.total_seconds()),
        }
        if test:
            claims["test"] = True
        if reference is not None:
            claims["reference"] = reference
        # A JWS in compact form (RFC 7515, section 7.1; RFC 7518, section 3.4): the library takes as long as to sign.
        signed = self._header + b"." + _base64url(to_json(claims))
        numbers = decode_dss_signature(self._private_key.sign(signed, _ECDSA))
        signature = b"".join([number.to_bytes(_NUMBER_BYTES, "big") for number in numbers])
        return (signed + b"." + _base64url(signature)).decode()

    def verify(self, token: str, *, client: str) -> Proof:
        """Return the proof in a token of this service for this client. Raise TokenInvalid or TokenExpired.

        TokenInvalid has no cause, which would contain the phone.
        """
        if len(token) > _MAX_LENGTH:
            raise TokenInvalid
        try:
            decoded = jwt.decode(token, self._keys, registry=_REGISTRY)
            claims = _Claims.model_validate(decoded.claims)
        except (JoseError, RecursionError, TypeError, ValueError):
            raise TokenInvalid from None
        if decoded.header != _header(decoded.header.get("kid")) or (claims.iss, claims.aud) != (self._issuer, client):
            raise TokenInvalid
        if self._now() >= claims.exp + _LEEWAY.total_seconds():
            raise TokenExpired
        return Proof(
            phone=Phone(claims.sub),
            purpose=claims.purpose,
            verification_id=claims.jti,
            expires_at=datetime.fromtimestamp(claims.exp, UTC),
            test=claims.test,
            reference=claims.reference,
        )


def _base64url(content: bytes) -> bytes:
    return urlsafe_b64encode(content).rstrip(b"=")


def generate_keys() -> str:
    """Return a new private key for ``TokenSigner``: a JWK in one line."""
    return json.dumps(ECKey.generate_key("P-256", auto_kid=True).as_dict(private=True), separators=(",", ":"))


def _header(kid: str | None) -> dict[str, Any]:
    return {"typ": "JWT", "alg": _ALGORITHM, "kid": kid}


def read_keys(text: str) -> KeySet:
    """Parse the keys, the one that signs first. Raise ValueError, without a cause, which would contain a key."""
    try:
        data = json.loads(text)
        keys = [_read_key(item) for item in data.get("keys", [data])]
        keys[0].check_key_op("sign")
    except (JoseError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise ValueError(_NO_KEYS) from None
    kids = {key.kid or "" for key in keys}
    if len(kids) < len(keys) or max(map(len, kids)) > _MAX_KID_LENGTH:
        raise ValueError(f"must have a kid of its own for each key, of at most {_MAX_KID_LENGTH} characters")
    return KeySet([*keys])


def _read_key(data: dict[str, Any]) -> ECKey:
    """Parse one key without its unknown members, which must not be published; its thumbprint may be its ``kid``."""
    given = ECKey.import_key(data)
    _REGISTRY.get_alg(_ALGORITHM).check_key(given)
    parameters: KeyParameters = {"use": "sig", "alg": _ALGORITHM}
    if given.kid:
        parameters["kid"] = given.kid
    key = ECKey.import_key(given.raw_value, parameters)
    key.ensure_kid()
    return key
