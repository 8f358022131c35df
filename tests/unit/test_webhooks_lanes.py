"""Lanes: how many deliveries one endpoint may hold, and how long further ones are postponed."""

import asyncio
import time

import pytest

from app.webhooks.lanes import Lane, LaneFull, make_lanes
from tests.waiting import PATIENCE


async def hold(lane: Lane, seconds: float = 60) -> None:
    async with lane.slot():
        await asyncio.sleep(seconds)


async def pause_of(lane: Lane) -> float:
    with pytest.raises(LaneFull) as caught:
        await hold(lane)
    return caught.value.pause.total_seconds()


async def test_no_more_deliveries_than_slots_run_concurrently() -> None:
    lane = Lane(slots=3, places=20, timeout=60)
    now = most = 0

    async def deliver() -> None:
        nonlocal now, most
        async with lane.slot():
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1

    await asyncio.gather(*[deliver() for _ in range(20)])
    assert most == 3


async def test_a_lane_beyond_its_places_is_full_until_a_delivery_ends() -> None:
    lane = Lane(slots=1, places=2, timeout=60)
    held = [asyncio.create_task(hold(lane)) for _ in range(2)]
    await asyncio.sleep(0)

    assert await asyncio.wait_for(pause_of(lane), PATIENCE) > 0
    for task in held:
        task.cancel()
    await asyncio.wait(held)
    await hold(lane, 0)


async def test_a_delivery_waits_for_a_slot_no_longer_than_the_timeout() -> None:
    lane = Lane(slots=1, places=2, timeout=0.02)
    held = asyncio.create_task(hold(lane))
    await asyncio.sleep(0)

    assert await asyncio.wait_for(pause_of(lane), PATIENCE) > 0
    held.cancel()


async def test_the_pause_grows_with_the_endpoints_latency_and_the_number_of_waiting_deliveries() -> None:
    lane = Lane(slots=1, places=1, timeout=0)
    lane._pace = 10.0
    held = asyncio.create_task(hold(lane))
    await asyncio.sleep(0)

    pauses = [await pause_of(lane) for _ in range(8)]
    assert pauses == [10, 20, 30, 40, 50, 60, 60, 60]
    held.cancel()


async def test_the_pace_follows_the_measured_duration_of_deliveries() -> None:
    lane, took = Lane(slots=1, places=1, timeout=0), []
    for _ in range(5):
        began = time.monotonic()
        await hold(lane, 0.02)
        took.append(time.monotonic() - began)

    assert 0.01 < lane._pace <= max(took)


def lanes_of(urls: list[str]) -> list[Lane]:
    return list(make_lanes(urls, held=256, in_flight=64, in_flight_per_endpoint=8, timeout=1).values())


@pytest.mark.parametrize(("count", "slots"), [(1, 8), (8, 8), (9, 7), (64, 1), (300, 1)])
def test_all_lanes_together_stay_within_the_limits_of_a_worker(count: int, slots: int) -> None:
    lanes = lanes_of([f"https://{number}.example" for number in range(count)])

    assert [lane._width for lane in lanes] == [slots] * count
    assert sum(lane._width for lane in lanes) <= max(64, count)
    assert sum(lane._places for lane in lanes) <= max(256, count)


def test_clients_with_the_same_endpoint_share_a_lane() -> None:
    assert len(lanes_of(["https://shop.example"] * 2)) == 1
