"""The proof through HTTP: a right check gives a token, anybody can verify it, and it is redeemed once."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import KeySet
from redis.asyncio import Redis

from app.api.auth import ApiKeys
from app.main import create_api
from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.store.tokens import RedisRedemptions
from app.tokens import TokenSigner, generate_keys
from app.verification.phone import Phone
from tests.integration.conftest import run
from tests.integration.test_verify import check, hear, start, wrong

PHONE = "+79001234567"
VERIFICATION_ID = "vrf_0a11b22c33d44e55f667788"
KEYS = generate_keys()
API_KEYS = {"shop": "not-a-real-key", "bank": "nor-is-this"}


async def verify(api: httpx.AsyncClient, purpose: str = "password_reset") -> dict[str, Any]:
    """Have a phone called and type what it hears; return the answer to the right check."""
    verification_id = (await start(api, PHONE, purpose=purpose)).json()["verification_id"]
    answer: dict[str, Any] = (await check(api, verification_id, await hear(api, PHONE))).json()
    return answer


async def redeem(api: httpx.AsyncClient, token: str, purpose: str = "password_reset") -> httpx.Response:
    return await api.post("/verify/token/redeem", json={"token": token, "purpose": purpose})


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


# The whole application


async def test_a_right_check_gives_a_token_that_is_redeemed_once(api: httpx.AsyncClient) -> None:
    checked = await verify(api)
    assert checked["token_expires_in"] == 600

    first, second = await redeem(api, checked["token"]), await redeem(api, checked["token"])

    assert first.status_code == 200
    assert first.json() == {
        "redeemed": True,
        "verification_id": checked["verification_id"],
        "phone": PHONE,
        "purpose": "password_reset",
    }
    assert told(second) == (409, "token-already-redeemed")


async def test_of_fifty_redemptions_at_once_one_succeeds(api: httpx.AsyncClient) -> None:
    token = (await verify(api))["token"]

    answers = await asyncio.gather(*[redeem(api, token) for _ in range(50)])

    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 49}


async def test_a_wrong_check_gives_no_token(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)

    assert "token" not in (await check(api, verification_id, wrong(code))).json()
    await check(api, verification_id, code)
    assert "token" not in (await api.get(f"/verify/{verification_id}")).json()


async def test_another_purpose_is_invalid_and_does_not_use_the_token_up(api: httpx.AsyncClient) -> None:
    token = (await verify(api, "password_reset"))["token"]

    assert told(await redeem(api, token, "login")) == (422, "token-invalid")
    assert (await redeem(api, token, "password_reset")).status_code == 200


async def test_a_third_party_verifies_a_token_with_the_published_keys_alone(api: httpx.AsyncClient) -> None:
    checked = await verify(api)

    published = KeySet.import_key_set((await api.get("/.well-known/jwks.json")).json())
    token = jwt.decode(checked["token"], published, algorithms=["ES256"])

    jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": "plusofon-verify"},
        aud={"essential": True, "value": "sandbox"},
        exp={"essential": True},
    ).validate(token.claims)
    assert token.claims["sub"] == PHONE
    assert token.claims["purpose"] == "password_reset"
    assert token.claims["jti"] == checked["verification_id"]
    assert token.claims["exp"] - token.claims["iat"] == checked["token_expires_in"]


async def test_the_published_keys_are_public_and_may_be_kept_for_a_while(api: httpx.AsyncClient) -> None:
    answer = await api.get("/.well-known/jwks.json")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert {frozenset(key) for key in answer.json()["keys"]} == {
        frozenset({"kty", "crv", "x", "y", "use", "alg", "kid"})
    }


async def test_what_a_redemption_leaves_in_redis_expires(api: httpx.AsyncClient, redis: Redis) -> None:
    await redeem(api, (await verify(api))["token"])

    (key,) = [key for key in await redis.keys() if b":t:" in key]
    assert 600_000 < await redis.pttl(key) <= 660_000


# The routes, with clients, keys and a clock of our own


class Clock:
    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_signer(
    keys: str = KEYS, *, issuer: str = "plusofon-verify", now: Callable[[], float] = time.time
) -> TokenSigner:
    return TokenSigner(keys, issuer=issuer, lifetime=timedelta(minutes=10), now=now)


@pytest.fixture
def tokens(clock: Clock) -> TokenSigner:
    return make_signer(now=clock)


@asynccontextmanager
async def serve(tokens: TokenSigner, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        keys = [(client, hashlib.sha256(key.encode()).digest()) for client, key in API_KEYS.items()]
        redemptions = RedisRedemptions(ScriptRunner(redis, timeout=0.2))
        yield {"tokens": tokens, "redemptions": redemptions, "api_keys": ApiKeys(keys)}

    async with run(create_api(lifespan)) as client:
        client.headers["Authorization"] = f"Bearer {API_KEYS['shop']}"
        yield client


@pytest.fixture
async def routes(tokens: TokenSigner, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(tokens, redis) as client:
        yield client


def sign(tokens: TokenSigner, client: str = "shop") -> str:
    return tokens.sign(phone=Phone(PHONE), purpose="password_reset", verification_id=VERIFICATION_ID, client=client)


async def test_forged_foreign_and_meant_for_another_purpose_look_the_same(
    routes: httpx.AsyncClient, tokens: TokenSigner, redis: Redis
) -> None:
    attempts = [
        (sign(make_signer(generate_keys())), "password_reset"),
        (sign(make_signer(issuer="staging")), "password_reset"),
        (sign(tokens, client="bank"), "password_reset"),
        (sign(tokens), "login"),
        ("garbage", "password_reset"),
        (sign(tokens)[:-2], "password_reset"),
    ]

    answers = [await redeem(routes, *attempt) for attempt in attempts]

    bodies = [{**answer.json(), "instance": ""} for answer in answers]
    assert bodies == [bodies[0]] * len(attempts)
    assert told(answers[0]) == (422, "token-invalid")
    assert await redis.keys() == []


async def test_an_expired_token_is_gone(routes: httpx.AsyncClient, tokens: TokenSigner, clock: Clock) -> None:
    token = sign(tokens)
    clock.ahead = 3600

    assert told(await redeem(routes, token)) == (410, "token-expired")


async def test_of_a_token_that_was_redeemed_and_expired_it_is_told_that_it_expired(
    routes: httpx.AsyncClient, tokens: TokenSigner, clock: Clock
) -> None:
    token = sign(tokens)
    assert (await redeem(routes, token)).status_code == 200
    clock.ahead = 3600

    assert told(await redeem(routes, token)) == (410, "token-expired")


async def test_without_a_known_key_nothing_is_redeemed(
    routes: httpx.AsyncClient, tokens: TokenSigner, redis: Redis
) -> None:
    token = sign(tokens)
    routes.headers["Authorization"] = "Bearer unknown"

    assert told(await redeem(routes, token)) == (401, "unauthorized")
    assert await redis.keys() == []
    assert (await routes.get("/.well-known/jwks.json")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"more": 1}, "#/more"),
        ({"token": None}, "#/token"),
        ({"token": ""}, "#/token"),
        ({"token": "x" * 4097}, "#/token"),
        ({"token": {"a": 1}}, "#/token"),
        ({"purpose": "Login"}, "#/purpose"),
        ({"purpose": "l" * 33}, "#/purpose"),
    ],
    ids=range(7),
)
async def test_a_request_that_is_not_valid_names_the_field_and_repeats_nothing(
    routes: httpx.AsyncClient, fields: dict[str, Any], pointer: str
) -> None:
    body = {"token": "secret", "purpose": "login", **fields}

    answer = await routes.post("/verify/token/redeem", json=body)

    assert told(answer) == (422, "validation-failed")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert "secret" not in answer.text
    assert "xxx" not in answer.text


@pytest.mark.parametrize("missing", ["token", "purpose"])
async def test_both_fields_are_needed(routes: httpx.AsyncClient, missing: str) -> None:
    body = {"token": "x", "purpose": "login"}
    del body[missing]

    answer = await routes.post("/verify/token/redeem", json=body)

    assert answer.json()["errors"] == [{"pointer": f"#/{missing}", "detail": "is required"}]


async def test_without_redis_nothing_is_redeemed(tokens: TokenSigner) -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)

    async with serve(tokens, nowhere) as routes:
        assert told(await redeem(routes, sign(tokens))) == (503, "store-unavailable")
        assert told(await redeem(routes, "garbage")) == (422, "token-invalid")
        assert (await routes.get("/.well-known/jwks.json")).status_code == 200
    await nowhere.aclose()
