"""What a number of verifications a day needs, computed from measurements: makes the tables of ``docs/scaling.md``.

``make bench`` measures processor time (``results/last.json``). ``--measure`` measures what a verification leaves in
Redis and for how long, and the bytes that it sends (``results/footprint.json``). Without it the page is computed anew.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from benchmarks.bench import RESULTS, open_bench
from benchmarks.bench_rows import CONNECTIONS, Verification
from benchmarks.load import Session, connections, saturate

FOOTPRINT = RESULTS.with_name("footprint.json")
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- benchmarks/scaling.py -->\n", "<!-- end -->\n"

DAILY = (1_000_000, 10_000_000, 100_000_000)
PEAK = 4.0  # times the mean of a day
BUSY = 0.6  # share of a core at the peak: beyond it latencies grow
PROVIDER_SECONDS = 1.0  # until Plusofon has placed a call
NODE_GB = 8.0  # memory of a Redis node, of which half is for keys; the rest for buffers, replication and growth
HOT_SCRIPTS = 4  # of a verification that run in a slot which all share: the budget of all calls, and the queue of calls

_DAY = 86_400
_LIFETIMES = (300, 600, 3600, _DAY)  # seconds; a key is counted under the next of these
_JOURNAL_DAYS = 30  # the default; a journal of one day is enough where finished attempts go to a database
_MEASURED = 3000  # verifications


async def measure() -> Mapping[str, Any]:
    """Start and check verifications with keys, every phone, address and range a new one, and count bytes."""
    async with open_bench() as (bench, _):
        await _verify(bench, 100)
        before = await _figures(bench.redis)
        sent = await _verify(bench, _MEASURED)
        after = await _figures(bench.redis)
        lifetimes = await _bytes_by_lifetime(bench.redis)
        journal = await _journal_bytes(bench.redis)
    count = _MEASURED + 100
    overhead = (after["used_memory"] - before["used_memory"]) / _MEASURED / (lifetimes.total() / count)
    return {
        "bytes_by_lifetime_seconds": {
            str(lifetime): round(overhead * found / count) for lifetime, found in sorted(lifetimes.items())
        },
        "journal_bytes": round(journal / count),
        "redis_wire_bytes": round((after["wire"] - before["wire"]) / _MEASURED),
        "http_bytes": round(sent / _MEASURED),
        "script_us": round((after["usec"] - before["usec"]) / (after["calls"] - before["calls"]), 1),
    }


async def _verify(bench: Any, count: int) -> int:  # noqa: ANN401 - a private class of the benchmark's
    """Run verifications; return the bytes of requests and responses."""
    started: list[Verification] = []
    async with connections(bench.service.port, CONNECTIONS) as opened:
        await saturate(opened, list(bench.starts(count, started, with_key=True)))
        for check in (bench.wrong_check, bench.right_check):
            sessions: Sequence[Session] = [check(verification) for verification in started]
            await saturate(opened, sessions)
        return sum(connection.bytes for connection in opened)


async def _figures(redis: Redis) -> dict[str, float]:
    info, journals = await redis.info(), 0
    async for key in redis.scan_iter(match="*:j", count=1000):
        journals += await redis.memory_usage(key, samples=0) or 0
    stats = (await redis.info("commandstats"))["cmdstat_evalsha"]
    wire = info["total_net_input_bytes"] + info["total_net_output_bytes"]
    return {"used_memory": info["used_memory"] - journals, "wire": wire, "calls": stats["calls"], "usec": stats["usec"]}


async def _bytes_by_lifetime(redis: Redis) -> Counter[int]:
    """Return the bytes of all keys by how long they still live.

    Not of the statistics, which are as many with any number of verifications, and not of the journals.
    """
    found: Counter[int] = Counter()
    async for key in redis.scan_iter(count=1000):
        left, size = await redis.pttl(key), await redis.memory_usage(key)
        lifetime = next((lifetime for lifetime in _LIFETIMES if left <= lifetime * 1000), None)
        if size is not None and left > 0 and lifetime:
            found[lifetime] += size
    return found


async def _journal_bytes(redis: Redis) -> int:
    """Return the bytes of all journals in one: each is allocated in blocks, which so few attempts do not fill."""
    whole = "all journals"
    async for key in redis.scan_iter(match="*:j", count=1000):
        async with redis.pipeline(transaction=False) as pipeline:
            for _, entry in await redis.xrange(key):  # type: ignore[union-attr] # it is a stream
                pipeline.xadd(whole, entry)  # type: ignore[arg-type] # of bytes
            await pipeline.execute()
    return await redis.memory_usage(whole, samples=0) or 0


def tables(bench: Mapping[str, Any], footprint: Mapping[str, Any]) -> str:
    """Compute the tables of the page."""
    flow, rss_gb = bench["rows"]["flow"], bench["others"]["rss_mb"] / 1000
    lifetimes = {int(lifetime): size for lifetime, size in footprint["bytes_by_lifetime_seconds"].items()}
    # Of a day's verifications, at the peak: what lives for a day is all there, the rest as many as begin in its time.
    pending = sum(min(lifetime * PEAK, _DAY) / _DAY * size for lifetime, size in lifetimes.items())
    journal = footprint["journal_bytes"]
    kept, kept_less = pending + _JOURNAL_DAYS * journal, pending + journal

    def at_peak(daily: int) -> float:
        return daily / _DAY * PEAK

    def cores(daily: int, microseconds: float) -> float:
        return at_peak(daily) * microseconds / 1e6 / BUSY

    rows: dict[str, list[str]] = {}
    for daily in DAILY:
        workers = max(2, ceil(cores(daily, flow["cpu_us"])))
        redis_cores, memory_gb = cores(daily, flow["redis_us"]), daily * kept / 1e9
        primaries = _primaries(redis_cores, memory_gb)
        calls = ceil(at_peak(daily) * PROVIDER_SECONDS)
        hot = at_peak(daily) * HOT_SCRIPTS * footprint["script_us"] / 1e6
        cells = {
            "verifications a second, mean and peak": f"{daily / _DAY:,.0f}, {at_peak(daily):,.0f}",
            "workers (cores) of the service": f"{workers:,}",
            "their memory": f"{workers * rss_gb:,.1f} GB",
            "calls being placed at once": f"{calls:,}",
            "of these in each worker (`PLUSOFON_MAX_CONNECTIONS`)": f"{ceil(calls / workers):,}",
            "Redis": _nodes(primaries),
            "the same with `JOURNAL_DAYS=1`": _nodes(_primaries(redis_cores, daily * kept_less / 1e9)),
            "keys in Redis": f"{memory_gb:,.1f} GB",
            "of these in each primary": f"{memory_gb / primaries:,.1f} GB",
            f"of all keys the journal of {_JOURNAL_DAYS} days": f"{daily * _JOURNAL_DAYS * journal / 1e9:,.1f} GB",
            "a core of each primary is busy": f"{redis_cores * BUSY / primaries:.1%}",
            "of the one that has the keys that all share, by these": f"{hot:.1%}",
            "between service and Redis": f"{at_peak(daily) * footprint['redis_wire_bytes'] * 8 / 1e6:,.0f} Mbit/s",
            "between clients and service": f"{at_peak(daily) * footprint['http_bytes'] * 8 / 1e6:,.0f} Mbit/s",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)

    def daily_of(microseconds: float) -> str:
        return f"{BUSY * 1e6 / microseconds / PEAK * _DAY / 1e6:,.0f} million"

    bounds = {
        "one worker: processor time": daily_of(flow["cpu_us"]),
        f"one primary of {NODE_GB:g} GB: memory for keys": f"{NODE_GB / 2 * 1e9 / kept / 1e6:,.1f} million",
        "the same with `JOURNAL_DAYS=1`": f"{NODE_GB / 2 * 1e9 / kept_less / 1e6:,.1f} million",
        "one primary: processor time": daily_of(flow["redis_us"]),
        "a cluster of any size: the keys that all share": daily_of(HOT_SCRIPTS * footprint["script_us"]),
    }
    kept_rows = [[_lifetime(lifetime), f"{size:,}"] for lifetime, size in sorted(lifetimes.items())]
    kept_rows.append([f"{_JOURNAL_DAYS} days, the journal", f"{journal:,}"])
    times = f"{flow['cpu_us']:,.0f} µs of the service and {flow['redis_us']:,.0f} µs of Redis for each verification"
    measured = f"Measured: {times} ({bench['machine']}, commit {bench['commit']})."
    parts = [
        measured,
        _table(
            ["", *(f"{daily // 1_000_000} million a day" for daily in DAILY)],
            [[name, *it] for name, it in rows.items()],
        ),
        "The bound of each part, and where all of them break:",
        _table(["", "verifications a day"], [[name, many] for name, many in bounds.items()]),
        "What a verification leaves in Redis:",
        _table(["kept up to", "bytes"], kept_rows),
    ]
    return "\n\n".join(parts) + "\n"


def _primaries(redis_cores: float, memory_gb: float) -> int:
    """Return how many primaries have the processor time and the memory: one, or the three or more of a cluster."""
    needed = max(ceil(redis_cores), ceil(memory_gb / (NODE_GB / 2)))
    return max(3, needed) if needed > 1 else 1


def _nodes(primaries: int) -> str:
    return f"Cluster of {primaries} + {primaries}" if primaries > 1 else "1 + 2 replicas, Sentinel"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _lifetime(seconds: int) -> str:
    if seconds >= _DAY:
        return f"{seconds // _DAY} day{'s' if seconds > _DAY else ''}"
    return f"{seconds // 60} minutes"


def with_tables(page: str, computed: str) -> str:
    """Return the page with its tables computed anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{computed}{END}{after}"


def main() -> None:
    """Measure if the command line says so, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the footprint first")
    if parser.parse_args().measure:
        FOOTPRINT.write_text(json.dumps(uvloop.run(measure()), indent=1) + "\n")
    computed = tables(json.loads(RESULTS.read_text()), json.loads(FOOTPRINT.read_text()))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), computed), encoding="utf-8")


if __name__ == "__main__":
    main()
