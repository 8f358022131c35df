"""What a script costs: microseconds of Redis for one run of each script of a verification.

Read from ``INFO commandstats`` of an embedded server, the lowest of some rounds. To compare two versions of a script,
run this in turns in a checkout of each.
"""

import argparse
import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.store.call_following import RedisCallQueue
from app.store.connection import connect
from app.store.fraud_guard import RedisFraudGuard
from app.store.limits import RedisRateLimiter
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.verification.channels import Channel
from app.verification.model import CallState, CallStatus, Verification
from app.verification.phone import Phone
from app.verification.policy import HOUR, Limit
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall, StartPreview, StoredCall
from tests.policies import make_guard_rules, make_policy

T = TypeVar("T")
R = TypeVar("R")

KEY = b"a key of the benchmark, known to all"
CLIENT, PURPOSE, REF = "bench", "login", "0123456789abcdef"
START = "00000000000a"
RIGHT, WRONG = b"r" * 64, b"w" * 64
_NEVER_REACHED = Limit("never_reached", 1_000_000, HOUR)
POLICY = make_policy(
    cooldowns=(timedelta(0),),
    calls_per_range=_NEVER_REACHED,
    calls_per_client=(_NEVER_REACHED,),
    calls_per_day=_NEVER_REACHED,
    earliest_dial=timedelta(0),
    failed_checks_per_client=_NEVER_REACHED,
    failed_checks_per_address=_NEVER_REACHED,
)


