"""What a verification takes of Redis' memory, and whether checks get slower as pending verifications add up.

Every start is of another phone, another address and another range of numbers, and goes through the public API. All that
Redis uses is counted. ``benchmarks/README.md`` says how to read it.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import uvloop

from app.verification.values import value
from benchmarks.bench import open_bench
from benchmarks.bench_rows import API_KEY, CONNECTIONS, Bench, Row, Verification, percentile
from benchmarks.load import Connection, Session, connections, request, saturate

_FEW = 1000
_BATCH = 2000
_ROUNDS = 4  # of the five checks that a verification allows
_KEPT_MS = 3_600_000
_FIRST_ADDRESS = int(IPv4Address("62.0.0.0"))


@value
class Found:
    """What checks cost: µs of processor time of the service and of Redis, and their p99 in ms."""

    service_us: float
    redis_us: float
    p99_ms: float


@dataclass(slots=True)
class Kind:
    """The keys of one kind: how many, and their bytes as ``MEMORY USAGE`` says, of a sample."""

    keys: int = 0
    sizes: list[int] = field(default_factory=list)


def start(bench: Bench, number: int, started: list[Verification]) -> Session:
    """Prepare a start that shares phone, address and range with no other of a million."""
    phone = f"+7{9_000_000 + number % 1_000_000}{number % 997:03d}"
    body = {"phone": phone, "purpose": "login", "client_ip": str(IPv4Address(_FIRST_ADDRESS + number))}
    payload = request("POST", "/verify/start", body=body, api_key=API_KEY)

    async def send(connection: Connection) -> Sequence[bytes]:
        answer = await connection.send(payload)
        verification_id = json.loads(answer)["verification_id"]
        started.append(Verification(verification_id, phone, bench.stub.codes.pop(phone[2:])))
        return [answer]

    return send


async def start_many(bench: Bench, numbers: range) -> list[Verification]:
    """Start in batches, and return the last of them. Codes live for five minutes: the records are kept for longer."""
    started: list[Verification] = []
    async with connections(bench.service.port, CONNECTIONS) as opened:
        for first in range(numbers.start, numbers.stop, _BATCH):
            batch: list[Verification] = []
            last = min(first + _BATCH, numbers.stop)
            await saturate(opened, [start(bench, number, batch) for number in range(first, last)])
            async with bench.redis.pipeline(transaction=False) as pipeline:
                for it in batch:
                    pipeline.pexpire(f"pv2{{{it.id[4:7]}}}:{it.id[7:]}", _KEPT_MS)
                kept = await pipeline.execute()
            assert all(kept), "records have another name"  # noqa: S101 - of this benchmark's own assumption
            started = [*started, *batch][-2 * _FEW :]
            print(".", end="", file=sys.stderr, flush=True)
    return started


async def measure_checks(bench: Bench, name: str, started: Sequence[Verification]) -> Found:
    """Measure wrong checks: their processor time under saturation, their p99 at half the throughput."""
    for _ in range(_ROUNDS):
        await bench.saturate(name, [bench.wrong_check(it) for it in started[:_FEW]])
    row: Row = bench.rows[name]
    await bench.pace(name, [bench.wrong_check(it) for it in started[_FEW:]])
    assert row.paced  # noqa: S101 - it was just measured
    return Found(min(it.cpu_us for it in row.rounds), min(it.redis_us for it in row.rounds), percentile(row.paced, 99))


async def measure(starts: int) -> Sequence[str]:
    """Start as many verifications, and return lines that report what they took."""
    async with open_bench() as (bench, _):
        await start_many(bench, range(starts, starts + _FEW))  # warms up
        few = await measure_checks(bench, "few", await start_many(bench, range(starts + _FEW, starts + 3 * _FEW)))
        before = await bench.redis.info("memory")
        latest = await start_many(bench, range(starts))
        after = await bench.redis.info("memory")
        many = await measure_checks(bench, "many", latest)
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
    return [
        f"{server.get('valkey_version') or server['redis_version']}, {starts} starts",
        f"{'used_memory for each':40}{bytes_each:>10.0f} bytes",
        *(f"{name:40}{statistics.mean(kind.sizes):>10.0f} bytes, {kind.keys} keys" for name, kind in kinds.items()),
        "largest keys (of a sample of each kind): " + ", ".join(f"{name} {size}" for size, name in largest),
        "a check with a thousand pending verifications, with all of them, and the ratio:",
        _compared("CPU of the service, µs", few.service_us, many.service_us),
        _compared("CPU of Redis, µs", few.redis_us, many.redis_us),
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
    return "records" if len(tag) == len("pv2{abc") and len(rest) == 1 + 20 else name


def main() -> None:
    """Measure as many starts as the command line asks for, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=100_000)
    for line in uvloop.run(measure(parser.parse_args().starts)):
        print(line)


if __name__ == "__main__":
    main()
