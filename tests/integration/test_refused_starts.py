"""A refused start leaves no trace: it changes no other start, check, read or webhook."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import msgpack
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from app.container import Container, open_container
from app.main import create_api, create_app
from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from app.settings.policies import make_policies
from app.store.layout import ms, name_block, name_limit
from app.verification.fraud_guard import range_of
from app.verification.keys import derive_key
from app.verification.phone import Phone
from tests.ageing import age
from tests.integration.conftest import run, sandbox_settings
from tests.integration.test_verification import PHONE, wrong
from tests.keys import stored
from tests.limit_keys import block_subject, fill_limit, is_limit, read_limit
from tests.waiting import until
from tests.webhook_events import now_ms, outbox_key

HOME, STRANGE = "192.0.2.7", "198.51.100.9"  # addresses: of the end user, and of the attacker who floods
SHOP, OTHER = "shop", "bank"
WEBHOOK = {"webhook_url": "http://127.0.0.1:9/", "webhook_secret": "whsec_bm90LWEtcmVhbC1zZWNyZXQtMDEyMzQ1"}
KEYS = {SHOP: "not-a-real-key-1", OTHER: "not-a-real-key-2"}
COOLDOWN = timedelta(seconds=60)

# What refuses a start: a limit by its name, the fraud guard, a low balance, or the provider's response.
SHARED_LIMITS = ("calls_per_range", "calls_per_client", "calls_per_day")
LIMITS = ("calls_per_address", *SHARED_LIMITS)
REFUSALS_OF_PROVIDER = {"refused": Fault.REFUSED, "too_many_requests": Fault.TOO_MANY_REQUESTS}
BEFORE_THE_PROVIDER = (*LIMITS, "guard", "balance")
KINDS = (*BEFORE_THE_PROVIDER, *REFUSALS_OF_PROVIDER)

Answer = httpx.Response


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningService:
    """The service without its background work: webhook events stay in the outbox, and no call is followed."""

    api: httpx.AsyncClient
    redis: Redis
    settings: Settings
    network: VirtualNetwork
    container: Container

    async def post(self, path: str, client: str = SHOP, **body: str) -> Answer:
        return await self.api.post(path, json=body, headers={"Authorization": f"Bearer {KEYS[client]}"})

    async def start(self, client: str = SHOP, **fields: str) -> Answer:
        return await self.post("/verify/start", client, **{"phone": PHONE, "client_ip": HOME, **fields})

    async def start_after(self, seconds: float) -> Answer:
        await asyncio.sleep(seconds)
        return await self.start()

    async def check(self, verification_id: str, code: str) -> Answer:
        return await self.post("/verify/check", verification_id=verification_id, code=code, client_ip=HOME)

    async def read(self, verification_id: str) -> Answer:
        headers = {"Authorization": f"Bearer {KEYS[SHOP]}"}
        return await self.api.get(f"/verify/{verification_id}", headers=headers)

    async def hear(self) -> str:
        """Wait until the last call to the phone is answered, and return the code."""
        await until(lambda: self.network.calls_of(PHONE)[-1].heard)
        return str(self.network.calls_of(PHONE)[-1].heard)

    async def events(self) -> list[str]:
        """Return the types of all webhook events of all clients, oldest first."""
        events: Any = []
        for key in await self.redis.keys(outbox_key("*")):
            events += await self.redis.zrange(key, 0, now_ms(), byscore=True, withscores=True)
        return [event.decode().split("|")[1] for event, _ in sorted(events, key=lambda each: each[1])]

    @asynccontextmanager
    async def refusing(self, kind: str, client: str = SHOP) -> AsyncIterator[None]:
        """Have starts refused from the attacker's address (with shared limits, from any address) inside the context."""
        if kind in LIMITS:
            refused = self._used_up(kind, client)
        elif kind == "guard":
            refused = self._blocked()
        elif kind == "balance":
            refused = self._low_balance()
        else:
            refused = self._refused_by_provider(REFUSALS_OF_PROVIDER[kind])
        async with refused:
            yield

    @asynccontextmanager
    async def _used_up(self, limit: str, client: str) -> AsyncIterator[None]:
        policy = make_policies(self.settings).for_client(client)
        allowances = policy.for_calls(client=client, phone=Phone(PHONE), address=STRANGE)
        (allowance,) = (allowance for allowance in allowances if allowance.limit.name == limit)
        async with self._instead(self._name_limit(limit, allowance.subject)) as name:
            await fill_limit(self.redis, name, allowance.limit.count, ms(allowance.limit.period))
            yield

    @asynccontextmanager
    async def _blocked(self) -> AsyncIterator[None]:
        name = name_block(self._name_limit("calls_per_range", range_of(Phone(PHONE))))
        await block_subject(self.redis, name, 3_600_000)
        yield
        await self.redis.delete(name, "pv3{guard}:ranges")

    def periods_of_limits(self) -> dict[str, int]:
        """Return for how long each limit counts an event, in ms."""
        policy = make_policies(self.settings).for_client(SHOP)
        allowances = [
            *policy.for_calls(client=SHOP, phone=Phone(PHONE), address=HOME),
            *policy.for_failed_checks(client=SHOP, address=HOME),
        ]
        return {self._name_limit(it.limit.name, it.subject): ms(it.limit.period) for it in allowances}

    def _name_limit(self, limit: str, subject: str) -> str:
        return stored(name_limit(derive_key(self.settings.names_secret, "phone"), limit, subject))

    @asynccontextmanager
    async def _instead(self, name: str) -> AsyncIterator[str]:
        """Let a limit hold something else inside the context; starts are refused there, and so count nothing."""
        held, expires = await self.redis.get(name), await self.redis.pexpiretime(name)
        yield name
        await self.redis.delete(name)
        if held is not None:
            await self.redis.set(name, held, pxat=expires)

    @asynccontextmanager
    async def _low_balance(self) -> AsyncIterator[None]:
        self.container.providers.balance.note(Decimal(0))
        yield
        self.container.providers.balance.note(Decimal(10_000))

    @asynccontextmanager
    async def _refused_by_provider(self, fault: Fault) -> AsyncIterator[None]:
        self.network.faults = Faults(share=1, kinds=(fault,))
        yield
        self.network.faults = Faults()


