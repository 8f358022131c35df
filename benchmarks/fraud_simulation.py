"""Simulate honest users and three attacks at the same time: calls paid, money saved, and users refused.

The service runs as a separate process in sandbox mode, with a real Redis, and everything goes over HTTP. First an
attack in real time, then a day of the most lucrative one, in compressed time: the timestamps in Redis are moved back
by half an hour, 48 times. The same day is repeated without the fraud guard, to measure what the guard adds to the
limits. Exits with 1 if an honest user was refused, if too much of the pumping went through, or if the guard added too
little.
"""

import asyncio
import itertools
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from ipaddress import IPv4Address

import httpx
from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.store.connection import connect
from benchmarks.load import HOST
from benchmarks.server import Server
from tests.ageing import age

# The total budget is raised: it would stop every attack, but honest users as well.
SERVICE = {"MODE": "sandbox", "LOG_LEVEL": "warning", "LIMIT_CALLS_PER_DAY": "100000"}
WITHOUT_GUARD = {"GUARD_ENABLED": "false"}

PRICE_RUB = 3
PUMPED_RANGE, BOMBED_PHONE = "+79001234", "+79161112233"
PREFIXES = ("+7903", "+7905", "+7909", "+7912", "+7921", "+7926", "+7961", "+7981", "+7985")

HONEST, MISTYPING = 200, 0.1
PUMPED, BOMBED, GUESSED = 2_000, 500, 500
GUESSING_ADDRESSES = 5
CALLS_PER_HOUR = 5  # to one phone
FREE_OF_CHARGE, STOPPED_OF_THE_REST = (
    50,
    0.95,
)  # pumped calls that may go through; share of the others that must be stopped
AT_ONCE = 24
HEARD_WITHIN = 20  # seconds; a call of the sandbox is answered after two

STEP, STEPS = timedelta(minutes=30), 48  # a day
PUMPED_PER_STEP = 40
HONEST_EVERY, HONEST_PER_TIME = 6, 12  # steps; people


@dataclass(slots=True)
class Played:
    """The results of one kind of traffic. ``paid`` is counted at the sandbox, not taken from responses."""

    name: str
    asked: int = 0
    paid: int = 0
    refused_people: int = 0
    phones: set[str] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def saved_rub(self) -> int:
        """The cost of the calls that were not placed."""
        return (self.asked - self.paid) * PRICE_RUB

    @property
    def stopped(self) -> float:
        """The share of calls after the first few that were not placed."""
        after = self.asked - FREE_OF_CHARGE
        return 1 - max(0, self.paid - FREE_OF_CHARGE) / after if after > 0 else 1


