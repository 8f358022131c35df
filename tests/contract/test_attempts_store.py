"""The journal of attempts: what the scripts write of a verification, and what is found of it."""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from redis.asyncio import Redis

from app.store.layout import PhoneName, RecordField, RecordName, name_journal, to_ms
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.verification.attempts import Attempt, AttemptFilter, Ending, Outcome, Result
from app.verification.channels import Channel
from app.verification.domain_events import LimitHit, NoProviderReady
from app.verification.errors import BalanceTooLow, ProviderRejected, ProviderUnavailable, StoreUnavailable
from app.verification.model import CallState, CallStatus, Consent, Verification
from app.verification.phone import Phone
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall
from tests.attempts import KEPT, PRICE, attempts_on
from tests.conftest import PHONE_KEY
from tests.keys import stored
from tests.limiters import make_limiter
from tests.policies import make_policy
from tests.starting import start

PHONE, OTHER = Phone("+79001234567"), Phone("+79011234567")
RIGHT, WRONG = b"r" * 32, b"w" * 32
MINUTE = timedelta(minutes=1)
POLICY = make_policy(cooldowns=(timedelta(0),), calls_per_phone=())
FREE = Decimal(0)
CONSENT = Consent("версия 2", datetime(2026, 1, 31, 8, 59, 30, 123_000, UTC))
LATER = Consent("3", datetime(2026, 1, 31, 9, 1, tzinfo=UTC))


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Journal:
    redis: Redis
    runner: ScriptRunner
    store: RedisVerificationStore
    kept: timedelta
    later: timedelta = timedelta()

    def __post_init__(self) -> None:
        self.attempts = attempts_on(self.runner, phone_key=PHONE_KEY, kept=self.kept, clock=lambda: now() + self.later)

    async def start(
        self,
        phone: Phone = PHONE,
        *,
        client: str = "shop",
        resend_of: Verification | None = None,
        test: bool = False,
        reference: str | None = None,
        consent: Consent | None = None,
    ) -> Verification:
        call = NewCall(
            client=client,
            phone=phone,
            purpose="phone_verification",
            channel=Channel.VOICE,
            code_digest=RIGHT,
            code_length=6,
            checks=5,
            resend_of=resend_of.id if resend_of else None,
            test=test,
            reference=reference,
            consent=consent,
        )
        return (await start(self.store, call, POLICY)).verification

    async def change(self, verification: Verification, status: CallStatus, **facts: str) -> None:
        update = CallUpdate(state=CallState(status, facts.get("word")), ref="ref-1", operator=facts.get("operator"))
        await self.store.record_call(verification, verification.calls[-1].call_number, update)

    async def check(self, verification: Verification, code: bytes) -> None:
        check = CodeCheck(client=verification.client, candidates=[code], length=6)
        await self.store.check_by_id(verification.id, check, POLICY)

    async def refuse(self, verification: Verification, error: ProviderRejected | None = None) -> None:
        call_id = CallId(verification.id, verification.calls[-1].call_number)
        await self.store.refund(
            call_id, phone=verification.phone, client=verification.client, policy=POLICY, error=error
        )

    async def of(self, verification: Verification, *, after: timedelta = timedelta()) -> list[Attempt]:
        """Return the attempts of a verification, as they are read some time later."""
        self.later = after
        return list(await self.attempts.of_verification(verification.id))


def journal_on(redis: Redis, kept: timedelta = KEPT) -> Journal:
    runner = ScriptRunner(redis, timeout=5)
    limits = make_limiter(redis, runner=runner)
    store = RedisVerificationStore(runner, phone_key=PHONE_KEY, limits=limits, journal_kept=kept)
    return Journal(redis, runner, store, kept)


@pytest.fixture
def journal(redis: Redis) -> Journal:
    return journal_on(redis)


def stored_journal(bucket: str) -> str:
    return stored(name_journal(bucket))


