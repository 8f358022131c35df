"""What a verification takes of Redis' memory, and whether checks get slower as pending verifications add up.

Every start is of another phone, another address and another range of numbers, and goes through the public API. All that
Redis uses is counted. ``benchmarks/README.md`` says how to read it.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from ctypes.util import find_library
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import uvloop
from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.verification.values import value
from benchmarks.bench import open_bench
from benchmarks.bench_rows import API_KEY, CONNECTIONS, Bench, Row, Verification, percentile
from benchmarks.load import Connection, Session, connections, request, saturate

_FEW = 1000  # pending verifications; half of each sample
_BATCH = 2000
_ROUNDS = 4  # of the five checks that a verification allows
_KEPT_MS = 3_600_000
_COPIED = 50_000
_REST = 5.0  # seconds
# A code lives for five minutes, and a million starts take longer.
_KEEP = f"""
local record = cmsgpack.unpack(redis.call('GET', KEYS[1]))
record.x1 = {_KEPT_MS}
return redis.call('SET', KEYS[1], cmsgpack.pack(record), 'PX', {_KEPT_MS})
"""
# What Redis and Valkey are built with. The wheel's server has the C library's, which takes half of its processor time
# to find free memory among a million keys.
_ALLOCATOR = find_library("jemalloc")
_REWRITE = "return redis.call('SET', KEYS[1], redis.call('GET', KEYS[1]), 'KEEPTTL')"
_OF_A_CODE = 10_000  # ranges
_NOT_CALLED = {930, 940, 998}  # codes that have ranges without mobiles, or that the settings deny
_FIRST_ADDRESS = int(IPv4Address("62.0.0.0"))


@value
class Found:
    """What checks cost: µs of processor time of the service and of Redis, and their p99 in ms.

    ``rewrite_us`` is what the least of scripts takes in Redis, which reads a record and writes it.
    """

    service_us: float
    redis_us: float
    rewrite_us: float
    p99_ms: float


@dataclass(slots=True)
class Kind:
    """The keys of one kind: how many, and their bytes as ``MEMORY USAGE`` says, of a sample."""

    keys: int = 0
    sizes: list[int] = field(default_factory=list)


def start(bench: Bench, number: int, started: list[Verification]) -> Session:
    """Prepare a start that shares phone, address and range with no other, or of a million its range with one."""
    numbering_range = 9_000_000 + number % 1_000_000
    if numbering_range // _OF_A_CODE in _NOT_CALLED:
        numbering_range += _OF_A_CODE
    phone = f"+7{numbering_range}{number % 997:03d}"
    body = {"phone": phone, "purpose": "login", "client_ip": str(IPv4Address(_FIRST_ADDRESS + number))}
    payload = request("POST", "/verify/start", body=body, api_key=API_KEY)

    async def send(connection: Connection) -> Sequence[bytes]:
        answer = await connection.send(payload)
        verification_id = json.loads(answer)["verification_id"]
        started.append(Verification(verification_id, phone, bench.stub.codes.pop(phone[2:])))
        return [answer]

    return send


async def start_many(bench: Bench, numbers: range) -> list[Verification]:
    """Start in batches, and return a sample, drawn evenly. The codes are made to live until the end."""
    sample: list[Verification] = []
    every = max(1, len(numbers) // (2 * _FEW))
    async with connections(bench.service.port, CONNECTIONS) as opened:
        for first in range(numbers.start, numbers.stop, _BATCH):
            batch: list[Verification] = []
            last = min(first + _BATCH, numbers.stop)
            await saturate(opened, [start(bench, number, batch) for number in range(first, last)])
            async with bench.redis.pipeline(transaction=False) as pipeline:
                for it in batch:
                    pipeline.eval(_KEEP, 1, record_key(it))
                await pipeline.execute()
            sample += batch[::every]
            print(".", end="", file=sys.stderr, flush=True)
    return sample


def record_key(verification: Verification) -> str:
    """Return the key of a record."""
    return f"pv3{{{verification.id[4:7]}}}:{verification.id[7:]}"


async def measure_checks(*pending: tuple[Bench, Sequence[Verification]]) -> Sequence[Found]:
    """Measure wrong checks on each server: their processor time under saturation, their p99 at half the throughput.

    In turns, since a shared machine changes, and the lowest of some rounds: other processes only make them slower. What
    Redis does at rest, such as to expire what the starts have left, is no part of a check.
    """
    before = [await redis_seconds(bench.redis) for bench, _ in pending]
    await asyncio.sleep(_REST)
    at_rest = [(await redis_seconds(it.redis) - used) / _REST for (it, _), used in zip(pending, before, strict=True)]
    p99_ms: list[list[float]] = [[] for _ in pending]
    rewrite_us: list[list[float]] = [[] for _ in pending]
    for _ in range(_ROUNDS):
        for (bench, sample), latencies, rewrites in zip(pending, p99_ms, rewrite_us, strict=True):
            checked, paced = sample[:_FEW], sample[_FEW : 2 * _FEW]
            await bench.saturate("check", [bench.wrong_check(it) for it in checked])
            await bench.pace("check", [bench.wrong_check(it) for it in paced])
            row: Row = bench.rows["check"]
            assert row.paced  # noqa: S101 - it was just measured
            latencies.append(percentile(row.paced, 99))
            rewrites.append(await measure_rewrites(bench.redis, [*map(record_key, checked)]))
    return [
        Found(
            service_us=min(it.cpu_us for it in bench.rows["check"].rounds),
            redis_us=min(it.redis_us - rest / it.per_second * 1e6 for it in bench.rows["check"].rounds),
            rewrite_us=min(rewrites),
            p99_ms=min(latencies),
        )
        for (bench, _), rest, latencies, rewrites in zip(pending, at_rest, p99_ms, rewrite_us, strict=True)
    ]


async def measure_rewrites(redis: Redis, keys: Sequence[str]) -> float:
    """Return the µs of Redis that it takes to rewrite a record, as many at once as there are checks."""
    before = await redis_seconds(redis)
    for first in range(0, len(keys), CONNECTIONS):
        await asyncio.gather(*(redis.eval(_REWRITE, 1, key) for key in keys[first : first + CONNECTIONS]))
    return (await redis_seconds(redis) - before) / len(keys) * 1e6


async def redis_seconds(redis: Redis) -> float:
    """Return the processor time that Redis has used."""
    cpu = await redis.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


async def own_bytes(redis: Redis) -> float:
    """Return what a record and its phone use of ``used_memory``, by copies on a server that has nothing else."""
    with EmbeddedServer() as server:
        async with Redis.from_url(server.url) as other:
            before = await other.info("memory")
            copied = 0
            async for keys in batches_of_records(redis):
                async with redis.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.dump(key)
                    dumps = await pipeline.execute()
                async with other.pipeline(transaction=False) as pipeline:
                    for key, dump in zip(keys, dumps, strict=True):
                        pipeline.restore(key, _KEPT_MS, dump)
                    await pipeline.execute()
                copied += len(keys)
            after = await other.info("memory")
    grown: int = after["used_memory"] - before["used_memory"]
    return 2 * grown / copied


async def batches_of_records(redis: Redis) -> AsyncIterator[Sequence[bytes]]:
    """Yield keys of records and their phones, as many of these as of those."""
    left = {"records": _COPIED, "phones": _COPIED}
    batch: list[bytes] = []
    async for key in redis.scan_iter(count=1000):
        kind = _kind_of(key.decode())
        if left.get(kind):
            left[kind] -= 1
            batch.append(key)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


async def measure(starts: int) -> Sequence[str]:
    """Start as many verifications, and return lines that report what they took."""
    async with open_bench() as (bench_of_few, _), open_bench() as (bench, _):
        for it in (bench_of_few, bench):
            await start_many(it, range(starts, starts + _FEW))  # warms up
        few_sample = await start_many(bench_of_few, range(starts + _FEW, starts + 3 * _FEW))
        before = await bench.redis.info("memory")
        sample = await start_many(bench, range(starts))
        after = await bench.redis.info("memory")
        own = await own_bytes(bench.redis)
        few, many = await measure_checks((bench_of_few, few_sample), (bench, sample))
        server = await bench.redis.info("server")
        kinds: dict[str, Kind] = defaultdict(Kind)
        largest: list[tuple[int, str]] = []
        async for key in bench.redis.scan_iter(count=1000):
            name = key.decode()
            kind = kinds[_kind_of(name)]
            kind.keys += 1
            if len(kind.sizes) < _FEW:
                size = await bench.redis.memory_usage(key, samples=0) or 0
                kind.sizes.append(size)
                largest = sorted([*largest, (size, name)], reverse=True)[:5]
    bytes_each = (after["used_memory"] - before["used_memory"]) / starts
    version = server.get("valkey_version") or server["redis_version"]
    return [
        f"{version}, memory by {_ALLOCATOR or after['mem_allocator']}, {starts} starts",
        f"{'used_memory for each':40}{bytes_each:>10.0f} bytes",
        f"{'of these for its record and phone':40}{own:>10.0f} bytes",
        *(f"{name:40}{statistics.mean(kind.sizes):>10.0f} bytes, {kind.keys} keys" for name, kind in kinds.items()),
        "largest keys (of a sample of each kind): " + ", ".join(f"{name} {size}" for size, name in largest),
        "a check with a thousand pending verifications, with all of them, and the ratio:",
        _compared("CPU of the service, µs", few.service_us, many.service_us),
        _compared("CPU of Redis, µs", few.redis_us, many.redis_us),
        _compared("to rewrite a record, µs", few.rewrite_us, many.rewrite_us),
        _compared("p99 at half the throughput, ms", few.p99_ms, many.p99_ms),
    ]


def _compared(name: str, few: float, many: float) -> str:
    return f"{name:40}{few:>10.2f}{many:>10.2f}{many / few:>10.2f}"


def _kind_of(name: str) -> str:
    tag, _, rest = name.partition("}")
    if "{l:" in tag:
        return "limits"
    if rest.startswith(":p:"):
        return "phones"
    if rest == ":j":
        return "journals of attempts"
    return "records" if len(tag) == len("pv3{abc") and len(rest) == 1 + 20 else name


def main() -> None:
    """Measure as many starts as the command line asks for, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=100_000)
    if _ALLOCATOR:
        os.environ["LD_PRELOAD"] = _ALLOCATOR
    for line in uvloop.run(measure(parser.parse_args().starts)):
        print(line)


if __name__ == "__main__":
    main()
