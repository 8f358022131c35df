"""Verification tokens over HTTP: a right check returns a token, anyone can verify it, and it is redeemed once."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import KeySet
from redis.asyncio import Redis

from app.api_keys import ApiKeys
from app.container import Container, open_container
from app.main import create_api
from app.sandbox.network import VirtualNetwork
from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.store.tokens import RedisRedemptions
from app.tokens import TokenSigner, generate_keys
from app.verification.phone import Phone
from tests.integration.conftest import run, sandbox_settings
from tests.integration.test_verification import check, hear, start, wrong

PHONE = "+79001234567"
VERIFICATION_ID = "vrf_0a11b22c33d44e55f667788"
KEYS = generate_keys()
API_KEYS = {"shop": "not-a-real-key", "bank": "nor-is-this"}


async def verify(api: httpx.AsyncClient, purpose: str = "password_reset") -> dict[str, Any]:
    """Start a verification and check the code that the phone heard; return the response."""
    verification_id = (await start(api, PHONE, purpose=purpose)).json()["verification_id"]
    answer: dict[str, Any] = (await check(api, verification_id, await hear(api, PHONE))).json()
    return answer


async def redeem(api: httpx.AsyncClient, token: str, purpose: str = "password_reset") -> httpx.Response:
    return await api.post("/verify/token/redeem", json={"token": token, "purpose": purpose})


def status_and_slug(answer: httpx.Response) -> tuple[int, str]:
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
    assert status_and_slug(second) == (409, "token-already-redeemed")


async def test_of_fifty_concurrent_redemptions_one_succeeds(api: httpx.AsyncClient) -> None:
    token = (await verify(api))["token"]

    answers = await asyncio.gather(*[redeem(api, token) for _ in range(50)])

    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 49}


async def test_a_wrong_check_gives_no_token(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)

    assert "token" not in (await check(api, verification_id, wrong(code))).json()
    await check(api, verification_id, code)
    assert "token" not in (await api.get(f"/verify/{verification_id}")).json()


async def test_redeeming_with_another_purpose_fails_and_does_not_consume_the_token(api: httpx.AsyncClient) -> None:
    token = (await verify(api, "password_reset"))["token"]

    assert status_and_slug(await redeem(api, token, "login")) == (422, "token-invalid")
    assert (await redeem(api, token, "password_reset")).status_code == 200


async def test_a_third_party_can_verify_a_token_with_the_published_keys_alone(api: httpx.AsyncClient) -> None:
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


async def test_the_published_keys_are_public_keys_and_can_be_cached(api: httpx.AsyncClient) -> None:
    answer = await api.get("/.well-known/jwks.json")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert {frozenset(key) for key in answer.json()["keys"]} == {
        frozenset({"kty", "crv", "x", "y", "use", "alg", "kid"})
    }


async def test_the_redis_key_of_a_redemption_expires(api: httpx.AsyncClient, redis: Redis) -> None:
    await redeem(api, (await verify(api))["token"])

    (key,) = [key for key in await redis.keys() if b":t:" in key]
    assert 600_000 < await redis.pttl(key) <= 660_000


# The routes, with given clients, keys and clock


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
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Container]]:
        keys = [(client, hashlib.sha256(key.encode()).digest()) for client, key in API_KEYS.items()]
        redemptions = RedisRedemptions(ScriptRunner(redis, timeout=5))
        async with open_container(sandbox_settings("redis://127.0.0.1:1"), VirtualNetwork()) as container:
            stores = replace(container.stores, redemptions=redemptions)
            clients = replace(container.keys, clients=ApiKeys(keys))
            yield {"container": replace(container, tokens=tokens, stores=stores, keys=clients)}

    async with run(create_api(lifespan)) as client:
        client.headers["Authorization"] = f"Bearer {API_KEYS['shop']}"
        yield client


@pytest.fixture
async def routes(tokens: TokenSigner, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(tokens, redis) as client:
        yield client


def sign(tokens: TokenSigner, client: str = "shop") -> str:
    return tokens.sign(phone=Phone(PHONE), purpose="password_reset", verification_id=VERIFICATION_ID, client=client)


async def test_all_invalid_tokens_get_the_same_response(
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
    assert status_and_slug(answers[0]) == (422, "token-invalid")
    assert await redis.keys() == []


async def test_an_expired_token_is_a_410(routes: httpx.AsyncClient, tokens: TokenSigner, clock: Clock) -> None:
    token = sign(tokens)
    clock.ahead = 3600

    assert status_and_slug(await redeem(routes, token)) == (410, "token-expired")


async def test_a_redeemed_token_that_has_expired_is_reported_as_expired(
    routes: httpx.AsyncClient, tokens: TokenSigner, clock: Clock
) -> None:
    token = sign(tokens)
    assert (await redeem(routes, token)).status_code == 200
    clock.ahead = 3600

    assert status_and_slug(await redeem(routes, token)) == (410, "token-expired")


async def test_redeeming_requires_a_valid_api_key(routes: httpx.AsyncClient, tokens: TokenSigner, redis: Redis) -> None:
    token = sign(tokens)
    routes.headers["Authorization"] = "Bearer unknown"

    assert status_and_slug(await redeem(routes, token)) == (401, "unauthorized")
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
async def test_a_validation_error_points_at_the_field_and_does_not_repeat_the_input(
    routes: httpx.AsyncClient, fields: dict[str, Any], pointer: str
) -> None:
    body = {"token": "secret", "purpose": "login", **fields}

    answer = await routes.post("/verify/token/redeem", json=body)

    assert status_and_slug(answer) == (422, "validation-failed")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert "secret" not in answer.text
    assert "xxx" not in answer.text


@pytest.mark.parametrize("missing", ["token", "purpose"])
async def test_both_fields_are_required(routes: httpx.AsyncClient, missing: str) -> None:
    body = {"token": "x", "purpose": "login"}
    del body[missing]

    answer = await routes.post("/verify/token/redeem", json=body)

    assert answer.json()["errors"] == [{"pointer": f"#/{missing}", "detail": "is required"}]


async def test_a_redis_outage_is_a_503_and_redeems_nothing(tokens: TokenSigner) -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)

    async with serve(tokens, nowhere) as routes:
        assert status_and_slug(await redeem(routes, sign(tokens))) == (503, "store-unavailable")
        assert status_and_slug(await redeem(routes, "garbage")) == (422, "token-invalid")
        assert (await routes.get("/.well-known/jwks.json")).status_code == 200
    await nowhere.aclose()
