"""What every provider's requests have in common, over Plusofon and the relay alike."""

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

ORDER = CallOrder(call_id=CallId("vrf_made_up", 1), phone=Phone("+79001234567"), code="042137", lang=Lang.RU, repeat=2)
TOKEN = "not-a-real-token"
SECRET = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="

Fate = Exception | httpx.Response | Callable[[], Awaitable[httpx.Response]]


class Line(httpx.AsyncBaseTransport):
    """A way to the provider on which requests meet what is given, one after another; the last again and again."""

    def __init__(self, *fates: Fate) -> None:
        self._fates = list(fates)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        fate = self._fates.pop(0) if len(self._fates) > 1 else self._fates[0]
        if isinstance(fate, Exception):
            raise fate
        return fate if isinstance(fate, httpx.Response) else await fate()


class Plusofon:
    name = "plusofon"
    placed = b'{"success": true, "data": {"call_id": "call-1"}}'
    outcome = Placed("call-1")
    secret = TOKEN

    @staticmethod
    def open(line: Line, **how: Any) -> AbstractAsyncContextManager[object]:  # noqa: ANN401 - those of a client
        return PlusofonClient(
            base_url="https://p.test", user_id="made-up-user", access_token=TOKEN, **http_options(transport=line, **how)
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
    def open(line: Line, **how: Any) -> AbstractAsyncContextManager[object]:  # noqa: ANN401 - those of a client
        return RelaySender(
            Channel.VOICE, url="https://r.test/verify", secret=SECRET, **http_options(transport=line, **how)
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


async def place(provider: Provider, line: Line, order: CallOrder = ORDER, **how: float) -> CallOutcome:
    async with provider.open(line, **how) as opened:
        return await provider.sender(opened).place(order)


def compressed(body: bytes, encoding: str) -> httpx.Response:
    class Sent(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for start in range(0, len(body), 16384):
                yield body[start : start + 16384]

    return httpx.Response(200, headers={"Content-Encoding": encoding}, stream=Sent())


class TestBodies:
    async def test_no_compression_is_asked_for_and_no_connection_kept(self, provider: Provider) -> None:
        line = Line(httpx.Response(200, content=provider.placed))
        assert await place(provider, line) == provider.outcome
        (request,) = line.requests
        assert request.headers["Accept-Encoding"] == "identity"
        assert request.headers["Connection"] == "close"
        assert request.headers["Content-Type"] == "application/json"

    @pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
    async def test_a_compressed_answer_is_read_all_the_same(
        self, provider: Provider, encoding: str, compress: Callable[[bytes], bytes]
    ) -> None:
        line = Line(compressed(compress(provider.placed), encoding))
        assert await place(provider, line) == provider.outcome

    @pytest.mark.parametrize("encoding", ["gzip", "br", "x", "gzip, gzip"])
    async def test_what_cannot_be_unpacked_is_unclear(self, provider: Provider, encoding: str) -> None:
        assert isinstance(await place(provider, Line(compressed(provider.placed, encoding))), Unknown)

    async def test_a_bomb_is_unpacked_no_further_than_an_answer_is_read(self, provider: Provider) -> None:
        bomb = compressed(gzip.compress(b" " * 50_000_000), "gzip")
        tracemalloc.start()
        try:
            assert isinstance(await place(provider, Line(bomb)), Unknown)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    async def test_a_compressed_answer_that_is_too_long_is_unclear(self, provider: Provider) -> None:
        padded = provider.placed[:-1] + b', "padding": "' + b"x" * 70_000 + b'"}'
        assert isinstance(await place(provider, Line(compressed(gzip.compress(padded), "gzip"))), Unknown)


class TestTries:
    async def test_a_connection_that_was_never_made_is_tried_twice_and_each_try_is_logged(
        self, provider: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        line = Line(httpx.ConnectError(""))
        outcome = await place(provider, line)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderUnavailable)
        assert isinstance(outcome.error.__cause__, NeverSent)
        assert len(line.requests) == 2
        assert len({id(request) for request in line.requests}) == 2
        assert [record.getMessage() for record in caplog.records] == [f"{provider.name}.not_reached"] * 2

    @pytest.mark.parametrize("error", [httpx.ReadError(""), httpx.WriteError(""), OSError(), KeyError()], ids=repr)
    async def test_what_may_have_been_written_is_never_tried_again(self, provider: Provider, error: Exception) -> None:
        line = Line(error)
        assert isinstance(await place(provider, line), Unknown)
        assert len(line.requests) == 1

    async def test_a_bug_in_a_library_is_logged_under_the_provider_s_name(
        self, provider: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        await place(provider, Line(KeyError("bug")))
        assert [record.getMessage() for record in caplog.records] == [f"{provider.name}.unexpected_error"]

    async def test_without_a_free_place_nothing_is_sent_and_nothing_tried_again(
        self, provider: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer = asyncio.Event()

        async def answer_later() -> httpx.Response:
            await answer.wait()
            return httpx.Response(200, content=provider.placed)

        line = Line(answer_later)
        async with provider.open(line, max_connections=1, connect_timeout=0.05) as opened:
            sender = provider.sender(opened)
            first = asyncio.create_task(sender.place(ORDER))
            await asyncio.sleep(0)
            assert isinstance(await sender.place(ORDER), Refused)
            answer.set()
            assert await first == provider.outcome
            assert await sender.place(ORDER) == provider.outcome
        assert len(line.requests) == 2
        assert [vars(record)["error"] for record in caplog.records] == ["PoolTimeout"]


class TestBudget:
    async def test_the_time_left_is_the_budget_where_it_is_less(self, provider: Provider) -> None:
        async def never() -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

        line = Line(never)
        async with asyncio.timeout(2):
            outcome = await place(provider, line, replace(ORDER, timeout=0.1), timeout=60)
        assert isinstance(outcome, Unknown)
        assert outcome.why == "TimeoutError"
        (request,) = line.requests
        limits = request.extensions["timeout"]
        assert 0 < limits["connect"] == limits["pool"] <= 0.05  # half of it: to fail while connecting must be clear

    async def test_a_limit_is_never_zero_which_would_be_none(self, provider: Provider) -> None:
        line = Line(httpx.Response(200, content=provider.placed))
        await place(provider, line, replace(ORDER, timeout=0.0005))
        assert all(request.extensions["timeout"]["connect"] > 0 for request in line.requests)

    @pytest.mark.parametrize(("connect", "total"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
    async def test_connecting_must_end_before_the_budget_does(
        self, provider: Provider, connect: float, total: float
    ) -> None:
        with pytest.raises(ValueError, match="connect_timeout"):
            provider.open(Line(KeyError()), connect_timeout=connect, timeout=total)


async def test_a_refusal_is_shown_without_secrets_codes_and_phones(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    line = Line(provider.refusal(f"{provider.secret} cannot ring +7 (900) 123-45-67 for 0 4 2 1 3 7"))
    outcome = await place(provider, line)
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderRejected)
    assert outcome.error.message == "••• cannot ring +••• for •••"
    assert provider.secret not in caplog.text
