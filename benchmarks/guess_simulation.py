"""Simulate attackers who guess codes of one phone: the odds of a right guess, and the effect on the owner.

The attackers know the number, have one address, some, or a new one for each request, and a backend that sends
whatever the API allows: start with the ``verification_id`` and without it, check by id and by phone. They respect
``retry_after``, send their guesses concurrently, and repeat none. The owner of the phone verifies several times a day,
and the attackers guess just before that and between the call and the check. A guess counts once for each valid code
that it is compared with. The service is the whole application with a real Redis; time is compressed by moving the
timestamps in Redis back.

Exits with 1 if a promise of ``docs/limits.md`` is broken.
"""

import argparse
import asyncio
import itertools
import platform
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from http import HTTPStatus
from ipaddress import IPv4Address
from math import prod

import httpx
from asgi_lifespan import LifespanManager
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.embedded import EmbeddedServer
from app.sandbox.network import VirtualNetwork
from app.settings import Settings, load_settings
from app.settings.policies import make_policies
from app.store.connection import connect
from app.telemetry.logging import configure_logging
from app.verification.policy import DAY, HOUR, Policy
from tests.ageing import age

PHONE, PURPOSE = "+79001234567", "login"
HOME = "192.0.2.7"  # the owner's address
ACCEPTED_ODDS = 0.002  # a day
AT_ONCE = 20  # concurrent guesses; a verification allows five
LONGEST_WAIT = 600.0  # seconds; a longer retry_after means giving up for now
MISTYPES = 0.1
MANY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """The channels of a service, the first of which is used, and the length of a spoken code."""

    name: str
    channels: tuple[str, ...]
    digits: int
    spoken: int = 6


