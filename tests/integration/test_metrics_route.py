"""``GET /metrics`` of the whole application: access, content, and what must never be in it."""

import hashlib
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.settings import Settings, load_settings
from app.tokens import generate_keys
from tests.integration.conftest import SECRET_KEY, run, sandbox_settings
from tests.integration.test_verification import hear
from tests.unit.test_metrics_series import Seen
from tests.waiting import eventually

PHONE = "+79001234567"
READER, OPERATOR, CLIENT = "not-a-real-reader", "not-a-real-operator", "not-a-real-client"


async def scrape(api: httpx.AsyncClient) -> Seen:
    answer = await api.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return Seen(answer.content)


def count(seen: Seen, *names: str) -> int:
    return sum(key[0].startswith(names) for key in seen.series)


async def test_a_start_and_its_checks_are_counted_and_timed(api: httpx.AsyncClient) -> None:
    await api.post("/verify/start", json={"phone": PHONE})
    await api.post("/verify/start", json={"phone": PHONE})
    await api.post("/verify/check", json={"phone": "+79001234568", "code": "123456"})

    now = await scrape(api)

    start = {"method": "POST", "route": "/verify/start"}
    assert now("requests_total", **start, status="2xx", outcome="ok") == 1
    assert now("requests_total", **start, status="4xx", outcome="call-cooldown") == 1
    check = {"method": "POST", "route": "/verify/check", "status": "4xx"}
    assert now("requests_total", **check, outcome="verification-not-found") == 1
    assert now("request_duration_seconds_count", route="/verify/start") == 2
    place = {"channel": "voice", "operation": "place", "outcome": "placed"}
    assert now("provider_request_duration_seconds_count", **place) == 1
    assert (now("store_round_trip_seconds_count") or 0) >= 4
    assert {value for (name, _), value in now.series.items() if name == "store_up"} == {1}  # of a cluster one each
    assert now("store_failures_total") == 0


async def scrape_until(api: httpx.AsyncClient, condition: Callable[[Seen], object]) -> Seen:
    return await eventually(lambda: scrape(api), condition)


async def test_the_metrics_count_a_verification_its_call_its_success_and_its_cost(api: httpx.AsyncClient) -> None:
    await api.post("/verify/start", json={"phone": PHONE})
    await api.post("/verify/start", json={"phone": PHONE})  # too soon
    code = await hear(api, PHONE)
    await api.post(
        "/verify/check", json={"phone": PHONE, "code": "1" * len(code) if code[0] != "1" else "2" * len(code)}
    )
    await api.post("/verify/check", json={"phone": PHONE, "code": code})

    now = await scrape_until(api, lambda now: now("calls_ended_total", channel="voice", status="completed"))
    assert now("verifications_started_total", channel="voice") == 1
    assert now("calls_placed_total", channel="voice", status="initiated") == 1
    assert now("limits_hit_total", limit="call_cooldown") == 1
    assert now("wrong_codes_total") == 1
    assert now("verifications_ended_total", status="verified") == 1

    now = await scrape_until(api, lambda now: now("calls_today"))
    assert (now("calls_today"), now("spend_today_rub")) == (1, 3)


async def test_the_metrics_show_balance_circuit_and_background_lag(api: httpx.AsyncClient) -> None:
    now = await scrape_until(api, lambda now: now("balance_rub") is not None)

    assert (now("balance_rub") or 0) > 0
    assert (now("balance_minimum_rub"), now("balance_warning_rub")) == (10, 100)
    assert now("circuit_state", circuit="plusofon", state="closed") == 1
    assert now("watcher_lag_seconds") is not None
    assert now("background_lag_seconds", step="stats") is not None


async def test_the_metrics_show_the_call_budget_and_its_use(api: httpx.AsyncClient) -> None:
    before = await scrape(api)
    await api.post("/verify/start", json={"phone": PHONE})
    after = await scrape(api)

    assert (before("call_budget"), before("call_budget_used"), after("call_budget_used")) == (1000, 0, 1)
    assert None not in (after("spend_today_rub"), after("calls_today"), after("fraud_blocks"))


@pytest.mark.parametrize(
    ("body", "outcome"),
    [(b"{", "validation-failed"), (b"{}", "validation-failed"), (b"x" * 20_000, "validation-failed")],
)
async def test_invalid_requests_are_counted_by_their_problem(api: httpx.AsyncClient, body: bytes, outcome: str) -> None:
    await api.post("/verify/check", content=body, headers={"Content-Type": "application/json"})

    labels = {"method": "POST", "route": "/verify/check", "status": "4xx", "outcome": outcome}
    assert (await scrape(api))("requests_total", **labels) == 1


