"""Every fault of a provider, simulated over sockets with the whole service: the caller's response and the facts.

The resulting table is ``docs/faults.md``; a test compares the two.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from app.main import create_app
from app.settings import Settings, load_settings
from app.tokens import generate_keys
from tests import faulty
from tests.faulty import (
    PAGE,
    PLACED,
    Playing,
    listening,
    rings_and_says,
    rings_and_sends,
    says_no,
    says_nothing,
    sends_for_ever,
)
from tests.integration.conftest import SECRET_KEY, run

pytestmark = pytest.mark.standalone  # each fault has a database, and a cluster has only one

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
STALE = """docs/faults.md is out of date. If the change is intended, replace the table with the output of:
FAULT_TABLE=/tmp/table.md python -m pytest tests/integration/test_fault_table.py"""
TABLE_HEAD = (
    "| fault | the caller got | calls placed | heard codes that verify | requests that were read |",
    "|---|---|---|---|---|",
)

KEY = "not-a-real-api-key"
PHONE = "+79001234567"
CONNECT = 1.5  # seconds for a connection
BUDGET = 6.0  # seconds for a request: room for two connections on a machine that is busy
SLOW = 0.2  # seconds between two parts of a response within the timeout
DATABASES = range(1, 9)  # of one Redis; the number of concurrent faults

# The possible responses. A refusal leaves no trace, anything else a code that verifies.
PLACED_CALL = "201 initiated"
UNCONFIRMED = "201 unconfirmed"
REJECTED = "502 provider-rejected"
TOO_LOW = "503 balance-too-low"
UNAVAILABLE = "503 provider-unavailable, Retry-After 30"

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PLACED)
REFUSAL = b'{"success": false, "code": 500, "message": "error find flashcall account"}'
NO_MONEY = '{"success": false, "message": "Недостаточно средств"}'.encode()
RPC_ERROR = b'{"jsonrpc": "2.0", "result": null, "error": {"code": 0, "message": "Page not found."}}'
MESSAGE = b'{"message": "no"}'
BOMB = faulty.gzip_bomb(300_000_000)
HTML = "Content-Type: text/html\r\n"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and what is expected: the caller's response, calls placed, and requests read by the provider."""

    name: str
    provider: Playing
    response: str
    calls: int
    requests: int = 1


def never_written(name: str, provider: Playing) -> Fault:
    return Fault(name, provider, UNAVAILABLE, calls=0, requests=0)


def refusal(name: str, body: bytes, status: str, response: str = REJECTED, headers: str = "") -> Fault:
    return Fault(name, listening(says_no(body, status, headers)), response, calls=0)


def unclear(name: str, script: faulty.Script) -> Fault:
    """Return a fault in which the call is placed but the response does not confirm it."""
    return Fault(name, listening(script), UNCONFIRMED, calls=1)


def placed(name: str, script: faulty.Script) -> Fault:
    return Fault(name, listening(script), PLACED_CALL, calls=1)