CODES = (
    Codes(name="6 digits, voice", channels=("voice",), digits=6),
    Codes(name="4 digits, flash call", channels=("flash_call",), digits=4),
    Codes(name="4 digits, voice", channels=("voice",), digits=4, spoken=4),
    Codes(name="4 digits, flash call beside voice", channels=("flash_call", "voice"), digits=4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How attackers get codes to guess: by a number of ``calls``, with ``resends`` all of one verification.

    ``by_phone``: they check by phone, and so against the codes of all its verifications.
    """

    name: str
    calls: int
    resends: bool = False
    by_phone: bool = False


STRATEGIES = (
    Strategy(name="one call, by id", calls=1),
    Strategy(name="calls with the id, by id", calls=3, resends=True),
    Strategy(name="calls without it, by id", calls=3),
    Strategy(name="calls without it, by phone", calls=3, by_phone=True),
    Strategy(name="no calls, by phone", calls=0, by_phone=True),
)
ADDRESSES = {"1": 1, "4": 4, "many": MANY}


@dataclass(frozen=True, slots=True)
class Given:
    """A code: its verification, and its expiry (seconds since the beginning)."""

    verification_id: str
    until: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A guess that was compared: when, and with how many valid codes."""

    at: float
    live: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The results of a run."""

    digits: int
    sent: int = 0
    hits: int = 0
    evaluated: list[Evaluated] = field(default_factory=list)
    called_at: list[float] = field(default_factory=list)
    sessions: int = 0  # of the owner
    called: int = 0  # sessions with a call
    verified: int = 0
    refusals: Counter[str] = field(default_factory=Counter)  # of the owner

    @property
    def odds(self) -> float:
        """The probability of at least one right guess in the worst 24 hours."""
        days = (
            [guess for guess in self.evaluated[first:] if guess.at < self.evaluated[first].at + DAY.total_seconds()]
            for first in range(len(self.evaluated))
        )
        return max((1 - prod(1 - guess.live / 10**self.digits for guess in day) for day in days), default=0.0)

    def most_calls(self, period: timedelta) -> int:
        """Return the number of calls to the phone in the worst window of a given length."""
        return max(
            (sum(first <= at < first + period.total_seconds() for at in self.called_at) for first in self.called_at),
            default=0,
        )


class Town:
    """The phone, its owner, and the attackers."""

    def __init__(self, api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork, outcome: Outcome) -> None:
        self._api = api
        self._redis = redis
        self._network = network
        self._outcome = outcome
        self._slept = 0.0
        self._began = time.monotonic()
        self._random = random.Random(2024)  # noqa: S311 - the same run each time; it guesses, it makes no secret
        self._given: list[Given] = []
        self._ended: set[str] = set()

    @property
    def now(self) -> float:
        """Seconds since the beginning, including skipped time."""
        return self._slept + time.monotonic() - self._began

    async def live(self, strategy: Strategy, addresses: int, *, days: int, sessions: int, rounds: int) -> None:
        """Simulate some days, each with a number of sessions of the owner and rounds of guessing in between."""
        homes = itertools.cycle(str(IPv4Address("198.18.0.1") + number) for number in range(addresses))
        pause = DAY.total_seconds() / sessions / rounds
        for _ in range(days * sessions):
            for _ in range(rounds - 1):
                round_began = self.now
                await self._attack(strategy, homes)
                await self._sleep(max(0.0, pause - (self.now - round_began)))
            session_began = self.now
            await self._attack(strategy, homes)
            await self._verify(strategy, homes)
            await self._sleep(max(0.0, pause - (self.now - session_began)))

    async def _attack(self, strategy: Strategy, homes: "itertools.cycle[str]") -> None:
        """Start verifications, and guess until no guess is evaluated any more."""
        own: list[str] = []
        for _ in range(strategy.calls):
            named = own[0] if own and strategy.resends else None
            started = await self._start(next(homes), named)
            if started is None:
                break
            own.append(started)
        if strategy.by_phone:
            await self._guess_by_phone(homes)
        for verification_id in dict.fromkeys(own if not strategy.by_phone else ()):
            await self._fire({"verification_id": verification_id}, homes)

    async def _guess_by_phone(self, homes: "itertools.cycle[str]") -> None:
        """Guess as long as there are pending verifications."""
        while await self._fire({"phone": PHONE, "purpose": PURPOSE}, homes):
            pass

    async def _fire(self, which: dict[str, str], homes: "itertools.cycle[str]") -> int:
        """Send guesses concurrently, without repetitions; return how many were evaluated."""
        codes = self._random.sample(range(10**self._outcome.digits), AT_ONCE)

        async def guess(code: int) -> httpx.Response:
            body = {**which, "code": f"{code:0{self._outcome.digits}}", "client_ip": next(homes)}
            return await self._api.post("/verify/check", json=body)

        answers = await asyncio.gather(*map(guess, codes))
        self._outcome.sent += len(answers)
        evaluated = [answer.json() for answer in answers if answer.status_code == HTTPStatus.OK]
        for found in evaluated:
            self._outcome.evaluated.append(Evaluated(self.now, self._live(which.get("verification_id"))))
            self._outcome.hits += found["verified"]
            if found["status"] != "pending":
                self._ended.add(found["verification_id"])
        return len(evaluated)

    async def _verify(self, strategy: Strategy, homes: "itertools.cycle[str]") -> None:
        """Let the owner verify: by id, with a retry after a failure, and with typing errors."""
        outcome = self._outcome
        outcome.sessions += 1
        for attempt in range(2):
            started = await self._start(HOME, None, refusals=outcome.refusals)
            if started is None:
                return
            outcome.called += not attempt
            code = await self._hear()
            if strategy.by_phone:
                await self._guess_by_phone(homes)
            if self._random.random() < MISTYPES:
                await self._type(started, f"{code[:-1]}{(int(code[-1]) + 1) % 10}")
            if await self._type(started, code):
                outcome.verified += 1
                return

    async def _type(self, verification_id: str, code: str) -> bool:
        body = {"verification_id": verification_id, "code": code, "client_ip": HOME}
        answer = await self._api.post("/verify/check", json=body)
        found = answer.json()
        if answer.status_code == HTTPStatus.OK and found["status"] != "pending":
            self._ended.add(verification_id)
        elif answer.status_code != HTTPStatus.OK:
            self._outcome.refusals[_reason(answer)] += 1
        return bool(found.get("verified"))

    async def _start(self, address: str, named: str | None, refusals: Counter[str] | None = None) -> str | None:
        """Have the phone called; wait for ``retry_after``, up to a limit."""
        body = {"phone": PHONE, "purpose": PURPOSE, "client_ip": address} | (
            {"verification_id": named} if named else {}
        )
        while True:
            answer = await self._api.post("/verify/start", json=body)
            found = answer.json()
            if answer.status_code == HTTPStatus.CREATED:
                self._outcome.called_at.append(self.now)
                self._given.append(Given(found["verification_id"], self.now + found["expires_in"]))
                return str(found["verification_id"])
            if found.get("retry_after", MANY) > LONGEST_WAIT:
                if refusals is not None:
                    refusals[_reason(answer)] += 1
                return None
            await self._sleep(found["retry_after"])

    async def _hear(self) -> str:
        async with asyncio.timeout(10):
            while not (heard := self._network.calls_of(PHONE)[-1].heard):  # noqa: ASYNC110 - the network has no events
                await asyncio.sleep(0.001)
        return heard

    def _live(self, verification_id: str | None) -> int:
        """Return the number of codes that a guess is compared with: of one verification, or of all pending ones."""
        return sum(
            given.until > self.now
            and given.verification_id not in self._ended
            and verification_id in {None, given.verification_id}
            for given in self._given
        )

    async def _sleep(self, seconds: float) -> None:
        await age(self._redis, timedelta(seconds=seconds))
        self._slept += seconds


def _reason(answer: httpx.Response) -> str:
    found = answer.json()
    return str(found.get("limit") or found["type"].rpartition("/")[2])


def _settings(codes: Codes, **overrides: object) -> Settings:
    given: dict[str, object] = {"channels": codes.channels, "code": {"length": codes.spoken}}
    return load_settings(mode="sandbox", **given, **overrides)


@asynccontextmanager
async def _service(settings: Settings, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, network)
    async with (
        LifespanManager(app) as manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://verify") as api,
    ):
        yield api


async def play(codes: Codes, strategy: Strategy, addresses: int, *, days: int) -> Outcome:
    """Simulate some days with a separate service and Redis."""
    outcome = Outcome(digits=codes.digits)
    network = VirtualNetwork(pace=0.001, price=Decimal(0))  # money must not be the limit
    with EmbeddedServer() as server:
        settings = _settings(codes, redis={"url": server.url})
        async with connect(server.url, timeout=5) as redis, _service(settings, network) as api:
            await Town(api, redis, network, outcome).live(strategy, addresses, days=days, sessions=4, rounds=4)
    return outcome


def broken_promises(outcome: Outcome, policy: Policy, strategy: Strategy, addresses: int) -> list[str]:
    """Return the promises of ``docs/limits.md`` that this run has broken."""
    broken = []
    if outcome.odds >= ACCEPTED_ODDS:
        broken.append(f"the odds of a day are {outcome.odds:.3%}")
    if (
        outcome.most_calls(HOUR) > policy.calls_per_phone[0].count
        or outcome.most_calls(DAY) > policy.calls_per_phone[1].count
    ):
        broken.append("more calls than the limits of a phone allow")
    if addresses == 1 and not strategy.by_phone and _leaves_some(policy) and outcome.verified < outcome.called:
        broken.append(f"one address kept the owner from {outcome.called - outcome.verified} verifications")
    return broken


def _leaves_some(policy: Policy) -> bool:
    """Return whether one address cannot use up all failed checks of a phone; one verification may cost as much."""
    return policy.failed_checks_per_phone_and_address.count < policy.failed_checks_per_phone.count


HEAD = (
    f"{'strangers':28}{'addresses':>10}{'guesses':>9}{'compared':>10}{'right':>6}{'odds a day':>12}"
    f"{'calls a day':>13}{'owner called':>14}{'verified':>10}  why not"
)


def row(outcome: Outcome, strategy: Strategy, addresses: str) -> str:
    """Return one run as a table row."""
    why = ", ".join(f"{reason} {count}" for reason, count in outcome.refusals.most_common())
    called = f"{outcome.called} of {outcome.sessions}"
    return (
        f"{strategy.name:28}{addresses:>10}{outcome.sent:9,}{len(outcome.evaluated):10,}{outcome.hits:6}{outcome.odds:12.4%}"
        f"{outcome.most_calls(DAY):13}{called:>14}{outcome.verified:10}  {why}"
    )


async def main() -> int:
    """Run every strategy, print the results, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=2, help="simulated days per strategy")
    days = parser.parse_args().days
    configure_logging(level="error", style="console")
    print(
        f"Python {platform.python_version()}; {days} days of each; time is compressed (timestamps in Redis move back)"
    )
    failures = []
    for codes in CODES:
        policy = make_policies(_settings(codes)).default
        whole, share = policy.failed_checks_per_phone.count, policy.failed_checks_per_phone_and_address.count
        print(
            f"\n{codes.name}; failed checks of the phone a day: {whole}, of which one address can use {share}\n{HEAD}"
        )
        for strategy, (name, addresses) in itertools.product(STRATEGIES, ADDRESSES.items()):
            outcome = await play(codes, strategy, addresses, days=days)
            print(row(outcome, strategy, name), flush=True)
            failures += [
                f"{codes.name}; {strategy.name}; {name}: {promise}"
                for promise in broken_promises(outcome, policy, strategy, addresses)
            ]
    print(f"\nPromises broken: {len(failures)} (odds of a day below {ACCEPTED_ODDS:.1%} everywhere; calls to the phone")
    print(
        "within its limits; one address that guesses by id cannot prevent an owner who was called from being verified,"
    )
    print("if it cannot use up the failed checks of the phone)")
    for failure in failures:
        print(f"    {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
