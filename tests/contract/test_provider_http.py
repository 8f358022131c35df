"""The HTTP core of all providers, tested over Plusofon and the relay."""

import asyncio
import gzip
import logging
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.providers.http import NeverSent
from app.providers.plusofon.channels import VoiceChannel
from app.providers.plusofon.client import PlusofonClient
from app.providers.relay.client import RelaySender
from app.verification.channels import Channel
from app.verification.errors import ProviderRejected, ProviderUnavailable
from app.verification.model import CallOutcome, Lang, Placed, Refused, Unknown
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder, CallSender
from tests.provider_options import http_options
from tests.waiting import PATIENCE

ORDER = CallOrder(call_id=CallId("vrf_made_up", 1), phone=Phone("+79001234567"), code="042137", lang=Lang.RU, repeat=2)
TOKEN = "not-a-real-token"
SECRET = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="

Result = Exception | httpx.Response | Callable[[], Awaitable[httpx.Response]]


class ScriptedTransport(httpx.AsyncBaseTransport):
    """A transport that returns or raises ``results``, one per request, and repeats the last one."""

    def __init__(self, *results: Result) -> None:
        self._results = list(results)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        result = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        if isinstance(result, Exception):
            raise result
        return result if isinstance(result, httpx.Response) else await result()


class Plusofon:
    name = "plusofon"
    placed = b'{"success": true, "data": {"call_id": "call-1"}}'
    outcome = Placed("call-1")
    secret = TOKEN

    @staticmethod
    def open(transport: ScriptedTransport, **how: Any) -> AbstractAsyncContextManager[object]:  # noqa: ANN401 - those of a client
        return PlusofonClient(
            base_url="https://p.test",
            user_id="made-up-user",
            access_token=TOKEN,
            **http_options(transport=transport, **how),
        )

    @staticmethod
    def sender(opened: Any) -> CallSender:  # noqa: ANN401 - what ``open`` gave
        return VoiceChannel(opened)

    @staticmethod
    def refusal(message: str) -> httpx.Response:
        return httpx.Response(400, json={"success": False, "message": message})


class Relay:
    name = "relay"
    placed = b'{"status": "accepted"}'
    outcome = Placed("vrf_made_up-1-voice")
    secret = SECRET

    @staticmethod
    def open(transport: ScriptedTransport, **how: Any) -> AbstractAsyncContextManager[object]:  # noqa: ANN401 - those of a client
        return RelaySender(
            Channel.VOICE, url="https://r.test/verify", secret=SECRET, **http_options(transport=transport, **how)
        )

    @staticmethod
    def sender(opened: Any) -> CallSender:  # noqa: ANN401 - what ``open`` gave
        assert isinstance(opened, RelaySender)
        return opened

    @staticmethod
    def refusal(message: str) -> httpx.Response:
        return httpx.Response(400, json={"status": "refused", "reason": message})


Provider = type[Plusofon] | type[Relay]
pytestmark = pytest.mark.parametrize("provider", [Plusofon, Relay], ids=lambda provider: provider.name)


async def place(
    provider: Provider, transport: ScriptedTransport, order: CallOrder = ORDER, **how: float
) -> CallOutcome:
    async with provider.open(transport, **how) as opened:
        return await provider.sender(opened).place(order)


