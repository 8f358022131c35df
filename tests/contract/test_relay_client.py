"""The relay's sender over real HTTP: what it sends, who can verify it, and what it makes of answers."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.providers.relay.client import RelaySender
from app.sandbox import SandboxServer
from app.verification.channels import Channel
from app.verification.errors import BalanceTooLow, ProviderRejected, ProviderUnavailable
from app.verification.model import CallState, CallStatus, Lang, Placed, Refused, Unknown
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder, CallSender
from tests.provider_options import http_options

SECRET = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="
CODE = "042137"
CALL = "vrf_made_up-1-voice"
ORDER = CallOrder(call_id=CallId("vrf_made_up", 1), phone=Phone("+79001234567"), code=CODE, lang=Lang.RU, repeat=2)

Reply = Callable[[Request], Awaitable[Response]]


class Relay:
    """A relay that keeps what it is sent, and replies as told."""

    def __init__(self, reply: Response | Reply) -> None:
        self._reply = reply
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    async def answer(self, request: Request) -> Response:
        self.requests.append((request.method, request.url.path, dict(request.headers), await request.body()))
        return self._reply if isinstance(self._reply, Response) else await self._reply(request)

    @asynccontextmanager
    async def serving(self, channel: Channel = Channel.VOICE, path: str = "/verify") -> AsyncIterator[RelaySender]:
        app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])
        async with (
            SandboxServer(app) as server,
            RelaySender(channel, url=server.url + path, secret=SECRET, **http_options(connect_timeout=5)) as sender,
        ):
            yield sender


def taken(**fields: object) -> Response:
    return JSONResponse({"status": "accepted", **fields}, status_code=202)


class TestOrders:
    async def test_an_order_is_posted_as_json(self) -> None:
        relay = Relay(taken())
        async with relay.serving() as sender:
            assert await sender.place(ORDER) == Placed(CALL)
        ((method, path, headers, body),) = relay.requests
        assert (method, path, headers["content-type"]) == ("POST", "/verify", "application/json")
        assert json.loads(body) == {
            "call": CALL,
            "channel": "voice",
            "phone": "+79001234567",
            "code": CODE,
            "lang": "ru",
            "repeat": 2,
        }

    async def test_the_library_of_standard_webhooks_verifies_it_and_its_name_is_the_id(self) -> None:
        relay = Relay(taken())
        async with relay.serving() as sender:
            await sender.place(ORDER)
        ((_, _, headers, body),) = relay.requests
        assert Webhook(SECRET).verify(body, headers)["code"] == CODE
        assert headers["webhook-id"] == CALL
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body.replace(b"42137", b"42138"), headers)

    async def test_an_order_belongs_to_the_trace_of_its_request(self) -> None:
        relay = Relay(taken())
        context = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        app = Starlette(routes=[Route("/", relay.answer, methods=["POST"])])
        async with (
            SandboxServer(app) as server,
            RelaySender(
                Channel.VOICE, url=server.url, secret=SECRET, trace_context=lambda: context, **http_options()
            ) as sender,
        ):
            await sender.place(ORDER)
        ((_, _, headers, body),) = relay.requests
        assert headers["traceparent"] == context["traceparent"]
        assert Webhook(SECRET).verify(body, headers)["code"] == CODE

    async def test_the_secret_itself_is_never_sent(self) -> None:
        relay = Relay(taken())
        async with relay.serving() as sender:
            await sender.place(ORDER)
        assert SECRET.removeprefix("whsec_") not in str(relay.requests)

    async def test_another_channel_is_another_order(self) -> None:
        """What one channel refused may go by another, so a relay that knows the first name must not know the second."""
        relay = Relay(taken())
        async with relay.serving(Channel.FLASH_CALL) as sender:
            assert await sender.place(ORDER) == Placed("vrf_made_up-1-flash_call")
        assert json.loads(relay.requests[0][3])["channel"] == "flash_call"

    async def test_a_slash_at_the_end_of_the_url_makes_no_difference(self) -> None:
        relay = Relay(taken())
        async with relay.serving(path="/verify/") as sender:
            await sender.place(ORDER)
            with pytest.raises(ProviderUnavailable):
                await sender.fetch_status(CALL)
        assert [path for _, path, _, _ in relay.requests] == ["/verify", f"/verify/{CALL}"]

    async def test_an_order_without_a_code_is_not_sent(self) -> None:
        relay = Relay(taken())
        order = CallOrder(call_id=ORDER.call_id, phone=ORDER.phone, code=None, lang=Lang.RU, repeat=1)
        async with relay.serving() as sender:
            assert isinstance(await sender.place(order), Refused)
        assert not relay.requests

    async def test_a_hundred_at_once_all_go_through(self) -> None:
        relay = Relay(taken())
        names = [CallId("vrf_made_up", serial) for serial in range(100)]
        orders = [CallOrder(call_id=name, phone=ORDER.phone, code=CODE, lang=Lang.RU, repeat=1) for name in names]
        async with relay.serving() as sender:
            outcomes = await asyncio.gather(*map(sender.place, orders))
        assert [outcome.call_ref for outcome in outcomes if isinstance(outcome, Placed)] == [
            f"vrf_made_up-{serial}-voice" for serial in range(100)
        ]
        assert len({headers["webhook-id"] for _, _, headers, _ in relay.requests}) == len(relay.requests) == 100


class TestAnswers:
    async def test_a_refusal_is_told_without_what_must_not_be(self) -> None:
        reason = f"{SECRET} cannot ring +7 900 123 45 67 for {CODE}"
        async with Relay(JSONResponse({"status": "refused", "reason": reason}, status_code=409)).serving() as sender:
            outcome = await sender.place(ORDER)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderRejected)
        assert outcome.error.message == "••• cannot ring +••• for •••"

    async def test_no_money_is_told_as_such(self) -> None:
        reply = JSONResponse({"status": "refused", "reason": "balance_too_low"}, status_code=402)
        async with Relay(reply).serving() as sender:
            outcome = await sender.place(ORDER)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, BalanceTooLow)

    @pytest.mark.parametrize("status", [429, 503])
    async def test_a_relay_that_cannot_now_says_when(self, status: int) -> None:
        relay = Relay(JSONResponse({"status": "refused"}, status_code=status, headers={"Retry-After": "11"}))
        async with relay.serving() as sender:
            outcome = await sender.place(ORDER)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderUnavailable)
        assert outcome.error.retry_after == 11
        assert len(relay.requests) == 1

    @pytest.mark.parametrize(
        "reply",
        [
            Response("<h1>Service Unavailable</h1>", status_code=503, headers={"Retry-After": "1"}),
            Response(status_code=401),
            Response("Not Found", status_code=404),
            Response(status_code=204),
            Response(b"[" * 1_000_000),
            Response(b'{"status": "accepted", "padding": "' + b"x" * 70_000 + b'"}'),
            Response(b'{"status": NaN}'),
            JSONResponse({"status": ["accepted"]}),
            JSONResponse({"status": "accepted"}, status_code=500),
            Response(gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"}),
            Response(b'{"status": "accepted"}', headers={"Content-Encoding": "x"}),
        ],
        ids=range(11),
    )
    async def test_any_other_answer_leaves_a_call_that_can_be_looked_up(self, reply: Response) -> None:
        relay = Relay(reply)
        async with relay.serving() as sender:
            outcome = await sender.place(ORDER)
        assert isinstance(outcome, Unknown)
        assert outcome.call_ref == CALL
        assert len(relay.requests) == 1

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_is_not_followed(self, status: int) -> None:
        relay = Relay(Response(status_code=status, headers={"Location": "/elsewhere"}))
        async with relay.serving() as sender:
            assert isinstance(await sender.place(ORDER), Unknown)
            with pytest.raises(ProviderUnavailable):
                await sender.fetch_status(CALL)
        assert [path for _, path, _, _ in relay.requests] == ["/verify", f"/verify/{CALL}"]

    async def test_a_cookie_is_not_sent_back(self) -> None:
        relay = Relay(JSONResponse({"status": "placed"}, headers={"Set-Cookie": "session=x; Path=/"}))
        async with relay.serving() as sender:
            await sender.place(ORDER)
            await sender.place(ORDER)
        assert "cookie" not in relay.requests[1][2]


class TestLookUps:
    async def test_a_call_is_asked_for_by_its_name_and_signed(self) -> None:
        relay = Relay(JSONResponse({"status": "ringing"}))
        async with relay.serving() as sender:
            assert await sender.fetch_status("Theirs-7") == CallState(CallStatus.RINGING)
        ((method, path, headers, body),) = relay.requests
        assert (method, path, body) == ("GET", "/verify/Theirs-7", b"")
        assert (
            headers["webhook-id"] == "Theirs-7"
        )  # so the signature, which covers no path, is good for this call alone
        Webhook(SECRET).verify(body, headers, json_parse=False)

    async def test_a_call_whose_answer_was_lost_can_be_settled(self) -> None:
        async def lose_the_answer(request: Request) -> Response:
            if request.method == "POST":
                return Response("<h1>Bad Gateway</h1>", status_code=502)
            known = request.url.path.rpartition("/")[2] == CALL
            return JSONResponse({"status": "answered"}) if known else JSONResponse({"error": "x"}, status_code=404)

        async with Relay(lose_the_answer).serving() as sender:
            outcome = await sender.place(ORDER)
            assert isinstance(outcome, Unknown)
            assert await sender.fetch_status(outcome.call_ref or "") == CallState(CallStatus.ANSWERED)

    async def test_a_call_that_never_arrived_was_never_placed(self) -> None:
        async with Relay(JSONResponse({"error": "unknown_call"}, status_code=404)).serving() as sender:
            assert await sender.fetch_status(CALL) is None

    @pytest.mark.parametrize(
        "reply",
        [Response(status_code=404), JSONResponse({"detail": "Not Found"}, status_code=404), JSONResponse({})],
        ids=range(3),
    )
    async def test_a_wrong_path_is_no_such_proof(self, reply: Response) -> None:
        async with Relay(reply).serving() as sender:
            with pytest.raises(ProviderUnavailable):
                await sender.fetch_status(CALL)

    @pytest.mark.parametrize("name", ["", "..", "a/b", "a?b=c", "a\r\nb", "x" * 129])
    async def test_what_is_no_name_is_not_asked_for(self, name: str) -> None:
        relay = Relay(JSONResponse({"status": "ringing"}))
        async with relay.serving() as sender:
            with pytest.raises(ProviderRejected):
                await sender.fetch_status(name)
        assert not relay.requests


class TestTheSender:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"url": "ftp://calls.example"},
            {"url": "https://"},
            {"url": "https://user:not-real@calls.example"},
            {"url": "https://calls.example?key=not-real"},
            {"url": "https://calls.example#not-real"},
            {"secret": "whsec_not-real"},
            {"connect_timeout": 10.0},
            {"connect_timeout": 0.0},
            {"channel": Channel.REVERSE_CALL},
        ],
        ids=str,
    )
    def test_what_cannot_work_is_told_at_once_without_its_value(self, wrong: dict[str, object]) -> None:
        arguments: dict[str, Any] = {"url": "https://calls.example", "secret": SECRET, **http_options(), **wrong}
        with pytest.raises(ValueError, match=r"\w") as caught:
            RelaySender(**{"channel": Channel.VOICE, **arguments})
        assert "not-real" not in str(caught.value)

    async def test_it_is_a_call_sender_that_can_be_followed(self) -> None:
        async with RelaySender(Channel.VOICE, url="https://calls.example", secret=SECRET, **http_options()) as sender:
            port: CallSender = sender
            port.require_ready()
            assert (port.provider, port.supports_status) == ("relay", True)
