"""The stores on a cluster: all keys of a script are in one slot, and limits in other slots are acquired first."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Any

import pytest

from app.store.connection import connect_any
from app.store.erasure import RedisPhoneEraser
from app.store.fraud_guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.layout import PhoneName, name_limit
from app.store.limits import RedisRateLimiter
from app.store.provider_account import RedisBalanceCache
from app.store.scripts import ScriptRunner
from app.store.stats import RedisStats
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.verification.channels import Channel
from app.verification.domain_events import CallPlaced, Segment
from app.verification.errors import (
    CodeTooShortOrLong,
    RateLimited,
    StoreUnavailable,
    VerificationAlreadyUsed,
    VerificationLocked,
    VerificationNotFound,
)
from app.verification.idempotency import Claim, IdempotentRequest, KeptAnswer
from app.verification.model import CallState, CallStatus, CheckOutcome, CheckPassed, Status, WrongCode
from app.verification.phone import Phone
from app.verification.policy import HOUR, Allowance, Limit
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall, Reservation
from app.verification.stats import Dimension
from tests.attempts import attempts_on
from tests.outcomes import expect
from tests.policies import make_guard_rules, make_policy, make_prices
from tests.redis_cluster import Cluster
from tests.starting import start

POLICY = make_policy()
KEY = b"k" * 32
TOKEN = "00000000000a"
RIGHT, WRONG = b"r" * 32, b"w" * 32


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), node_timeout=15_000) as nodes:
        yield nodes


@pytest.fixture
async def runner(nodes: Cluster) -> AsyncIterator[ScriptRunner]:
    cluster = connect_any(nodes.url, timeout=5)
    runner = ScriptRunner(cluster, timeout=5)
    yield runner
    await runner.aclose()
    await cluster.aclose()


def new_call(number: int) -> NewCall:
    return NewCall(
        client=f"shop{number}",
        phone=Phone(f"+7900123{number:04}"),
        purpose="login",
        channel=Channel.VOICE,
        code_digest=RIGHT,
        code_length=6,
        checks=5,
    )


async def test_every_use_case_runs_on_a_cluster(runner: ScriptRunner) -> None:
    guard = RedisFraudGuard(runner, make_guard_rules(), key=KEY)
    limits = RedisRateLimiter(runner, key=KEY, guard=guard)
    store = RedisVerificationStore(runner, phone_key=KEY, limits=limits)
    idempotency = RedisIdempotency(runner, key=KEY)
    for number in range(20):
        phone = Phone(f"+7900123{number:04}")
        call = replace(new_call(number), client="shop")
        verification = (await start(store, call, POLICY)).verification
        await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.RINGING), ref="ref"))
        await store.read(verification.id, client="shop")
        wrong = await store.check_by_phone(
            phone, "login", CodeCheck(client="shop", candidates=[WRONG], length=6), POLICY
        )
        result = await store.check_by_id(
            verification.id, CodeCheck(client="shop", candidates=[RIGHT], length=6), POLICY
        )
        assert (expect(WrongCode, wrong).checks_left, result.status) == (4, Status.VERIFIED)

        other = replace(call, phone=Phone(f"+7901123{number:04}"))
        canceled = (await start(store, other, POLICY)).verification
        await store.cancel("shop", canceled.id)
        await store.refund(CallId(canceled.id, 1), phone=canceled.phone, client="shop", policy=POLICY)

        allowances = POLICY.for_calls(client="shop", phone=phone, address="192.0.2.1")  # each in its own slot
        await limits.require_room(allowances)
        reserved = await limits.acquire("00000000000a", allowances)
        assert [quota.limit for quota in reserved.quotas] == [allowance.limit for allowance in allowances]
        await limits.refund(reserved.token, allowances)
        guard.succeeded(phone, "shop")
        await guard.flush()
        assert (await guard.blocks(), await guard.suspects(), await guard.lift("+79001234")) == ([], [], False)

        request = IdempotentRequest(client="shop", route="/verify/start", key=str(number), body=b"{}")
        for _ in range(2):
            claim = await idempotency.claim(request)
            assert isinstance(claim, Claim)
            await idempotency.release(claim)
        claim = await idempotency.claim(request)
        assert isinstance(claim, Claim)
        assert await idempotency.keep(claim, KeptAnswer(201, {}, b"{}"), timedelta(days=1))


async def test_statistics_and_the_balance_are_kept_on_a_cluster(runner: ScriptRunner) -> None:
    stats = RedisStats(runner, prices=make_prices(), zone=UTC, count_calls=lambda _: None)
    segment = Segment("shop", Channel.VOICE, "mts")
    for _ in range(3):
        stats.observe(CallPlaced(segment, CallStatus.INITIATED))
        await stats.flush()

    for by in ([Dimension.DAY], [Dimension.HOUR]):  # kept apart
        assert [counts.placed for counts in (await stats.read(by=by)).rows.values()] == [3]
    balance = RedisBalanceCache(runner)
    assert [await balance.write(Decimal(rub)) for rub in (50, 47)] == [None, Decimal(50)]


async def test_a_wrong_code_counts_against_the_limits_of_client_and_address(runner: ScriptRunner) -> None:
    shop = Shop(runner)
    check = CodeCheck(client=shop.call.client, candidates=[WRONG], length=6, address="192.0.2.99")

    wrong = expect(WrongCode, await shop.store.check_by_id(await shop.start(), check, shop.policy))

    names = [quota.limit.name for quota in wrong.quotas]
    assert names == ["failed_checks_per_phone", "failed_checks_per_client", "failed_checks_per_address"]
    assert await shop.used() == 1


class Shop:
    """A client of its own, whose failed checks are limited."""

    numbers = itertools.count(100)

    def __init__(self, runner: ScriptRunner, *, limit: int = 100) -> None:
        guard = RedisFraudGuard(runner, make_guard_rules(), key=KEY)
        self.limits = RedisRateLimiter(runner, key=KEY, guard=guard)
        self.store = RedisVerificationStore(runner, phone_key=KEY, limits=self.limits)
        self.call = new_call(next(self.numbers))
        self.policy = make_policy(
            failed_checks_per_client=Limit("failed_checks_per_client", limit, timedelta(hours=1)),
            failed_checks_per_phone=Limit("failed_checks_per_phone", 1000, timedelta(hours=1)),
        )
        self.allowance = Allowance(self.policy.failed_checks_per_client, self.call.client)
        record, limit_key = self.slots(runner)
        assert record != limit_key

    def slots(self, runner: ScriptRunner) -> tuple[int, int]:
        """Return the slots of the phone and of the client's limit."""
        names = (
            PhoneName.from_phone(KEY, self.call.phone).key,
            name_limit(KEY, "failed_checks_per_client", self.call.client),
        )
        return runner.slot_of(names[0]), runner.slot_of(names[1])

    async def start(self, **changes: Any) -> str:  # noqa: ANN401 - fields of a call
        return (await start(self.store, replace(self.call, **changes), self.policy)).verification.id

    async def check(self, verification_id: str, *candidates: bytes, length: int = 6) -> CheckOutcome:
        check = CodeCheck(client=self.call.client, candidates=candidates, length=length)
        return await self.store.check_by_id(verification_id, check, self.policy)

    async def used(self) -> int:
        reserved = await self.limits.acquire(TOKEN, [self.allowance])
        await self.limits.refund(reserved.token, [self.allowance])
        return self.allowance.limit.count - 1 - reserved.quotas[0].remaining


