"""Kept connections over real sockets: they are used again, and an answer is never that of another request."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trustme

from app.providers import connections
from app.providers.http import make_transport
from app.providers.plusofon.channels import VoiceChannel
from app.providers.plusofon.client import PlusofonClient
from app.providers.relay.client import RelaySender
from app.verification.channels import Channel
from app.verification.model import CallOutcome, Lang, Placed, Unknown
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder, CallSender
from tests.contract.test_plusofon_faults import Conversation, Server, serving
from tests.provider_options import http_options
from tests.waiting import PATIENCE, until

BUDGET = 20.0  # seconds for a request
CONNECT = 5.0  # seconds of it for the connection
ORDER = CallOrder(call_id=CallId("vrf_made_up", 1), phone=Phone("+79001234567"), code="042137", lang=Lang.RU, repeat=2)


class Plusofon:
    """Plusofon's answers, and the sender of its voice calls."""

    @staticmethod
    def placed(call: str) -> bytes:
        return b'{"success": true, "data": {"call_id": "%b"}}' % call.encode()

    @staticmethod
    @contextlib.asynccontextmanager
    async def sender(url: str, **http: Any) -> AsyncIterator[CallSender]:  # noqa: ANN401 - HTTP options
        async with PlusofonClient(base_url=url, user_id="7", access_token="not-a-real-token", **http) as client:
            yield VoiceChannel(client)


class Relay:
    """A relay's answers, and its sender."""

    @staticmethod
    def placed(call: str) -> bytes:
        return b'{"status": "placed", "call": "%b"}' % call.encode()

    @staticmethod
    @contextlib.asynccontextmanager
    async def sender(url: str, **http: Any) -> AsyncIterator[CallSender]:  # noqa: ANN401 - HTTP options
        secret = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="
        async with RelaySender(Channel.VOICE, url=url, secret=secret, **http) as sender:
            yield sender


Provider = type[Plusofon] | type[Relay]
Script = Callable[[Conversation, str], Awaitable[None]]


@pytest.fixture(params=[Plusofon, Relay], ids=lambda provider: provider.__name__.lower())
def provider(request: pytest.FixtureRequest) -> Provider:
    param: Provider = request.param
    return param


