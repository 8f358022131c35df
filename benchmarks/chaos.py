"""Chaos test: mixed load while Redis and the provider fail and workers are killed; in the end all losses are counted.

Three workers of the service share one Redis and one sandbox provider, which fails 30 % of the requests that place
calls, each in a random way, and chooses the code of every other flash call itself. In turn a worker gets SIGKILL,
SIGTERM, or SIGINT twice, and is started again. Redis is one server, which is paused from time to time, or a primary
behind Sentinels, or a cluster, whose primaries are in turn killed, paused, demoted and partitioned, and whose slots are
moved. Users verify, mistype, ask again with the id and without, cancel, give up, and repeat requests with their
Idempotency-Key; a receiver accepts webhooks, and sometimes fails. At the end the responses to clients are compared with
the network's list of calls, the delivered events, and the keys in Redis. Exits with 1 unless all counts of faults are
zero.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import get_args

import uvloop
from redis.exceptions import RedisError

from app.store.connection import connect
from app.store.webhooks import DEAD, outbox_key, retries_key
from benchmarks.chaos_network import FAULTS
from benchmarks.chaos_redis import Kind
from benchmarks.chaos_scene import CLAIM, LIFETIME, WORK, WORKERS, Scene, open_scene

AT_ONCE = 400  # maximum number of concurrent users
PEOPLE_END_WITHIN = 90.0  # seconds
OUTBOX_EMPTY_WITHIN = 450.0  # seconds; an event whose second attempt failed too waits for up to six minutes
CONNECTED_WITHIN = 1.0  # seconds until every worker has found the new primary
SHOWN = 10  # pieces of evidence shown per kind of fault


@dataclass(frozen=True, slots=True)
class Plan:
    """The duration (s), the ``rate`` of users per second, and the intervals (s) of worker ends and failures of Redis.

    ``redis`` is its kind, and ``wait_replicas`` the service's ``REDIS_WAIT_REPLICAS``.
    """

    seconds: float
    rate: float
    end_every: float
    fail_every: float
    redis: Kind
    wait_replicas: int


async def play(scene: Scene, plan: Plan) -> None:
    """Run the load while workers and Redis fail; then let all users finish, with everything running."""
    ends_at = time.monotonic() + plan.seconds
    failing = asyncio.create_task(_fail_redis(scene, plan.fail_every, until=ends_at))
    disturbances = [
        asyncio.create_task(scene.workers.end_one_every(plan.end_every, scene.ledger.note_worker_end)),
        asyncio.create_task(_watch_keys(scene)),
    ]
    people: set[asyncio.Task[None]] = set()

    def left(person: asyncio.Task[None]) -> None:
        people.discard(person)
        if not person.cancelled() and (error := person.exception()):
            scene.ledger.stuck.append(f"a user failed with an unexpected error: {error!r}")

    try:
        while time.monotonic() < ends_at and not any(task.done() for task in disturbances):
            await asyncio.sleep(random.expovariate(plan.rate))
            if len(people) < AT_ONCE:
                task = asyncio.create_task(scene.people.verify_one())
                people.add(task)
                task.add_done_callback(left)
            else:
                scene.ledger.counts["people turned away by the load itself"] += 1
        await failing
    finally:
        for task in (failing, *disturbances):
            task.cancel()
    for result in await asyncio.gather(*disturbances, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    await scene.workers.revive()
    if people:
        _, late = await asyncio.wait(people, timeout=PEOPLE_END_WITHIN)
        scene.ledger.stuck += ["a person who was never done"] * len(late)
        for task in late:
            task.cancel()


async def _fail_redis(scene: Scene, every: float, *, until: float) -> None:
    """Play one failure of Redis after the other, each on a Redis that has recovered from the one before."""
    for way in cycle(scene.redis.ways_to_fail):
        await asyncio.sleep(random.uniform(0.5, 1.5) * every)  # noqa: S311 - no secret
        if time.monotonic() > until:
            return
        failure = scene.ledger.note_failure(way.name, may_lose_writes=way.may_lose_writes)
        await asyncio.to_thread(way.play)
        failure.ended = time.monotonic()
        await asyncio.to_thread(scene.redis.mend)


async def _watch_keys(scene: Scene) -> None:
    while True:
        with suppress(RedisError, OSError):  # a primary that has just failed
            await _find_keys_without_ttl(scene)
        await asyncio.sleep(5)


async def _find_keys_without_ttl(scene: Scene) -> None:
    for url in await asyncio.to_thread(scene.redis.primaries):
        async with connect(url, timeout=5) as primary:
            names = [name async for name in primary.scan_iter(count=1000)]
            for at in range(0, len(names), 1000):
                chunk = names[at : at + 1000]
                pipeline = primary.pipeline(transaction=False)
                for name in chunk:
                    pipeline.pttl(name)
                kept = zip(chunk, await pipeline.execute(), strict=True)
                scene.ledger.without_ttl |= {name.decode() for name, left in kept if left == -1}  # -2: gone by now


async def settle(scene: Scene) -> None:
    """Wait until everything has expired and is delivered, and compare the rest with the responses."""
    print("The load is over; waiting for expiry and deliveries …", flush=True)
    await asyncio.sleep(LIFETIME + 2)
    deadline = time.monotonic() + OUTBOX_EMPTY_WITHIN
    while (left := await _left(scene)) and time.monotonic() < deadline:  # noqa: ASYNC110 - others empty it
        await asyncio.sleep(1)
    scene.ledger.stuck += left
    await _find_keys_without_ttl(scene)
    scene.ledger.note_calls({phone: len(scene.people.calls(phone)) for phone in scene.people.phones})
    await _read_all(scene)


async def _left(scene: Scene) -> list[str]:
    """Return the keys of webhook events that wait, and of calls that are followed."""
    patterns = (outbox_key("???"), retries_key("???"), DEAD, "{queue}:due", "{queue}:attempts")
    return [key for pattern in patterns async for key in scene.runner.scan(pattern)]


async def _read_all(scene: Scene) -> None:
    """Read every verification that a client knows: by now none should exist."""
    ids = iter(list(scene.ledger.reported))

    async def read() -> None:
        for verification_id in ids:
            answer = await scene.client.send("GET", f"/verify/{verification_id}")
            if answer.problem != "verification-not-found":
                scene.ledger.stuck.append(f"{verification_id}: {answer.word}")

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(read())


def report(scene: Scene) -> bool:
    """Print the numbers; return whether all fault counts are zero."""
    ledger, counts = scene.ledger, scene.ledger.counts
    logged = scene.workers.logged()
    lost = [*ledger.lost_webhooks(), *scene.receiver.forged]
    # What releases a key may have to wait for Redis.
    longest = max((failure.ended - failure.began for failure in ledger.failures), default=0) + CONNECTED_WITHIN
    held = list(ledger.held_claims(after_answer=CLAIM + longest, after_silence=WORK + longest))
    lost += ledger.unexplained_events(scene.people.unanswered)
    delivered = sum(event.times for event in ledger.events.values())
    outcomes = {name.removeprefix("start "): many for name, many in counts.items() if name.startswith("start ")}
    answered = sum(many for name, many in counts.items() if name.startswith("people: "))
    unanswered = sum(many for name, many in counts.items() if name.startswith("unanswered: "))
    rows = {
        "users": f"{len(scene.people.phones):,}, of whom {answered:,} got a verification",
        "requests": f"{counts['requests']:,}, of which {unanswered:,} got no response from a killed worker",
        "starts": f"{counts['starts']:,}: {_listed(outcomes)}",
        "faults of the provider": _listed({fault.value: many for fault, many in scene.network.faults.met.items()}),
        "calls that rang": f"{sum(len(scene.people.calls(phone)) for phone in scene.people.phones):,}",
        "codes heard, numbers dialled": f"{counts['codes heard']:,}, {counts['numbers dialled']:,}",
        "reported": _listed(
            {name.removeprefix("reported "): n for name, n in counts.items() if name.startswith("reported ")}
        ),
        "failures of Redis": _listed(Counter(failure.name for failure in ledger.failures)),
        "failovers, by these failures or not": f"{scene.redis.failovers():,}",
        "until Redis could be used again": _seconds([failure.ended - failure.began for failure in ledger.failures]),
        "until the last 503 after a failure of Redis": _seconds(ledger.seconds_of_refusals()),
        "503 store-unavailable": f"{sum(one.is_refusal for one in ledger.responses):,} of {len(ledger.responses):,}",
        "response times during failures of Redis": _percentiles(ledger.times(in_failures=True)),
        "response times otherwise": _percentiles(ledger.times(in_failures=False)),
        "workers ended": f"{_listed(scene.workers.ended)}; {scene.workers.restarts} started again",
        "longest time of a key in progress without a request": f"{ledger.longest_held:.1f} s",
        "events delivered": f"{len(ledger.events):,}, and {delivered - len(ledger.events):,} of them repeatedly;"
        f" the receiver failed {scene.receiver.failures:,} times",
        "starts without a response": f"{len(scene.people.unanswered):,}",
        "logged by the workers": _listed(logged),
    }
    shown = (
        *("starts without", "events of", "verified without", "not verified, excused", "nothing heard", "refused, and"),
        *(
            "people turned",
            "reported a cooldown",
            "answered starts",
            "right c",
            "too late or",
            "again after",
        ),
        "409 idempotency",
        "503 about:blank",
    )
    rows |= {name: f"{many:,}" for name, many in sorted(counts.items()) if name.startswith(shown)} | rows
    print()
    for name, value in rows.items():
        print(f"{name:76}{value}")
    _print_evidence({"heard codes that did not verify, in the seconds of a failover": ledger.lost_in_failovers})
    zeros = {
        "calls placed twice": ledger.placed_twice,
        "codes verified twice": ledger.verified_twice,
        "tokens lost although the request was repeated": ledger.lost_proofs,
        "keys in progress without a request": held,
        "heard codes that did not verify": ledger.not_verified,
        "verifications stuck": ledger.stuck,
        "keys without TTL": sorted(ledger.without_ttl),
        "webhooks lost": lost,
        "tracebacks": scene.workers.tracebacks(),
    }
    print()
    _print_evidence(zeros)
    return not any(zeros.values())


def _print_evidence(found: Mapping[str, Sequence[str]]) -> None:
    for name, evidence in found.items():
        print(f"{name:76}{len(evidence):,}")
        for line in evidence[:SHOWN]:
            print(f"    {line}")


def _seconds(times: Sequence[float]) -> str:
    return f"median {statistics.median(times):.1f} s, at most {max(times):.1f} s" if times else "none"


def _percentiles(times: Sequence[float]) -> str:
    """Return some percentiles of sorted times."""
    if not times:
        return "none"
    p50, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    return f"p50 {1000 * p50:,.0f} ms, p99 {1000 * p99:,.0f} ms, at most {1000 * times[-1]:,.0f} ms"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {many:,}" for name, many in sorted(counts.items(), key=lambda item: -item[1])) or "none"


async def main(plan: Plan) -> int:
    """Run the test, print the results, and return the exit code."""
    print(f"{WORKERS} workers on {os.cpu_count()} cores, {plan.seconds:g} s, {plan.rate:g} users a second,", end=" ")
    print(f"{FAULTS:.0%} of the provider requests fail, a worker ends every {plan.end_every:g} s,", end=" ")
    print(
        f"Redis ({plan.redis}, {plan.wait_replicas} replicas waited for) fails about every {plan.fail_every:g} s",
        flush=True,
    )
    async with open_scene(plan.redis, wait_replicas=plan.wait_replicas) as scene:
        await play(scene, plan)
        await settle(scene)
        return int(not report(scene))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=15, help="users a second")
    parser.add_argument("--end-every", type=float, default=10, help="seconds between two ends of workers")
    parser.add_argument("--fail-every", type=float, default=15, help="seconds between two failures of Redis")
    parser.add_argument("--redis", choices=get_args(Kind), default="standalone")
    parser.add_argument("--wait-replicas", type=int, default=0, help="the service's REDIS_WAIT_REPLICAS")
    with suppress(KeyboardInterrupt):
        sys.exit(uvloop.run(main(Plan(**vars(parser.parse_args())))))
    sys.exit(130)
