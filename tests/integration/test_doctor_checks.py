"""The checks of ``doctor``, against a real Redis and a fake provider over HTTP."""

import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import httpx
import pytest
from redis.asyncio import Redis

from app.cli.checks import Finding, Result, _grade_configuration, _grade_connection, check_redis
from app.cli.doctor import _files, check_settings
from app.cli.provider import check_provider
from app.providers.http import make_transport
from app.providers.plusofon.client import PlusofonClient
from app.sandbox.network import VirtualNetwork
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.server import SandboxServer
from app.store.connection import connect
from app.store.health import RedisHealth
from app.tokens import generate_keys
from tests.contract.test_plusofon_faults import Conversation, NoAddress, answer_each, asking, serving, untrusted_tls
from tests.integration.conftest import sandbox_settings
from tests.provider_options import http_options

pytestmark = pytest.mark.standalone  # one server; test_sentinel_doctor.py and test_cluster_doctor.py are about several

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


def finding_of(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork()


@pytest.fixture
async def provider(network: VirtualNetwork) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(create_sandbox_app(network, user_id="7", access_token=TOKEN)) as server:
        yield server


async def ask_provider(url: str, token: str = TOKEN, **how: float | httpx.AsyncBaseTransport) -> list[Finding]:
    client = PlusofonClient(base_url=url, user_id="7", access_token=token, **http_options(**how))
    async with client:
        return await check_provider(client, minimum=Decimal(10), warning=Decimal(100))


async def test_a_healthy_redis_without_persistence_gets_one_warning(redis: Redis) -> None:
    findings = await check_redis(redis, timeout=5)

    assert {finding.check: finding.result for finding in findings if finding.result is not Result.FINE} == {
        "redis persistence": Result.DOUBTFUL
    }
    assert await redis.dbsize() == 0


@pytest.mark.parametrize(
    ("rights", "missing"),
    [
        (["~pv*", "&pv*", "+@all", "-@dangerous", "+info"], ""),
        (["~pv*", "&pv*", "+@all", "-@scripting", "+info"], "scripts"),
        (["~other:*", "&pv*", "+@all", "+info"], "pv*"),
        (["~pv*", "resetchannels", "+@all", "+info"], "PUBLISH"),
    ],
    ids=["recommended rights", "no scripts", "other keys", "no channels"],
)
async def test_missing_redis_permissions_are_an_error(
    redis: Redis, redis_url: str, rights: list[str], missing: str
) -> None:
    await redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">made-up", *rights)  # type: ignore[no-untyped-call] # the library has no types here
    limited = connect(redis_url.replace("unix://", "unix://limited:made-up@"), timeout=5)
    try:
        found = finding_of(await check_redis(limited, timeout=5), "redis permissions")
    finally:
        await limited.aclose()
        await redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call] # nor here

    assert found.result is (Result.WRONG if missing else Result.FINE)
    assert missing in found.message


async def test_a_wrong_redis_password_is_reported(redis_url: str) -> None:
    unknown_user = connect(redis_url.replace("unix://", "unix://nobody:made-up@"), timeout=5)
    (found,) = await check_redis(unknown_user, timeout=5)
    await unknown_user.aclose()

    assert (found.result, found.message) == (Result.WRONG, "Redis refuses the user name or the password")


async def test_a_redis_user_that_may_not_select_its_database_is_referred_to_the_docs(
    redis: Redis, redis_url: str
) -> None:
    rights = ("~pv*", "&pv*", "+@all", "-select")
    await redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">made-up", *rights)  # type: ignore[no-untyped-call] # the library has no types here
    limited = connect(f"{redis_url.replace('unix://', 'unix://limited:made-up@')}?db=1", timeout=5)
    try:
        (found,) = await check_redis(limited, timeout=5)
    finally:
        await limited.aclose()
        await redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call] # nor here

    assert (found.result, found.message) == (
        Result.WRONG,
        "Redis refuses to let the user of REDIS_URL choose its database",
    )
    assert found.advice == "Give its user the rights of docs/operations.md, section Redis."


@pytest.mark.parametrize(
    ("check", "health", "result"),
    [
        ("redis", replace(HEALTHY, version=(6, 2, 1)), Result.WRONG),
        ("redis", replace(HEALTHY, version=None), Result.DOUBTFUL),
        ("redis role", replace(HEALTHY, is_replica=True), Result.WRONG),
        ("redis role", replace(HEALTHY, is_replica=None), Result.DOUBTFUL),
        ("redis persistence", replace(HEALTHY, persistence=()), Result.DOUBTFUL),
        ("redis persistence", replace(HEALTHY, persistence=None), Result.DOUBTFUL),
        ("redis round trip", replace(HEALTHY, round_trip=timedelta(milliseconds=20)), Result.DOUBTFUL),
        ("clock", replace(HEALTHY, ahead=timedelta(seconds=1)), Result.FINE),
        ("clock", replace(HEALTHY, ahead=timedelta(seconds=-5)), Result.DOUBTFUL),
        ("clock", replace(HEALTHY, ahead=timedelta(minutes=2)), Result.WRONG),
    ],
)
def test_each_fact_about_redis_is_graded(check: str, health: RedisHealth, result: Result) -> None:
    finding = finding_of([*_grade_configuration(health), *_grade_connection(health)], check)
    assert finding.result is result
    assert bool(finding.advice) is (result is not Result.FINE)