@pytest.fixture
async def service(redis: Redis, redis_url: str, network: VirtualNetwork) -> AsyncIterator[RunningService]:
    async with running_service(redis, redis_url, network) as running:
        yield running


@pytest.fixture
async def exact_service(redis: Redis, redis_url: str, network: VirtualNetwork) -> AsyncIterator[RunningService]:
    """Without limits above 64: whether an event has left those depends on when their sub-windows began."""
    names = ("calls_per_client", "calls_per_day", "failed_checks_per_address", "failed_checks_per_client")
    async with running_service(redis, redis_url, network, **dict.fromkeys(names, 60)) as running:
        yield running


@asynccontextmanager
async def running_service(
    redis: Redis, redis_url: str, network: VirtualNetwork, **limit: int
) -> AsyncIterator[RunningService]:
    settings = sandbox_settings(
        redis_url,
        channels=["voice", "flash_call", "reverse_call"],
        api={"keys": ",".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items())},
        clients={SHOP: WEBHOOK},
        limit=limit,
        plusofon={"circuit_failures": 1000},  # refusals must not open the circuit for the end user
        min_balance_rub=3,
    )

    async with open_container(settings, network) as container:

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Container]]:
            yield {"container": container}

        async with run(create_api(lifespan)) as api:
            yield RunningService(api=api, redis=redis, settings=settings, network=network, container=container)


