"""The ``Idempotency-Key`` header over HTTP: a repeated request gets the first response and has no second effect."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.settings import Settings
from app.store.idempotency import RedisIdempotency
from app.store.layout import RecordName, name_limit
from app.store.limits import RedisRateLimiter
from app.store.verifications import RedisVerificationStore
from app.verification.errors import StoreUnavailable
from app.verification.fraud_guard import range_of
from app.verification.idempotency import Claim
from app.verification.keys import derive_key
from app.verification.model import Verification
from app.verification.phone import Phone
from tests.ageing import age
from tests.integration.conftest import PACE, keys_of_requests, run, sandbox_settings
from tests.integration.test_verification import PHONE, hear, wrong
from tests.keys import stored
from tests.limit_keys import read_limit
from tests.redis_commands import stoppable, stopped
from tests.waiting import PATIENCE, eventually, timing, until

OTHER_PHONE = "+79007654321"
KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"
SHOP, BANK = "not-a-real-key-1", "not-a-real-key-2"
CLAIMS = "pv3{i:*"
QUICK = 2.0  # seconds; shorter ones would fail what must succeed on a busy machine
COUNTING_STEPS = [(RedisRateLimiter, "acquire"), (RedisVerificationStore, "start")]  # on one server the second does it


async def post(api: httpx.AsyncClient, path: str, key: str, body: object, api_key: str = "") -> httpx.Response:
    headers = {"Idempotency-Key": key, "Authorization": f"Bearer {api_key}"}
    return await api.post(path, json=body, headers=headers)


async def start(api: httpx.AsyncClient, phone: str = PHONE, key: str = KEY) -> httpx.Response:
    return await post(api, "/verify/start", key, {"phone": phone})


async def check(api: httpx.AsyncClient, verification_id: str, code: str, key: str = KEY) -> httpx.Response:
    return await post(api, "/verify/check", key, {"verification_id": verification_id, "code": code})


async def checks_left(api: httpx.AsyncClient, verification_id: str) -> int:
    return int((await api.get(f"/verify/{verification_id}")).json()["checks_left"])


def assert_replays(again: httpx.Response, first: httpx.Response) -> None:
    assert (again.status_code, again.content) == (first.status_code, first.content)
    for name in ("Content-Type", "Content-Length", "Location"):
        assert again.headers.get(name) == first.headers.get(name)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["X-Request-ID"] != first.headers["X-Request-ID"]


def assert_problem(answer: httpx.Response, status: int, slug: str) -> None:
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
    assert "Idempotent-Replayed" not in answer.headers


async def test_a_repeated_start_gets_the_first_response_and_places_no_call(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork
) -> None:
    first = await start(api)
    await age(redis, timedelta(seconds=2))  # an answer made anew would say other seconds
    again = await start(api)

    assert (first.status_code, first.json()["calls_placed"], first.json()["expires_in"]) == (201, 1, 300)
    assert_replays(again, first)
    assert len(network.calls_of(PHONE)) == 1


async def test_a_response_with_a_key_has_the_same_form_as_one_without(api: httpx.AsyncClient) -> None:
    with_key = await start(api)
    without = await api.post("/verify/start", json={"phone": OTHER_PHONE})

    assert with_key.headers.keys() == without.headers.keys()
    assert with_key.headers["Location"] == f"/verify/{with_key.json()['verification_id']}"
    assert with_key.json()["call"] == without.json()["call"] == {"status": "initiated"}
    assert (with_key.json().keys(), with_key.json()["resend_in"]) == (without.json().keys(), 60)


async def test_the_response_of_a_start_is_kept_for_one_day(api: httpx.AsyncClient, redis: Redis) -> None:
    first = await start(api)

    await age(redis, timedelta(hours=23, minutes=59))
    assert_replays(await start(api), first)

    await age(redis, timedelta(minutes=1))
    assert (await start(api)).json()["verification_id"] != first.json()["verification_id"]


async def test_another_key_is_another_request(api: httpx.AsyncClient) -> None:
    await start(api)

    assert_problem(await start(api, key="another"), 429, "call-cooldown")


async def test_a_repeated_wrong_check_uses_only_one_check(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = wrong(await hear(api))

    first = await check(api, verification_id, code)
    for _ in range(6):
        assert_replays(await check(api, verification_id, code), first)

    assert first.json()["checks_left"] == await checks_left(api, verification_id) == 4


async def test_a_repeated_right_check_gets_the_same_success_again(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)

    first = await check(api, verification_id, code)

    assert first.json()["verified"] is True
    assert_replays(await check(api, verification_id, code), first)
    assert_problem(await check(api, verification_id, code, key="another"), 409, "verification-already-used")


async def test_a_check_by_phone_can_be_repeated(api: httpx.AsyncClient) -> None:
    await start(api)
    body = {"phone": PHONE, "code": await hear(api)}

    first = await post(api, "/verify/check", KEY, body)

    assert first.json()["verified"] is True
    assert_replays(await post(api, "/verify/check", KEY, body), first)


async def test_the_response_of_a_check_is_kept_for_five_minutes(api: httpx.AsyncClient, redis: Redis) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)
    first = await check(api, verification_id, code)

    await age(redis, timedelta(minutes=4, seconds=59))
    assert_replays(await check(api, verification_id, code), first)

    await age(redis, timedelta(seconds=1))
    assert_problem(await check(api, verification_id, code), 404, "verification-not-found")


async def test_the_same_key_can_be_used_for_a_start_and_a_check(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]

    assert (await check(api, verification_id, await hear(api))).json()["verified"] is True


async def test_the_same_key_with_another_body_is_refused(api: httpx.AsyncClient, network: VirtualNetwork) -> None:
    started = await start(api)
    verification_id = started.json()["verification_id"]
    code = await hear(api)
    await check(api, verification_id, wrong(code))

    assert_problem(await start(api, OTHER_PHONE), 422, "idempotency-key-reused")
    assert_problem(await check(api, verification_id, code), 422, "idempotency-key-reused")

    assert network.calls_of(OTHER_PHONE) == []
    assert await checks_left(api, verification_id) == 4
    assert_replays(await start(api), started)


async def test_a_body_is_compared_byte_for_byte(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": KEY, "Content-Type": "application/json"}
    compact, spaced = [json.dumps({"phone": PHONE}, separators=(",", colon)) for colon in (":", ": ")]

    first = await api.post("/verify/start", content=compact, headers=headers)

    assert_replays(await api.post("/verify/start", content=compact, headers=headers), first)
    assert_problem(await api.post("/verify/start", content=spaced, headers=headers), 422, "idempotency-key-reused")


@pytest.fixture
async def guarded(redis: Redis, redis_url: str, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an API with two API keys, of the shop and the bank."""
    keys = ",".join(
        f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in (("shop", SHOP), ("bank", BANK))
    )
    async with run(create_app(sandbox_settings(redis_url, api={"keys": keys}), network)) as client:
        yield client