def events(attempt: Attempt) -> list[str]:
    return [entry.event for entry in attempt.timeline]


async def test_an_attempt_is_told_from_its_begin_to_its_end(journal: Journal) -> None:
    verification = await journal.start()
    await journal.change(verification, CallStatus.INITIATED, operator="мтс москва")
    await journal.change(verification, CallStatus.RINGING)
    await journal.check(verification, WRONG)
    await journal.change(verification, CallStatus.COMPLETED)
    await journal.check(verification, RIGHT)

    (attempt,) = await journal.of(verification)

    assert events(attempt) == ["asked", "placed", "ringing", "wrong_code", "completed", "verified"]
    moments = [entry.at for entry in attempt.timeline]
    assert moments == sorted(moments)
    assert now() - moments[0] < MINUTE
    assert (attempt.verification_id, attempt.call_number) == (verification.id, 1)
    assert (attempt.client, attempt.purpose, attempt.channel) == ("shop", "phone_verification", "voice")
    assert (attempt.phone, attempt.call_ref) == ("+7900•••4567", "ref-1")
    assert (attempt.operator, attempt.reported_operator) == ("t2", "мтс москва")
    assert (attempt.outcome, attempt.call_status, attempt.ending) == (
        Outcome.PLACED,
        CallStatus.COMPLETED,
        Ending.VERIFIED,
    )
    assert (attempt.wrong_codes, attempt.cost_rub, attempt.reason) == (1, PRICE, "")


async def test_an_attempt_has_the_reference_of_its_verification_and_the_consent_to_its_call(journal: Journal) -> None:
    first = await journal.start(reference="Заказ № 7 | %7C", consent=CONSENT)
    await journal.change(first, CallStatus.NO_ANSWER)
    second = await journal.start(resend_of=first)
    await journal.change(second, CallStatus.NO_ANSWER)
    await journal.start(resend_of=first, consent=LATER)

    attempts = await journal.of(first)

    assert [one.reference for one in attempts] == ["Заказ № 7 | %7C"] * 3
    assert [one.consent for one in attempts] == [CONSENT, CONSENT, LATER]


async def test_an_attempt_may_have_a_consent_alone(journal: Journal) -> None:
    (attempt,) = await journal.of(await journal.start(consent=CONSENT))

    assert (attempt.reference, attempt.consent) == (None, CONSENT)


@pytest.mark.standalone  # counts the commands of one node
async def test_without_a_reference_and_a_consent_nothing_is_stored_of_them(redis: Redis) -> None:
    async def flow(
        reference: str | None = None, consent: Consent | None = None
    ) -> tuple[set[str], list[str], dict[str, int]]:
        await redis.flushall()
        await redis.config_resetstat()
        journal = journal_on(redis)
        verification = await journal.start(reference=reference, consent=consent)
        await journal.change(verification, CallStatus.COMPLETED)
        await journal.check(verification, RIGHT)
        name = RecordName.from_id(verification.id)
        assert name
        record = msgpack.unpackb(await redis.get(stored(name.key)) or b"")
        entries: Any = await redis.xrange(stored_journal(name.bucket))
        calls = {name: stats["calls"] for name, stats in (await redis.info("commandstats")).items()}
        return set(record), entries[0][1][b"e"].decode().split("\t"), calls

    fields, entry, calls = await flow()
    more_fields, longer_entry, same_calls = await flow("order-1024", CONSENT)

    assert more_fields - fields == {RecordField.REFERENCE, RecordField.CONSENT}
    assert (len(entry), longer_entry[8:]) == (8, ["order-1024", "1769849970123 версия 2"])
    assert calls == same_calls


