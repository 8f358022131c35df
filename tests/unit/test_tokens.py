"""Proof tokens: their claims, validity, signature and keys, and that each is redeemed at most once."""

import base64
import hashlib
import hmac
import json
import warnings
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet, RSAKey, thumbprint

from app.tokens import TokenSigner, generate_keys
from app.verification.errors import TokenAlreadyRedeemed, TokenExpired, TokenInvalid
from app.verification.model import Proof
from app.verification.phone import Phone
from app.verification.tokens import redeem

PHONE = Phone("+79001234567")
VERIFICATION_ID = "vrf_0a11b22c33d44e55f667788"
NOW = 1_900_000_000
LIFETIME = timedelta(minutes=10)
KEYS, OTHER_KEYS = generate_keys(), generate_keys()
KID, OTHER_KID = (json.loads(keys)["kid"] for keys in (KEYS, OTHER_KEYS))


@dataclass
class Clock:
    seconds: float = NOW

    def __call__(self) -> float:
        return self.seconds


def signer(keys: str = KEYS, **arguments: Any) -> TokenSigner:  # noqa: ANN401 - arguments of a TokenSigner
    defaults = {"issuer": "plusofon-verify", "lifetime": timedelta(minutes=10), "now": Clock()}
    return TokenSigner(keys, **{**defaults, **arguments})


def sign(tokens: TokenSigner, *, client: str = "shop", purpose: str = "login") -> str:
    return tokens.sign(phone=PHONE, purpose=purpose, verification_id=VERIFICATION_ID, client=client)


def key_set(*keys: str) -> str:
    return json.dumps({"keys": [json.loads(key) for key in keys]})


def public(key: str) -> str:
    return json.dumps({name: value for name, value in json.loads(key).items() if name != "d"})


