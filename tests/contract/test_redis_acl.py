"""The Redis ACL of docs/operations.md: everything works with these permissions, and each of them is needed."""

import asyncio
import hashlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.main import create_app
from app.sandbox.embedded import EmbeddedServer
from app.sandbox.network import VirtualNetwork
from app.sandbox.server import SandboxServer
from app.settings import load_settings
from app.store.audit import RedisAudit
from app.store.call_following import RedisCallQueue
from app.store.connection import connect
from app.store.erasure import RedisPhoneEraser
from app.store.event_stream import RedisChanges
from app.store.fraud_guard import RedisFraudGuard
from app.store.health import examine
from app.store.idempotency import RedisIdempotency
from app.store.limits import RedisRateLimiter
from app.store.provider_account import RedisBalanceCache
from app.store.scripts import ScriptRunner
from app.store.stats import RedisStats
from app.store.tokens import RedisRedemptions
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.verification.channels import Channel
from app.verification.domain_events import LimitHit, VerificationCanceled
from app.verification.errors import RateLimited, StoreUnavailable, VerificationLocked
from app.verification.idempotency import Claim, IdempotentRequest, KeptAnswer
from app.verification.model import CallState, CallStatus, Status, WrongCode
from app.verification.phone import Phone
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall
from tests.attempts import attempts_on
from tests.outcomes import expect
from tests.policies import make_guard_rules, make_policy, make_prices
from tests.starting import start
from tests.waiting import PATIENCE, lifespan_of, until, wait_until

ROOT = Path(__file__).parents[2]
KEY = b"a key of the tests, known to all"
PASSWORD = "made-up-for-the-tests"
SECRET = "whsec_bm90LWEtcmVhbC1zZWNyZXQtMDEyMzQ1"
HOUR = timedelta(hours=1)
POLICY = make_policy(cooldowns=(timedelta(0),))
RIGHT, WRONG = b"r" * 32, b"w" * 32