async def test_a_wrong_code_counts_against_limits_in_other_slots(runner: ScriptRunner) -> None:
    shop = Shop(runner)
    verification = await shop.start()

    outcomes = [expect(WrongCode, await shop.check(verification, WRONG)) for _ in range(2)]

    assert [[quota.limit.name for quota in it.quotas] for it in outcomes] == [
        ["failed_checks_per_phone", "failed_checks_per_client"]
    ] * 2
    assert [it.quotas[1].remaining for it in outcomes] == [99, 98]
    assert await shop.used() == 2


async def test_the_check_that_locks_a_verification_counts_too(runner: ScriptRunner) -> None:
    shop = Shop(runner)
    verification = await shop.start()

    outcomes = [await shop.check(verification, WRONG) for _ in range(5)]

    assert outcomes[-1].status is Status.LOCKED
    with pytest.raises(VerificationLocked):
        await shop.check(verification, WRONG)
    assert await shop.used() == 5


async def test_only_a_wrong_code_counts(runner: ScriptRunner) -> None:
    shop = Shop(runner)
    verification = await shop.start()

    with pytest.raises(CodeTooShortOrLong):
        await shop.check(verification, RIGHT, length=4)
    with pytest.raises(VerificationNotFound):
        await shop.check(f"{verification[:-1]}{'0' if verification[-1] != '0' else '1'}", WRONG)
    passed = expect(CheckPassed, await shop.check(verification, RIGHT))
    with pytest.raises(VerificationAlreadyUsed):
        await shop.check(verification, RIGHT)

    assert [quota.remaining for quota in passed.quotas] == [1000, 100]
    assert await shop.used() == 0


async def test_a_test_number_counts_nothing(runner: ScriptRunner) -> None:
    shop = Shop(runner)
    verification = await shop.start(test=True)

    assert expect(WrongCode, await shop.check(verification, WRONG)).quotas == ()
    assert await shop.used() == 0


async def test_a_check_without_a_code_acquires_nothing(runner: ScriptRunner) -> None:
    shop = Shop(runner, limit=1)
    verification = await shop.start(channel=Channel.REVERSE_CALL, code_digest=None, code_length=None)
    await shop.limits.acquire(TOKEN, [shop.allowance])

    assert (await shop.check(verification)).status is Status.PENDING