async def test_a_provider_that_accepts_the_token_passes(provider: SandboxServer) -> None:
    assert {finding.result for finding in await ask_provider(provider.url)} == {Result.FINE}


async def test_a_rejected_token_is_reported_but_not_shown(provider: SandboxServer) -> None:
    (found,) = await ask_provider(provider.url, token="another-made-up-token")

    assert (found.check, found.result) == ("provider", Result.WRONG)
    assert "refuses the token" in found.message
    assert "another-made-up-token" not in found.message + found.advice


@pytest.mark.parametrize(("rub", "result"), [("9.99", Result.WRONG), ("99.99", Result.DOUBTFUL), ("100", Result.FINE)])
async def test_the_balance_is_compared_with_the_minimum_and_the_warning_level(
    provider: SandboxServer, network: VirtualNetwork, rub: str, result: Result
) -> None:
    network.balance = Decimal(rub)

    assert finding_of(await ask_provider(provider.url), "balance").result is result


def test_https_is_recommended_in_production_only(redis_url: str) -> None:
    production = {
        "mode": "production",
        "plusofon": {"user_id": "7", "access_token": TOKEN},
        "api": {"keys": [f"shop:{'0' * 64}"]},
        "token": {"keys": generate_keys()},
    }
    in_public = {**production, "public_url": "https://verify.example"}

    assert finding_of(list(check_settings(sandbox_settings(redis_url))), "https").result is Result.FINE
    assert (
        finding_of(list(check_settings(sandbox_settings(redis_url, **production))), "https").result is Result.DOUBTFUL
    )
    assert finding_of(list(check_settings(sandbox_settings(redis_url, **in_public))), "https").result is Result.FINE


def test_the_limit_on_open_files_must_allow_for_all_listeners(redis_url: str) -> None:
    settings = sandbox_settings(redis_url)

    assert _files(settings, 1024).result is Result.DOUBTFUL
    assert _files(settings, 1200).result is Result.FINE
    assert _files(settings, resource.RLIM_INFINITY).result is Result.FINE


def _refused() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


async def test_a_refused_connection_to_the_provider_has_its_own_message() -> None:
    (found,) = await ask_provider(_refused())
    assert (found.result, found.message) == (Result.WRONG, "not reached: the connection was refused")


async def test_a_provider_name_missing_in_dns_has_its_own_message() -> None:
    transport = asking(NoAddress())
    (found,) = await ask_provider("http://plusofon.test", transport=transport)
    assert (found.result, found.message) == (Result.WRONG, "not reached: its name is not found in the DNS")


async def test_a_connection_timeout_to_the_provider_has_its_own_message() -> None:
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # a full backlog swallows connections as a firewall does
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        (found,) = await ask_provider(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.2)
    assert found.result is Result.WRONG
    assert found.message == "not reached: no connection was made in time (PLUSOFON_CONNECT_TIMEOUT_SECONDS)"
    assert "firewall" in found.advice


async def test_an_untrusted_certificate_of_the_provider_has_its_own_message() -> None:
    async with serving(answer_each, tls=untrusted_tls()) as server:
        (found,) = await ask_provider(f"https://127.0.0.1:{server.port}")
    assert found.message == (
        "not reached: TLS failed, for its certificate is not trusted (unable to get local issuer certificate)"
    )
    assert "OUTBOUND_CA_FILE" in found.advice


async def test_a_provider_without_tls_has_its_own_message() -> None:
    async def speak(conversation: Conversation) -> None:
        await conversation.read_some()
        await conversation.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(speak) as server:
        (found,) = await ask_provider(f"https://127.0.0.1:{server.port}")
    assert found.message.startswith("not reached: TLS failed (")


async def test_a_response_timeout_of_the_provider_has_its_own_message() -> None:
    async def swallow(conversation: Conversation) -> None:
        await conversation.wait_until_closed()

    async with serving(swallow) as server:
        (found,) = await ask_provider(server.url, connect_timeout=0.5, timeout=1)
    assert found.message == "connected, but no answer came in time (PLUSOFON_TIMEOUT_SECONDS)"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b""]
)
async def test_an_invalid_response_of_the_provider_has_its_own_message(answer: bytes) -> None:
    async def reply(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.send(answer)

    async with serving(reply) as server:
        (found,) = await ask_provider(server.url)
    assert found.message.startswith("connected, but its answer made no sense (")
    assert TOKEN not in found.message + found.advice


async def test_a_provider_that_answers_429_counts_as_reached() -> None:
    async def reply(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.answer(b"{}", status=b"429 Too Many Requests")

    async with serving(reply) as server:
        (found,) = await ask_provider(server.url)
    assert found.message == "reached, but it takes no requests now"


@pytest.mark.parametrize(("status", "advice"), [(407, "user and password"), (403, "allow the host")])
async def test_a_proxy_that_rejects_the_connection_has_its_own_message(status: int, advice: str) -> None:
    async def refuse(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.send(b"HTTP/1.1 %d No\r\n\r\n" % status)

    async with serving(refuse) as proxy:
        (found,) = await ask_provider("https://restapi.plusofon.test", transport=make_transport(proxy=proxy.url))
    assert found.message == f"not reached: the proxy refuses to connect (status {status})"
    assert advice in found.advice


async def test_an_unreachable_proxy_has_its_own_message() -> None:
    (found,) = await ask_provider("https://restapi.plusofon.test", transport=make_transport(proxy=_refused()))
    assert found.message == "not reached: the proxy is not reached (Connection refused)"