async def test_the_words_of_the_provider_say_why_a_call_was_refused(journal: Journal) -> None:
    verification = await journal.start()
    await journal.refuse(verification, ProviderRejected("Номер ••• запрещён"))
    await journal.refuse(verification, ProviderRejected("again"))

    (attempt,) = await journal.of(verification, after=timedelta(hours=1))

    assert events(attempt) == ["asked", "refused"]
    assert (attempt.outcome, attempt.reason) == (Outcome.REFUSED, "rejected: Номер ••• запрещён")
    assert (attempt.ending, attempt.cost_rub) == (None, FREE)


async def test_a_call_that_was_never_placed_has_no_reason_of_the_provider(journal: Journal) -> None:
    verification = await journal.start()
    await journal.change(verification, CallStatus.UNCONFIRMED)
    await journal.refuse(verification)

    (attempt,) = await journal.of(verification)

    assert (attempt.outcome, attempt.reason) == (Outcome.REFUSED, "not_placed")
    assert events(attempt) == ["asked", "unconfirmed", "refused"]


async def test_an_attempt_whose_process_died_is_unconfirmed_once_its_code_has_expired(journal: Journal) -> None:
    verification = await journal.start()

    (young,), (old,) = await journal.of(verification), await journal.of(verification, after=POLICY.lifetime)

    assert (young.outcome, young.ending, young.cost_rub) == (Outcome.ASKED, Ending.PENDING, FREE)
    assert (old.outcome, old.ending, old.cost_rub) == (Outcome.UNCONFIRMED, Ending.EXPIRED, PRICE)


async def test_expiry_is_inferred_at_the_moment_when_the_last_code_expires(journal: Journal) -> None:
    verification = await journal.start()
    await journal.change(verification, CallStatus.BUSY)

    (pending,) = await journal.of(verification, after=POLICY.lifetime - MINUTE)
    (expired,) = await journal.of(verification, after=POLICY.lifetime)

    assert (events(pending)[-1], pending.ending) == ("busy", Ending.PENDING)
    assert (events(expired)[-1], expired.ending) == ("expired", Ending.EXPIRED)
    assert expired.timeline[-1].at == expired.started_at + POLICY.lifetime


async def test_each_resend_is_an_attempt_and_the_end_is_with_the_latest(journal: Journal) -> None:
    first = await journal.start()
    await journal.change(first, CallStatus.NO_ANSWER)
    second = await journal.start(resend_of=first)
    await journal.change(second, CallStatus.COMPLETED)
    await journal.check(second, RIGHT)

    attempts = await journal.of(first)

    assert [(one.call_number, one.call_status, one.ending) for one in attempts] == [
        (1, CallStatus.NO_ANSWER, Ending.VERIFIED),
        (2, CallStatus.COMPLETED, Ending.VERIFIED),
    ]
    assert [events(one) for one in attempts] == [["asked", "no_answer"], ["asked", "completed", "verified"]]


async def test_a_refused_resend_leaves_the_wrong_codes_and_the_end_of_its_verification(journal: Journal) -> None:
    first = await journal.start()
    await journal.change(first, CallStatus.COMPLETED)
    await journal.refuse(await journal.start(resend_of=first), ProviderRejected("no"))
    await journal.check(first, WRONG)

    placed, refused = await journal.of(first, after=POLICY.lifetime)

    assert (placed.outcome, placed.wrong_codes, placed.ending) == (Outcome.PLACED, 1, Ending.EXPIRED)
    assert (refused.outcome, refused.cost_rub) == (Outcome.REFUSED, FREE)


@pytest.mark.parametrize("end", ["locked", "canceled"])
async def test_the_end_of_a_verification_is_told(journal: Journal, end: str) -> None:
    verification = await journal.start()
    await journal.change(verification, CallStatus.INITIATED)
    if end == "locked":
        for _ in range(5):
            await journal.check(verification, WRONG)
    else:
        await journal.store.cancel("shop", verification.id)

    (attempt,) = await journal.of(verification, after=timedelta(hours=1))

    assert (attempt.ending, events(attempt)[-1]) == (end, end)
    assert attempt.wrong_codes == (5 if end == "locked" else 0)