async def flood(service: RunningService, **named: str) -> list[Answer]:
    """Start for the end user's phone from the attacker's address, many at once; each kind of start comes first once."""
    kinds: list[dict[str, str]] = [named, {"purpose": "login"}, {}, {"channel": "flash_call"}, {"channel": "voice"}]
    answers: list[Answer] = []
    for first in range(len(kinds)):
        bodies = [{**kinds[(first + number) % len(kinds)], "client_ip": STRANGE} for number in range(8)]
        answers += await asyncio.gather(*(service.start(**body) for body in bodies))
    return answers


def slug(answer: Answer) -> str:
    return str(answer.json().get("type", "")).removeprefix("/problems/")


def ids_in(answers: list[Answer]) -> set[str]:
    """Return everything that looks like a verification id in bodies and headers."""
    return {found for answer in answers for found in re.findall(r"vrf_\w+", answer.text + str(answer.headers))}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_start_causes_no_cooldown_for_others(service: RunningService, kind: str) -> None:
    for _ in range(5):
        async with service.refusing(kind):
            flooding = asyncio.create_task(flood(service))
            during = [await service.start_after(0.01) for _ in range(3)]
            refused = await flooding
        after = await service.start()

        assert not any(answer.is_success for answer in refused)
        if kind == "calls_per_address":  # not the end user's address: only their own call starts a cooldown
            assert [answer.status_code for answer in (*during, after)] == [201, 429, 429, 429]
        else:
            assert not any(answer.is_success for answer in during)
            assert after.status_code == 201, after.text
        if kind in BEFORE_THE_PROVIDER[1:]:
            assert "call-cooldown" not in map(slug, during)
        await service.redis.flushall()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_start_returns_no_id_of_a_verification_that_does_not_exist(
    service: RunningService, kind: str
) -> None:
    own = (await service.start()).json()["verification_id"]
    await age(service.redis, COOLDOWN)
    async with service.refusing(kind):
        answers = await flood(service, verification_id=own)

    assert not any(answer.is_success for answer in answers)
    assert ids_in(answers) <= {own}
    assert (await service.read(own)).json()["calls_placed"] == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_start_does_not_reduce_the_checks_of_a_pending_verification(
    service: RunningService, kind: str
) -> None:
    own = (await service.start(channel="voice")).json()["verification_id"]
    code = await service.hear()
    await age(service.redis, COOLDOWN)
    left = []
    async with service.refusing(kind):
        for _ in range(4):
            flooding = asyncio.create_task(flood(service, verification_id=own, channel="flash_call"))
            left.append((await service.check(own, wrong(code))).json()["checks_left"])
            assert not any(answer.is_success for answer in await flooding)
            left.append((await service.read(own)).json()["checks_left"])
        verified = await service.check(own, code)

    assert left == [4, 4, 3, 3, 2, 2, 1, 1]
    assert verified.json()["verified"] is True


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_start_sends_no_webhook_event(service: RunningService, kind: str) -> None:
    own = (await service.start()).json()["verification_id"]
    code = await service.hear()
    await age(service.redis, COOLDOWN)
    before = await service.events()
    async with service.refusing(kind):
        answers = await flood(service, verification_id=own)
        during = await service.events()
    await service.check(own, code)

    assert not any(answer.is_success for answer in answers)
    assert before == during == ["verification.created"]
    assert await service.events() == ["verification.created", "verification.verified"]


# The steps of one end user, run with and without refused starts of others in between.

PURPOSES = ("phone_verification", "login")
# Multiples of ten seconds, so that the duration of a run does not change a result.
WAITS = (20, 60, 130, 300, 3600)
SECONDS = {"expires_in", "resend_in", "retry_after"}
UNIQUE = {"created_at", "expires_at", "token", "instance"}