async def test_a_full_limit_in_another_slot_refuses_before_a_code_is_compared(runner: ScriptRunner) -> None:
    shop = Shop(runner, limit=1)
    verification = await shop.start()
    reserved = await shop.limits.acquire(TOKEN, [shop.allowance])

    for candidate in (RIGHT, WRONG):
        with pytest.raises(RateLimited) as refused:
            await shop.check(verification, candidate)
        assert refused.value.limit == "failed_checks_per_client"

    await shop.limits.refund(reserved.token, [shop.allowance])
    assert (await shop.check(verification, RIGHT)).status is Status.VERIFIED


async def test_of_many_wrong_codes_at_once_as_many_are_compared_as_the_limit_allows(runner: ScriptRunner) -> None:
    shop = Shop(runner, limit=10)
    verifications = [await shop.start(phone=Phone(f"+79005{number:06}")) for number in range(50)]

    outcomes = await asyncio.gather(*(shop.check(it, WRONG) for it in verifications), return_exceptions=True)

    assert sum(isinstance(outcome, WrongCode) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, RateLimited) for outcome in outcomes) == 40


async def test_a_check_whose_reply_was_lost_keeps_its_allowance(nodes: Cluster, runner: ScriptRunner) -> None:
    shop = Shop(runner)
    while nodes.primary_of(shop.slots(runner)[0]) is nodes.primary_of(shop.slots(runner)[1]):
        shop = Shop(runner)
    verification = await shop.start()
    await shop.check(verification, WRONG)
    primary = nodes.primary_of(shop.slots(runner)[0])
    primary.pause()

    with pytest.raises(StoreUnavailable):
        await shop.check(verification, WRONG)

    primary.resume()
    assert await shop.used() == 2


async def test_webhook_events_are_taken_retried_buried_resent_and_erased_on_a_cluster(runner: ScriptRunner) -> None:
    outbox = RedisOutbox(runner, clients={"shop"})
    store = RedisVerificationStore(runner, phone_key=KEY, outbox=outbox)
    call = replace(new_call(99), client="shop")
    verification = (await start(store, call, POLICY)).verification
    await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.RINGING), ref="ref"))
    await store.cancel("shop", verification.id)

    created, canceled = await outbox.take(10)
    await outbox.set_aside(created, attempts=1, error="status 500", pause=timedelta(0))
    await outbox.set_aside(canceled, attempts=7, error="status 500", pause=None)
    assert await outbox.resend_all() == 1
    assert {each.event.type for each in await outbox.take(10)} == {"verification.created", "verification.canceled"}
    await outbox.done(created)
    eraser = RedisPhoneEraser(runner, attempts_on(runner, phone_key=KEY), phone_key=KEY)
    assert (await eraser.erase(call.phone)).events == 2


async def test_of_a_hundred_starts_at_once_as_many_are_counted_as_the_fullest_limit_allows(
    runner: ScriptRunner,
) -> None:
    guard = RedisFraudGuard(runner, make_guard_rules(), key=KEY)
    limits = RedisRateLimiter(runner, key=KEY, guard=guard)
    few, many = Limit("calls_per_address", 7, HOUR), Limit("calls_per_day", 1000, HOUR)
    allowances = [Allowance(few, "198.51.100.7"), Allowance(many, "everybody at once")]

    answers = await asyncio.gather(
        *(limits.acquire(f"{number:012x}", allowances) for number in range(100)), return_exceptions=True
    )

    assert sum(isinstance(answer, Reservation) for answer in answers) == 7
    assert {answer.limit for answer in answers if isinstance(answer, RateLimited)} == {"calls_per_address"}
    assert await limits.gauges(allowances[1]) == {"call_budget_used": 7}


async def test_a_blocked_range_is_refused_listed_and_lifted_on_a_cluster(runner: ScriptRunner) -> None:
    rules = make_guard_rules(min_calls=1, maturity=-timedelta(minutes=1))  # the first call is judged at once
    guard = RedisFraudGuard(runner, rules, key=KEY)
    limits = RedisRateLimiter(runner, key=KEY, guard=guard)
    allowances = make_policy().for_calls(client="pumping", phone=Phone("+79009876543"), address="198.51.100.8")
    await limits.acquire("00000000000a", allowances)

    with pytest.raises(RateLimited, match="fraud_guard"):
        await limits.acquire("00000000000b", allowances)

    assert [block.range for block in await guard.blocks()] == ["+79009876"]
    assert "pumping" in [suspect.client for suspect in await guard.suspects()]
    assert await guard.lift("+79009876")
    assert await guard.blocks() == []
    await limits.acquire("00000000000c", allowances)