def decoded(segment: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=="))
    return content


TOKEN = sign(signer())
HEADER = {"typ": "JWT", "alg": "ES256", "kid": KID}


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def forge(claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None, keys: str = KEYS) -> str:
    """Sign a token as the service does, with the given claims and header changed."""
    key = ECKey.import_key(json.loads(keys))
    right = decoded(TOKEN.split(".")[1])
    return jwt.encode({"alg": "ES256", "kid": key.kid, **(header or {})}, {**right, **(claims or {})}, key)


def signed_as_is(header: object, payload: bytes | None = None) -> str:
    """Sign any header and payload with our key, also those that the library would refuse to write."""
    claims = TOKEN.split(".")[1] if payload is None else encoded(payload)
    signing_input = f"{encoded(json.dumps(header).encode())}.{claims}"
    signature = jws.JWSRegistry.algorithms["ES256"].sign(signing_input.encode(), ECKey.import_key(json.loads(KEYS)))
    return f"{signing_input}.{encoded(signature)}"


# Claims


def test_a_token_has_exactly_these_claims_and_this_header() -> None:
    header, claims, _ = sign(signer(), purpose="password_reset").split(".")

    assert decoded(header) == {"typ": "JWT", "alg": "ES256", "kid": KID}
    assert decoded(claims) == {
        "iss": "plusofon-verify",
        "sub": "+79001234567",
        "purpose": "password_reset",
        "jti": VERIFICATION_ID,
        "aud": "shop",
        "iat": NOW,
        "exp": NOW + 600,
    }


def test_the_reference_of_a_verification_is_a_claim_and_part_of_its_proof() -> None:
    tokens = signer()
    token = tokens.sign(
        phone=PHONE, purpose="login", verification_id=VERIFICATION_ID, client="shop", reference="Заказ 7"
    )

    assert decoded(token.split(".")[1])["reference"] == "Заказ 7"
    assert tokens.verify(token, client="shop").reference == "Заказ 7"
    assert tokens.verify(sign(tokens), client="shop").reference is None


def test_verifying_a_token_returns_its_proof() -> None:
    tokens = signer()

    assert tokens.verify(sign(tokens), client="shop") == Proof(
        phone=PHONE,
        purpose="login",
        verification_id=VERIFICATION_ID,
        expires_at=datetime.fromtimestamp(NOW, UTC) + LIFETIME,
    )


def test_a_proof_is_immutable_and_its_repr_shows_no_phone() -> None:
    tokens = signer()
    proof = tokens.verify(sign(tokens), client="shop")

    with pytest.raises(FrozenInstanceError):
        proof.purpose = "password_reset"  # type: ignore[misc] # expected to fail
    assert "+79001234567" not in repr(proof)


def test_issuer_and_lifetime_are_configurable() -> None:
    tokens = signer(issuer="https://verify.example", lifetime=timedelta(minutes=2))
    claims = decoded(sign(tokens).split(".")[1])

    assert tokens.lifetime == timedelta(minutes=2)
    assert (claims["iss"], claims["exp"] - claims["iat"]) == ("https://verify.example", 120)


def test_iat_is_a_whole_number_of_seconds() -> None:
    """A NumericDate may have a fraction (RFC 7519, section 2), but not every library reads it."""
    assert decoded(sign(signer(now=Clock(NOW + 0.9))).split(".")[1])["iat"] == NOW


# Validity


@pytest.mark.parametrize("seconds", [0, 599.9, 600, 629.9])
def test_a_token_is_valid_for_its_lifetime_and_the_leeway(seconds: float) -> None:
    assert signer(now=Clock(NOW + seconds)).verify(sign(signer()), client="shop")


@pytest.mark.parametrize("seconds", [630, 3600])
def test_a_token_expires_after_its_lifetime_and_the_leeway(seconds: float) -> None:
    with pytest.raises(TokenExpired):
        signer(now=Clock(NOW + seconds)).verify(sign(signer()), client="shop")


def test_an_expired_token_of_another_client_is_invalid_and_not_expired() -> None:
    """Otherwise a client could learn whether another client's token was ever valid."""
    with pytest.raises(TokenInvalid):
        signer(now=Clock(NOW + 3600)).verify(sign(signer(), client="bank"), client="shop")


# Forgery


@pytest.mark.parametrize("client", ["bank", "", "SHOP", "shop "])
def test_a_token_of_another_client_is_invalid(client: str) -> None:
    tokens = signer()
    with pytest.raises(TokenInvalid):
        tokens.verify(sign(tokens), client=client)


def test_a_token_of_another_issuer_with_the_same_key_is_invalid() -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(sign(signer(issuer="staging")), client="shop")


def test_a_token_signed_by_another_key_is_invalid_even_with_our_kid() -> None:
    for kid in (OTHER_KID, KID):
        with pytest.raises(TokenInvalid):
            signer().verify(forge(header={"kid": kid}, keys=OTHER_KEYS), client="shop")


@pytest.mark.parametrize("kid", ["unknown", "", 5, None, [], {}], ids=repr)
def test_a_token_with_an_unknown_kid_is_invalid(kid: object) -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(signed_as_is({**HEADER, "kid": kid}), client="shop")


def test_a_token_without_a_kid_is_invalid_even_with_a_single_key() -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(signed_as_is({"typ": "JWT", "alg": "ES256"}), client="shop")


@pytest.mark.parametrize(
    "header",
    [{"typ": "at+jwt"}, {"cty": "JWT"}, {"jku": "https://evil.example"}, {"jwk": json.loads(public(OTHER_KEYS))}],
    ids=lambda header: next(iter(header)),
)
def test_a_token_with_an_unexpected_header_is_invalid(header: dict[str, Any]) -> None:
    """A valid signature is not enough: the token may be of another kind (RFC 8725, section 3.11)."""
    with pytest.raises(TokenInvalid):
        signer().verify(forge(header=header), client="shop")


def test_the_forging_helpers_also_make_valid_tokens() -> None:
    assert signer().verify(signed_as_is(HEADER), client="shop") == signer().verify(forge(), client="shop")


@pytest.mark.parametrize("alg", ["none", "None", "", "HS256", "ES384", "RS256", None, ["ES256"]], ids=repr)
def test_a_token_with_another_algorithm_is_invalid(alg: object) -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(signed_as_is({**HEADER, "alg": alg}), client="shop")


@pytest.mark.parametrize("signature", [b"", b"\0" * 64], ids=["none", "zeros"])
def test_a_token_with_algorithm_none_is_invalid(signature: bytes) -> None:
    """``alg: none`` (RFC 8725, section 2.1)."""
    for named in ({"kid": KID}, {}):
        header = encoded(json.dumps({"typ": "JWT", "alg": "none", **named}).encode())
        with pytest.raises(TokenInvalid):
            signer().verify(f"{header}.{TOKEN.split('.')[1]}.{encoded(signature)}", client="shop")


def test_a_token_signed_by_hmac_with_the_public_key_is_invalid() -> None:
    """``HS256`` with the published key as the secret (RFC 8725, section 2.1), in every likely encoding."""
    (published,) = signer().jwks["keys"]
    key = ECKey.import_key(published)
    header = encoded(json.dumps({"typ": "JWT", "alg": "HS256", "kid": KID}).encode())
    signing_input = f"{header}.{TOKEN.split('.')[1]}"

    for secret in (key.as_pem(), key.as_pem().strip(), key.as_der(), json.dumps(published).encode(), KID.encode()):
        signature = hmac.digest(secret, signing_input.encode(), hashlib.sha256)
        with pytest.raises(TokenInvalid):
            signer().verify(f"{signing_input}.{encoded(signature)}", client="shop")


@pytest.mark.parametrize("signature", [b"\0" * 64, b"\xff" * 64, b"", b"\1"], ids=["zeros", "ones", "none", "short"])
def test_an_empty_or_constant_signature_is_invalid(signature: bytes) -> None:
    """A signature of zeros was accepted by a well-known library (CVE-2022-21449)."""
    header, claims, _ = sign(signer()).split(".")
    with pytest.raises(TokenInvalid):
        signer().verify(f"{header}.{claims}.{encoded(signature)}", client="shop")


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from("ABab01-_.=+/ \0"))
def test_a_token_with_one_changed_character_is_invalid(position: int, character: str) -> None:
    changed = TOKEN[:position] + character + TOKEN[position + 1 :]
    if changed != TOKEN:
        with pytest.raises(TokenInvalid):
            signer().verify(changed, client="shop")


