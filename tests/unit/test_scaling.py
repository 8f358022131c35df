"""docs/scaling.md is what its script computes from the measurements that are kept."""

import json

import pytest

from benchmarks.bench import RESULTS
from benchmarks.scaling import DAILY, FOOTPRINT, PAGE, tables, with_tables

BENCH, FOOT = json.loads(RESULTS.read_text()), json.loads(FOOTPRINT.read_text())


def test_the_page_is_computed_from_the_kept_measurements() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert page == with_tables(page, tables(BENCH, FOOT)), "python benchmarks/scaling.py computes it anew"
    assert all(f"{daily // 1_000_000} million a day" in page for daily in DAILY)


@pytest.mark.parametrize(
    ("bytes_a_day", "redis"),
    [
        (3900, "1 + 2 replicas, Sentinel"),  # below the half of 8 GB
        (4100, "Cluster of 3 + 3"),
        (40_100, "Cluster of 11 + 11"),
    ],
)
def test_redis_has_as_many_primaries_as_the_memory_of_a_day_needs(bytes_a_day: int, redis: str) -> None:
    computed = tables(BENCH, FOOT | {"bytes_by_lifetime_seconds": {"86400": bytes_a_day}, "journal_bytes": 0})

    (row,) = [line for line in computed.splitlines() if line.startswith("| Redis |")]
    assert row.split(" | ")[1] == redis


def test_of_keys_that_live_for_an_hour_there_are_as_many_as_begin_in_the_peak_hour() -> None:
    computed = tables(BENCH, FOOT | {"bytes_by_lifetime_seconds": {"3600": 24_000}, "journal_bytes": 0})

    assert "| keys in Redis | 4.0 GB |" in computed


def test_the_journal_of_all_its_days_is_there_or_of_one() -> None:
    computed = tables(BENCH, FOOT | {"bytes_by_lifetime_seconds": {}, "journal_bytes": 200})

    assert "| keys in Redis | 6.0 GB | 60.0 GB |" in computed
    assert "| Redis | Cluster of 3 + 3 | Cluster of 15 + 15 |" in computed
    assert "| the same with `JOURNAL_DAYS=1` | 1 + 2 replicas, Sentinel | 1 + 2 replicas, Sentinel |" in computed
