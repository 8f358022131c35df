"""Idempotency keys in Redis: a request is claimed once, and its response stored for repeated requests."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import pytest
from redis.asyncio import Redis

from app.store.idempotency import RedisIdempotency
from app.store.scripts import ScriptRunner
from app.verification.idempotency import (
    Claim,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    IdempotentRequest,
    KeptAnswer,
)
from tests.ageing import age
from tests.keys import stored

KEY = b"a key of the tests, known to all"
REQUEST = IdempotentRequest(client="shop", route="/verify/start", key="order-42", body=b'{"phone": "+79001234567"}')
ANSWER = KeptAnswer(
    HTTPStatus.CREATED, {"location": "/verify/1", "content-type": "text/plain"}, b'{"a": "\xd1\x84\r\n\0"}'
)
DAY = timedelta(days=1)
CLAIM_FOR = timedelta(seconds=30)
TIMEOUT = timedelta(seconds=5)  # of Redis


@pytest.fixture
def idempotency(redis: Redis) -> RedisIdempotency:
    return RedisIdempotency(ScriptRunner(redis, timeout=TIMEOUT.total_seconds()), key=KEY)


async def claim(idempotency: RedisIdempotency, request: IdempotentRequest = REQUEST) -> Claim:
    claimed = await idempotency.claim(request)
    assert isinstance(claimed, Claim)
    return claimed


async def test_a_claimed_request_is_in_progress_for_repeated_requests(idempotency: RedisIdempotency) -> None:
    await claim(idempotency)

    for _ in range(2):
        with pytest.raises(IdempotencyInProgress) as refused:
            await idempotency.claim(REQUEST)
        assert refused.value.retry_after == 1


async def test_a_stored_response_is_returned_byte_for_byte(idempotency: RedisIdempotency) -> None:
    assert await idempotency.keep(await claim(idempotency), ANSWER, DAY)

    assert [await idempotency.claim(REQUEST) for _ in range(2)] == [ANSWER, ANSWER]


async def test_a_response_without_headers_and_body_is_stored(idempotency: RedisIdempotency) -> None:
    empty = KeptAnswer(204, {}, b"")
    await idempotency.keep(await claim(idempotency), empty, DAY)

    assert await idempotency.claim(REQUEST) == empty


async def test_a_released_request_can_be_claimed_again_with_any_body(idempotency: RedisIdempotency) -> None:
    await idempotency.release(await claim(idempotency))
    await idempotency.release(await claim(idempotency, replace(REQUEST, body=b"{}")))

    await claim(idempotency)


@pytest.mark.parametrize("done", [False, True], ids=["in-progress", "done"])
@pytest.mark.parametrize("body", [b"", b'{"phone":"+79001234567"}', REQUEST.body + b"\0"], ids=["empty", "spaced", "0"])
async def test_a_different_body_with_the_same_key_is_rejected(
    idempotency: RedisIdempotency, *, done: bool, body: bytes
) -> None:
    claimed = await claim(idempotency)
    if done:
        await idempotency.keep(claimed, ANSWER, DAY)

    with pytest.raises(IdempotencyKeyReused):
        await idempotency.claim(replace(REQUEST, body=body))


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, client="bank"),
        replace(REQUEST, route="/verify/check"),
        replace(REQUEST, key="order-43"),
        replace(REQUEST, key="Order-42"),
    ],
    ids=["client", "route", "key", "case"],
)
async def test_requests_of_another_client_route_or_key_are_independent(
    idempotency: RedisIdempotency, other: IdempotentRequest
) -> None:
    await idempotency.keep(await claim(idempotency), ANSWER, DAY)

    await claim(idempotency, other)


async def test_of_a_hundred_concurrent_claims_exactly_one_is_granted(idempotency: RedisIdempotency) -> None:
    outcomes = await asyncio.gather(*[idempotency.claim(REQUEST) for _ in range(100)], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes].count(Claim) == 1
    assert [type(outcome) for outcome in outcomes].count(IdempotencyInProgress) == 99


async def test_of_a_hundred_answers_at_once_one_is_kept(idempotency: RedisIdempotency) -> None:
    claimed = await claim(idempotency)

    assert sum(await asyncio.gather(*[idempotency.keep(claimed, ANSWER, DAY) for _ in range(100)])) == 1


async def test_of_a_hundred_holders_of_expired_claims_at_once_one_begins(
    idempotency: RedisIdempotency, redis: Redis
) -> None:
    holders = []
    for _ in range(100):
        holders.append(await claim(idempotency))
        await age(redis, CLAIM_FOR)

    assert sum(await asyncio.gather(*[idempotency.begin(holder, "note") for holder in holders])) == 1


async def test_after_a_hundred_releases_at_once_one_request_is_claimed(idempotency: RedisIdempotency) -> None:
    claimed = await claim(idempotency)
    await asyncio.gather(*[idempotency.release(claimed) for _ in range(100)])

    outcomes = await asyncio.gather(*[idempotency.claim(REQUEST) for _ in range(100)], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes].count(Claim) == 1


async def test_a_hundred_concurrent_repeated_requests_get_the_stored_response(idempotency: RedisIdempotency) -> None:
    await idempotency.keep(await claim(idempotency), ANSWER, DAY)

    assert await asyncio.gather(*[idempotency.claim(REQUEST) for _ in range(100)]) == [ANSWER] * 100


async def test_the_claim_of_a_crashed_request_expires_and_can_be_claimed_again(
    idempotency: RedisIdempotency, redis: Redis
) -> None:
    await claim(idempotency)
    with pytest.raises(IdempotencyInProgress):
        await idempotency.claim(REQUEST)

    await age(redis, timedelta(seconds=3))

    await claim(idempotency)


async def test_a_new_claim_returns_what_an_expired_claim_had_begun(idempotency: RedisIdempotency, redis: Redis) -> None:
    assert (await claim(idempotency)).begun is None
    await age(redis, CLAIM_FOR)
    assert await idempotency.begin(await claim(idempotency), "vrf_1:1")
    with pytest.raises(IdempotencyInProgress):
        await idempotency.claim(REQUEST)

    for _ in range(2):
        await age(redis, CLAIM_FOR)
        assert (await claim(idempotency)).begun == "vrf_1:1"

    await age(redis, CLAIM_FOR)
    with pytest.raises(IdempotencyKeyReused):
        await idempotency.claim(replace(REQUEST, body=b"another"))


async def test_what_was_begun_is_deleted_when_the_answer_is_stored(idempotency: RedisIdempotency, redis: Redis) -> None:
    claimed = await claim(idempotency)
    await idempotency.begin(claimed, "vrf_1:1")

    await idempotency.keep(claimed, ANSWER, CLAIM_FOR)
    await age(redis, CLAIM_FOR)

    assert (await claim(idempotency)).begun is None


@pytest.mark.parametrize(("undone", "left"), [("vrf_1:1", None), ("vrf_2:1", "vrf_1:1"), (None, "vrf_1:1")])
async def test_a_release_deletes_only_what_was_undone(
    idempotency: RedisIdempotency, undone: str | None, left: str | None
) -> None:
    claimed = await claim(idempotency)
    await idempotency.begin(claimed, "vrf_1:1")

    await idempotency.release(claimed, undone=undone)

    assert (await claim(idempotency)).begun == left


async def test_what_an_earlier_holder_began_outlives_any_number_of_released_claims(
    idempotency: RedisIdempotency, redis: Redis
) -> None:
    await idempotency.begin(await claim(idempotency), "vrf_1:1")
    await age(redis, CLAIM_FOR)

    for _ in range(3):
        await idempotency.release(await claim(idempotency))

    claimed = await claim(idempotency)
    assert claimed.begun == "vrf_1:1"
    assert await redis.pttl(stored(claimed.name)) > 500_000
    assert await idempotency.begin(claimed, "vrf_2:1")
    await idempotency.release(claimed, undone="vrf_2:1")
    assert (await claim(idempotency)).begun is None


async def test_an_expired_claim_cannot_record_what_was_begun(idempotency: RedisIdempotency, redis: Redis) -> None:
    late = await claim(idempotency)
    await age(redis, CLAIM_FOR)
    await claim(idempotency)

    assert not await idempotency.begin(late, "vrf_1:1")


async def test_begin_after_its_deadline_records_nothing(idempotency: RedisIdempotency, redis: Redis) -> None:
    """Redis was stalled and the caller gave up, so the claim still ends after its few seconds."""
    before = datetime.now(UTC)
    claimed = await claim(idempotency)
    assert before < claimed.begin_before <= datetime.now(UTC) + TIMEOUT

    late = replace(claimed, begin_before=claimed.begin_before - 2 * TIMEOUT)

    assert not await idempotency.begin(late, "vrf_1:1")
    assert await redis.hget(stored(claimed.name), "begun") is None
    assert await redis.pttl(stored(claimed.name)) <= 3_000


async def test_what_was_begun_is_kept_longer_than_any_code_lives(idempotency: RedisIdempotency, redis: Redis) -> None:
    claimed = await claim(idempotency)
    await idempotency.begin(claimed, "vrf_1:1")

    assert await redis.hget(stored(claimed.name), "begun") == b"vrf_1:1"
    assert 300_000 < await redis.pttl(stored(claimed.name)) <= 600_000


async def test_an_expired_claim_that_was_claimed_again_neither_stores_nor_releases(
    idempotency: RedisIdempotency, redis: Redis
) -> None:
    late = await claim(idempotency)
    await age(redis, CLAIM_FOR)
    successor = await claim(idempotency)

    assert not await idempotency.keep(late, replace(ANSWER, body=b"late"), DAY)
    await idempotency.release(late)
    with pytest.raises(IdempotencyInProgress):
        await idempotency.claim(REQUEST)

    assert await idempotency.keep(successor, ANSWER, DAY)
    assert await idempotency.claim(REQUEST) == ANSWER


async def test_an_expired_claim_stores_no_response(idempotency: RedisIdempotency, redis: Redis) -> None:
    late = await claim(idempotency)
    await age(redis, CLAIM_FOR)

    assert not await idempotency.keep(late, ANSWER, DAY)
    assert await redis.keys() == []


async def test_a_stored_response_is_not_overwritten_or_released(idempotency: RedisIdempotency) -> None:
    claimed = await claim(idempotency)
    assert await idempotency.keep(claimed, ANSWER, DAY)

    assert not await idempotency.keep(claimed, replace(ANSWER, body=b"other"), DAY)
    await idempotency.release(claimed)

    assert await idempotency.claim(REQUEST) == ANSWER


async def test_releasing_twice_does_not_release_a_newer_claim(idempotency: RedisIdempotency) -> None:
    first = await claim(idempotency)
    await idempotency.release(first)
    await claim(idempotency)

    await idempotency.release(first)

    with pytest.raises(IdempotencyInProgress):
        await idempotency.claim(REQUEST)


@pytest.mark.parametrize("lifetime", [DAY, timedelta(minutes=5)], ids=["start", "check"])
async def test_claims_and_responses_have_their_configured_ttl(
    idempotency: RedisIdempotency, redis: Redis, lifetime: timedelta
) -> None:
    claimed = await claim(idempotency)
    assert 0 < await redis.pttl(stored(claimed.name)) <= 3_000
    await idempotency.begin(claimed, "vrf_1:1")
    claimed_until = int(await redis.hget(stored(claimed.name), "claimed_until") or 0)
    assert 20_000 < claimed_until - time.time() * 1000 <= 30_000

    await idempotency.keep(claimed, ANSWER, lifetime)
    ms = lifetime // timedelta(milliseconds=1)
    assert ms - 10_000 < await redis.pttl(stored(claimed.name)) <= ms

    await age(redis, lifetime)
    await claim(idempotency)


async def test_stored_keys_and_values_do_not_reveal_the_request(idempotency: RedisIdempotency, redis: Redis) -> None:
    """A body may contain a four-digit code, so its fingerprint is keyed and differs for each request."""
    requests = [REQUEST, replace(REQUEST, key="order-43"), replace(REQUEST, body=b'{"code": "1234"}', key="c")]
    for request in requests:
        await claim(idempotency, request)

    names = await redis.keys()
    fields = [await redis.hgetall(name) for name in names]

    assert len({record[b"fingerprint"] for record in fields}) == len(requests)
    for kept in [*names, *[value for record in fields for value in record.values()]]:
        for secret in (b"shop", b"verify", b"order", b"9001234567", b"1234"):
            assert secret not in kept


async def test_the_repr_of_requests_claims_and_responses_shows_no_body_or_token(idempotency: RedisIdempotency) -> None:
    claimed = await claim(idempotency)

    assert "79001234567" not in repr(REQUEST)
    assert "body" not in repr(ANSWER)
    assert claimed.token not in repr(claimed)


async def test_key_names_and_fingerprints_depend_on_the_secret_key(idempotency: RedisIdempotency, redis: Redis) -> None:
    other = RedisIdempotency(ScriptRunner(redis, timeout=TIMEOUT.total_seconds()), key=b"another key")

    ours, theirs = await claim(idempotency), await claim(other)

    assert ours.name != theirs.name
    assert await redis.hget(stored(ours.name), "fingerprint") != await redis.hget(stored(theirs.name), "fingerprint")


@pytest.mark.standalone  # counts the scripts of one server
async def test_each_operation_runs_one_script(idempotency: RedisIdempotency, redis: Redis) -> None:
    async def scripts_run() -> int:
        stats = await redis.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])

    await idempotency.release(await claim(idempotency))  # loads the scripts
    await idempotency.keep(await claim(idempotency, replace(REQUEST, key="warm-up")), ANSWER, DAY)
    before = await scripts_run()
    claimed = await claim(idempotency)
    await idempotency.keep(claimed, ANSWER, DAY)
    await idempotency.claim(REQUEST)
    await idempotency.release(claimed)

    assert await scripts_run() - before == 4
