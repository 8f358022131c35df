"""What applies to every route: API keys, errors, request ids, headers."""

import gc
import hashlib
import json
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.api.problem_types import PROBLEM_TYPES
from app.api.routing import RequestMiddleware
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from app.tokens import generate_keys
from tests.http_peer import Echo, served
from tests.integration.conftest import keys_of_requests, run, sandbox_settings
from tests.waiting import eventually

PHONE = "+79001234567"
SHOP, SHOP_NEXT, BANK = "not-a-real-key-1", "not-a-real-key-2", "not-a-real-key-3"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def guarded(redis: Redis, redis_url: str, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an API with three API keys: two of the shop, one of the bank."""
    named = [("shop", SHOP), ("shop", SHOP_NEXT), ("bank", BANK)]
    keys = ",".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in named)
    async with run(create_app(sandbox_settings(redis_url, api={"keys": keys}), network)) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        {"Authorization": SHOP},
        {"Authorization": f"Basic {SHOP}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Api-Key": SHOP},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/verify/start"),
        ("POST", "/verify/check"),
        ("GET", "/verify/vrf_00000000000000000000000"),
        ("POST", "/verify/vrf_00000000000000000000000/cancel"),
        ("GET", "/provider/account"),
    ],
)
async def test_a_request_without_a_valid_key_is_a_401_and_has_no_effect(
    guarded: httpx.AsyncClient, redis: Redis, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = await guarded.request(method, path, headers=headers, json={"phone": PHONE})

    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert await keys_of_requests(redis) == set()


async def test_all_keys_of_a_client_identify_that_client(guarded: httpx.AsyncClient) -> None:
    started = await guarded.post("/verify/start", json={"phone": PHONE}, headers=bearer(SHOP))
    path = f"/verify/{started.json()['verification_id']}"

    assert (await guarded.get(path, headers=bearer(SHOP_NEXT))).status_code == 200
    assert (await guarded.get(path, headers={"Authorization": f"bearer {SHOP}"})).status_code == 200


async def test_verifications_of_other_clients_look_like_unknown_ones(guarded: httpx.AsyncClient) -> None:
    started = await guarded.post("/verify/start", json={"phone": PHONE}, headers=bearer(SHOP))
    verification_id = started.json()["verification_id"]
    unknown = "vrf_00000000000000000000000"

    def without_instance(answer: httpx.Response) -> dict[str, object]:
        return {name: value for name, value in answer.json().items() if name != "instance"}

    for method, path, body in (
        ("GET", "/verify/{}", None),
        ("POST", "/verify/{}/cancel", None),
        ("POST", "/verify/check", {"verification_id": "{}", "code": "123456"}),
    ):
        theirs, unknown_one = [
            await guarded.request(
                method,
                path.format(name),
                headers=bearer(BANK),
                json=body and {**body, "verification_id": name},
            )
            for name in (verification_id, unknown)
        ]
        assert theirs.status_code == unknown_one.status_code == 404
        assert without_instance(theirs) == without_instance(unknown_one)
    own = await guarded.get(f"/verify/{verification_id}", headers=bearer(SHOP))
    assert (own.json()["status"], own.json()["checks_left"]) == ("pending", 5)


async def test_probes_and_docs_need_no_key(guarded: httpx.AsyncClient) -> None:
    for path in ("/livez", "/readyz", "/openapi.json", "/docs", "/problems/unauthorized"):
        assert (await guarded.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/openapi.json", "/docs", "/problems/unauthorized", "/verify/vrf_0", "/nowhere", "/demo"],
)
async def test_head_gets_the_response_of_get_without_the_body(api: httpx.AsyncClient, path: str) -> None:
    # The first reading of the balance changes the response of /readyz.
    await eventually(lambda: api.get("/readyz"), lambda answer: answer.json()["balance"] != "unknown")
    got, headed = await api.get(path), await api.head(path)

    def compared(answer: httpx.Response) -> dict[str, str]:
        return {name: value for name, value in answer.headers.items() if name != "x-request-id"}

    assert headed.status_code == got.status_code
    assert compared(headed) == compared(got)
    assert got.content
    assert headed.content == b""


async def test_head_of_an_event_stream_returns_at_once(api: httpx.AsyncClient) -> None:
    started = await api.post("/verify/start", json={"phone": PHONE})

    answer = await api.head(f"/verify/{started.json()['verification_id']}/events")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")


async def test_head_of_a_post_only_route_is_a_405(api: httpx.AsyncClient) -> None:
    answer = await api.head("/verify/start")

    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/verify/start", "/verify/check"])
async def test_get_of_a_post_only_route_is_a_405(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(path)

    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert "/verify/{verification_id}" not in answer.text


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/phone"),
        ({"phone": None}, "#/phone"),
        ({"phone": 79001234567}, "#/phone"),
        ({"phone": ""}, "#/phone"),
        ({"phone": "9" * 33}, "#/phone"),
        ({"phone": PHONE, "extra": 1}, "#/extra"),
        ({"phone": PHONE, "a/b~c": 1}, "#/a~1b~0c"),
        ({"phone": PHONE, "lang": "fr"}, "#/lang"),
        ({"phone": PHONE, "client_ip": 3232235777}, "#/client_ip"),
        ({"phone": PHONE, "client_ip": True}, "#/client_ip"),
        ({"phone": PHONE, "client_ip": "somewhere"}, "#/client_ip"),
        ({"phone": PHONE, "channel": "pigeon"}, "#/channel"),
        ({"phone": PHONE, "purpose": "Login"}, "#/purpose"),
        ({"phone": PHONE, "purpose": "lottery"}, "#/purpose"),
        ([], "#"),
        ("text", "#"),
        (None, "#"),
    ],
)
async def test_a_validation_error_points_at_the_field(
    api: httpx.AsyncClient, network: VirtualNetwork, body: object, pointer: str
) -> None:
    answer = await api.post("/verify/start", json=body)

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/validation-failed")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert network.calls_of(PHONE) == []


@pytest.mark.parametrize(
    "body",
    [
        {"code": "123456"},
        {"code": "123456", "phone": PHONE, "verification_id": "vrf_00000000000000000000000"},
        {"code": "123456", "purpose": "login", "verification_id": "vrf_00000000000000000000000"},
        {"code": 123456, "phone": PHONE},
        {"phone": PHONE, "code": ""},
    ],
)
async def test_a_check_needs_exactly_one_verification_and_a_code(api: httpx.AsyncClient, body: object) -> None:
    answer = await api.post("/verify/check", json=body)

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/validation-failed")


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"phone": }', b"\xff\xfe", b"[" * 16_000, b'{"phone": "\xd0"}', b""],
    ids=["truncated", "syntax error", "not UTF-8", "too deep", "truncated UTF-8", "empty"],
)
async def test_invalid_json_is_refused(api: httpx.AsyncClient, content: bytes) -> None:
    answer = await api.post("/verify/start", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == (422 if not content else 400)
    assert answer.json()["type"] == "/problems/validation-failed"
    assert answer.json()["errors"]


async def test_json_with_another_content_type_gets_an_error_that_names_the_right_one(api: httpx.AsyncClient) -> None:
    answer = await api.post("/verify/start", content=json.dumps({"phone": PHONE}))

    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_16_kib_is_refused(api: httpx.AsyncClient, chunked: bool) -> None:  # noqa: FBT001
    content = json.dumps({"phone": PHONE, "padding": "x" * 16 * 1024}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for place in range(0, len(content), 1000):
            yield content[place : place + 1000]

    answer = await api.post(
        "/verify/start", content=chunks() if chunked else content, headers={"Content-Type": "application/json"}
    )

    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/validation-failed")


async def test_an_unknown_path_and_a_wrong_method_are_problem_responses(api: httpx.AsyncClient) -> None:
    missing, wrong = await api.get("/nope"), await api.get("/verify/start/")
    method = await api.put("/verify/check")

    assert missing.status_code == wrong.status_code == 404
    assert method.status_code == 405
    assert "POST" in method.headers["Allow"]
    for answer in (missing, method):
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["type"] == "about:blank"
        assert answer.json()["status"] == answer.status_code


async def test_an_internal_error_is_a_problem_response_without_details(
    redis: Redis, settings: Settings, network: VirtualNetwork
) -> None:
    app = create_app(settings, network)

    @app.get("/mistake")
    async def mistake() -> None:
        raise RuntimeError("secret detail")

    async with run(app) as api:
        answer = await api.get("/mistake", headers={"X-Request-ID": "abc"})

    assert (answer.status_code, answer.json()["instance"]) == (500, "abc")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "secret" not in answer.text


async def test_a_request_id_is_taken_from_the_request_or_generated(api: httpx.AsyncClient) -> None:
    taken = await api.get("/nope", headers={"X-Request-ID": "order-42.a_b"})
    assert taken.headers["X-Request-ID"] == taken.json()["instance"] == "order-42.a_b"

    made = {(await api.get("/nope")).headers["X-Request-ID"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("poison", ["a" * 65, "a b", "<script>", "", 'x"y', "\u0444".encode()])
async def test_an_invalid_request_id_is_replaced(api: httpx.AsyncClient, poison: str | bytes) -> None:
    answer = await api.get(
        "/livez", headers=[(b"X-Request-ID", poison if isinstance(poison, bytes) else poison.encode())]
    )

    assert len(answer.headers["X-Request-ID"]) == 16


async def test_every_response_has_the_security_headers(api: httpx.AsyncClient) -> None:
    for path in ("/livez", "/nope", "/docs", "/openapi.json"):
        headers = (await api.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "Server" not in headers


async def test_each_problem_type_has_a_page_that_explains_it(api: httpx.AsyncClient) -> None:
    for slug, kind in PROBLEM_TYPES.items():
        answer = await api.get(f"/problems/{slug}")
        assert answer.json() == {
            "type": f"/problems/{slug}",
            "title": kind.title,
            "status": kind.status,
            "meaning": kind.meaning,
        }
    assert (await api.get("/problems/nonsense")).status_code == 404


async def test_production_has_no_sandbox_routes(redis_url: str) -> None:
    """The application connects to nothing before its startup, so the test needs no real provider."""
    production = create_app(
        sandbox_settings(
            redis_url,
            mode="production",
            plusofon={"user_id": "0", "access_token": "not-a-real-token"},
            api={"keys": f"shop:{'0' * 64}"},
            token={"keys": generate_keys()},
        )
    )

    paths = production.openapi()["paths"]
    assert "/verify/start" in paths
    assert not [path for path in paths if path.startswith("/sandbox")]


async def test_an_error_after_the_response_began_aborts_the_response() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half-way")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(RuntimeError, match="half-way"):
        await RequestMiddleware(breaks, (), {})(
            {"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send
        )
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_a_disconnect_during_the_request_is_not_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await RequestMiddleware(reads, (), {})(
        {"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send
    )

    assert "request.failed" not in caplog.text


async def test_thousands_of_fields_are_read_in_linear_time() -> None:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["exchange"].header(b"twice") == "one, two"

    async def unused(*_: object) -> Any:  # noqa: ANN401 - called by nothing
        raise AssertionError

    headers = [(b"twice", b"one"), (b"twice", b"two"), *((b"%x" % number, b"") for number in range(10_000))]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    began = time.process_time()
    await RequestMiddleware(respond, (), {})(scope, unused, unused)
    assert time.process_time() - began < 2  # in square time: more, on any machine


async def test_a_request_that_ended_leaves_no_reference_cycle() -> None:
    """The garbage collector would have to find it, and memory that is not used again at once is slow."""
    echo, exchanges = Echo(), []

    async def remember(scope: Scope, receive: Receive, send: Send) -> None:
        exchanges.append(weakref.ref(scope["exchange"]))
        await echo({**scope, "exchange": None}, receive, send)

    gc.disable()
    try:
        async with served(RequestMiddleware(remember, (), {})) as it:
            await it.ask(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            await it.until_none_is_open()
            assert [reference() for reference in exchanges] == [None]
    finally:
        gc.enable()


async def test_two_authorization_headers_are_refused(guarded: httpx.AsyncClient) -> None:
    headers = [("Authorization", f"Bearer {SHOP}"), ("Authorization", f"Bearer {BANK}")]

    assert (await guarded.get("/provider/account", headers=headers)).status_code == 401