async def test_attempts_are_found_by_phone_the_latest_first(journal: Journal) -> None:
    first = await journal.start()
    await journal.start(OTHER)
    second = await journal.start(client="bank")

    found = await journal.attempts.of_phone(PHONE, since=now() - MINUTE)

    assert [one.verification_id for one in found] == [second.id, first.id]
    assert len({one.phone_digest for one in found}) == 1
    assert await journal.attempts.of_phone(PHONE, since=now() + MINUTE) == []


async def test_a_list_has_all_buckets_in_pages_and_filters(journal: Journal) -> None:
    started = [
        await journal.start(
            Phone(f"+79{16 if number == 3 else '00'}123{number:04}"),
            client="ab"[number % 2],
            reference=f"order-{number}",
        )
        for number in range(25)
    ]
    await journal.change(started[3], CallStatus.BUSY)
    wanted, moment = AttemptFilter(), now() + MINUTE

    seen: list[Attempt] = []
    before = moment
    while True:
        page = await journal.attempts.page(wanted, since=moment - KEPT, before=before, most=10)
        seen += page.attempts
        if page.next_before is None:
            break
        before = page.next_before

    assert sorted(one.verification_id for one in seen) == sorted(verification.id for verification in started)
    assert [one.started_at for one in seen] == sorted((one.started_at for one in seen), reverse=True)
    for filtered in (
        AttemptFilter(operator="mts"),
        AttemptFilter(result=Result.BUSY, client="b", channel="voice"),
        AttemptFilter(reference="order-3"),
    ):
        page = await journal.attempts.page(filtered, since=moment - KEPT, before=moment, most=10)
        assert [one.verification_id for one in page.attempts] == [started[3].id]
    nothing = AttemptFilter(result=Result.VERIFIED)
    assert not (await journal.attempts.page(nothing, since=moment - KEPT, before=moment, most=9)).attempts


async def test_finished_attempts_of_a_time_are_told_once(journal: Journal) -> None:
    started = [await journal.start(Phone(f"+7900123{number:04}")) for number in range(5)]
    moment = now()
    halves = [
        [one async for one in journal.attempts.finished(begin, end)]
        for begin, end in ((moment - MINUTE, moment + MINUTE), (moment + MINUTE, moment + 2 * MINUTE))
    ]

    assert {one.verification_id for one in halves[0]} == {verification.id for verification in started}
    assert all(one.ending is Ending.EXPIRED for one in halves[0])
    assert halves[1] == []


async def test_erasing_a_phone_leaves_the_others_of_its_bucket(journal: Journal) -> None:
    verification = await journal.start()
    await journal.change(verification, CallStatus.COMPLETED)
    bucket = PhoneName.from_phone(PHONE_KEY, PHONE).bucket
    other = f"b{'f' * 8}1\t{'f' * 12}\tshop\tlogin\tvoice\t9007654\t{'e' * 16}"
    await journal.redis.xadd(stored_journal(bucket), {"e": other})

    assert await journal.attempts.erase(PHONE) == 1

    assert await journal.of(verification) == []
    assert await journal.redis.xlen(stored_journal(bucket)) == 1
    assert await journal.attempts.erase(PHONE) == 0


async def test_a_journal_expires_and_drops_what_is_older_than_it_is_kept(journal: Journal) -> None:
    key = stored_journal(PhoneName.from_phone(PHONE_KEY, PHONE).bucket)
    old = f"b{'f' * 8}1\t{'f' * 12}\tshop\tlogin\tvoice\t9007654\t{'e' * 16}"
    for age in (KEPT + MINUTE, KEPT - MINUTE):
        await journal.redis.xadd(key, {"e": old}, id=f"{to_ms(now() - age)}-0")

    await journal.start()

    assert await journal.redis.xlen(key) == 2
    assert KEPT - MINUTE < timedelta(milliseconds=await journal.redis.pttl(key)) <= KEPT


