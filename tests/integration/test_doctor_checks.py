"""The checks of ``doctor``, each against a real Redis and a stand-in for the provider that is reached over HTTP."""

import resource
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from redis.asyncio import Redis

from app.cli.checks import (
    Finding,
    Result,
    _clock,
    _files,
    _persistence,
    _role,
    _round_trip,
    _version,
    check_provider,
    check_redis,
    check_settings,
)
from app.plusofon.client import PlusofonClient
from app.plusofon.sandbox import SandboxServer, VirtualNetwork, create_sandbox_app
from app.store.connection import connect
from app.store.health import RedisHealth
from app.tokens import generate_keys
from tests.integration.conftest import sandbox_settings

TOKEN = "a-made-up-token"
HEALTHY = RedisHealth(
    name="Redis 7.4.1",
    version=(7, 4, 1),
    is_replica=False,
    eviction="noeviction",
    persistence=("appendonly",),
    round_trip=timedelta(milliseconds=1),
    ahead=timedelta(),
    refused=(),
)


def of(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork()


@pytest.fixture
async def provider(network: VirtualNetwork) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(create_sandbox_app(network, user_id="7", access_token=TOKEN)) as server:
        yield server


async def ask_provider(url: str, token: str = TOKEN) -> list[Finding]:
    client = PlusofonClient(base_url=url, user_id="7", access_token=token, connect_timeout=0.2, timeout=0.5)
    async with client:
        return await check_provider(client, minimum=Decimal(10), warning=Decimal(100))


async def test_a_redis_that_is_well_is_fine_throughout_but_for_what_it_does_not_keep(redis: Redis) -> None:
    findings = await check_redis(redis, within=5)

    assert {finding.check: finding.result for finding in findings if finding.result is not Result.FINE} == {
        "redis persistence": Result.DOUBTFUL
    }
    assert await redis.dbsize() == 0


@pytest.mark.parametrize(
    ("rights", "missing"),
    [
        (["~pv:*", "&pv:*", "+@all", "-@dangerous", "+info"], ""),
        (["~pv:*", "&pv:*", "+@all", "-@scripting", "+info"], "scripts"),
        (["~other:*", "&pv:*", "+@all", "+info"], "pv:*"),
        (["~pv:*", "resetchannels", "+@all", "+info"], "PUBLISH"),
    ],
    ids=["what it advises is enough", "no scripts", "other keys", "no channels"],
)
async def test_a_user_that_may_not_do_enough_is_wrong(
    redis: Redis, redis_url: str, rights: list[str], missing: str
) -> None:
    await redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">made-up", *rights)  # type: ignore[no-untyped-call] # the library has no types here
    limited = connect(redis_url.replace("unix://", "unix://limited:made-up@"), timeout=1)
    try:
        found = of(await check_redis(limited, within=5), "redis permissions")
    finally:
        await limited.aclose()
        await redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call] # nor here

    assert found.result is (Result.WRONG if missing else Result.FINE)
    assert missing in found.told


async def test_a_wrong_password_is_told_as_one(redis_url: str) -> None:
    stranger = connect(redis_url.replace("unix://", "unix://nobody:made-up@"), timeout=1)
    (found,) = await check_redis(stranger, within=5)
    await stranger.aclose()

    assert (found.result, found.told) == (Result.WRONG, "Redis refuses the user name or the password")


async def test_a_user_that_may_not_choose_its_database_is_sent_to_the_rights(redis: Redis, redis_url: str) -> None:
    rights = ("~pv:*", "&pv:*", "+@all", "-select")
    await redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">made-up", *rights)  # type: ignore[no-untyped-call] # the library has no types here
    limited = connect(f"{redis_url.replace('unix://', 'unix://limited:made-up@')}?db=1", timeout=1)
    try:
        (found,) = await check_redis(limited, within=5)
    finally:
        await limited.aclose()
        await redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call] # nor here

    assert (found.result, found.told) == (
        Result.WRONG,
        "Redis refuses to let the user of REDIS_URL choose its database",
    )
    assert found.advice == "Give its user the rights of docs/operations.md, section Redis."


@pytest.mark.parametrize(
    ("finding", "result"),
    [
        (_version(replace(HEALTHY, version=(6, 2, 1))), Result.WRONG),
        (_version(replace(HEALTHY, version=None)), Result.DOUBTFUL),
        (_role(replace(HEALTHY, is_replica=True)), Result.WRONG),
        (_role(replace(HEALTHY, is_replica=None)), Result.DOUBTFUL),
        (_persistence(replace(HEALTHY, persistence=())), Result.DOUBTFUL),
        (_persistence(replace(HEALTHY, persistence=None)), Result.DOUBTFUL),
        (_round_trip(replace(HEALTHY, round_trip=timedelta(milliseconds=20))), Result.DOUBTFUL),
        (_clock(replace(HEALTHY, ahead=timedelta(seconds=1))), Result.FINE),
        (_clock(replace(HEALTHY, ahead=timedelta(seconds=-5))), Result.DOUBTFUL),
        (_clock(replace(HEALTHY, ahead=timedelta(minutes=2))), Result.WRONG),
    ],
)
def test_what_redis_tells_is_judged(finding: Finding, result: Result) -> None:
    assert finding.result is result
    assert bool(finding.advice) is (result is not Result.FINE)


async def test_a_provider_that_takes_the_token_is_fine(provider: SandboxServer) -> None:
    assert {finding.result for finding in await ask_provider(provider.url)} == {Result.FINE}


async def test_a_token_that_is_refused_is_told_without_it(provider: SandboxServer) -> None:
    (found,) = await ask_provider(provider.url, token="another-made-up-token")

    assert (found.check, found.result) == ("provider", Result.WRONG)
    assert "refuses the token" in found.told
    assert "another-made-up-token" not in found.told + found.advice


async def test_a_provider_that_is_not_there_is_told() -> None:
    (found,) = await ask_provider("http://127.0.0.1:1")

    assert (found.result, found.told) == (Result.WRONG, "not reached, or its answer made no sense")


@pytest.mark.parametrize(("rub", "result"), [("9.99", Result.WRONG), ("99.99", Result.DOUBTFUL), ("100", Result.FINE)])
async def test_the_balance_is_held_against_both_bounds(
    provider: SandboxServer, network: VirtualNetwork, rub: str, result: Result
) -> None:
    network.balance = Decimal(rub)

    assert of(await ask_provider(provider.url), "balance").result is result


def test_https_is_asked_for_in_production_alone(redis_url: str) -> None:
    production = {
        "mode": "production",
        "plusofon": {"user_id": "7", "access_token": TOKEN},
        "api": {"keys": [f"shop:{'0' * 64}"]},
        "token": {"keys": generate_keys()},
    }
    in_public = {**production, "public_url": "https://verify.example"}

    assert of(list(check_settings(sandbox_settings(redis_url))), "https").result is Result.FINE
    assert of(list(check_settings(sandbox_settings(redis_url, **production))), "https").result is Result.DOUBTFUL
    assert of(list(check_settings(sandbox_settings(redis_url, **in_public))), "https").result is Result.FINE


def test_as_many_files_as_listeners_may_be_open(redis_url: str) -> None:
    settings = sandbox_settings(redis_url)

    assert _files(settings, 1024).result is Result.DOUBTFUL
    assert _files(settings, 1200).result is Result.FINE
    assert _files(settings, resource.RLIM_INFINITY).result is Result.FINE