@given(st.integers(0, len(TOKEN)), st.text("ABab01-_.=+/ \n\0", min_size=1, max_size=4))
def test_a_token_with_inserted_characters_is_invalid(position: int, more: str) -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(TOKEN[:position] + more + TOKEN[position:], client="shop")


@given(st.integers(0, 2), st.sampled_from(["login", "password_reset"]))
def test_a_token_made_of_parts_of_two_tokens_is_invalid(part: int, purpose: str) -> None:
    one, other = TOKEN.split("."), sign(signer(), client="bank", purpose=purpose).split(".")
    mixed = ".".join([*one[:part], other[part], *one[part + 1 :]])
    if mixed != TOKEN:
        with pytest.raises(TokenInvalid):
            signer().verify(mixed, client="shop")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
headers = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x5c", "cty"]), json_values | st.just("ES256")
)


@given(headers | json_values, st.binary(max_size=64))
def test_a_token_with_an_arbitrary_header_is_invalid(header: object, signature: bytes) -> None:
    _, claims, _ = TOKEN.split(".")
    text = f"{encoded(json.dumps(header).encode())}.{claims}.{encoded(signature)}"
    with pytest.raises(TokenInvalid):
        signer().verify(text, client="shop")


@given(st.text(max_size=40) | st.text(".ey", max_size=12) | st.text(st.characters(codec=None), max_size=8))
def test_arbitrary_text_is_an_invalid_token(text: str) -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(text, client="shop")


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b'"exp"', b"{", b"\xff", b"[" * 2500, b"{}"], ids=range(8))
def test_a_signed_payload_that_is_not_a_set_of_claims_is_invalid(payload: bytes) -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(signed_as_is(HEADER, payload), client="shop")


@pytest.mark.parametrize("claim", ["iss", "sub", "purpose", "jti", "aud", "iat", "exp"])
@pytest.mark.parametrize("value", [None, True, 1.5, ["shop"], {}, -1, 10**20, "not this"], ids=repr)
def test_a_signed_claim_of_the_wrong_type_is_invalid(claim: str, value: object) -> None:
    if claim in {"jti", "purpose"} and isinstance(value, str):
        return  # these two may be any text: redeeming compares them
    with pytest.raises(TokenInvalid):
        signer().verify(forge({claim: value}), client="shop")