class ScriptCosts:
    """Runs each script ``runs`` times a round and keeps the lowest cost of all rounds, in microseconds."""

    def __init__(self, redis: Redis, runs: int) -> None:
        runner = ScriptRunner(redis, timeout=60)
        self._redis = redis
        self._runs = runs
        self._guard = RedisFraudGuard(runner, make_guard_rules(), key=KEY)
        self._limits = RedisRateLimiter(runner, key=KEY, guard=self._guard)
        self._store = RedisVerificationStore(runner, phone_key=KEY, limits=self._limits)
        self._queue = RedisCallQueue(runner)
        self._phones = (Phone(f"+7912{number:07d}") for number in itertools.count())
        self.lowest: dict[str, float] = {}

    async def round(self) -> None:
        """Measure every script once, on new verifications."""
        store = self._store
        await self._redis.flushall()
        calls = [_new_call(next(self._phones), Channel.VOICE) for _ in range(self._runs)]
        previews = await self._measure("start_preview", calls, lambda call: store.preview_start(call, POLICY))
        named = list(zip(previews, calls, strict=True))
        started = await self._measure("start", named, lambda pair: store.start(pair[0].call_id, pair[1], POLICY))
        counted = [_new_call(next(self._phones), Channel.VOICE, token=START) for _ in range(self._runs)]
        await self._measure("start, counted in limits", counted, self._start_in_limits)
        found = [each.verification for each in started]
        update = CallUpdate(state=CallState(CallStatus.INITIATED), ref=REF)
        await self._measure("record_call", found, lambda it: store.record_call(it, 1, update))
        await self._measure("read", found, lambda it: store.read(it.id, client=CLIENT))
        await self._measure("check, wrong", found, lambda it: store.check_by_id(it.id, _check(WRONG), POLICY))
        by_phone = _check(WRONG)
        await self._measure(
            "check by phone, wrong", found, lambda it: store.check_by_phone(it.phone, PURPOSE, by_phone, POLICY)
        )
        resends = [_new_call(it.phone, Channel.VOICE, resend_of=it.id) for it in found]
        resent = await self._measure("start_preview, resend", resends, lambda call: store.preview_start(call, POLICY))
        again = list(zip(resent, resends, strict=True))
        await self._measure("start, resend", again, lambda pair: store.start(pair[0].call_id, pair[1], POLICY))
        await self._measure("refund", again, lambda pair: self._refund(pair[0], pair[1].phone))
        await self._measure("check, right", found, lambda it: store.check_by_id(it.id, _check(RIGHT), POLICY))

        other = [await self._start(Channel.VOICE) for _ in range(self._runs)]
        await self._measure("cancel", other, lambda it: store.cancel(CLIENT, it.id))
        dialled = [await self._start(Channel.REVERSE_CALL) for _ in range(self._runs)]
        await self._measure(
            "confirm", dialled, lambda it: store.confirm(it, 1, ref=REF, caller=it.phone, policy=POLICY)
        )
        limits = [POLICY.for_calls(client=CLIENT, phone=it.phone, address=None) for it in other]
        await self._measure("limits.acquire, preview", limits, self._limits.require_room)
        acquired = await self._measure("limits.acquire", limits, lambda it: self._limits.acquire(START, it))
        reserved = list(zip(acquired, limits, strict=True))
        await self._measure("limits.refund", reserved, lambda pair: self._limits.refund(pair[0].token, pair[1]))
        await self._measure("fraud_guard.succeed", other, self._succeed)
        await self._measure(
            "call_following.schedule", other, lambda it: self._queue.schedule(CallId(it.id, 1), timedelta(seconds=1))
        )

    async def _start_in_limits(self, call: NewCall) -> StoredCall:
        allowances = POLICY.for_calls(client=CLIENT, phone=call.phone, address=None)
        return await self._store.start(CallId(self._store.new_id(call.phone), 1), call, POLICY, allowances)

    async def _succeed(self, verification: Verification) -> None:
        self._guard.succeeded(verification.phone, CLIENT)
        await self._guard.flush()

    async def _start(self, channel: Channel) -> Verification:
        call = _new_call(next(self._phones), channel)
        preview = await self._store.preview_start(call, POLICY)
        verification = (await self._store.start(preview.call_id, call, POLICY)).verification
        update = CallUpdate(state=CallState(CallStatus.INITIATED), ref=REF)
        await self._store.record_call(verification, 1, update)
        return verification

    async def _refund(self, preview: StartPreview, phone: Phone) -> bool:
        return await self._store.refund(preview.call_id, phone=phone, client=CLIENT, policy=POLICY)

    async def _measure(self, name: str, items: Sequence[T], run: Callable[[T], Awaitable[R]]) -> list[R]:
        await self._redis.config_resetstat()
        results = await asyncio.gather(*(run(item) for item in items))
        stats = await self._redis.info("commandstats")
        cost = float(stats["cmdstat_evalsha"]["usec_per_call"])
        self.lowest[name] = min(cost, self.lowest.get(name, cost))
        return results


def _new_call(phone: Phone, channel: Channel, *, token: str = "", resend_of: str | None = None) -> NewCall:
    has_code = channel is not Channel.REVERSE_CALL
    return NewCall(
        client=CLIENT,
        phone=phone,
        purpose=PURPOSE,
        channel=channel,
        code_digest=RIGHT if has_code else None,
        code_length=6 if has_code else None,
        checks=5,
        token=token,
        resend_of=resend_of,
        address="192.0.2.1",
    )


def _check(code: bytes) -> CodeCheck:
    return CodeCheck(client=CLIENT, candidates=[code], length=6, address="192.0.2.1")


async def measure(rounds: int, runs: int) -> dict[str, float]:
    """Return the lowest cost of each script, in microseconds."""
    with EmbeddedServer() as server:
        async with connect(server.url, timeout=60) as redis:
            costs = ScriptCosts(redis, runs)
            for _ in range(rounds):
                await costs.round()
            return costs.lowest


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds, of which the lowest cost is shown")
    parser.add_argument("--runs", type=int, default=500, help="runs of each script in a round")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    costs = asyncio.run(measure(options.rounds, options.runs))
    if options.json:
        print(json.dumps(costs))
        return
    for name, cost in costs.items():
        print(f"{name:28}{cost:8.1f} µs")


if __name__ == "__main__":
    main()
