"""Chaos test: mixed load with a failing provider and killed workers; at the end, everything that was lost is counted.

Three workers of the service share one Redis and one sandbox provider, which fails 30 % of the requests that place
calls, each in a random way, and chooses the code of every other flash call itself. In turn a worker gets
SIGKILL, SIGTERM, or SIGINT twice, and is started again; from time to time Redis is paused for 1.5 s. Users verify,
mistype, ask again with the id and without, cancel, give up, and repeat requests with their Idempotency-Key; a
receiver accepts webhooks, and sometimes fails. At the end the responses to clients are compared with the network's
list of calls, the delivered events, and the keys in Redis. Exits with 1 unless all counts of faults are zero.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import uvloop
from redis.asyncio import Redis

from app.store.layout import PREFIX, with_version
from app.store.webhooks import DEAD, outbox_key, retries_key
from benchmarks.chaos_network import FAULTS
from benchmarks.chaos_scene import CLAIM, LIFETIME, WORK, WORKERS, Scene, open_scene

AT_ONCE = 400  # maximum number of concurrent users
PEOPLE_END_WITHIN, OUTBOX_EMPTY_WITHIN = 90.0, 150.0  # timeouts in seconds
REDIS_STANDS_STILL = 1.5  # seconds; longer than the service waits for it
SHOWN = 10  # pieces of evidence shown per kind of fault


@dataclass(frozen=True, slots=True)
class Plan:
    """The duration (s), the ``rate`` of users per second, and the intervals (s) of worker ends and Redis pauses."""

    seconds: float
    rate: float
    end_every: float
    pause_every: float


async def play(scene: Scene, plan: Plan) -> None:
    """Run the load while workers are ended; then let all users finish, with all workers running."""
    disturbances = [
        asyncio.create_task(scene.workers.end_one_every(plan.end_every, scene.ledger.note_disturbance)),
        asyncio.create_task(_pause_redis(scene, plan.pause_every)),
        asyncio.create_task(_watch_keys(scene)),
    ]
    people: set[asyncio.Task[None]] = set()

    def left(person: asyncio.Task[None]) -> None:
        people.discard(person)
        if not person.cancelled() and (error := person.exception()):
            scene.ledger.stuck.append(f"a user failed with an unexpected error: {error!r}")

    ends_at = time.monotonic() + plan.seconds
    try:
        while time.monotonic() < ends_at and not any(task.done() for task in disturbances):
            await asyncio.sleep(random.expovariate(plan.rate))
            if len(people) < AT_ONCE:
                task = asyncio.create_task(scene.people.verify_one())
                people.add(task)
                task.add_done_callback(left)
            else:
                scene.ledger.counts["people turned away by the load itself"] += 1
    finally:
        for task in disturbances:
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


async def _pause_redis(scene: Scene, every: float) -> None:
    """Pause the server from time to time, like a live migration of its machine or a slow disk does."""
    pid: int = (await scene.redis.info("server"))["process_id"]
    while True:
        await asyncio.sleep(random.uniform(0.5, 1.5) * every)  # noqa: S311 - no secret
        scene.ledger.note_disturbance("pause of Redis")
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(REDIS_STANDS_STILL)
        finally:
            os.kill(pid, signal.SIGCONT)
        scene.ledger.counts["pauses of Redis"] += 1


async def _watch_keys(scene: Scene) -> None:
    while True:
        await _find_keys_without_ttl(scene)
        await asyncio.sleep(5)


async def _find_keys_without_ttl(scene: Scene) -> None:
    names = [name async for name in scene.redis.scan_iter(count=1000)]
    for at in range(0, len(names), 1000):
        chunk = names[at : at + 1000]
        pipeline = scene.redis.pipeline(transaction=False)
        for name in chunk:
            pipeline.pttl(name)
        kept = zip(chunk, await pipeline.execute(), strict=True)
        scene.ledger.without_ttl |= {name.decode() for name, left in kept if left == -1}  # -2: gone by now


async def settle(scene: Scene) -> None:
    """Wait until everything has expired and is delivered, and compare the rest with the responses."""
    print("The load is over; waiting for expiry and deliveries …", flush=True)
    await asyncio.sleep(LIFETIME + 2)
    deadline = time.monotonic() + OUTBOX_EMPTY_WITHIN
    while (left := await _left(scene.redis)) and time.monotonic() < deadline:  # noqa: ASYNC110 - others empty it
        await asyncio.sleep(1)
    scene.ledger.stuck += [f"{what}: {many}" for what, many in left.items()]
    await _find_keys_without_ttl(scene)
    scene.ledger.note_calls({phone: len(scene.people.calls(phone)) for phone in scene.people.phones})
    await _read_all(scene)


async def _left(redis: Redis) -> dict[str, int]:
    """Return the number of waiting items per key."""
    keys_of_any = (with_version(PREFIX) + key for key in (outbox_key("???"), retries_key("???")))
    events = [name for keys in keys_of_any async for name in redis.scan_iter(keys, count=1000)]
    sets = [*map(bytes.decode, events), with_version(PREFIX) + DEAD, "pv2{queue}:due"]
    pipeline = redis.pipeline(transaction=False)
    for name in sets:
        pipeline.zcard(name)
    pipeline.hlen("pv2{queue}:attempts")
    found = zip([*sets, "pv2{queue}:attempts"], await pipeline.execute(), strict=True)
    return {name: many for name, many in found if many}


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
    held = list(ledger.held_claims(after_answer=CLAIM + REDIS_STANDS_STILL, after_silence=WORK + REDIS_STANDS_STILL))
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
            "pauses of",
            "too late or",
            "again after",
        ),
        "409 idempotency",
    )
    rows |= {name: f"{many:,}" for name, many in sorted(counts.items()) if name.startswith(shown)} | rows
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
    for name, value in rows.items():
        print(f"{name:76}{value}")
    print()
    for name, evidence in zeros.items():
        print(f"{name:76}{len(evidence):,}")
        for line in evidence[:SHOWN]:
            print(f"    {line}")
    return not any(zeros.values())


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {many:,}" for name, many in sorted(counts.items(), key=lambda item: -item[1])) or "none"


async def main(plan: Plan) -> int:
    """Run the test, print the results, and return the exit code."""
    print(f"{WORKERS} workers on {os.cpu_count()} cores, {plan.seconds:g} s, {plan.rate:g} users a second,", end=" ")
    print(f"{FAULTS:.0%} of the provider requests fail, a worker ends every {plan.end_every:g} s,", end=" ")
    print(f"Redis is paused for {REDIS_STANDS_STILL} s about every {plan.pause_every:g} s", flush=True)
    async with open_scene() as scene:
        await play(scene, plan)
        await settle(scene)
        return int(not report(scene))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=15, help="users a second")
    parser.add_argument("--end-every", type=float, default=10, help="seconds between two ends of workers")
    parser.add_argument("--pause-every", type=float, default=15, help="seconds between two pauses of Redis")
    with suppress(KeyboardInterrupt):
        sys.exit(uvloop.run(main(Plan(**vars(parser.parse_args())))))
    sys.exit(130)