async def test_the_same_key_of_two_clients_is_two_keys(guarded: httpx.AsyncClient) -> None:
    shops = await post(guarded, "/verify/start", KEY, {"phone": PHONE}, SHOP)

    assert_problem(await post(guarded, "/verify/start", KEY, {"phone": PHONE}, BANK), 429, "call-cooldown")
    banks = await post(guarded, "/verify/start", KEY, {"phone": OTHER_PHONE}, BANK)

    assert (shops.status_code, banks.status_code) == (201, 201)
    assert_replays(await post(guarded, "/verify/start", KEY, {"phone": PHONE}, SHOP), shops)
    assert_replays(await post(guarded, "/verify/start", KEY, {"phone": OTHER_PHONE}, BANK), banks)


async def test_a_kept_response_is_not_replayed_without_a_valid_api_key(guarded: httpx.AsyncClient) -> None:
    await post(guarded, "/verify/start", KEY, {"phone": PHONE}, SHOP)

    assert_problem(await post(guarded, "/verify/start", KEY, {"phone": PHONE}, "wrong"), 401, "unauthorized")


@pytest.mark.parametrize(
    "keys",
    [[b""], [b"a b"], [b"a" * 129], [b"\xd1\x84"], [b"a\tb"], [b"\x7f"], [b"one", b"two"], [b"one", b"one"]],
    ids=["empty", "space", "too long", "not ASCII", "tab", "DEL", "two keys", "same key twice"],
)
@pytest.mark.parametrize("path", ["/verify/start", "/verify/check"])
async def test_an_invalid_key_is_reported_and_the_request_has_no_effect(
    api: httpx.AsyncClient, redis: Redis, path: str, keys: list[bytes]
) -> None:
    body = {"phone": PHONE} if path == "/verify/start" else {"phone": PHONE, "code": "123456"}

    answer = await api.post(path, json=body, headers=[(b"Idempotency-Key", key) for key in keys])

    assert_problem(answer, 422, "validation-failed")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["Idempotency-Key"]
    assert await keys_of_requests(redis) == set()