@pytest.mark.parametrize("claim", ["iss", "sub", "purpose", "jti", "aud", "iat", "exp"])
def test_a_signed_token_without_a_required_claim_is_invalid(claim: str) -> None:
    claims = decoded(TOKEN.split(".")[1])
    del claims[claim]
    with pytest.raises(TokenInvalid):
        signer().verify(signed_as_is(HEADER, json.dumps(claims).encode()), client="shop")


def test_a_token_with_a_list_of_audiences_is_invalid() -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(forge({"aud": ["shop", "bank"]}), client="shop")


def test_an_unknown_claim_is_ignored() -> None:
    """RFC 7519, section 4."""
    assert signer().verify(forge({"new": "something"}), client="shop")


def test_a_token_that_is_too_long_is_invalid() -> None:
    with pytest.raises(TokenInvalid):
        signer().verify(forge({"padding": "x" * 4096}), client="shop")


def test_the_error_for_an_invalid_token_has_no_details() -> None:
    with pytest.raises(TokenInvalid) as caught:
        signer().verify(forge({"exp": "+79001234567"}), client="shop")

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not str(caught.value)


# Keys


def test_tokens_of_an_old_key_are_valid_until_it_is_removed() -> None:
    before, during, after = signer(KEYS), signer(key_set(OTHER_KEYS, KEYS)), signer(OTHER_KEYS)
    old, new = sign(before), sign(during)

    assert during.verify(old, client="shop") == during.verify(new, client="shop")
    assert after.verify(new, client="shop")
    for instance, token in ((after, old), (before, new)):
        with pytest.raises(TokenInvalid):
            instance.verify(token, client="shop")


def test_the_first_key_signs_and_all_keys_are_published_in_order() -> None:
    tokens = signer(key_set(OTHER_KEYS, KEYS))

    assert decoded(sign(tokens).split(".")[0])["kid"] == OTHER_KID
    assert [key["kid"] for key in tokens.jwks["keys"]] == [OTHER_KID, KID]


def test_a_key_that_no_longer_signs_needs_no_private_part() -> None:
    assert signer(key_set(OTHER_KEYS, public(KEYS))).verify(sign(signer(KEYS)), client="shop")


def test_published_keys_have_only_public_members() -> None:
    keys = json.dumps({**json.loads(KEYS), "p": "secret", "note": "secret", "key_ops": ["sign"], "x5u": "https://a"})

    for key in (*signer(key_set(keys, OTHER_KEYS)).jwks["keys"], *signer(keys).jwks["keys"]):
        assert set(key) == {"kty", "crv", "x", "y", "use", "alg", "kid"}
        assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")
    assert json.loads(KEYS)["d"] not in json.dumps(signer(keys).jwks)


def test_the_kid_of_a_key_defaults_to_its_thumbprint() -> None:
    """RFC 7638."""
    nameless = json.loads(KEYS)
    del nameless["kid"]
    named = json.dumps({**nameless, "kid": "2026-01"})

    (published,) = signer(json.dumps(nameless)).jwks["keys"]
    assert published["kid"] == thumbprint({name: nameless[name] for name in ("crv", "kty", "x", "y")})
    assert signer(named).jwks["keys"][0]["kid"] == "2026-01"
    assert decoded(sign(signer(named)).split(".")[0])["kid"] == "2026-01"


def test_generated_keys_are_unique_private_and_on_one_line() -> None:
    assert KEYS != OTHER_KEYS
    assert "\n" not in KEYS
    assert set(json.loads(KEYS)) == {"kty", "crv", "x", "y", "d", "kid"}
    assert signer(KEYS).verify(sign(signer(KEYS)), client="shop")