FAULTS = (
    # The request was never written.
    never_written("connection refused", faulty.refusing),
    never_written("connection not accepted", faulty.unaccepting),
    never_written("DNS name without an address", faulty.nameless),
    never_written("certificate of an unknown authority", listening(tls=True)),
    never_written("TLS handshake that hangs", faulty.no_tls(says_nothing)),
    never_written("reset during the TLS handshake", faulty.no_tls(faulty.resets)),
    Fault(
        "connection refused once, then accepted",
        faulty.opening_after_one_refusal(rings_and_says(PLACED)),
        PLACED_CALL,
        calls=1,
    ),
    # The response is a refusal.
    refusal("200 `success: false`", REFUSAL, "200 OK"),
    refusal("200 `success: false`, no money", NO_MONEY, "200 OK", TOO_LOW),
    refusal("200 JSON-RPC error", RPC_ERROR, "200 OK"),
    refusal("400", MESSAGE, "400 Bad Request"),
    refusal("401", MESSAGE, "401 Unauthorized"),
    refusal("403", MESSAGE, "403 Forbidden"),
    refusal("404 HTML", PAGE, "404 Not Found", headers=HTML),
    refusal("422", MESSAGE, "422 Unprocessable Content"),
    refusal(
        "429 with `Retry-After: 17`",
        MESSAGE,
        "429 Too Many Requests",
        "503 provider-unavailable, Retry-After 17",
        "Retry-After: 17\r\n",
    ),
    refusal("429 HTML", PAGE, "429 Too Many Requests", UNAVAILABLE, HTML),
    refusal('500 "no access"', b'{"message": "no access"}', "500 Internal Server Error"),
    # The response does not say whether there is a call. If the request was read, there is one.
    Fault("reset before the request is read", listening(unread=faulty.resets), UNCONFIRMED, calls=0, requests=0),
    Fault("accepted and never read", listening(unread=says_nothing), UNCONFIRMED, calls=0, requests=0),
    unclear("read and never answered", rings_and_sends(then=says_nothing)),
    unclear("reset after the call is placed", rings_and_sends(then=faulty.resets)),
    unclear("closed after the call is placed", rings_and_sends()),
    unclear("headers after the timeout", rings_and_sends(HEAD[:20], then=says_nothing)),
    unclear("endless headers, byte by byte", rings_and_sends(b"HTTP/1.1 200 OK\r\nX: ", then=sends_for_ever(b"x"))),
    unclear("body after the timeout", rings_and_sends(HEAD, then=says_nothing)),
    unclear("endless body, byte by byte", rings_and_sends(b"HTTP/1.1 200 OK\r\n\r\n", then=sends_for_ever(b" "))),
    unclear("half a body, then closed", rings_and_sends(HEAD + PLACED[:20])),
    unclear("half a body, then reset", rings_and_sends(HEAD + PLACED[:20], then=faulty.resets)),
    unclear("200 with an empty body", rings_and_says(b"")),
    unclear("204", rings_and_sends(b"HTTP/1.1 204 No Content\r\n\r\n")),
    unclear("200 `success: true` without `call_id`", rings_and_says(b'{"success": true, "data": {}}')),
    unclear('200 `success: "true"`', rings_and_says(PLACED.replace(b"true", b'"true"'))),
    unclear("200 JSON of another shape", rings_and_says(b"[%b]" % PLACED)),
    unclear("200 broken JSON", rings_and_says(PLACED[:-1])),
    unclear("200 HTML", rings_and_says(PAGE, headers=HTML)),
    unclear("200 with a body of 1 MB", rings_and_says(PLACED[:-1] + b" " * 1_000_000 + b"}")),
    unclear("200 with a gzip bomb", rings_and_says(BOMB, headers="Content-Encoding: gzip\r\n")),
    unclear("200 with a false `Content-Encoding: gzip`", rings_and_says(PLACED, headers="Content-Encoding: gzip\r\n")),
    unclear("302", rings_and_says(b"", "302 Found", "Location: /elsewhere\r\n")),
    unclear("307", rings_and_says(b"", "307 Temporary Redirect", "Location: /api/v1/flash-call/call\r\n")),
    unclear("400 `success: true`", rings_and_says(PLACED, "400 Bad Request")),
    unclear("408", rings_and_says(b"", "408 Request Timeout")),
    unclear("500 HTML", rings_and_says(PAGE, "500 Internal Server Error", HTML)),
    unclear("502 HTML", rings_and_says(PAGE, "502 Bad Gateway", HTML)),
    unclear("503 with `Retry-After: 17`", rings_and_says(PAGE, "503 Service Unavailable", "Retry-After: 17\r\n")),
    unclear("504 HTML", rings_and_says(PAGE, "504 Gateway Timeout", HTML)),
    unclear("endless 100 Continue", rings_and_sends(then=sends_for_ever(b"HTTP/1.1 100 Continue\r\n\r\n"))),
    unclear("101 Switching Protocols", rings_and_sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")),
    unclear("garbage instead of a status line", rings_and_sends(b"220 mail.example ESMTP\r\n\r\n")),
    # Unusual, but unambiguous.
    placed("100 Continue, then a response", rings_and_sends(b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + PLACED)),
    placed("slow headers within the timeout", rings_and_sends(HEAD[:20], HEAD[20:] + PLACED, pause=SLOW)),
    placed("slow body within the timeout", rings_and_sends(HEAD, PLACED[:20], PLACED[20:], pause=SLOW)),
    placed("two responses to one request", rings_and_sends(HEAD + PLACED, HEAD + PLACED.replace(b"-1", b"-2"))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened. ``again``: the response to the same start repeated at once; ``requests_of_both``: their total."""

    response: str
    again: str
    calls: int
    verified: int
    requests: int
    requests_of_both: int
    traces: frozenset[str]
    immortal: frozenset[str]

    @property
    def is_refusal(self) -> bool:
        return not self.response.startswith("201")

    def row(self, fault: Fault) -> str:
        return f"| {fault.name} | {self.response} | {self.calls} | {self.verified} of {self.calls} | {self.requests} |"


def production_settings(redis_url: str, provider_url: str) -> Settings:
    settings = load_settings(
        mode="production",
        plusofon={
            "user_id": "made-up-user",
            "access_token": "not-a-real-token",
            "connect_timeout_seconds": CONNECT,
            "timeout_seconds": BUDGET,
        },
        secret={"key": SECRET_KEY},
        api={"keys": f"shop:{hashlib.sha256(KEY.encode()).hexdigest()}"},
        redis={"url": redis_url, "timeout_seconds": 10},  # all faults at once, on a busy machine
        token={"keys": generate_keys()},
    )
    # Set after validation: production requires https, and with it a certificate that a test server cannot have.
    plusofon = settings.plusofon.model_copy(update={"base_url": provider_url})
    return settings.model_copy(update={"plusofon": plusofon})


def describe(answer: httpx.Response) -> str:
    """Return the response in short, and check the form of a problem."""
    body = answer.json()
    if answer.is_success:
        return f"{answer.status_code} {body['call']['status']}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == answer.status_code
    wait = answer.headers.get("retry-after")
    slug = body["type"].removeprefix("/problems/")
    if slug == "call-cooldown":  # the remaining time varies
        return f"{answer.status_code} {slug}"
    return f"{answer.status_code} {slug}" + (f", Retry-After {wait}" if wait else "")


async def keys_of(redis: Redis) -> list[str]:
    return [str(key) for key in await redis.keys()]


async def traces_in(redis: Redis) -> frozenset[str]:
    """Return the keys that still hold data of a call.

    That is not the journal, which tells of refused calls too, the balance or the statistics.
    """
    others = ("pv3{balance}", "pv3{stats}", "pv3{attempts}")
    return frozenset(key for key in await keys_of(redis) if not key.startswith(others) and not key.endswith(":j"))


async def play(fault: Fault, redis: Redis, redis_url: str) -> Outcome:
    """Start a verification with this fault of the provider, check the code that was heard, and start again at once."""
    await redis.flushdb()
    async with (
        fault.provider() as provider,
        run(create_app(production_settings(redis_url, provider.url))) as api,
    ):
        api.headers["Authorization"] = f"Bearer {KEY}"
        faulty.asking.set(provider)
        first = await api.post("/verify/start", json={"phone": PHONE})
        calls, requests, traces = len(provider.heard), provider.requests, await traces_in(redis)
        again = await api.post("/verify/start", json={"phone": PHONE})
        verified = 0
        for code in provider.heard[:calls]:
            check = {"verification_id": first.json().get("verification_id", ""), "code": code}
            verified += (await api.post("/verify/check", json=check)).json().get("verified") is True
        immortal = [key for key in await keys_of(redis) if await redis.pttl(key) == -1]
    return Outcome(
        response=describe(first),
        again=describe(again),
        calls=calls,
        verified=verified,
        requests=requests,
        requests_of_both=provider.requests,
        traces=traces,
        immortal=frozenset(immortal),
    )


Outcomes = Mapping[str, Outcome]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(redis_url: str) -> AsyncIterator[Outcomes]:
    """Run all faults, several at once: each has its own application, provider and Redis database."""
    free: asyncio.Queue[int] = asyncio.Queue()
    for number in DATABASES:
        free.put_nowait(number)

    async def play_one(fault: Fault) -> Outcome:
        number = await free.get()
        url = f"{redis_url}?db={number}"
        redis = Redis.from_url(url, decode_responses=True)
        try:
            return await play(fault, redis, url)
        finally:
            await redis.aclose()
            free.put_nowait(number)

    played = await asyncio.gather(*map(play_one, FAULTS))
    yield dict(zip((fault.name for fault in FAULTS), played, strict=True))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_response_is_true_and_every_code_that_was_heard_verifies(fault: Fault, outcomes: Outcomes) -> None:
    outcome = outcomes[fault.name]

    assert (outcome.response, outcome.calls, outcome.requests) == (fault.response, fault.calls, fault.requests)
    assert outcome.verified == outcome.calls
    assert outcome.requests <= 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_refused_call_leaves_no_trace_and_any_other_outcome_starts_a_cooldown(
    fault: Fault, outcomes: Outcomes
) -> None:
    outcome = outcomes[fault.name]

    if outcome.is_refusal:
        assert outcome.calls == 0
        assert outcome.traces == frozenset()
        assert outcome.again == outcome.response  # and no cooldown
        assert outcome.requests_of_both == 2 * outcome.requests
    else:
        assert outcome.traces
        assert outcome.again == "429 call-cooldown"
        assert outcome.requests_of_both == outcome.requests
    assert outcome.immortal == frozenset()


def test_the_documented_fault_table_matches_the_results(outcomes: Outcomes) -> None:
    table = [*TABLE_HEAD, *(outcomes[fault.name].row(fault) for fault in FAULTS)]
    if path := os.environ.get("FAULT_TABLE"):
        Path(path).write_text("\n".join(table) + "\n", encoding="utf-8")

    documented = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert documented == table, STALE
