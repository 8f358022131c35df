"""The relay's sender over real HTTP: the signed requests it sends, and the outcome of responses."""

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
from app.sandbox.server import SandboxServer
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
    """A relay that records requests and sends ``reply``."""

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


def accepted(**fields: object) -> Response:
    return JSONResponse({"status": "accepted", **fields}, status_code=202)


class TestOrders:
    async def test_an_order_is_posted_as_json(self) -> None:
        relay = Relay(accepted())
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

    async def test_an_order_is_signed_as_a_standard_webhook_with_its_call_name_as_id(self) -> None:
        relay = Relay(accepted())
        async with relay.serving() as sender:
            await sender.place(ORDER)
        ((_, _, headers, body),) = relay.requests
        assert Webhook(SECRET).verify(body, headers)["code"] == CODE
        assert headers["webhook-id"] == CALL
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body.replace(b"42137", b"42138"), headers)

    async def test_an_order_carries_the_trace_context(self) -> None:
        relay = Relay(accepted())
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
        relay = Relay(accepted())
        async with relay.serving() as sender:
            await sender.place(ORDER)
        assert SECRET.removeprefix("whsec_") not in str(relay.requests)

    async def test_an_order_of_another_channel_has_another_name(self) -> None:
        """A call refused on one channel may be placed on another, so the two orders must have different names."""
        relay = Relay(accepted())
        async with relay.serving(Channel.FLASH_CALL) as sender:
            assert await sender.place(ORDER) == Placed("vrf_made_up-1-flash_call")
        assert json.loads(relay.requests[0][3])["channel"] == "flash_call"

    async def test_a_trailing_slash_of_the_url_is_ignored(self) -> None:
        relay = Relay(accepted())
        async with relay.serving(path="/verify/") as sender:
            await sender.place(ORDER)
            with pytest.raises(ProviderUnavailable):
                await sender.fetch_status(CALL)
        assert [path for _, path, _, _ in relay.requests] == ["/verify", f"/verify/{CALL}"]

    async def test_an_order_without_a_code_is_not_sent(self) -> None:
        relay = Relay(accepted())
        order = CallOrder(call_id=ORDER.call_id, phone=ORDER.phone, code=None, lang=Lang.RU, repeat=1)
        async with relay.serving() as sender:
            assert isinstance(await sender.place(order), Refused)
        assert not relay.requests

    async def test_a_hundred_concurrent_orders_are_all_placed(self) -> None:
        relay = Relay(accepted())
        names = [CallId("vrf_made_up", number) for number in range(100)]
        orders = [CallOrder(call_id=name, phone=ORDER.phone, code=CODE, lang=Lang.RU, repeat=1) for name in names]
        async with relay.serving() as sender:
            outcomes = await asyncio.gather(*map(sender.place, orders))
        assert [outcome.call_ref for outcome in outcomes if isinstance(outcome, Placed)] == [
            f"vrf_made_up-{number}-voice" for number in range(100)
        ]
        assert len({headers["webhook-id"] for _, _, headers, _ in relay.requests}) == len(relay.requests) == 100


class TestAnswers:
    async def test_the_reason_of_a_refusal_is_redacted(self) -> None:
        reason = f"{SECRET} cannot ring +7 900 123 45 67 for {CODE}"
        async with Relay(JSONResponse({"status": "refused", "reason": reason}, status_code=409)).serving() as sender:
            outcome = await sender.place(ORDER)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderRejected)
        assert outcome.error.message == "••• cannot ring +••• for •••"

    async def test_the_reason_balance_too_low_raises_balance_too_low(self) -> None:
        reply = JSONResponse({"status": "refused", "reason": "balance_too_low"}, status_code=402)
        async with Relay(reply).serving() as sender:
            outcome = await sender.place(ORDER)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, BalanceTooLow)

    @pytest.mark.parametrize("status", [429, 503])
    async def test_status_429_or_503_is_a_refusal_with_retry_after(self, status: int) -> None:
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
    async def test_any_other_response_is_unknown_with_a_reference_for_status_lookups(self, reply: Response) -> None:
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
    async def test_a_status_lookup_is_signed_for_its_call(self) -> None:
        relay = Relay(JSONResponse({"status": "ringing"}))
        async with relay.serving() as sender:
            assert await sender.fetch_status("Theirs-7") == CallState(CallStatus.RINGING)
        ((method, path, headers, body),) = relay.requests
        assert (method, path, body) == ("GET", "/verify/Theirs-7", b"")
        assert (
            headers["webhook-id"] == "Theirs-7"
        )  # the signature does not cover the path, so the id limits it to this call
        Webhook(SECRET).verify(body, headers, json_parse=False)

    async def test_a_call_whose_response_was_lost_is_found_by_a_status_lookup(self) -> None:
        async def lose_the_response(request: Request) -> Response:
            if request.method == "POST":
                return Response("<h1>Bad Gateway</h1>", status_code=502)
            known = request.url.path.rpartition("/")[2] == CALL
            return JSONResponse({"status": "answered"}) if known else JSONResponse({"error": "x"}, status_code=404)

        async with Relay(lose_the_response).serving() as sender:
            outcome = await sender.place(ORDER)
            assert isinstance(outcome, Unknown)
            assert await sender.fetch_status(outcome.call_ref or "") == CallState(CallStatus.ANSWERED)

    async def test_unknown_call_means_that_the_call_was_never_placed(self) -> None:
        async with Relay(JSONResponse({"error": "unknown_call"}, status_code=404)).serving() as sender:
            assert await sender.fetch_status(CALL) is None

    @pytest.mark.parametrize(
        "reply",
        [Response(status_code=404), JSONResponse({"detail": "Not Found"}, status_code=404), JSONResponse({})],
        ids=range(3),
    )
    async def test_any_other_404_or_body_raises_provider_unavailable(self, reply: Response) -> None:
        async with Relay(reply).serving() as sender:
            with pytest.raises(ProviderUnavailable):
                await sender.fetch_status(CALL)

    @pytest.mark.parametrize("name", ["", "..", "a/b", "a?b=c", "a\r\nb", "x" * 129])
    async def test_an_invalid_call_name_is_not_looked_up(self, name: str) -> None:
        relay = Relay(JSONResponse({"status": "ringing"}))
        async with relay.serving() as sender:
            with pytest.raises(ProviderRejected):
                await sender.fetch_status(name)
        assert not relay.requests


class TestConstruction:
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
    def test_invalid_arguments_are_rejected_without_showing_their_values(self, wrong: dict[str, object]) -> None:
        arguments: dict[str, Any] = {"url": "https://calls.example", "secret": SECRET, **http_options(), **wrong}
        with pytest.raises(ValueError, match=r"\w") as caught:
            RelaySender(**{"channel": Channel.VOICE, **arguments})
        assert "not-real" not in str(caught.value)

    async def test_the_sender_supports_status_lookups(self) -> None:
        async with RelaySender(Channel.VOICE, url="https://calls.example", secret=SECRET, **http_options()) as sender:
            port: CallSender = sender
            port.require_ready()
            assert (port.provider, port.supports_status) == ("relay", True)