class Town:
    """All users of the service, honest ones and attackers."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._random = random.Random(2024)  # noqa: S311 - the same run each time; nothing here is secret
        # From 198.18.0.0/15, for benchmarks (RFC 2544): private addresses are not limited.
        self._addresses = map(str, map(IPv4Address, itertools.count(int(IPv4Address("198.18.0.1")))))

    async def verify_honestly(self, people: int, played: Played) -> None:
        """Let users verify their phones, each from their own address; some mistype the code once."""
        await _all(self._verify(phone, played) for phone in self._new_phones(people, played))

    async def pump(self, calls: int, played: Played) -> None:
        """Have numbers of one range called repeatedly, each call from another address."""
        phones = [f"{PUMPED_RANGE}{self._random.randrange(1000):03}" for _ in range(calls)]
        await _all(self._call(phone, played) for phone in phones)

    async def bomb(self, calls: int, played: Played) -> None:
        """Have one phone called repeatedly, each call from another address; half of the starts are resends."""
        started_ids: list[str] = []

        async def call(number: int) -> None:
            named = started_ids[-1] if started_ids and number % 2 else None
            if started := await self._start(BOMBED_PHONE, next(self._addresses), played, named=named):
                started_ids.append(started)

        await _all(map(call, range(calls)))

    async def guess_once_each(self, phones: int, played: Played) -> None:
        """Guess one code of each of many phones, from a few addresses."""
        addresses = itertools.cycle([next(self._addresses) for _ in range(GUESSING_ADDRESSES)])
        await _all(self._guess_once(phone, next(addresses), played) for phone in self._new_phones(phones, played))

    async def count_paid(self, played: Played) -> None:
        """Answer every phone that should be called, and count the calls."""

        async def count(phone: str) -> None:
            calls = await self._calls_of(phone)
            played.paid += len(calls)

        await _all(count(phone) for phone in played.phones)

    async def balance(self) -> float:
        """Return the balance of the provider account in RUB."""
        balance: float = (await self._api.get("/provider/account")).json()["balance_rub"]
        return balance

    def _new_phones(self, count: int, played: Played) -> Sequence[str]:
        """Return new phones, from many ranges."""
        phones = {f"{self._random.choice(PREFIXES)}{self._random.randrange(10**7):07}" for _ in range(count)}
        return sorted(phones - played.phones)

    async def _verify(self, phone: str, played: Played) -> None:
        address = next(self._addresses)
        started = await self._start(phone, address, played)
        if started is None:
            played.refused_people += 1
            return
        code = await self._hear(phone)
        if self._random.random() < MISTYPING:
            await self._check(started, _other(code), address, played)
        if not await self._check(started, code, address, played):
            played.refused_people += 1

    async def _guess_once(self, phone: str, address: str, played: Played) -> None:
        started = await self._start(phone, address, played)
        if started is not None:
            await self._check(started, f"{self._random.randrange(10**6):06}", address, played)

    async def _call(self, phone: str, played: Played) -> None:
        await self._start(phone, next(self._addresses), played)

    async def _start(self, phone: str, address: str, played: Played, named: str | None = None) -> str | None:
        """Start a verification, or a resend of the given one. Return its id, or None if it was refused."""
        played.asked += 1
        played.phones.add(phone)
        resend = {"verification_id": named} if named else {}
        answer = await self._post("/verify/start", played, phone=phone, client_ip=address, **resend)
        return answer.json()["verification_id"] if answer.status_code == HTTPStatus.CREATED else None

    async def _check(self, verification_id: str, code: str, address: str, played: Played) -> bool:
        answer = await self._post(
            "/verify/check", played, verification_id=verification_id, code=code, client_ip=address
        )
        return answer.status_code == HTTPStatus.OK and answer.json()["verified"] is True

    async def _post(self, path: str, played: Played, **body: str) -> httpx.Response:
        answer = await self._api.post(path, json=body)
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            problem = answer.json()
            played.refusals[problem.get("limit") or problem["type"].rpartition("/")[2]] += 1
        return answer

    async def _hear(self, phone: str) -> str:
        """Answer the phone and return the code."""
        async with asyncio.timeout(HEARD_WITHIN):
            while True:
                await asyncio.sleep(0.5)
                calls = await self._calls_of(phone)
                if calls and (heard := calls[-1]["heard"]):
                    return str(heard)

    async def _calls_of(self, phone: str) -> list[dict[str, str | None]]:
        calls: list[dict[str, str | None]] = (await self._api.get(f"/sandbox/phones/{phone}/calls")).json()["calls"]
        return calls


def _other(code: str) -> str:
    """Return the code with a wrong last digit."""
    return f"{code[:-1]}{(int(code[-1]) + 1) % 10}"


async def _all(doings: Iterable[Awaitable[None]]) -> None:
    """Run all actions, several concurrently; each of ``doings`` is created when it is its turn."""
    left = iter(doings)

    async def work() -> None:
        for doing in left:
            await doing

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


@asynccontextmanager
async def _running(environment: dict[str, str]) -> AsyncIterator[tuple[Town, Redis]]:
    """Start the service with its own Redis."""
    with (
        EmbeddedServer() as server,
        Server(["app", "serve"], {**SERVICE, **environment, "REDIS_URL": server.url}) as service,
    ):
        async with (
            connect(server.url, timeout=10) as redis,
            httpx.AsyncClient(base_url=f"http://{HOST}:{service.port}", timeout=30, trust_env=False) as api,
        ):
            yield Town(api), redis


async def play_attacks() -> Sequence[Played]:
    """Run everything at once, in real time."""
    honest, pump, bomb, guess = scenes = (
        Played("honest people"),
        Played("pumping one range"),
        Played("bombing one phone"),
        Played(f"one guess per phone, {GUESSING_ADDRESSES} addresses"),
    )
    async with _running({}) as (town, _):
        before = await town.balance()
        await asyncio.gather(
            town.verify_honestly(HONEST, honest),
            town.pump(PUMPED, pump),
            town.bomb(BOMBED, bomb),
            town.guess_once_each(GUESSED, guess),
        )
        for played in scenes:
            await town.count_paid(played)
        _compare_with_balance(scenes, before - await town.balance())
    return scenes


async def play_day(*, guard: bool) -> Sequence[Played]:
    """Simulate a day of pumping, with some honest users."""
    name = "with the guard" if guard else "with limits alone"
    pump, honest = scenes = Played(f"a day of pumping, {name}"), Played(f"honest people, {name}")
    async with _running({} if guard else WITHOUT_GUARD) as (town, redis):
        before = await town.balance()
        for step in range(STEPS):
            await town.pump(PUMPED_PER_STEP, pump)
            if guard and step % HONEST_EVERY == 0:
                await town.verify_honestly(HONEST_PER_TIME, honest)
            await age(redis, STEP)
        for played in scenes:
            await town.count_paid(played)
        _compare_with_balance(scenes, before - await town.balance())
    return scenes if guard else [pump]


def _compare_with_balance(scenes: Sequence[Played], spent: float) -> None:
    """Check that no call was overlooked: the account must have paid for exactly the counted calls."""
    counted = sum(played.paid for played in scenes) * PRICE_RUB
    if counted != spent:
        sys.exit(f"{counted} RUB of calls were counted, and {spent} RUB were paid: the simulation is wrong.")


def report(scenes: Sequence[Played]) -> str:
    """Return the scenes as a table."""
    head = f"{'':36}{'calls asked':>12}{'paid':>7}{'RUB paid':>10}{'RUB saved':>11}{'refused':>9}  by"
    lines = [head]
    for played in scenes:
        refusals = ", ".join(f"{reason} {count:,}" for reason, count in played.refusals.most_common())
        refused = f"{played.asked - played.paid:,}"
        lines.append(
            f"{played.name:36}{played.asked:12,}{played.paid:7,}{played.paid * PRICE_RUB:10,}{played.saved_rub:11,}"
            f"{refused:>9}  {refusals}"
        )
    return "\n".join(lines)


async def main() -> int:
    """Run the simulation, print the results, and return the exit code."""
    attacks = await play_attacks()
    print(
        f"All at once, in real time, {os.cpu_count()} cores; a call costs {PRICE_RUB} RUB\n{report(attacks)}\n",
        flush=True,
    )
    days = [*await play_day(guard=True), *await play_day(guard=False)]
    print(
        f"A day in compressed time: the timestamps in Redis were moved back by {STEP}, {STEPS} times\n{report(days)}\n"
    )

    honest = [played for played in (*attacks, *days) if played.name.startswith("honest")]
    refused = sum(played.refused_people for played in honest)
    stopped = attacks[1].stopped
    print(f"Honest users refused: {refused} of {sum(played.asked for played in honest)}")
    print(f"Pumped calls stopped after the first {FREE_OF_CHARGE}: {stopped:.1%} (at least {STOPPED_OF_THE_REST:.0%})")
    print(f"Calls to the bombed phone: {attacks[2].paid} (at most {CALLS_PER_HOUR} an hour)")
    with_guard, alone = days[0].paid, days[-1].paid
    print(f"Pumped calls of a day with the guard: {with_guard}, of {alone} with limits alone (at most half)")
    print("Not shown: honest users with a number in a pumped range are refused, until the block ends or is lifted.")
    is_guarded = with_guard <= alone / 2
    kept = refused == 0 and stopped >= STOPPED_OF_THE_REST and attacks[2].paid <= CALLS_PER_HOUR and is_guarded
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