def compressed(body: bytes, encoding: str) -> httpx.Response:
    class Sent(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for start in range(0, len(body), 16384):
                yield body[start : start + 16384]

    return httpx.Response(200, headers={"Content-Encoding": encoding}, stream=Sent())


class TestBodies:
    async def test_requests_ask_for_identity_encoding_and_to_keep_the_connection(self, provider: Provider) -> None:
        transport = ScriptedTransport(httpx.Response(200, content=provider.placed))
        assert await place(provider, transport) == provider.outcome
        (request,) = transport.requests
        assert request.headers["Accept-Encoding"] == "identity"
        assert "Connection" not in request.headers
        assert request.headers["Content-Type"] == "application/json"

    @pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
    async def test_a_compressed_response_is_read_although_identity_was_requested(
        self, provider: Provider, encoding: str, compress: Callable[[bytes], bytes]
    ) -> None:
        transport = ScriptedTransport(compressed(compress(provider.placed), encoding))
        assert await place(provider, transport) == provider.outcome

    @pytest.mark.parametrize("encoding", ["gzip", "br", "x", "gzip, gzip"])
    async def test_a_response_that_cannot_be_decompressed_is_unclear(self, provider: Provider, encoding: str) -> None:
        assert isinstance(await place(provider, ScriptedTransport(compressed(provider.placed, encoding))), Unknown)

    async def test_a_decompression_bomb_is_not_decompressed_beyond_the_response_limit(self, provider: Provider) -> None:
        bomb = compressed(gzip.compress(b" " * 50_000_000), "gzip")
        tracemalloc.start()
        try:
            assert isinstance(await place(provider, ScriptedTransport(bomb)), Unknown)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    async def test_a_compressed_response_that_is_too_long_is_unclear(self, provider: Provider) -> None:
        padded = provider.placed[:-1] + b', "padding": "' + b"x" * 70_000 + b'"}'
        assert isinstance(await place(provider, ScriptedTransport(compressed(gzip.compress(padded), "gzip"))), Unknown)


class TestTries:
    async def test_a_failed_connection_is_retried_once_and_each_attempt_logged(
        self, provider: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        transport = ScriptedTransport(httpx.ConnectError(""))
        outcome = await place(provider, transport)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderUnavailable)
        assert isinstance(outcome.error.__cause__, NeverSent)
        assert len(transport.requests) == 2
        assert len({id(request) for request in transport.requests}) == 2
        assert [record.getMessage() for record in caplog.records] == [f"{provider.name}.not_reached"] * 2

    @pytest.mark.parametrize("error", [httpx.ReadError(""), httpx.WriteError(""), OSError(), KeyError()], ids=repr)
    async def test_a_request_that_may_have_been_written_is_not_retried(
        self, provider: Provider, error: Exception
    ) -> None:
        transport = ScriptedTransport(error)
        assert isinstance(await place(provider, transport), Unknown)
        assert len(transport.requests) == 1

    async def test_an_unexpected_exception_is_logged_with_the_name_of_the_provider(
        self, provider: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        await place(provider, ScriptedTransport(KeyError("bug")))
        assert [record.getMessage() for record in caplog.records] == [f"{provider.name}.unexpected_error"]

    async def test_a_request_without_a_free_connection_is_refused_without_a_retry(
        self, provider: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer = asyncio.Event()

        async def answer_later() -> httpx.Response:
            await answer.wait()
            return httpx.Response(200, content=provider.placed)

        transport = ScriptedTransport(answer_later)
        async with provider.open(transport, max_connections=1, connect_timeout=0.05) as opened:
            sender = provider.sender(opened)
            first = asyncio.create_task(sender.place(ORDER))
            await asyncio.sleep(0)
            assert isinstance(await sender.place(ORDER), Refused)
            answer.set()
            assert await first == provider.outcome
            assert await sender.place(ORDER) == provider.outcome
        assert len(transport.requests) == 2
        assert [vars(record)["error"] for record in caplog.records] == ["PoolTimeout"]


class TestBudget:
    async def test_the_remaining_time_of_an_order_shortens_the_timeout(self, provider: Provider) -> None:
        async def never() -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

        transport = ScriptedTransport(never)
        async with asyncio.timeout(PATIENCE):
            outcome = await place(provider, transport, replace(ORDER, timeout=1), timeout=60)
        assert isinstance(outcome, Unknown)
        assert outcome.why == "TimeoutError"
        (request,) = transport.requests
        limits = request.extensions["timeout"]
        assert 0 < limits["connect"] <= 0.5  # half of it: to fail while connecting must be clear

    async def test_a_timeout_is_never_zero_which_would_mean_none(self, provider: Provider) -> None:
        transport = ScriptedTransport(httpx.Response(200, content=provider.placed))
        await place(provider, transport, replace(ORDER, timeout=0.0005))
        assert all(request.extensions["timeout"]["connect"] > 0 for request in transport.requests)

    @pytest.mark.parametrize(("connect", "total"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
    async def test_the_connect_timeout_must_be_positive_and_below_the_timeout(
        self, provider: Provider, connect: float, total: float
    ) -> None:
        with pytest.raises(ValueError, match="connect_timeout"):
            provider.open(ScriptedTransport(KeyError()), connect_timeout=connect, timeout=total)


async def test_secrets_codes_and_phones_in_a_refusal_are_redacted(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    transport = ScriptedTransport(provider.refusal(f"{provider.secret} cannot ring +7 (900) 123-45-67 for 0 4 2 1 3 7"))
    outcome = await place(provider, transport)
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderRejected)
    assert outcome.error.message == "••• cannot ring +••• for •••"
    assert provider.secret not in caplog.text