people_steps = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(PURPOSES), st.sampled_from(["voice", "flash_call"])),
    st.tuples(st.just("resend"), st.integers(0, 2), st.sampled_from(["voice", "flash_call"])),
    st.tuples(st.just("check_by_id"), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("check_by_phone"), st.sampled_from(PURPOSES), st.booleans()),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("cancel"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from(WAITS)),
)
refused_starts = st.fixed_dictionaries(
    {"purpose": st.sampled_from(PURPOSES), "named": st.booleans()},
    optional={"channel": st.sampled_from(["voice", "flash_call", "reverse_call"])},
)
floods = st.lists(
    st.tuples(
        st.sampled_from(KINDS), st.sampled_from([SHOP, SHOP, OTHER]), st.lists(refused_starts, min_size=1, max_size=4)
    ),
    max_size=2,
)


@dataclass(slots=True)
class EndUser:
    """Runs steps of an end user and records the responses: ids as their order, seconds in a separate list."""

    service: RunningService
    ids: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    saw: list[object] = field(default_factory=list)
    seconds: list[int] = field(default_factory=list)

    async def play(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - those of the step
        if answer := await getattr(self, name)(*arguments):
            self.saw.append((name, answer.status_code, self._seen(answer.json()), _without_times(answer.headers)))

    async def start(self, purpose: str, channel: str) -> Answer:
        return await self._called(await self.service.start(purpose=purpose, channel=channel))

    async def resend(self, which: int, channel: str) -> Answer | None:
        if not self.ids:
            return None
        verification_id = self._id(which)
        purpose = (await self.service.read(verification_id)).json().get("purpose", PURPOSES[0])
        answer = await self.service.start(verification_id=verification_id, purpose=purpose, channel=channel)
        return await self._called(answer)

    async def check_by_id(self, which: int, right: bool) -> Answer | None:  # noqa: FBT001 - of a step
        return await self.service.check(self._id(which), self._code(right)) if self.ids else None

    async def check_by_phone(self, purpose: str, right: bool) -> Answer | None:  # noqa: FBT001 - of a step
        body = {"phone": PHONE, "purpose": purpose, "client_ip": HOME}
        return await self.service.post("/verify/check", code=self._code(right), **body) if self.ids else None

    async def read(self, which: int) -> Answer | None:
        return await self.service.read(self._id(which)) if self.ids else None

    async def cancel(self, which: int) -> Answer | None:
        return await self.service.post(f"/verify/{self._id(which)}/cancel") if self.ids else None

    async def wait(self, seconds: int) -> None:
        await age(self.service.redis, timedelta(seconds=seconds))

    def _id(self, which: int) -> str:
        return self.ids[-1 - which % len(self.ids)]

    def _code(self, right: bool) -> str:  # noqa: FBT001 - of a step
        return self.codes[-1] if right else wrong(self.codes[-1])

    async def _called(self, answer: Answer) -> Answer:
        if answer.is_success:
            if (verification_id := answer.json()["verification_id"]) not in self.ids:
                self.ids.append(verification_id)
            self.codes.append(await self.service.hear())
        return answer

    def _seen(self, body: Mapping[str, Any]) -> dict[str, object]:
        seen: dict[str, object] = {name: value for name, value in body.items() if name not in UNIQUE}
        if verification_id := body.get("verification_id"):
            seen["verification_id"] = self.ids.index(verification_id)
        for name in sorted(SECONDS & body.keys()):
            if body[name] is not None:
                self.seconds.append(body[name])
                seen[name] = "some"
        if "detail" in body:
            seen["detail"] = re.sub(r"\d+", "#", body["detail"])
        return seen


def _without_times(headers: httpx.Headers) -> str:
    return re.sub(r"t=\d+", "t=#", headers.get("RateLimit", ""))


async def play(service: RunningService, script: list[tuple[Any, ...]], *, flooded: bool) -> EndUser:
    await service.redis.flushall()
    user = EndUser(service)
    for step, attacks in script:
        await user.play(*step)
        for kind, client, starts in attacks if flooded else ():
            async with service.refusing(kind, client):
                bodies = [_attack(start, user) for start in starts]
                answers = await asyncio.gather(*(service.start(client, **body) for body in bodies))
            assert not any(answer.is_success for answer in answers)
    return user


def _attack(start: Mapping[str, Any], user: EndUser) -> dict[str, str]:
    start = dict(start)
    named = {"verification_id": user.ids[-1]} if start.pop("named") and user.ids else {}
    return {**start, **named, "client_ip": STRANGE}


@hypothesis_settings(max_examples=25)
@given(script=st.lists(st.tuples(people_steps, floods), min_size=2, max_size=10))
async def test_refused_starts_change_no_response_to_the_end_user(
    exact_service: RunningService, script: list[tuple[Any, ...]]
) -> None:
    flooded, alone = [await play(exact_service, script, flooded=flooded) for flooded in (True, False)]

    assert flooded.saw == alone.saw
    assert flooded.seconds == pytest.approx(alone.seconds, abs=5)


# A start that the provider refuses has been stored. After the refund Redis holds what it held before, except:
# - the fraud guard has a new time bucket with no counted call;
# - call numbers are never reused, so the last call number of the named verification has grown, and the end of the
#   cooldown, which had passed, is deleted;
# - the phone no longer lists the ids of expired verifications;
# - the journal of attempts says that the call was asked for and refused;
# - keys of the phone, of limits and of event expiry may have a later TTL, with unchanged content.

Dump = dict[str, tuple[dict[str, str], int]]


async def dump(service: RunningService) -> Dump:
    """Return the content of each key as a mapping, and its expiry (Unix time in ms).

    That of a limit are its events with the moment when they leave its window (Unix time in ms), and those buckets of
    the guard that have a call.
    """
    redis, periods, found = service.redis, service.periods_of_limits(), Dump()
    for key in map(_text, await redis.keys()):
        pairs: Any
        match await redis.type(key):
            case b"hash":
                pairs = (await redis.hgetall(key)).items()
            case b"string" if is_limit(key):
                limit = await read_limit(redis, key)
                events = [(event, event[0] + periods[key]) for event in limit["events"]]
                calls = [(bucket[0], bucket[1:]) for bucket in limit["calls"] if bucket[1:] != [0, 0]]
                pairs = [*events, *calls]
            case b"string":
                pairs = msgpack.unpackb(await redis.get(key) or b"").items()
            case b"zset":
                pairs = await redis.zrange(key, 0, -1, withscores=True)
            case _:
                pairs = await redis.xrange(key)
        found[key] = {_text(name): _text(value) for name, value in pairs}, await redis.pexpiretime(key)
    return found


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def differences(before: Dump, after: Dump, named: str | None) -> list[str]:
    """Return what a refused start has added, changed or removed, beyond the exceptions above."""
    found, now = [], time.time() * 1000  # the same for both: an event may leave its window meanwhile
    for key in sorted(key for key in before.keys() | after.keys() if not key.endswith(":j")):
        (held, expired), (holds, expires) = before.get(key, ({}, 0)), after.get(key, ({}, 0))
        if ":p:" in key:
            held, holds = (_with_living_ids(key, phone, before) for phone in (held, holds))
        elif named and key.endswith(named[len("vrf_000") :]):
            assert int(holds.pop("n")) >= int(held.pop("n"))
            del held["r"]
            holds.pop("r", None)
        elif is_limit(key):
            held, holds = (_counted(events, now) for events in (held, holds))
            if not held and not holds:
                continue
        may_expire_later = ":p:" in key or is_limit(key.removesuffix(":b")) or key.endswith(":o")
        if held != holds:
            found.append(f"{key} held {held}, and now {holds}")
        if not (expires > expired > 0 and may_expire_later) and abs(expires - expired) > 1000:
            found.append(f"{key} expires {expires - expired} ms later")
    return found


def _counted(limit: Mapping[str, str], now: float) -> dict[str, str]:
    return {event: leaves for event, leaves in limit.items() if not leaves.isdecimal() or int(leaves) > now}


def _with_living_ids(key: str, phone: Mapping[str, str], before: Dump) -> dict[str, str]:
    bucket = key.partition(":p:")[0]
    living = {
        name: ",".join(rest for rest in ids.split(",") if f"{bucket}:{rest}" in before)
        for name, ids in phone.items()
        if ":" in name
    }
    return {name: value for name, value in {**phone, **living}.items() if value}


PRELUDES: dict[str, list[tuple[Any, ...]]] = {
    "an unknown phone": [],
    "a pending verification": [("start", "login", "voice"), ("wait", 62)],
    "two of them": [("start", "login", "voice"), ("wait", 62), ("start", "login", "flash_call"), ("wait", 130)],
    "a failed check": [("start", "login", "voice"), ("check_by_id", 0, False), ("wait", 62)],
    "a resend": [("start", "login", "voice"), ("wait", 62), ("resend", 0, "flash_call"), ("wait", 130)],
    "a verified one": [("start", "login", "voice"), ("check_by_id", 0, True), ("wait", 62)],
    "an expired one": [("start", "login", "voice"), ("wait", 3600)],
}


@pytest.mark.parametrize("fault", REFUSALS_OF_PROVIDER)
@pytest.mark.parametrize("prelude", PRELUDES)
async def test_a_start_that_the_provider_refused_leaves_redis_unchanged(
    service: RunningService, prelude: str, fault: str
) -> None:
    user = EndUser(service)
    for step in PRELUDES[prelude]:
        await user.play(*step)
    named = user.ids[-1] if user.ids else None
    channels: list[dict[str, str]] = [{}, {"channel": "voice"}, {"channel": "flash_call"}, {"channel": "reverse_call"}]
    before = await dump(service)
    async with service.refusing(fault):
        answers = [await service.start(purpose="login", **channel) for channel in channels]
        if named:
            resends = [await service.start(purpose="login", verification_id=named, **channel) for channel in channels]
            is_pending = prelude not in {"a verified one", "an expired one"}
            assert {answer.status_code == 404 for answer in resends} == {not is_pending}
    after = await dump(service)

    assert {slug(answer) for answer in answers} <= {"provider-rejected", "provider-unavailable"}
    assert differences(before, after, named) == []


async def test_starts_of_test_numbers_over_the_limit_add_no_key(redis: Redis, redis_url: str) -> None:
    allowed, fired = 20, 100
    numbers = [f"+7900000{number}" for number in range(3000, 3005)]
    settings = sandbox_settings(
        redis_url,
        test_numbers=",".join(f"{number}=123456" for number in numbers),
        limit={"test_starts_per_client": allowed},
        purposes=["phone_verification", "login"],
    )
    async with run(create_app(settings, VirtualNetwork())) as api:

        async def flood_with(keys_of_requests: str) -> int:
            requests = [
                api.post(
                    "/verify/start",
                    json={"phone": numbers[at % 5], "purpose": ("login", "phone_verification")[at % 2]},
                    headers={"Idempotency-Key": f"{keys_of_requests}{at}"} if at % 3 else {},
                )
                for at in range(fired)
            ]
            return sum(answer.is_success for answer in await asyncio.gather(*requests))

        # Each accepted start has its record, and its kept response if it has an idempotency key.
        bound = len(numbers) + 1 + 2 * allowed
        assert await flood_with("first") == allowed
        kept = await _keys_of_starts(redis)
        assert len(numbers) < len(kept) <= bound

        for name in ("second", "third", "fourth"):
            assert await flood_with(name) == 0
        assert await _keys_of_starts(redis) == kept

        await age(redis, timedelta(minutes=1))
        assert await flood_with("fifth") == allowed
        assert len(await _keys_of_starts(redis)) <= bound + 2 * allowed


async def _keys_of_starts(redis: Redis) -> set[str]:
    """Return all keys except those of the background work, and of the counts of refused starts, which are bounded."""
    background = ("pv3{stats", "pv3{balance", "pv3{queue", "pv3{attempts")
    keys = map(_text, await redis.keys())
    return {key for key in keys if not key.startswith(background) and ":refused:" not in key}