async def test_an_end_whose_begin_is_erased_makes_no_journal_without_expiry(journal: Journal) -> None:
    verification = await journal.start()
    await journal.redis.delete(stored_journal(PhoneName.from_phone(PHONE_KEY, PHONE).bucket))

    await journal.change(verification, CallStatus.INITIATED)
    await journal.check(verification, RIGHT)

    assert await journal.redis.keys("*:j") == []


@pytest.mark.standalone  # counts the commands of one server
async def test_without_days_there_is_no_journal_and_no_command_for_it(redis: Redis) -> None:
    async def commands(kept: timedelta) -> dict[str, int]:
        await redis.flushall()
        await redis.config_resetstat()
        journal = journal_on(redis, kept)
        verification = await journal.start()
        await journal.change(verification, CallStatus.COMPLETED)
        await journal.check(verification, WRONG)
        await journal.check(verification, RIGHT)
        assert bool(await redis.keys("*:j")) is bool(kept)
        return {name: stats["calls"] for name, stats in (await redis.info("commandstats")).items()}

    without, with_journal = await commands(timedelta()), await commands(KEPT)

    assert not any("xadd" in name for name in without)
    assert sum(with_journal.values()) - sum(without.values()) == 5  # four entries, and the expiry


async def test_test_numbers_are_not_in_the_journal(journal: Journal) -> None:
    verification = await journal.start(test=True)
    await journal.check(verification, RIGHT)

    assert await journal.redis.keys("*:j") == []


async def test_no_entry_has_a_code_or_a_whole_phone(journal: Journal) -> None:
    verification = await journal.start()
    await journal.change(verification, CallStatus.INITIATED)
    await journal.check(verification, RIGHT)

    (key,) = await journal.redis.keys("*:j")
    text = str(await journal.redis.xrange(key))

    assert not re.search(r"1234567|r{8}", text)
    assert "9004567" in text


async def test_an_attempt_costs_at_most_200_bytes(journal: Journal) -> None:
    """Of four entries: asked, placed, completed, verified; without what a bucket costs."""
    phones = 400
    for _ in range(phones):
        verification = await journal.start()
        await journal.store.record_call(
            verification, 1, CallUpdate(state=CallState(CallStatus.INITIATED), ref=secrets.token_hex(8), operator="mts")
        )
        await journal.change(verification, CallStatus.COMPLETED)
        await journal.check(verification, RIGHT)

    (key,) = await journal.redis.keys("*:j")
    size = await journal.redis.memory_usage(key, samples=0)

    assert size is not None
    assert await journal.redis.xlen(key) == 4 * phones
    assert size / phones <= 200


def refuse_start(journal: Journal, limit: str = "call_cooldown", phone: Phone = PHONE) -> None:
    journal.attempts.observe(LimitHit(limit, "start", 30, phone))


async def test_starts_that_limits_refuse_are_counted_by_the_hour(journal: Journal) -> None:
    journal.later = datetime.now(UTC).replace(minute=30) - now()
    for _ in range(3):
        refuse_start(journal)
    refuse_start(journal, "fraud_guard")
    refuse_start(journal, phone=OTHER)
    journal.attempts.observe(NoProviderReady(OTHER, ProviderUnavailable(retry_after=30)))
    journal.attempts.observe(NoProviderReady(OTHER, BalanceTooLow()))
    journal.attempts.observe(LimitHit("failed_checks_per_client", "check", 30))
    await journal.attempts.flush()
    journal.later += timedelta(hours=1)
    refuse_start(journal)
    await journal.attempts.flush()

    found = await journal.attempts.refused_starts(PHONE, now() - KEPT)

    hour = (now() + journal.later).replace(minute=0, second=0, microsecond=0)
    assert [(starts.hour, starts.reason, starts.count) for starts in found] == [
        (hour, "call_cooldown", 1),
        (hour - timedelta(hours=1), "fraud_guard", 1),
        (hour - timedelta(hours=1), "call_cooldown", 3),
    ]
    assert {starts.reason: starts.count for starts in await journal.attempts.refused_starts(OTHER, now() - KEPT)} == {
        "call_cooldown": 1,
        "provider_unavailable": 1,
        "provider_balance_too_low": 1,
    }


