"""Periods of the statistics: hours add up to days and days to months, in any time zone."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.verification.channels import Channel
from app.verification.domain_events import Segment
from app.verification.stats import CallCounts, Dimension, InvalidPeriod, Period, Stats, hour_at, parse_zone, to_rub

ZONES = st.sampled_from(sorted(available_timezones())).map(ZoneInfo)
# With half and quarter hours, with clocks that change by half an hour or at midnight, and at both ends of the world.
ODD_ZONES = st.sampled_from(
    [
        *("Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Asia/Beirut", "America/Havana"),
        *("Pacific/Chatham", "Pacific/Kiritimati", "Etc/GMT+12", "Europe/Moscow", "America/New_York"),
    ]
).map(ZoneInfo)
DAYS = st.dates(date(2024, 1, 1), date(2035, 12, 31))
DAY = timedelta(days=1)


@given(DAYS, st.integers(0, 40), ZONES | ODD_ZONES)
def test_the_hours_of_a_period_are_those_of_its_days(first: date, further: int, zone: ZoneInfo) -> None:
    period = Period(first, first + further * DAY, zone)

    of_days = [hour for day in range(period.days) for hour in Period(first + day * DAY, first + day * DAY, zone).hours]

    assert of_days == list(period.hours)


@given(DAYS, ZONES | ODD_ZONES)
def test_an_hour_belongs_to_the_day_in_which_it_begins(day: date, zone: ZoneInfo) -> None:
    hours = Period(day, day, zone).hours

    assert {hour_at(hour, zone).date() for hour in hours} == {day}
    assert hour_at(hours[0] - 1, zone).date() == day - DAY
    assert hour_at(hours[-1] + 1, zone).date() == day + DAY


@given(st.dates(date(2024, 1, 1), date(2035, 12, 31)), ZONES)
def test_months_follow_each_other_without_a_gap(day: date, zone: ZoneInfo) -> None:
    long_after = datetime(2040, 1, 1, tzinfo=zone)
    month = Period.choose(long_after, month=f"{day:%Y-%m}")
    following = Period.choose(long_after, month=f"{month.last + DAY:%Y-%m}")

    assert month.first.day == following.first.day == 1
    assert month.hours[-1] + 1 == following.hours[0]


@given(
    st.lists(st.tuples(st.integers(0, 35 * 24), st.sampled_from(["a", "b"]), st.integers(-3, 100)), max_size=60),
    ZONES | ODD_ZONES,
)
def test_the_counts_of_hours_add_up_to_those_of_days_and_clients(
    events: list[tuple[int, str, int]], zone: ZoneInfo
) -> None:
    by_day, by_client, by_both = (
        Stats(period=Period(date(2026, 1, 1), date(2026, 2, 28), zone), by=by)
        for by in ([Dimension.DAY], [Dimension.CLIENT], [Dimension.DAY, Dimension.CLIENT])
    )
    first = int(datetime(2026, 1, 2, tzinfo=UTC).timestamp()) // 3600
    for hour, client, count in events:
        for stats in (by_day, by_client, by_both):
            stats.add(hour_at(first + hour, zone), Segment(client, Channel.VOICE, "mts"), {"asked": count})

    total = sum(count for *_, count in events)
    for stats in (by_day, by_client, by_both):
        assert stats.total == CallCounts(asked=total)
        assert sum(counts["asked"] for counts in stats.rows.values()) == total
    for (day,), counts in by_day.rows.items():
        assert counts["asked"] == sum(them["asked"] for (of, _), them in by_both.rows.items() if of == day)


@pytest.mark.parametrize(
    ("chosen", "parameter"),
    [
        ({"month": "2026-01", "first": date(2026, 1, 1)}, "month"),
        ({"month": "2026-01", "last": date(2026, 1, 1)}, "month"),
        ({"month": "2026-13"}, "month"),
        ({"month": "0000-01"}, "month"),
        ({"month": "2026-02"}, "month"),
        ({"first": date(2026, 2, 1)}, "from"),
        ({"last": date(2026, 1, 1)}, "from"),
        ({"first": date(2026, 1, 2), "last": date(2026, 1, 1)}, "to"),
    ],
)
def test_a_contradictory_period_is_refused(chosen: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidPeriod) as refused:
        Period.choose(datetime(2026, 1, 31, tzinfo=UTC), **chosen)

    assert refused.value.parameter == parameter


def test_a_period_ends_today_in_the_time_zone_at_the_latest() -> None:
    zone = ZoneInfo("Europe/Moscow")
    now = datetime(2026, 1, 30, 21, 30, tzinfo=UTC).astimezone(zone)
    today = date(2026, 1, 31)

    assert Period.choose(now) == Period(today, today, zone)
    assert Period.choose(now, first=date(2026, 1, 1)) == Period(date(2026, 1, 1), today, zone)
    assert Period.choose(now, first=date(2026, 1, 1), last=date.max) == Period(date(2026, 1, 1), today, zone)
    assert Period.choose(now, month="2026-01") == Period(date(2026, 1, 1), today, zone)
    assert Period.choose(now, month="2025-12") == Period(date(2025, 12, 1), date(2025, 12, 31), zone)


@pytest.mark.parametrize("name", ["", "Nowhere/Land", "../etc/passwd", "/etc/localtime", "Europe", "x" * 5000])
def test_an_unknown_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be a time zone that this machine knows"):
        parse_zone(name)


def test_utc_needs_no_data_base_of_time_zones() -> None:
    assert parse_zone("UTC") is UTC
    assert str(parse_zone("UTC")) == "UTC"


@pytest.mark.parametrize(
    ("units", "rub"), [(0, "0.00"), (30_000, "3.00"), (3125, "0.3125"), (-250, "-0.0250"), (10**15, "100000000000.00")]
)
def test_money_is_exact_and_has_two_decimals_or_four(units: int, rub: str) -> None:
    assert str(to_rub(units)) == rub