async def test_no_input_of_a_caller_creates_a_series(api: httpx.AsyncClient, network: VirtualNetwork) -> None:
    """Paths, methods, headers, ids, phones, codes and purposes: another batch of them adds no series."""
    numbers = []
    for batch in range(3):
        for number in range(batch * 40, batch * 40 + 40):
            odd = f"odd{number}"
            headers = {"X-Request-ID": odd, "User-Agent": odd, "Idempotency-Key": odd, "Host": f"{odd}.example"}
            await api.request(odd.upper(), f"/{odd}", headers=headers)
            await api.request(odd.upper(), "/verify/start", headers=headers)
            await api.get(f"/verify/{odd}?{odd}={odd}", headers=headers)
            await api.get(f"/problems/{odd}")
            await api.get(f"/docs/assets/{odd}.js")
            await api.post(f"/verify/vrf_{number:023x}/cancel", headers=headers)
            await api.post("/verify/start", json={"phone": odd, "purpose": odd, "channel": odd}, headers=headers)
            await api.post("/verify/start", json={"phone": f"+7921{number:03}0000", "client_ip": f"192.0.2.{number}"})
            await api.post("/verify/check", json={"verification_id": f"vrf_{number:023x}", "code": f"{number:06}"})
            await api.post("/verify/check", json={"phone": f"+7921{number:03}0000", "code": f"{number:06}"})
        await scrape_until(api, lambda now: now("client_spend_today_rub", client="sandbox"))
        text = (await api.get("/metrics")).text
        # Without the values, which may have any digits.
        series = "\n".join(line.rpartition(" ")[0].lower() for line in text.splitlines())
        assert [found for found in ("odd", "+79", "79210", "vrf_") if found in series] == []
        # The states of a call and the first read of the balance do not depend on the callers' input.
        lines = [
            line for line in text.splitlines() if "provider_request_duration" not in line and "balance" not in line
        ]
        numbers.append(count(Seen("\n".join(lines).encode()), ""))

    assert all(before == after for before, after in pairwise(numbers[1:]))
    assert numbers[-1] < 700


async def test_labels_are_a_fixed_set_and_do_not_identify_an_end_user(api: httpx.AsyncClient) -> None:
    await api.post("/verify/start", json={"phone": PHONE})
    families = text_string_to_metric_families((await api.get("/metrics")).text)

    names = {label for family in families for sample in family.samples for label in sample.labels}
    assert names <= {
        "channel", "circuit", "client", "event", "kind", "le", "limit", "method", "node", "operation", "operator",
        "outcome", "route", "state", "status", "step", "version",
    }  # fmt: skip


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def keys(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), (CLIENT, 401), ("another", 401), (READER, 200), (OPERATOR, 200)]
)
async def test_in_production_metrics_need_a_metrics_key_or_an_admin_key(
    redis: Redis, redis_url: str, key: str | None, status: int
) -> None:
    async with run(create_app(production(redis_url))) as api:
        answer = await api.get("/metrics", headers=bearer(key) if key else {})

    assert answer.status_code == status


async def test_a_metrics_key_gives_no_other_access(redis: Redis, redis_url: str) -> None:
    async with run(create_app(production(redis_url))) as api:
        assert (await api.get("/admin/guard", headers=bearer(READER))).status_code == 401
        assert (await api.get("/provider/account", headers=bearer(READER))).status_code == 401


async def test_without_configured_keys_metrics_are_refused_unless_they_are_open(redis: Redis, redis_url: str) -> None:
    none: dict[str, object] = {"admin": {}, "metrics": {}}
    async with run(create_app(production(redis_url, **none))) as api:
        assert (await api.get("/metrics")).status_code == 401
    async with run(create_app(production(redis_url, **none | {"metrics": {"open": True}}))) as api:
        assert (await api.get("/metrics")).status_code == 200


def production(redis_url: str, **overrides: object) -> Settings:
    return load_settings(
        **{
            "mode": "production",
            "redis": {"url": redis_url},
            "secret": {"key": SECRET_KEY},
            "api": {"keys": keys("shop", CLIENT)},
            "admin": {"keys": keys("operator", OPERATOR)},
            "metrics": {"keys": keys("prometheus", READER)},
            "plusofon": {"user_id": "0", "access_token": "not-a-real-token", "base_url": "https://127.0.0.1:9"},
            "token": {"keys": generate_keys()},
            **overrides,
        }
    )


async def test_metrics_report_a_redis_outage_and_still_show_the_rest(redis_url: str) -> None:
    settings = sandbox_settings("redis://127.0.0.1:1/0")
    async with run(create_app(settings)) as api:
        now = await scrape(api)

    assert now("store_up") == 0
    assert now("call_budget_used") is None
    assert now("call_budget") == 1000
    assert (now("store_failures_total") or 0) > 0


def test_the_price_of_a_call_is_exact_to_the_kopeck() -> None:
    assert sandbox_settings("redis://127.0.0.1:1/0", call={"price_rub": "2.75"}).call.price_rub == Decimal("2.75")