@pytest.mark.parametrize("key", ["!", "~" * 128, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a,b;c={i:*}"])
async def test_any_printable_ascii_text_is_a_valid_key(api: httpx.AsyncClient, key: str) -> None:
    first = await start(api, key=key)

    assert_replays(await start(api, key=key), first)


async def test_fifty_concurrent_starts_with_one_key_place_one_call(
    api: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    answers = await asyncio.gather(*[start(api) for _ in range(50)])
    first = next(
        answer for answer in answers if answer.status_code == 201 and "Idempotent-Replayed" not in answer.headers
    )

    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "idempotency-in-progress")
            assert answer.headers["Retry-After"] == "1"
            assert_replays(await start(api), first)
        elif answer is not first:
            assert_replays(answer, first)
    assert len(network.calls_of(PHONE)) == 1


async def test_fifty_concurrent_wrong_checks_with_one_key_count_as_one(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = wrong(await hear(api))

    answers = await asyncio.gather(*[check(api, verification_id, code) for _ in range(50)])

    assert {answer.status_code for answer in answers} <= {200, 409}
    assert {answer.json()["checks_left"] for answer in answers if answer.status_code == 200} == {4}
    assert await checks_left(api, verification_id) == 4
    assert (await check(api, verification_id, code)).headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize(
    ("number", "status", "slug"),
    [(MagicNumber.REFUSED, 502, "provider-rejected"), (MagicNumber.NO_BALANCE, 503, "balance-too-low")],
)
async def test_a_start_that_the_provider_refused_can_be_retried_with_the_same_key(
    api: httpx.AsyncClient, redis: Redis, number: MagicNumber, status: int, slug: str
) -> None:
    """No call was placed, so the retry is a new attempt; the key may even be used for another phone."""
    for _ in range(2):
        assert_problem(await start(api, number), status, slug)
        assert await redis.keys(CLAIMS) == []

    assert (await start(api)).status_code == 201


async def test_a_start_refused_by_the_cooldown_can_be_retried_later_with_the_same_key(
    api: httpx.AsyncClient, redis: Redis
) -> None:
    again = {"phone": PHONE, "verification_id": (await start(api)).json()["verification_id"]}
    assert_problem(await post(api, "/verify/start", "resend", again), 429, "call-cooldown")

    await age(redis, timedelta(seconds=60))

    resent = await post(api, "/verify/start", "resend", again)
    assert (resent.status_code, resent.json()["calls_placed"]) == (201, 2)
    assert_replays(await post(api, "/verify/start", "resend", again), resent)


@pytest.mark.parametrize(
    ("path", "body", "slug"),
    [
        ("/verify/start", {"phone": "+74951234567"}, "phone-not-callable"),
        ("/verify/start", {"phone": PHONE, "purpose": "lottery"}, "validation-failed"),
        ("/verify/start", {}, "validation-failed"),
        ("/verify/check", {"phone": PHONE, "code": "123456"}, "verification-not-found"),
        ("/verify/check", {"phone": PHONE, "code": "12"}, "validation-failed"),
    ],
)
async def test_the_response_of_a_refused_request_is_not_kept(
    api: httpx.AsyncClient, redis: Redis, path: str, body: object, slug: str
) -> None:
    for _ in range(2):
        answer = await post(api, path, KEY, body)
        assert_problem(answer, answer.status_code, slug)
    assert await redis.keys(CLAIMS) == []


async def claims_of(redis: Redis) -> list[bytes | str]:
    """Wait until a request has claimed its key; return the names of the claims."""
    return list(await eventually(lambda: redis.keys(CLAIMS)))


async def test_the_claim_of_a_killed_request_expires(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork
) -> None:
    """A killed process leaves a claim that is neither completed nor released."""
    first = await start(api)
    (name,) = await claims_of(redis)
    fingerprint = await redis.hget(name, "fingerprint")
    await redis.flushall()
    await redis.hset(name, mapping={"fingerprint": fingerprint or b"", "token": b"lost"})
    await redis.hset(name, "claimed_until", str(int(time.time() * 1000) + 30_000))
    await redis.pexpire(name, 30_000)

    early = await start(api)
    assert_problem(early, 409, "idempotency-in-progress")
    assert (early.headers["Retry-After"], early.json()["retry_after"]) == ("1", 1)
    assert_problem(await start(api, OTHER_PHONE), 422, "idempotency-key-reused")

    await age(redis, timedelta(seconds=30))
    second = await start(api)

    assert second.status_code == 201
    assert second.json()["verification_id"] != first.json()["verification_id"]
    assert len(network.calls_of(PHONE)) == 2
    assert_replays(await start(api), second)


def quick_settings(redis_url: str, **options: object) -> Settings:
    """Return settings with short timeouts for the provider, and for Redis."""
    return sandbox_settings(
        redis_url,
        plusofon={"connect_timeout_seconds": 1, "timeout_seconds": QUICK},
        redis={"url": redis_url, "timeout_seconds": QUICK},
        **options,
    )


@pytest.fixture
async def quick_api(redis: Redis, redis_url: str, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    async with run(create_app(quick_settings(redis_url), network)) as client:
        yield client


@pytest.fixture
async def choosing_api(redis: Redis, redis_url: str, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an API with two channels, from which a start chooses by what is stored."""
    settings = quick_settings(redis_url, channels=["voice", "flash_call"])
    async with run(create_app(settings, network)) as client:
        yield client


def events(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {record.message for record in caplog.records}


def has_total(counts: set[int], limit: Mapping[str, Any]) -> bool:
    return limit["total"] in counts


@pytest.fixture
def start_blocked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Block every start before it acquires anything; the event is set once a start is blocked."""
    reached = asyncio.Event()

    async def hold(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    for owner, step in (*COUNTING_STEPS, (RedisIdempotency, "begin")):
        monkeypatch.setattr(owner, step, hold)
    return reached


async def cancel_request(request: "asyncio.Task[httpx.Response]") -> None:
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


async def wait_until_released(redis: Redis) -> list[bytes | str]:
    """Wait until no request is claimed; return the names of those of which it is noted what was begun."""
    async with timing() as seconds:
        await wait_until_claimed(redis, claimed=False)
        assert seconds() < 2  # before a claim expires by itself
    return list(await redis.keys(CLAIMS))


async def wait_until_claimed(redis: Redis, *, claimed: bool = True) -> None:
    async def claims() -> list[bytes | str]:
        return [name for name in await redis.keys(CLAIMS) if await redis.hexists(name, "claimed_until")]

    await eventually(claims, lambda names: bool(names) == claimed)


async def test_a_start_canceled_before_the_provider_request_releases_its_claim(
    api: httpx.AsyncClient, redis: Redis, start_blocked: asyncio.Event
) -> None:
    request = asyncio.create_task(start(api))
    await start_blocked.wait()

    await cancel_request(request)

    assert await wait_until_released(redis) == []


async def test_the_claim_of_a_canceled_start_expires_within_seconds_if_redis_hangs(
    quick_api: httpx.AsyncClient, redis: Redis, start_blocked: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    request = asyncio.create_task(start(quick_api))
    await start_blocked.wait()
    (name,) = await claims_of(redis)
    assert 0 < await redis.pttl(name) <= 3_000

    async with stopped(redis):
        await cancel_request(request)
        await until(lambda: "store.not_written" in events(caplog))


async def test_a_retry_of_a_start_canceled_during_the_provider_request_places_no_second_call(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork
) -> None:
    """The call may have been placed, so the retry reports it as unconfirmed."""
    request = asyncio.create_task(start(api, MagicNumber.NO_REPLY_PLACED))
    await placed(network, MagicNumber.NO_REPLY_PLACED)

    await cancel_request(request)

    await wait_until_released(redis)
    answer = await start(api, MagicNumber.NO_REPLY_PLACED)
    assert (answer.status_code, answer.json()["call"]) == (201, {"status": "unconfirmed"})
    assert len(network.calls_of(MagicNumber.NO_REPLY_PLACED)) == 1


async def test_a_code_chosen_by_the_provider_is_stored_once_redis_answers_again(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets a 503 and retries the start; the end user hears one code, and it verifies."""
    network, phone = VirtualNetwork(pace=PACE), MagicNumber.OTHER_PIN
    short = {"url": redis_url, "timeout_seconds": 1}
    record_call = RedisVerificationStore.record_call

    async with run(create_app(sandbox_settings(redis_url, redis=short, channels=["flash_call"]), network)) as api:
        # A busy machine may not connect within the short time-out.
        await eventually(lambda: start(api, OTHER_PHONE, "other"), lambda answer: answer.status_code == 201)
        async with stoppable(redis) as stop:

            async def hangs(store: RedisVerificationStore, *arguments: Any) -> object:  # noqa: ANN401 - passed on
                stop()
                return await record_call(store, *arguments)

            with monkeypatch.context() as patched:
                patched.setattr(RedisVerificationStore, "record_call", hangs)
                assert_problem(await start(api, phone), 503, "store-unavailable")
        repeated = await start(api, phone)
        async with asyncio.timeout(PATIENCE):
            while repeated.status_code in {409, 503}:
                await asyncio.sleep(0.2)
                repeated = await start(api, phone)
        assert repeated.status_code == 201
        (call,) = network.calls_of(phone)
        checked = await check(api, repeated.json()["verification_id"], call.heard or "", "check")

    assert checked.json()["verified"] is True


async def test_a_start_is_a_503_and_can_be_retried_if_redis_lost_the_verification_of_a_provider_chosen_code(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover lost the last writes, or the phone was erased meanwhile: the code that is heard cannot be checked."""
    network, phone = VirtualNetwork(pace=PACE), MagicNumber.OTHER_PIN
    record_call = RedisVerificationStore.record_call

    async def loses(store: RedisVerificationStore, verification: Verification, *arguments: Any) -> object:  # noqa: ANN401 - passed on
        name = RecordName.from_id(verification.id)
        await redis.delete(stored(name.key) if name else "", *await redis.keys("pv3*:p:*"))
        return await record_call(store, verification, *arguments)

    async with run(create_app(sandbox_settings(redis_url, channels=["flash_call"]), network)) as api:
        with monkeypatch.context() as patched:
            patched.setattr(RedisVerificationStore, "record_call", loses)
            assert_problem(await start(api, phone), 503, "store-unavailable")
        await wait_until_released(redis)
        repeated = await start(api, phone)

        assert repeated.status_code == 201
        checked = await check(api, repeated.json()["verification_id"], await hear(api, phone), "check")

    assert checked.json()["verified"] is True


async def test_a_request_whose_claim_was_lost_still_gets_its_response(
    quick_api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    request = asyncio.create_task(start(quick_api, MagicNumber.NO_REPLY_PLACED))
    await placed(network, MagicNumber.NO_REPLY_PLACED)
    (name,) = await claims_of(redis)
    await redis.delete(name)

    assert (await request).status_code == 201
    assert "idempotency.claim_lost" in events(caplog)
    assert await redis.keys(CLAIMS) == []


async def test_a_repeated_start_of_an_unconfirmed_call_is_replayed_and_not_placed_again(
    quick_api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork
) -> None:
    request = asyncio.create_task(start(quick_api, MagicNumber.NO_REPLY_PLACED))
    await claims_of(redis)
    assert_problem(await start(quick_api, MagicNumber.NO_REPLY_PLACED), 409, "idempotency-in-progress")
    first = await request

    assert first.json()["call"] == {"status": "unconfirmed"}
    assert_replays(await start(quick_api, MagicNumber.NO_REPLY_PLACED), first)
    assert len(network.calls_of(MagicNumber.NO_REPLY_PLACED)) == 1


async def placed(network: VirtualNetwork, phone: str) -> None:
    """Wait until the provider has placed a call to the phone."""
    await until(lambda: network.calls_of(phone))


async def test_a_retry_of_a_start_killed_after_its_call_reports_the_call_and_places_no_second_one(
    quick_api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork
) -> None:
    """The claim has expired by the time of the retry. The retry is not refused by the cooldown."""
    dying = asyncio.create_task(start(quick_api, MagicNumber.NO_REPLY_PLACED))
    await placed(network, MagicNumber.NO_REPLY_PLACED)
    (name,) = await claims_of(redis)
    await redis.hset(name, "claimed_until", "0")

    repeated = await start(quick_api, MagicNumber.NO_REPLY_PLACED)

    assert (repeated.status_code, repeated.json()["call"]) == (201, {"status": "unconfirmed"})
    assert_replays(await start(quick_api, MagicNumber.NO_REPLY_PLACED), repeated)
    assert (await dying).json()["verification_id"] == repeated.json()["verification_id"]
    assert len(network.calls_of(MagicNumber.NO_REPLY_PLACED)) == 1


async def hangs(*_: object, **__: object) -> object:
    return await asyncio.Event().wait()


async def fails(*_: object, **__: object) -> object:
    raise StoreUnavailable


async def crashes(*_: object, **__: object) -> object:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "failure",
    [
        *((step, hangs, status) for step in ("preview_start", "read", "record_call") for status in (503, None)),
        *((step, fails, 503) for step in ("read", "record_call")),
        *((step, crashes, 500) for step in ("read", "record_call")),
    ],
    ids=lambda failure: "{}-{.__name__}-{}".format(*failure),
)
async def test_a_retry_that_cannot_read_a_begun_call_leaves_it_to_the_next_retry(
    choosing_api: httpx.AsyncClient,
    redis: Redis,
    network: VirtualNetwork,
    monkeypatch: pytest.MonkeyPatch,
    failure: tuple[str, Callable[..., Awaitable[object]], int | None],
) -> None:
    """On a cluster the key may be on a node that works, and the verification on one that does not.

    A failure is a step, what it does, and the status of the answer; without one the request is canceled.
    """
    phone, (step, fault, status) = MagicNumber.NO_REPLY_PLACED, failure

    async def send() -> httpx.Response:
        return await post(choosing_api, "/verify/start", KEY, {"phone": phone, "channels": ["voice", "flash_call"]})

    dying = asyncio.create_task(send())
    await placed(network, phone)
    await cancel_request(dying)
    await wait_until_released(redis)
    with monkeypatch.context() as patched:
        patched.setattr(RedisVerificationStore, step, fault)
        request = asyncio.create_task(send())
        if status is None:
            await wait_until_claimed(redis)
            await cancel_request(request)
        else:
            assert (await request).status_code == status
        await wait_until_claimed(redis, claimed=False)  # one that the canceled request had not heard of expires

    repeated = await send()

    assert (repeated.status_code, repeated.json()["call"]) == (201, {"status": "unconfirmed"})
    assert len(network.calls_of(phone)) == 1


async def test_a_start_that_was_paused_until_a_retry_replaced_it_places_no_second_call(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker was stopped (SIGSTOP, for example) between reserving and recording, until after the cooldown."""
    reached, resumed, begin = asyncio.Event(), asyncio.Event(), RedisIdempotency.begin

    async def paused_once(store: RedisIdempotency, claim: Claim, note: str) -> bool:
        if not reached.is_set():
            reached.set()
            await resumed.wait()
        return await begin(store, claim, note)

    monkeypatch.setattr(RedisIdempotency, "begin", paused_once)
    late = asyncio.create_task(start(api))
    await reached.wait()
    # Both run concurrently, so the journal may be reached before the reservation.
    await eventually(lambda: redis.keys("pv3{*}:p:*"))
    await age(redis, timedelta(seconds=61))
    answered = await asyncio.gather(*(start(api) for _ in range(20)))
    resumed.set()

    assert_problem(await late, 409, "idempotency-in-progress")
    assert len(network.calls_of(PHONE)) == 1
    (first,) = (answer for answer in answered if answer.is_success)
    again = await start(api)
    assert_replays(again, first)
    read = (await api.get(first.headers["Location"])).json()
    assert (read["calls_placed"], read["calls_left"]) == (1, 2)


async def test_a_start_that_cannot_be_recorded_places_no_call_and_can_be_retried_at_once(
    api: httpx.AsyncClient, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(store: RedisIdempotency, claim: Claim, note: str) -> bool:
        raise StoreUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(RedisIdempotency, "begin", fails)
        assert_problem(await start(api), 503, "store-unavailable")
    assert network.calls_of(PHONE) == []
    await asyncio.sleep(0.1)

    assert (await start(api)).status_code == 201
    assert len(network.calls_of(PHONE)) == 1


@pytest.mark.parametrize("by_phone", [False, True], ids=["by id", "by phone"])
async def test_a_right_check_whose_response_was_lost_returns_the_token_when_it_is_repeated(
    quick_api: httpx.AsyncClient, redis: Redis, monkeypatch: pytest.MonkeyPatch, *, by_phone: bool
) -> None:
    """Redis stalls, the caller gets a 503, and the script runs after it: the code is consumed."""
    verification_id = (await start(quick_api)).json()["verification_id"]
    named = {"phone": PHONE} if by_phone else {"verification_id": verification_id}
    body = {**named, "code": await hear(quick_api)}
    await quick_api.post("/verify/check", json={**body, "code": "0000"})  # loads the script, costs nothing

    step = "check_by_phone" if by_phone else "check_by_id"
    original = getattr(RedisVerificationStore, step)

    async with stoppable(redis) as stop:

        async def hangs(*arguments: object) -> object:
            stop()
            return await original(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(RedisVerificationStore, step, hangs)
            assert_problem(await post(quick_api, "/verify/check", "check", body), 503, "store-unavailable")
    async with asyncio.timeout(PATIENCE):
        while (repeated := await post(quick_api, "/verify/check", "check", body)).status_code != 200:
            assert repeated.status_code in {
                409,
                503,
            }  # the claim is just being released, by a connection that had to wait
            await asyncio.sleep(0.2)

    assert (repeated.status_code, repeated.json()["verified"]) == (200, True)
    redeemed = await quick_api.post(
        "/verify/token/redeem", json={"token": repeated.json()["token"], "purpose": "phone_verification"}
    )
    assert redeemed.status_code == 200
    assert_problem(await quick_api.post("/verify/check", json=body), 409, "verification-already-used")
    assert_problem(await post(quick_api, "/verify/check", "other", body), 409, "verification-already-used")


async def test_a_right_check_whose_response_was_not_kept_returns_the_token_when_it_is_repeated(
    api: httpx.AsyncClient, redis: Redis
) -> None:
    """The state that a worker leaves if it is killed between consuming the code and keeping the response."""
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)
    first = await check(api, verification_id, code, "check")
    for name in await redis.keys(CLAIMS):
        await redis.delete(name)

    again = await check(api, verification_id, code, "check")

    assert {**again.json(), "token": ""} == {**first.json(), "token": ""}
    assert "Idempotent-Replayed" not in again.headers


@pytest.mark.parametrize("path", ["start", "start with a key", "check", "check with a key", "read"])
async def test_a_redis_that_hangs_is_a_503_within_one_timeout(
    quick_api: httpx.AsyncClient, redis: Redis, path: str
) -> None:
    """All waits for Redis share one timeout; no response waits for a refund."""
    verification_id = (await start(quick_api)).json()["verification_id"]
    async with stopped(redis), timing() as seconds:
        match path:
            case "start":
                answer = await quick_api.post("/verify/start", json={"phone": OTHER_PHONE})
            case "start with a key":
                answer = await start(quick_api, OTHER_PHONE, "other")
            case "check":
                answer = await quick_api.post(
                    "/verify/check", json={"verification_id": verification_id, "code": "123456"}
                )
            case "check with a key":
                answer = await check(quick_api, verification_id, "123456", "other")
            case _:
                answer = await quick_api.get(f"/verify/{verification_id}")
        took = seconds()

    assert_problem(answer, 503, "store-unavailable")
    assert took < 1.95 * QUICK


@pytest.mark.parametrize(
    "steps",
    [COUNTING_STEPS, [(RedisVerificationStore, "start")], [(RedisIdempotency, "begin")]],
    ids=["count", "start", "begin"],
)
async def test_a_redis_that_hangs_during_a_start_is_a_503_within_one_timeout(
    quick_api: httpx.AsyncClient,
    redis: Redis,
    settings: Settings,
    network: VirtualNetwork,
    monkeypatch: pytest.MonkeyPatch,
    *,
    steps: Sequence[tuple[type, str]],
) -> None:
    """Once Redis answers again, the reservations are refunded: the same start succeeds, the limits are unchanged.

    But on a cluster, if it is not known whether a limit above 64 has counted the call, it stays counted.
    """
    await start(quick_api, OTHER_PHONE, "other")  # loads the scripts

    async with stoppable(redis) as stop:

        def hanging(step: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
            async def hangs(*arguments: object) -> object:
                stop()
                return await step(*arguments)

            return hangs

        with monkeypatch.context() as patched:
            for owner, step in steps:
                patched.setattr(owner, step, hanging(getattr(owner, step)))
            async with timing() as seconds:
                answer = await start(quick_api)
                took = seconds()

    assert_problem(answer, 503, "store-unavailable")
    assert took < 1.95 * QUICK
    assert network.calls_of(PHONE) == []
    async with asyncio.timeout(PATIENCE):
        while (answer := await start(quick_api)).status_code != 201:
            assert answer.status_code in {
                409,
                429,
                503,
            }  # in progress, the cooldown before the refund, or a lost connection
            await asyncio.sleep(0.2)
    assert len(network.calls_of(PHONE)) == 1

    key = derive_key(settings.names_secret, "phone")
    # On a cluster a limit above 64 is refunded once, if it is known when it counted: it may count one more, too strict.
    is_on_cluster = settings.redis.url and "+cluster:" in settings.redis.url.get_secret_value()
    of_day = {2, 3} if is_on_cluster else {2}
    for limit, subject, counts in (
        ("calls_per_range", range_of(Phone(PHONE)), {1}),
        ("calls_per_day", "everybody", of_day),
    ):
        name = stored(name_limit(key, limit, subject))
        await eventually(partial(read_limit, redis, name), partial(has_total, counts))  # refunds come later


async def test_a_start_continues_if_its_claim_expired_and_no_other_request_has_it(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = RedisIdempotency.begin

    async def late(store: RedisIdempotency, claim: Claim, note: str) -> bool:
        await redis.delete(claim.name)
        return await begin(store, claim, note)

    monkeypatch.setattr(RedisIdempotency, "begin", late)
    first, again = await start(api), await start(api)

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["verification_id"] == again.json()["verification_id"]
    assert len(network.calls_of(PHONE)) == 1


async def test_a_placed_call_is_reported_even_if_redis_cannot_keep_the_response(
    quick_api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    request = asyncio.create_task(start(quick_api, MagicNumber.NO_REPLY_PLACED))
    await placed(network, MagicNumber.NO_REPLY_PLACED)

    async with stopped(redis):
        answer = await request

    assert (answer.status_code, answer.json()["call"]) == (201, {"status": "unconfirmed"})
    assert "idempotency.not_kept" in events(caplog)


@pytest.mark.parametrize("path", ["start", "check"])
async def test_a_response_that_could_not_be_kept_is_kept_once_redis_answers_again(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Otherwise its key would be reported as in progress for as long as placing a call may take."""
    keep, failed = RedisIdempotency.keep, asyncio.Event()

    async def fails_once(store: RedisIdempotency, *arguments: Any) -> bool:  # noqa: ANN401 - passed on
        if failed.is_set():
            return await keep(store, *arguments)
        failed.set()
        raise StoreUnavailable

    async def send() -> httpx.Response:
        return await (start(api) if path == "start" else check(api, verification_id, code, "check"))

    if path == "check":
        verification_id = (await start(api)).json()["verification_id"]
        code = await hear(api)
    monkeypatch.setattr(RedisIdempotency, "keep", fails_once)
    first = await send()
    async with asyncio.timeout(PATIENCE):
        while (again := await send()).status_code == 409:  # noqa: ASYNC110 - the background keeps it
            await asyncio.sleep(0.1)

    assert failed.is_set()
    assert_replays(again, first)


async def test_a_redis_that_is_out_of_memory_is_a_503_and_no_call_is_placed(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork
) -> None:
    """With noeviction Redis refuses the claim, so no call is placed."""
    await redis.config_set("maxmemory", "1")
    try:
        refused = await start(api)
    finally:
        await redis.config_set("maxmemory", "0")

    assert_problem(refused, 503, "store-unavailable")
    assert network.calls_of(PHONE) == []
    assert (await start(api)).status_code == 201


async def round_trips(redis: Redis, request: Awaitable[httpx.Response]) -> int:
    """Return how often Redis read from its sockets: commands that share a write are read at once."""

    async def reads() -> int:
        return int((await redis.info("stats"))["total_reads_processed"])

    before = await reads()
    await request
    return await reads() - before - 1  # reading the counter is one, too


@pytest.mark.standalone  # counts the round trips of one server
async def test_a_start_with_a_key_makes_three_round_trips_and_its_repetition_one(
    api: httpx.AsyncClient, redis: Redis
) -> None:
    """Claim; store and journal; record the call and keep the response."""
    verification_id = (await start(api, OTHER_PHONE, "warm")).json()["verification_id"]  # loads the scripts
    await check(api, verification_id, "000000", "warm")

    assert [await round_trips(redis, start(api)) for _ in range(2)] == [3, 1]
    assert [await round_trips(redis, check(api, verification_id, "000000")) for _ in range(2)] == [3, 1]


@pytest.mark.standalone  # counts the round trips of one server
async def test_a_request_without_a_key_stores_no_response_and_needs_no_extra_round_trip(
    api: httpx.AsyncClient, redis: Redis
) -> None:
    verification_id = (await api.post("/verify/start", json={"phone": OTHER_PHONE})).json()["verification_id"]
    body = {"verification_id": verification_id, "code": "000000"}
    await api.post("/verify/check", json=body)

    assert await round_trips(redis, api.post("/verify/start", json={"phone": PHONE})) == 2
    assert await round_trips(redis, api.post("/verify/check", json=body)) == 1
    assert await redis.keys(CLAIMS) == []


async def test_every_redis_key_has_a_ttl_and_contains_neither_phone_nor_idempotency_key(
    api: httpx.AsyncClient, redis: Redis
) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    await check(api, verification_id, wrong(await hear(api)))
    await start(api, MagicNumber.REFUSED, "refused")

    names = await redis.keys()

    assert len(await redis.keys(CLAIMS)) == 2
    for name in names:
        is_of_attempts = name[-2:] == b":j" or b"{attempts}" in name
        kept = timedelta(days=30 if is_of_attempts else 1)
        assert 0 < await redis.pttl(name) <= kept // timedelta(milliseconds=1)
        assert b"9001234567" not in name
        assert KEY.encode() not in name


async def test_the_header_is_documented_in_openapi(api: httpx.AsyncClient) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]

    for path in ("/verify/start", "/verify/check"):
        (header,) = paths[path]["post"]["parameters"]
        assert (header["in"], header["name"], header["required"]) == ("header", "Idempotency-Key", False)
        assert {"409", "422"} <= paths[path]["post"]["responses"].keys()