async def test_refused_starts_expire_and_are_bounded_and_erased(journal: Journal) -> None:
    for limit in range(100):
        refuse_start(journal, f"limit_{limit}")
    await journal.attempts.flush()
    refuse_start(journal, "limit_0")
    await journal.attempts.flush()
    await journal.attempts.flush()

    (key,) = await journal.redis.keys("*:refused:*")
    assert await journal.redis.hlen(key) == 64
    assert KEPT < timedelta(milliseconds=await journal.redis.pttl(key)) <= KEPT + timedelta(days=1)
    found = await journal.attempts.refused_starts(PHONE, now() - KEPT)
    assert {starts.reason: starts.count for starts in found}["limit_0"] == 2

    await journal.attempts.erase(PHONE)

    assert await journal.redis.keys("*:refused:*") == []


async def test_refused_starts_are_the_first_to_be_dropped(journal: Journal) -> None:
    """Those beyond a bound in memory, and those that Redis does not take."""
    for number in range(10_050):
        refuse_start(journal, phone=Phone(f"+790{number:08}"))
    await journal.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable):
            await journal.attempts.flush()
    finally:
        await journal.redis.config_set("maxmemory", "0")
    await journal.attempts.flush()

    assert await journal.redis.keys("*:refused:*") == []


async def test_without_a_journal_no_refused_start_is_counted(redis: Redis) -> None:
    journal = journal_on(redis, timedelta())
    refuse_start(journal)
    await journal.attempts.flush()

    assert await redis.keys("*") == []


async def report(journal: Journal, *, after: timedelta) -> list[Attempt]:
    """Return what is reported when so much time has passed for Redis."""
    state = await journal.redis.hgetall("pv3{attempts}")
    for name in state.keys() & {b"reported_to", b"leased_to"}:
        await journal.redis.hset("pv3{attempts}", name, int(state[name]) - round(after / timedelta(milliseconds=1)))
    found: list[Attempt] = []
    await journal.attempts.report(found.append)
    return found


async def test_each_finished_attempt_is_reported_once(journal: Journal) -> None:
    assert await report(journal, after=timedelta()) == []  # from now on
    entry = f"b{'f' * 8}1\t{'f' * 12}\tshop\tlogin\tvoice\t9007654\t{'e' * 16}"
    await journal.redis.xadd(stored_journal("0ab"), {"e": entry}, id=f"{to_ms(now() - 20 * MINUTE)}-0")
    await journal.start()

    (reported,) = await report(journal, after=30 * MINUTE)

    assert (reported.verification_id, reported.ending) == (f"vrf_0ab{'f' * 20}", Ending.EXPIRED)
    assert await report(journal, after=timedelta()) == []
    assert 0 < await journal.redis.pttl("pv3{attempts}") <= KEPT / timedelta(milliseconds=1)


async def test_only_one_worker_reports_and_another_takes_over_from_one_that_died(journal: Journal) -> None:
    await report(journal, after=timedelta())
    entry = f"b{'f' * 8}1\t{'f' * 12}\tshop\tlogin\tvoice\t9007654\t{'e' * 16}"
    await journal.redis.xadd(stored_journal("0ab"), {"e": entry}, id=f"{to_ms(now() - 20 * MINUTE)}-0")

    def die(_: Attempt) -> None:
        raise RuntimeError

    await journal.redis.hincrby("pv3{attempts}", "reported_to", -30 * 60 * 1000)
    with pytest.raises(RuntimeError):
        await journal.attempts.report(die)

    assert await report(journal, after=timedelta()) == []
    assert len(await report(journal, after=2 * MINUTE)) == 1