def bad_keys() -> dict[str, str]:
    key = json.loads(KEYS)
    return {
        "empty": "",
        "no JSON": KEYS[:-1],
        "no object": "[]",
        "a text": '"keys"',
        "null": "null",
        "deep": "[" * 100_000,
        "an empty object": "{}",
        "an empty set": '{"keys": []}',
        "a set of no keys": '{"keys": [5]}',
        "no set": '{"keys": 5}',
        "public": public(KEYS),
        "public first": key_set(public(KEYS), OTHER_KEYS),
        "symmetric": '{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}',
        "RSA": json.dumps(RSAKey.generate_key(2048).as_dict(private=True)),
        "another curve": json.dumps(ECKey.generate_key("P-384").as_dict(private=True)),
        "no curve at all": json.dumps({**key, "crv": "P-257"}),
        "a point off the curve": json.dumps({**key, "y": key["x"]}),
        "halves of two keys": json.dumps({**key, "d": json.loads(OTHER_KEYS)["d"]}),
        "for encryption": json.dumps({**key, "use": "enc"}),
        "for another algorithm": json.dumps({**key, "alg": "ES384"}),
        "one good, one bad": key_set(OTHER_KEYS, json.dumps({**key, "y": key["x"]})),
        "kid of another type": json.dumps({**key, "kid": 5}),
        "kid too long": json.dumps({**key, "kid": "k" * 65}),
        "the same twice": key_set(KEYS, KEYS),
        "one kid for two": key_set(KEYS, json.dumps({**json.loads(OTHER_KEYS), "kid": key["kid"]})),
    }


@pytest.mark.parametrize("keys", bad_keys().values(), ids=bad_keys())
def test_invalid_keys_are_rejected_without_showing_them(keys: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as caught:
        signer(keys)

    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True) or not caught.value.__context__
    assert json.loads(KEYS)["d"] not in str(caught.value)
    assert json.loads(KEYS)["x"] not in str(caught.value)


# Verification by other libraries


def test_the_published_keys_alone_verify_a_token() -> None:
    """As a client's backend does it: the JWK Set as JSON, and a library."""
    tokens = signer(key_set(OTHER_KEYS, KEYS))
    published = KeySet.import_key_set(json.loads(json.dumps(tokens.jwks)))
    expected = jwt.JWTClaimsRegistry(
        now=NOW + 60,
        iss={"essential": True, "value": "plusofon-verify"},
        aud={"essential": True, "value": "shop"},
        exp={"essential": True},
        purpose={"essential": True, "value": "login"},
    )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for token in (sign(tokens), sign(signer(KEYS))):
            read = jwt.decode(token, published, algorithms=["ES256"])
            expected.validate(read.claims)
            assert read.claims["sub"] == "+79001234567"


# Redemption


class FakeRedemptions:
    """Redemptions kept in a set."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    async def redeem(self, verification_id: str, expires_at: datetime) -> bool:
        first = verification_id not in self.seen
        self.seen.add(verification_id)
        return first


async def redeem_as(tokens: TokenSigner, redemptions: FakeRedemptions, token: str, purpose: str) -> Proof:
    return await redeem(tokens, redemptions, client="shop", token=token, purpose=purpose)


async def test_a_token_is_redeemed_once() -> None:
    tokens, redemptions = signer(), FakeRedemptions()

    assert (await redeem_as(tokens, redemptions, sign(tokens), "login")).phone == PHONE
    with pytest.raises(TokenAlreadyRedeemed):
        await redeem_as(tokens, redemptions, sign(tokens), "login")


async def test_redeeming_for_another_purpose_is_refused_and_does_not_redeem_the_token() -> None:
    tokens, redemptions = signer(), FakeRedemptions()

    with pytest.raises(TokenInvalid):
        await redeem_as(tokens, redemptions, sign(tokens), "password_reset")

    assert not redemptions.seen
    assert await redeem_as(tokens, redemptions, sign(tokens), "login")


async def test_redeeming_a_redeemed_token_after_its_expiry_raises_token_expired() -> None:
    clock, redemptions = Clock(), FakeRedemptions()
    tokens = signer(now=clock)
    token = sign(tokens)
    await redeem_as(tokens, redemptions, token, "login")
    clock.seconds += 3600

    with pytest.raises(TokenExpired):
        await redeem_as(tokens, redemptions, token, "login")