class Keys:
    """The certificate of the server, and the authority that issued it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.server)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, keys: Keys) -> Keys | None:
    return keys if request.param == "https" else None


def head(body: bytes, *, version: bytes = b"1.1", extra: bytes = b"") -> bytes:
    return b"HTTP/%b 200 OK\r\nContent-Length: %d\r\n%b\r\n" % (version, len(body), extra) + body


@contextlib.asynccontextmanager
async def serving_calls(script: Script, tls: Keys | None = None) -> AsyncIterator[Server]:
    """Answer each request by ``script``, which gets the id to give to the call."""

    async def converse(conversation: Conversation) -> None:
        while True:
            await conversation.read_request()
            await script(conversation, f"call-{len(server.requests)}")

    async with serving(converse, tls=tls.server if tls else None) as server:
        yield server


def sender_to(server: Server, provider: Provider, tls: Keys | None) -> AbstractAsyncContextManager[CallSender]:
    url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
    transport = make_transport(ca_file=tls.ca_file if tls else None)
    return provider.sender(url, **http_options(connect_timeout=CONNECT, timeout=BUDGET, transport=transport))


@contextlib.asynccontextmanager
async def talking(
    provider: Provider, script: Script, tls: Keys | None = None
) -> AsyncIterator[tuple[Server, CallSender]]:
    """Open a server, and a sender to it."""
    async with serving_calls(script, tls) as server, sender_to(server, provider, tls) as sender:
        yield server, sender


async def place(sender: CallSender) -> CallOutcome:
    return await sender.place(ORDER)


def answering(provider: Provider, *, extra: bytes = b"", version: bytes = b"1.1") -> Script:
    async def answer(conversation: Conversation, call: str) -> None:
        await conversation.send(head(provider.placed(call), version=version, extra=extra))

    return answer


class TestKept:
    async def test_one_request_after_the_other_uses_the_same_connection(
        self, provider: Provider, tls: Keys | None
    ) -> None:
        async with talking(provider, answering(provider), tls) as (server, sender):
            for number in (1, 2, 3):
                assert await place(sender) == Placed(f"call-{number}")
            assert (server.connections, len(server.requests)) == (1, 3)
            assert all(b"connection:" not in request.lower() for request in server.requests)

    async def test_requests_at_once_use_a_connection_each_and_again(self, provider: Provider) -> None:
        all_are_there = asyncio.Barrier(20)

        async def answer_slowly(conversation: Conversation, call: str) -> None:
            await all_are_there.wait()
            await conversation.send(head(provider.placed(call)))

        async with talking(provider, answer_slowly) as (server, sender):
            for _ in range(3):
                outcomes = await asyncio.gather(*(place(sender) for _ in range(20)))
                assert len({outcome.call_ref for outcome in outcomes if isinstance(outcome, Placed)}) == 20
            assert server.connections == 20

    async def test_a_chunked_answer_and_one_after_interim_answers_keep_the_connection(self, provider: Provider) -> None:
        async def answer(conversation: Conversation, call: str) -> None:
            body = provider.placed(call)
            await conversation.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
            await conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await conversation.send(b"%x\r\n%b\r\n0\r\nContent-Encoding: a-trailer\r\n\r\n" % (len(body), body))

        async with talking(provider, answer) as (server, sender):
            assert [await place(sender) for _ in range(2)] == [Placed("call-1"), Placed("call-2")]
            assert server.connections == 1

    async def test_an_idle_connection_is_closed_after_some_seconds(
        self, provider: Provider, tls: Keys | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "_KEEP_SECONDS", 0.1)
        async with talking(provider, answering(provider), tls) as (server, sender):
            await asyncio.gather(place(sender), place(sender))
            monkeypatch.setattr(connections, "_KEEP_SECONDS", 3600)
            await place(sender)
            await until(lambda: server.open_connections == 1)  # that of the last request is kept for longer
            monkeypatch.setattr(connections, "_KEEP_SECONDS", 0.1)
            await place(sender)
            await until(lambda: server.open_connections == 0)

    async def test_a_shorter_time_that_the_server_announces_is_kept(self, provider: Provider) -> None:
        async with talking(provider, answering(provider, extra=b"Keep-Alive: timeout=1, max=9\r\n")) as (
            server,
            sender,
        ):
            await place(sender)
            await until(lambda: server.open_connections == 0)
        assert connections._keep_seconds("timeout=3") == 2
        assert connections._keep_seconds("timeout=60") == 4

    async def test_closing_the_sender_closes_idle_connections(self, provider: Provider, tls: Keys | None) -> None:
        async with serving_calls(answering(provider), tls) as server:
            async with sender_to(server, provider, tls) as sender:
                await asyncio.gather(place(sender), place(sender))
                assert server.open_connections == 2
            await until(lambda: server.open_connections == 0)


UNASKED: Mapping[str, Callable[[bytes], bytes]] = {
    "a second answer": lambda answer: answer,
    "two answers": lambda answer: answer + answer,
    "half a head": lambda _: b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": lambda answer: answer[:-5],
    "a byte": lambda _: b"H",
    "an empty line": lambda _: b"\r\n",
    "a time-out": lambda _: b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "no HTTP": lambda _: b"220 mail.example ESMTP\r\n",
}


class TestUnasked:
    """Whatever arrives after an answer makes its connection unusable, and is nobody's answer."""

    @pytest.mark.parametrize(
        ("unasked", "pause"),
        [(unasked, pause) for unasked in UNASKED for pause in (0, 0.02) if pause or unasked != "an empty line"],
    )
    async def test_data_after_an_answer(self, provider: Provider, tls: Keys | None, unasked: str, pause: float) -> None:
        async def answer_and_go_on(conversation: Conversation, call: str) -> None:
            answer = head(provider.placed(call))
            await conversation.send(answer)
            await asyncio.sleep(pause)
            await conversation.send(UNASKED[unasked](head(provider.placed(f"unasked-{call}"))))

        async with talking(provider, answer_and_go_on, tls) as (server, sender):
            for number in (1, 2, 3):
                assert await place(sender) == Placed(f"call-{number}")
                await asyncio.sleep(0.05)
            assert (server.connections, len(server.requests)) == (3, 3)

    @pytest.mark.parametrize("unasked", [name for name in UNASKED if name != "an empty line"])
    async def test_data_in_one_piece_with_an_answer(self, provider: Provider, tls: Keys | None, unasked: str) -> None:
        """An empty line there means nothing (RFC 9112, section 2.2)."""

        async def answer_too_much(conversation: Conversation, call: str) -> None:
            unasked_answer = head(provider.placed(f"unasked-{call}"))
            await conversation.send(head(provider.placed(call)) + UNASKED[unasked](unasked_answer))

        async with talking(provider, answer_too_much, tls) as (server, sender):
            for number in (1, 2, 3):
                assert await place(sender) == Placed(f"call-{number}")
            assert (server.connections, len(server.requests)) == (3, 3)

    async def test_a_server_that_sent_unasked_data_gets_a_new_connection_for_each_request(
        self, provider: Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No look at a connection shows what is still under way to it."""

        async def answer_twice_at_first(conversation: Conversation, call: str) -> None:
            answer = head(provider.placed(call))
            await conversation.send(answer * 2 if call == "call-2" else answer)

        async with talking(provider, answer_twice_at_first) as (server, sender):
            for number in (1, 2, 3, 4):
                assert await place(sender) == Placed(f"call-{number}")
            assert server.connections == 3
            await until(lambda: server.open_connections == 0)
        assert [record.getMessage() for record in caplog.records] == ["provider.unsolicited_data"]

    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_the_end_of_a_connection(self, provider: Provider, tls: Keys | None, how: str) -> None:
        ended = asyncio.Event()

        async def answer_and_end(conversation: Conversation, call: str) -> None:
            await conversation.send(head(provider.placed(call)))
            await asyncio.sleep(0.02)
            if how == "reset":
                conversation.reset()
            ended.set()
            raise OSError

        async with talking(provider, answer_and_end, tls) as (server, sender):
            for number in (1, 2, 3):
                assert await place(sender) == Placed(f"call-{number}")
                await ended.wait()
                ended.clear()
                await asyncio.sleep(0.05)
            assert (server.connections, len(server.requests)) == (3, 3)

    @pytest.mark.parametrize("then", [b"HTTP/1.1 200 OK\r\n", b"\r\n", b"", None], ids=["data", "a line", "FIN", "RST"])
    async def test_what_the_event_loop_has_not_read_yet(self, provider: Provider, then: bytes | None) -> None:
        """The service was busy while it arrived: only the socket knows."""
        listener = socket.create_server(("127.0.0.1", 0))
        is_answered, was_sent, requests = threading.Event(), threading.Event(), []

        def serve() -> None:
            first, _ = listener.accept()
            with first:
                requests.append(first.recv(65536))
                first.sendall(head(provider.placed("call-1")))
                is_answered.wait(PATIENCE)
                if then is None:
                    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if then:
                    first.sendall(then)
                else:
                    first.close()
                was_sent.set()
                second, _ = listener.accept()
                with second:
                    requests.append(second.recv(65536))
                    second.sendall(head(provider.placed("call-2")))

        server = threading.Thread(target=serve)
        server.start()
        options = http_options(connect_timeout=CONNECT, timeout=BUDGET)
        with listener:
            async with provider.sender(f"http://127.0.0.1:{listener.getsockname()[1]}", **options) as sender:
                assert await place(sender) == Placed("call-1")
                is_answered.set()
                was_sent.wait(PATIENCE)
                time.sleep(0.02)  # noqa: ASYNC251 - the event loop must not read
                assert await place(sender) == Placed("call-2")
            server.join(PATIENCE)
        assert len(requests) == 2


class TestNotKept:
    """An answer that does not end where it should, or wants its connection closed, is the last one there."""

    @pytest.mark.parametrize(
        ("version", "extra"),
        [
            (b"1.1", b"Connection: close\r\n"),
            (b"1.1", b"Connection: Keep-Alive, Close\r\n"),
            (b"1.0", b""),
            (b"1.0", b"Connection: keep-alive\r\n"),
        ],
    )
    async def test_answers_that_say_so(self, provider: Provider, version: bytes, extra: bytes) -> None:
        script = answering(provider, version=version, extra=extra)
        async with talking(provider, script) as (server, sender):
            assert [await place(sender) for _ in range(2)] == [Placed("call-1"), Placed("call-2")]
            assert server.connections == 2
            await until(lambda: server.open_connections == 0)

    async def test_an_answer_that_ends_with_its_connection(self, provider: Provider, tls: Keys | None) -> None:
        async def answer_and_close(conversation: Conversation, call: str) -> None:
            await conversation.send(b"HTTP/1.1 200 OK\r\n\r\n" + provider.placed(call))
            raise OSError

        async with talking(provider, answer_and_close, tls) as (server, sender):
            assert [await place(sender) for _ in range(2)] == [Placed("call-1"), Placed("call-2")]
            assert server.connections == 2

    async def test_a_body_that_is_too_long_to_be_read(self, provider: Provider) -> None:
        async def answer_at_length(conversation: Conversation, call: str) -> None:
            await conversation.send(head(provider.placed(call) + b" " * 65536))

        async with talking(provider, answer_at_length) as (server, sender):
            for _ in range(2):
                await place(sender)
            assert (server.connections, len(server.requests)) == (2, 2)
            await until(lambda: server.open_connections == 0)

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 8192,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 32768,
        ],
        ids=["upgrade", "two lengths", "two framings", "a folded field", "interim for ever", "trailers for ever"],
    )
    async def test_an_answer_that_two_readers_could_read_differently_is_unclear(
        self, provider: Provider, answer: bytes
    ) -> None:
        async with talking(provider, lambda conversation, _: conversation.send(answer)) as (server, sender):
            for _ in range(2):
                assert isinstance(await place(sender), Unknown)
            assert (server.connections, len(server.requests)) == (2, 2)

    async def test_a_request_that_was_given_up(self, provider: Provider, tls: Keys | None) -> None:
        async def answer_the_first_late(conversation: Conversation, call: str) -> None:
            if call == "call-1":
                await asyncio.sleep(0.1)
            await conversation.send(head(provider.placed(call)))

        async with talking(provider, answer_the_first_late, tls) as (server, sender):
            given_up = asyncio.create_task(place(sender))
            await until(lambda: len(server.requests) == 1)
            given_up.cancel()
            assert await place(sender) == Placed("call-2")
            await asyncio.sleep(0.15)
            assert await place(sender) == Placed("call-3")
            assert server.connections == 2


class TestCrossing:
    """A request on a kept connection crosses with the server ending it."""

    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_the_call_is_unknown_and_not_sent_again(self, provider: Provider, tls: Keys | None, how: str) -> None:
        async def answer_the_first(conversation: Conversation, call: str) -> None:
            if call == "call-2":
                if how == "reset":
                    conversation.reset()
                raise OSError
            await conversation.send(head(provider.placed(call)))

        async with talking(provider, answer_the_first, tls) as (server, sender):
            assert await place(sender) == Placed("call-1")
            assert isinstance(await place(sender), Unknown)
            assert (server.connections, len(server.requests)) == (1, 2)
            assert await place(sender) == Placed("call-3")