(BLOCK,) = re.findall(r"```sh\n(RIGHTS=.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
RIGHTS = BLOCK.split("'")[1].split()
OPERATOR_RIGHTS = [*RIGHTS, *re.findall(r"\+\S+", BLOCK.partition('"$RIGHTS ')[2].partition('"')[0])]
SET_INFO = "+client|setinfo"  # a separate line in the document, because Redis 7.0 does not know it


def debian_redis() -> str:
    """Return the path of Debian's Redis; Debian 12 has the oldest supported version (7.0)."""
    if path := shutil.which("redis-server"):
        return path
    missing = "redis-server is needed; on Debian: apt-get install --no-install-recommends redis-server"
    if os.environ.get("CI"):
        raise AssertionError(missing)
    pytest.skip(missing)


def is_listening(path: Path) -> bool:
    """Return whether a server takes connections; its socket exists a moment earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[str]:
    """Run Debian's Redis on a socket in ``folder``, and yield its URL."""
    path = folder / "s"
    command = [debian_redis(), *options, "--port", "0", "--unixsocket", str(path), "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: is_listening(path))
            yield f"unix://{path}"
        finally:
            server.terminate()


@pytest.fixture(scope="module", params=["embedded", "debian"])
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start a separate server, so that its ACL log contains only this user."""
    if request.param == "embedded":
        with EmbeddedServer() as server:
            yield server.url
        return
    with TemporaryDirectory() as folder, running_redis(Path(folder), "--save", "") as url:
        yield url


@pytest.fixture
async def admin(server_url: str) -> AsyncIterator[Redis]:
    client = connect(server_url, timeout=5)
    await send(client, "FLUSHALL")
    await send(client, "SCRIPT", "FLUSH")
    await create_user(client, RIGHTS)
    yield client
    await client.aclose()


async def send(redis: Redis, *words: str) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    return await redis.execute_command(*words)  # type: ignore[no-untyped-call] # the library's own


async def create_user(admin: Redis, rights: list[str], *, but: str = "") -> None:
    """Create the user again with these permissions, and clear the ACL log."""
    await send(admin, "ACL", "DELUSER", "verify")
    given = [*rights, *await newer_permissions(admin)]
    await send(
        admin, "ACL", "SETUSER", "verify", "reset", "on", f">{PASSWORD}", *(right for right in given if right != but)
    )
    await send(admin, "ACL", "LOG", "RESET")


async def newer_permissions(admin: Redis) -> list[str]:
    """Return the permission that only Redis 7.2 and later and Valkey know."""
    try:
        await send(admin, "ACL", "SETUSER", "nobody", SET_INFO)
    except ResponseError:
        return []
    return [SET_INFO]


async def refusals(admin: Redis) -> set[str]:
    """Return the commands, keys and channels that the user was denied."""
    log: list[Any] = await send(admin, "ACL", "LOG")
    entries = [entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True)) for entry in log]
    found = [{_text(name): _text(value) for name, value in entry.items()} for entry in entries]
    return {entry["object"] for entry in found if entry["username"] == "verify"}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def as_user(server_url: str) -> str:
    return f"{server_url.replace('unix://', 'unix://verify@', 1)}?password={PASSWORD}"


@asynccontextmanager
async def user(server_url: str) -> AsyncIterator[Redis]:
    client = connect(as_user(server_url), timeout=5)
    try:
        yield client
    finally:
        await client.aclose()


def new_call(number: int) -> NewCall:
    return NewCall(
        client="shop",
        phone=Phone(f"+790012345{number:02}"),
        purpose="login",
        channel=Channel.VOICE,
        code_digest=RIGHT,
        code_length=6,
        checks=5,
    )


async def verify(redis: Redis) -> None:
    """Start, resend, follow, check, lock, cancel, redeem and refund."""
    runner = ScriptRunner(redis, timeout=5)
    store = RedisVerificationStore(runner, phone_key=KEY, outbox=RedisOutbox(runner, clients={"shop"}))
    await runner.ping()
    verification = (await start(store, new_call(1), POLICY)).verification
    await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.RINGING), ref="ref", operator="mts"))
    await start(store, replace(new_call(1), resend_of=verification.id), POLICY)
    second = CallId(verification.id, 2)
    assert await store.refund(second, phone=verification.phone, client="shop", policy=POLICY)
    await store.read(verification.id, client="shop", follow=True)
    wrong, right = (CodeCheck(client="shop", candidates=[code], length=6) for code in (WRONG, RIGHT))
    checked = await store.check_by_phone(Phone("+79001234501"), "login", wrong, POLICY)
    assert expect(WrongCode, checked).checks_left == 4
    assert (await store.check_by_id(verification.id, right, POLICY)).status is Status.VERIFIED
    assert await RedisRedemptions(ScriptRunner(redis, timeout=5)).redeem(verification.id, datetime.now(UTC) + HOUR)

    canceled = (await start(store, new_call(2), POLICY)).verification
    await store.cancel("shop", canceled.id)

    locked = (await start(store, new_call(3), POLICY)).verification
    with suppress(VerificationLocked):
        for _ in range(6):
            await store.check_by_id(locked.id, wrong, POLICY)


async def protect(redis: Redis) -> None:
    """Use rate limits, the fraud guard, idempotency, the balance, the call queue and the statistics."""
    runner = ScriptRunner(redis, timeout=5)
    # The first call is judged at once.
    rules, phone = make_guard_rules(min_calls=1, maturity=-timedelta(minutes=1)), Phone("+79001234567")
    guard = RedisFraudGuard(runner, rules, key=KEY)
    limits = RedisRateLimiter(runner, key=KEY, guard=guard)
    allowances = list(POLICY.for_calls(client="shop", phone=phone, address="192.0.2.1"))
    await limits.require_room(allowances)
    reservation = await limits.acquire("00000000000a", allowances)
    await limits.refund(reservation.token, allowances)
    await limits.acquire("00000000000b", allowances)
    with pytest.raises(RateLimited):
        await limits.require_room(allowances)
    assert await guard.gauges() == {"fraud_blocks": 1}
    assert len(await guard.blocks()) == 1
    assert await guard.lift("+79001234")
    await limits.acquire("00000000000c", allowances)
    guard.succeeded(phone, "shop")
    await guard.flush()

    idempotency = RedisIdempotency(runner, key=KEY)
    request = IdempotentRequest(client="shop", route="/verify/start", key="key", body=b"{}")
    claim = await idempotency.claim(request)
    assert isinstance(claim, Claim)
    assert await idempotency.begin(claim, "note")
    await idempotency.release(claim)
    claim = await idempotency.claim(request)
    assert isinstance(claim, Claim)
    assert await idempotency.keep(claim, KeptAnswer(201, {}, b"{}"), HOUR)

    cache = RedisBalanceCache(runner)
    assert (await cache.read(HOUR)).is_reader
    await cache.write(Decimal("12.5"))

    queue = RedisCallQueue(runner, per_second=5, lease=HOUR)
    for number in range(2):
        await queue.schedule(CallId(f"vrf_{number:023x}", 1), timedelta(0))
    first, second = await queue.claim(2)
    await queue.retry(first, timedelta(0))
    await queue.lag()
    await queue.done(second.call_id)

    stats = RedisStats(runner, prices=make_prices(), zone=UTC, count_calls=lambda _: None)
    stats.observe(VerificationCanceled())
    await stats.flush()
    assert (await stats.read()).others["canceled"] == 1
    assert await limits.gauges(allowances[0]) == {"call_budget_used": 2}


async def deliver(redis: Redis) -> None:
    """Take events, retry, give up, list dead letters and resend them."""
    runner = ScriptRunner(redis, timeout=5)
    outbox = RedisOutbox(runner, clients={"shop"}, claim_after=timedelta(0), most_dead=1)
    store = RedisVerificationStore(runner, phone_key=KEY, outbox=outbox)
    await start(store, new_call(8), POLICY)
    verification = (await start(store, new_call(8), POLICY)).verification
    await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.INITIATED), ref="ref"))
    await store.cancel("shop", verification.id)

    first, second, *_ = await outbox.take(100)
    assert await outbox.set_aside(first, attempts=1, error="status 500", pause=timedelta(0))
    await outbox.set_aside(second, attempts=7, error="status 500", pause=None)
    await outbox.set_aside((await outbox.take(1))[0], attempts=7, error="status 500", pause=None)
    assert (await outbox.gauges())["webhooks_dead"] == 1
    assert len(await outbox.dead_letters()) == 1
    assert await outbox.resend_all() == 1
    for delivery in await outbox.take(100):
        await outbox.done(delivery)


async def listen(redis: Redis) -> None:
    """Listen to changes on a connection that is idle long enough to be pinged."""
    changes = RedisChanges(redis, quiet=0.05)
    store = RedisVerificationStore(ScriptRunner(redis, timeout=5), phone_key=KEY)
    verification = (await start(store, new_call(9), POLICY)).verification
    try:
        async with changes.listen(verification.id, client=verification.client) as feed:
            await asyncio.wait_for(feed.wait(), PATIENCE)
            feed.clear()
            await asyncio.sleep(0.15)
            await store.read(verification.id, client="shop", follow=True)
            await store.cancel("shop", verification.id)
            await asyncio.wait_for(feed.wait(), PATIENCE)
            feed.clear()
    finally:
        await changes.aclose()


async def look_back(redis: Redis) -> None:
    """Write a journal of attempts, find them, report those that are finished, and count refused starts."""
    runner, phone = ScriptRunner(redis, timeout=5), new_call(7).phone
    store = RedisVerificationStore(runner, phone_key=KEY, journal_kept=HOUR)
    attempts = attempts_on(runner, phone_key=KEY)
    verification = (await start(store, new_call(7), POLICY)).verification
    await store.cancel("shop", verification.id)
    assert len(await attempts.of_phone(phone, datetime.now(UTC) - HOUR)) == 1
    await attempts.report(print)
    attempts.observe(LimitHit("call_cooldown", "start", 30, phone))
    await attempts.flush()
    assert len(await attempts.refused_starts(phone, datetime.now(UTC) - HOUR)) == 1
    audit = RedisAudit(runner)
    await audit.record("operator", "DELETE /admin/guard/+79001234")
    assert len(await audit.read(before=None, most=10)) == 1


async def erase(redis: Redis) -> None:
    """Erase a phone with a verification, a kept answer, an event and an attempt."""
    runner, call = ScriptRunner(redis, timeout=5), new_call(6)
    outbox = RedisOutbox(runner, clients={"shop"}, claim_after=timedelta(0))
    store = RedisVerificationStore(runner, phone_key=KEY, outbox=outbox, journal_kept=HOUR)
    await start(store, call, POLICY)
    idempotency = RedisIdempotency(runner, key=KEY)
    claim = await idempotency.claim(IdempotentRequest(client="shop", route="/verify/start", key="erased", body=b"{}"))
    assert isinstance(claim, Claim)
    await idempotency.keep(claim, KeptAnswer(201, {}, call.phone.e164.encode()), HOUR)
    for delivery in await outbox.take(100):
        await outbox.set_aside(delivery, attempts=7, error="status 500", pause=None)
    erased = await RedisPhoneEraser(runner, attempts_on(runner, phone_key=KEY), phone_key=KEY).erase(call.phone)
    assert (erased.verifications, erased.attempts, erased.answers) == (1, 1, 1)


FLOWS = (verify, protect, deliver, listen, look_back, erase)


@pytest.mark.parametrize("flow", FLOWS)
async def test_every_script_and_subscription_works_with_the_documented_permissions(
    flow: Callable[[Redis], Any], server_url: str, admin: Redis
) -> None:
    async with user(server_url) as redis:
        await flow(redis)

    assert await refusals(admin) == set()


@pytest.mark.parametrize("right", [*RIGHTS, SET_INFO])
async def test_every_documented_permission_is_needed(right: str, server_url: str, admin: Redis) -> None:
    if right == SET_INFO and not await newer_permissions(admin):
        pytest.skip("this Redis does not know the permission")
    await create_user(admin, RIGHTS, but=right)

    async with user(server_url) as redis:
        for flow in (verify, protect, deliver, look_back, erase):
            with suppress(Exception):
                await flow(redis)
        if not await refusals(admin):  # only what following needs can be left: a subscription never completes
            with suppress(TimeoutError, StoreUnavailable):
                async with asyncio.timeout(3):
                    await listen(redis)

    assert any(name.startswith(right[1:].rstrip("*")) for name in await refusals(admin))


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "requirepass"),
        ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("MONITOR",),
        ("CLIENT", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("REPLICAOF", "192.0.2.1", "6379"),
        ("HGETALL", "other:key"),
        ("SET", "other:key", "1"),
        ("PUBLISH", "other:key", "1"),
        ("SUBSCRIBE", "other:key"),
    ],
    ids=" ".join,
)
async def test_other_commands_keys_and_channels_are_denied(
    command: tuple[str, ...], server_url: str, admin: Redis
) -> None:
    async with user(server_url) as redis:
        with pytest.raises(NoPermissionError):
            await send(redis, *command)


async def test_a_loaded_script_has_only_the_permissions_of_the_user(server_url: str, admin: Redis) -> None:
    """The user may load scripts, but they run with the user's permissions."""
    async with user(server_url) as redis:
        for source in ("return redis.call('FLUSHALL')", "return redis.call('HGETALL', 'other:key')"):
            sha = await redis.script_load(source)
            with pytest.raises(ResponseError, match=r"(?i)no permissions|user executing the script can't"):
                await redis.evalsha(sha, 0)


def test_every_command_used_by_a_script_is_documented() -> None:
    for file in (ROOT / "app" / "store" / "lua").rglob("*.lua"):
        used = re.findall(r"(?:redis\.p?call|in_group)\('([A-Z]+)'", file.read_text())
        assert {name.lower() for name in used} <= {right[1:].partition("|")[0] for right in RIGHTS}, file.name


def pasted(folder: Path, block: str = BLOCK) -> list[list[str]]:
    """Run the document's shell code with a redis-cli that only records its arguments."""
    stand_in = folder / "redis-cli"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s " "$@" >> {folder}/called\necho >> {folder}/called\n')
    stand_in.chmod(0o755)
    subprocess.run(["sh", "-eu", "-c", block], env={"PATH": f"{folder}:{os.environ['PATH']}"}, check=True)
    return [call.split() for call in (folder / "called").read_text().splitlines()]


async def test_the_documented_commands_create_both_users(admin: Redis, tmp_path: Path) -> None:
    of_service, of_operator = pasted(tmp_path)

    assert of_service == ["ACL", "SETUSER", "verify", "reset", "on", ">the-password", *RIGHTS]
    assert of_operator == ["ACL", "SETUSER", "verify-operator", "reset", "on", ">another-password", *OPERATOR_RIGHTS]
    for call in (of_service, of_operator):
        assert await send(admin, *call) == b"OK"


def test_the_document_has_the_additional_permission_of_newer_servers() -> None:
    document = (ROOT / "docs" / "operations.md").read_text()
    for name in ("verify", "verify-operator"):
        assert f"redis-cli ACL SETUSER {name} '{SET_INFO}'\n" in document
    assert SET_INFO not in RIGHTS


@pytest.mark.parametrize(("with_file", "save"), [(True, ("ACL", "SAVE")), (False, ("CONFIG", "REWRITE"))])
async def test_users_are_kept_over_a_restart_as_documented(
    tmp_path: Path, *, with_file: bool, save: tuple[str, str]
) -> None:
    configuration = tmp_path / "redis.conf"
    configuration.write_text('save ""\n' + (f"aclfile {tmp_path}/users.acl\n" if with_file else ""))
    (tmp_path / "users.acl").touch()
    for is_new in (True, False):
        with running_redis(tmp_path, str(configuration)) as url:
            client = connect(url, timeout=5)
            if is_new:
                await send(client, "ACL", "SETUSER", "verify", "reset", "on", f">{PASSWORD}", *RIGHTS)
                assert await send(client, *save) == b"OK"
            else:
                assert b"verify" in await send(client, "ACL", "USERS")
            await client.aclose()
        (tmp_path / "s").unlink(missing_ok=True)


async def test_the_operator_user_may_also_inspect_the_server(server_url: str, admin: Redis) -> None:
    await create_user(admin, OPERATOR_RIGHTS)

    async with user(server_url) as redis:
        for flow in FLOWS:
            await flow(redis)
        health = await examine(redis, timeout=PATIENCE)
        with pytest.raises(NoPermissionError):
            await redis.flushall()

    assert (health.eviction, health.persistence, health.refused) == ("noeviction", (), ())
    assert await refusals(admin) == {"flushall"}


async def test_the_whole_service_runs_with_the_documented_permissions(server_url: str, admin: Redis) -> None:
    network, events = VirtualNetwork(pace=0.02), list[str]()

    async def receive(request: Request) -> Response:
        events.append((await request.json())["type"])
        return Response(status_code=204)

    receiver = Starlette(routes=[Route("/hook", receive, methods=["POST"])])
    async with SandboxServer(receiver) as hook:
        settings = load_settings(
            mode="sandbox",
            redis={"url": as_user(server_url)},
            clients={"sandbox": {"webhook_url": f"{hook.url}/hook", "webhook_secret": SECRET}},
            admin={"keys": [f"me:{hashlib.sha256(b'admin').hexdigest()}"]},
        )
        async with (
            lifespan_of(create_app(settings, network)) as manager,
            httpx.AsyncClient(transport=httpx.ASGITransport(manager.app), base_url="http://verify") as api,
        ):
            await use(api, network)
            await until(lambda: "verification.canceled" in events and "call.status_changed" in events)

    assert {"verification.created", "verification.verified", "verification.canceled"} <= set(events)
    assert await refusals(admin) == set()


async def use(api: httpx.AsyncClient, network: VirtualNetwork) -> None:
    """Send the requests of a client and of an operator over HTTP."""
    body = {"phone": "+79001234567", "channel": "voice", "client_ip": "192.0.2.1"}
    key = {"Idempotency-Key": "one"}
    first = (await api.post("/verify/start", json=body, headers=key)).json()
    assert (await api.post("/verify/start", json=body, headers=key)).json() == first
    assert (await api.post("/verify/start", json=body)).status_code == 429
    await until(lambda: bool(network.calls_of("+79001234567")[-1].heard))
    code = str(network.calls_of("+79001234567")[-1].heard)
    guess = {"verification_id": first["verification_id"], "code": code, "client_ip": "192.0.2.1"}
    assert not (await api.post("/verify/check", json={**guess, "code": f"{(int(code) + 1) % 10**6:06}"})).json()[
        "verified"
    ]
    token = (await api.post("/verify/check", json=guess)).json()["token"]
    story = await api.get(f"/verify/{first['verification_id']}/events")
    assert '"status":"verified"' in story.text
    proof = {"token": token, "purpose": "phone_verification"}
    assert (await api.post("/verify/token/redeem", json=proof)).json()["redeemed"]

    for phone, channel in (("+79001234568", "flash_call"), ("+79001234569", "reverse_call")):
        other = (await api.post("/verify/start", json={"phone": phone, "channel": channel})).json()
        assert (await api.post(f"/verify/{other['verification_id']}/cancel")).json()["status"] == "canceled"
    admin = {"Authorization": "Bearer admin"}
    assert (await api.get("/admin/guard", headers=admin)).status_code == 200
    assert (await api.delete("/admin/guard/+79001234", headers=admin)).status_code == 404
    assert (await api.get("/provider/account", headers=admin)).json()["balance_rub"] > 0
    assert (await api.get("/admin/webhooks/failed", headers=admin)).json() == {"events": []}
    erased = await api.post("/admin/phones/erase", json={"phone": "+79001234569"}, headers=admin)
    assert erased.json()["verifications"] == 1
    assert (await api.get("/readyz")).status_code == 200
