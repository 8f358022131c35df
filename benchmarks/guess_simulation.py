"""Brute force, played out: how many guesses against one phone are evaluated, and how lucky somebody can be in a day.

The attacker has any number of addresses, all purposes, waits exactly as long as told, fires all his guesses at once,
and repeats none. A guess is held against every code that is live, so three calls before guessing make it three times
as lucky, for whoever is patient enough to let the cooldowns be forgotten first: both ways are played. The service is
the whole application on a real Redis; time is compressed by making everything in Redis older.
"""

import argparse
import asyncio
import itertools
import platform
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
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
from app.plusofon.sandbox import VirtualNetwork
from app.settings import load_settings
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.telemetry.logging import configure_logging
from tests.ageing import age

PHONE = "+79001234567"
PURPOSES = ("phone_verification", "password_reset", "login")
ACCEPTED_ODDS = 0.002  # a day
AT_ONCE = 40  # guesses fired at each verification; it takes five
CODE_LIFETIME = 300.0  # seconds
DAY = 86_400.0
SETTINGS = {"mode": "sandbox"}


@dataclass(frozen=True, slots=True)
class Strategy:
    """How many codes he has made for a verification before he guesses, and how long he waits before he begins one."""

    name: str
    calls: int
    pause: float


STRATEGIES = (
    Strategy("one call, then guesses", calls=1, pause=0),
    Strategy("three calls, then guesses; an hour of patience before the first", calls=3, pause=3600),
)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A guess that was compared: when, and with how many live codes."""

    at: float
    live: int


@dataclass(slots=True)
class Outcome:
    """What became of all guesses."""

    digits: int
    sent: int = 0
    hits: int = 0
    seconds: float = 0
    calls: int = 0
    verifications: set[str] = field(default_factory=set)
    evaluated: list[Evaluated] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def worst_day(self) -> Sequence[Evaluated]:
        """The guesses of those 24 hours in which luck was likeliest."""
        days = (
            [guess for guess in self.evaluated[first:] if guess.at < self.evaluated[first].at + DAY]
            for first in range(len(self.evaluated))
        )
        return max(days, key=self.odds, default=[])

    def odds(self, guesses: Sequence[Evaluated]) -> float:
        """Tell the probability that at least one of these guesses is right."""
        return 1 - prod(1 - guess.live / float(10**self.digits) for guess in guesses)


class Attacker:
    """Guesses at the codes of one phone."""

    def __init__(self, api: httpx.AsyncClient, redis: Redis, strategy: Strategy, outcome: Outcome) -> None:
        self._api = api
        self._redis = redis
        self._strategy = strategy
        self._outcome = outcome
        self._slept = 0.0
        self._began = time.monotonic()
        self._addresses = map(str, map(IPv4Address, itertools.count(int(IPv4Address("10.0.0.1")))))
        self._purposes = itertools.cycle(PURPOSES)
        self._random = random.Random(2024)  # noqa: S311 - the same run each time; he guesses, he makes no secret

    @property
    def now(self) -> float:
        """Seconds since he began, those that were skipped included."""
        return self._slept + time.monotonic() - self._began

    async def attack(self, guesses: int) -> None:
        """Send this many guesses."""
        while self._outcome.sent < guesses:
            await self._sleep(self._strategy.pause)
            verification_id, expiries = await self._collect(next(self._purposes))
            codes = self._random.sample(range(10**self._outcome.digits), min(AT_ONCE, guesses - self._outcome.sent))
            await asyncio.gather(*(self._guess(verification_id, code, expiries) for code in codes))
        self._outcome.seconds = self.now

    async def _collect(self, purpose: str) -> tuple[str, Sequence[float]]:
        """Have codes made for one verification; returns its id, and when each of them expires."""
        verification_id, expiries = "", list[float]()
        while len(expiries) < self._strategy.calls:
            body = {"phone": PHONE, "purpose": purpose, "client_ip": next(self._addresses)}
            answer = await self._api.post("/verify/start", json=body)
            found = answer.json()
            if answer.status_code == HTTPStatus.CREATED:
                if found["verification_id"] != verification_id:
                    verification_id, expiries = found["verification_id"], []
                expiries.append(self.now + CODE_LIFETIME)
                self._outcome.calls += 1
            elif expiries and self.now + found["retry_after"] >= expiries[0]:
                break  # no further code while these live
            else:
                await self._sleep(found["retry_after"])
        self._outcome.verifications.add(verification_id)
        return verification_id, expiries

    async def _guess(self, verification_id: str, code: int, expiries: Sequence[float]) -> None:
        body = {
            "verification_id": verification_id,
            "code": f"{code:0{self._outcome.digits}}",
            "client_ip": next(self._addresses),
        }
        answer = await self._api.post("/verify/check", json=body)
        found = answer.json()
        self._outcome.sent += 1
        if answer.status_code == HTTPStatus.OK:
            live = sum(expiry > self.now for expiry in expiries)
            self._outcome.evaluated.append(Evaluated(self.now, live))
            self._outcome.hits += found["verified"]
        else:
            self._outcome.refusals[found.get("limit") or found["type"].rpartition("/")[2]] += 1

    async def _sleep(self, seconds: float) -> None:
        await age(self._redis, timedelta(seconds=seconds))
        self._slept += seconds


@asynccontextmanager
async def _service(redis_url: str, digits: int) -> AsyncIterator[httpx.AsyncClient]:
    settings = load_settings(**SETTINGS, redis={"url": redis_url}, code={"length": digits})
    # The money of the sandbox is not what is to stop him.
    app = create_app(settings, VirtualNetwork(price=Decimal(0)))
    async with (
        LifespanManager(app) as manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://verify") as api,
    ):
        yield api


async def play(strategy: Strategy, *, digits: int, guesses: int) -> Outcome:
    """Play one attack on a service and a Redis of its own."""
    outcome = Outcome(digits)
    with EmbeddedServer() as server:
        async with connect(server.url, timeout=5) as redis, _service(server.url, digits) as api:
            await Attacker(api, redis, strategy, outcome).attack(guesses)
    return outcome


def report(outcome: Outcome) -> str:
    """Lay one attack out as lines of text."""
    worst = outcome.worst_day
    against = sorted(Counter(guess.live for guess in worst).items())
    lines = {
        "guesses sent": f"{outcome.sent:,} in {outcome.seconds / DAY:.0f} days, each from an address of its own",
        "on": f"{len(outcome.verifications)} verifications, {outcome.calls} calls",
        "evaluated": f"{len(outcome.evaluated):,}, of which {outcome.hits} were right",
        "not evaluated": ", ".join(f"{reason} {count:,}" for reason, count in outcome.refusals.most_common()),
        "worst 24 hours": ", ".join(f"{count} evaluated against {live} live codes" for live, count in against),
        "odds of that day": f"{outcome.odds(worst):.4%}  ({ACCEPTED_ODDS:.1%} is not accepted any more)",
    }
    return "\n".join(f"  {name:18}{text}" for name, text in lines.items())


async def main() -> int:
    """Play every attack, print what came of it, and return 1 if luck was too likely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guesses", type=int, default=10_000, help="guesses sent in each attack")
    guesses = parser.parse_args().guesses
    configure_logging(level="error", style="console")
    print(f"Python {platform.python_version()}; time is compressed: nobody waits, everything in Redis is made older")
    worst = 0.0
    for digits, strategy in itertools.product((6, 4), STRATEGIES):
        outcome = await play(strategy, digits=digits, guesses=guesses)
        worst = max(worst, outcome.odds(outcome.worst_day))
        print(f"\n{digits} digits; {strategy.name}\n{report(outcome)}", flush=True)
    return int(worst >= ACCEPTED_ODDS)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
