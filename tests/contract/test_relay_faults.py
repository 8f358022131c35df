"""The relay's sender over real sockets against failing servers: correct outcomes, and no order sent twice."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace

import httpx
import pytest

from app.providers.relay.client import RelaySender
from app.verification.channels import Channel
from app.verification.errors import ProviderUnavailable
from app.verification.model import CallOutcome, CallState, CallStatus, Lang, Placed, Refused, Unknown
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder
from tests.provider_options import http_options
from tests.waiting import PATIENCE, timing, until

SECRET = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="
CODE = "042137"
CALL = "vrf_made_up-1-voice"
ORDER = CallOrder(call_id=CallId("vrf_made_up", 1), phone=Phone("+79001234567"), code=CODE, lang=Lang.RU, repeat=2)

BUDGET = 4.0  # seconds for a request
CONNECT = 1.5  # seconds of it for the connection
SLACK = 2.0  # additional seconds for a busy machine


class Conversation:
    """The relay's side of one connection."""

    def __init__(self, server: "Server", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def read_request(self) -> None:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        self._server.requests.append(head + await self._reader.readexactly(int(length[0][15:]) if length else 0))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, body: bytes) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def wait_until_closed(self) -> None:
        while await self._reader.read(4096):
            pass

    def reset(self) -> None:
        """Close with RST in place of FIN, as a crashed peer or a firewall does."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Conversation], Awaitable[None]]


class Server:
    """Run the script for each connection, and close when the script ends."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._conversations: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.requests: list[bytes] = []

    @property
    def open_connections(self) -> int:
        return sum(not task.done() for task in self._conversations)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._conversations.add(asyncio.create_task(self._converse(reader, writer)))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                await self._script(Conversation(self, reader, writer))
            finally:
                writer.close()
                await writer.wait_closed()

    async def stop(self) -> None:
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    server = Server(script)
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await server.stop()


def sender_to(
    port: int, *, scheme: str = "http", connections: int = 10, connect: float = CONNECT, timeout: float = BUDGET
) -> RelaySender:
    return RelaySender(
        Channel.VOICE,
        url=f"{scheme}://127.0.0.1:{port}/verify",
        secret=SECRET,
        **http_options(connect_timeout=connect, timeout=timeout, max_connections=connections),
    )


async def place(sender: RelaySender) -> CallOutcome:
    """Place a call, and assert that it stays within its timeout."""
    async with timing() as seconds:
        outcome = await sender.place(ORDER)
        assert seconds() < BUDGET + SLACK
    return outcome


def assert_never_sent(outcome: CallOutcome) -> None:
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderUnavailable)


async def accept_each(conversation: Conversation) -> None:
    while True:
        await conversation.read_request()
        await conversation.answer(b'{"status": "accepted"}')


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """Drop connection requests as a firewall does."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


class TestNeverSent:
    """The request was not written, so no call was placed and it can be refunded."""

    async def test_a_refused_connection(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound but not listening, so that no other process gets this port
            async with sender_to(unused.getsockname()[1], timeout=20) as sender:
                assert_never_sent(await place(sender))

    async def test_a_connection_that_is_never_accepted(self) -> None:
        with full_backlog() as port:
            async with sender_to(port, timeout=20) as sender:
                assert_never_sent(await place(sender))

    async def test_a_connection_that_is_never_accepted_with_less_time_than_a_connect_timeout(self) -> None:
        """The remaining time is shorter than the connect timeout; the order is still certainly not sent."""
        with full_backlog() as port:
            async with sender_to(port, connect=10, timeout=20) as sender:
                assert_never_sent(await sender.place(replace(ORDER, timeout=5)))

    async def test_a_server_that_speaks_no_tls(self) -> None:
        async def answer_in_plain_text(conversation: Conversation) -> None:
            await conversation.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await conversation.wait_until_closed()

        async with (
            serving(answer_in_plain_text) as server,
            sender_to(server.port, scheme="https", timeout=20) as sender,
        ):
            assert_never_sent(await place(sender))

    async def test_no_free_connection_in_the_pool(self) -> None:
        may_answer = asyncio.Event()

        async def answer_late(conversation: Conversation) -> None:
            await conversation.read_request()
            await may_answer.wait()
            await conversation.answer(b'{"status": "placed"}')

        async with serving(answer_late) as server, sender_to(server.port, connections=1, timeout=PATIENCE) as sender:
            first = asyncio.create_task(sender.place(ORDER))
            await until(lambda: len(server.requests) == 1)
            assert_never_sent(await sender.place(ORDER))
            may_answer.set()
            assert await first == Placed(CALL)
            assert len(server.requests) == 1

    async def test_a_status_lookup_raises_provider_unavailable(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with sender_to(unused.getsockname()[1]) as sender:
                with pytest.raises(ProviderUnavailable):
                    await sender.fetch_status(CALL)


class ScriptedTransport(httpx.AsyncBaseTransport):
    """A transport that returns or raises ``results``, one per request."""

    def __init__(self, *results: Exception | httpx.Response) -> None:
        self._results = iter(results)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        result = next(self._results)
        if isinstance(result, Exception):
            raise result
        return result


def sender_on(
    transport: ScriptedTransport, *, timeout: float = 5.0, now: Callable[[], float] = lambda: 0.0
) -> RelaySender:
    url = "https://relay.test/verify"
    return RelaySender(
        Channel.VOICE,
        url=url,
        secret=SECRET,
        now=now,
        **http_options(connect_timeout=CONNECT, timeout=timeout, transport=transport),
    )


class TestOneRetry:
    async def test_a_failed_connection_is_retried_with_a_new_signature(self) -> None:
        transport = ScriptedTransport(httpx.ConnectError(""), httpx.Response(202, json={"status": "accepted"}))
        clock = iter((1_767_225_600.9, 1_767_225_601.0))
        async with sender_on(transport, now=lambda: next(clock)) as sender:
            assert await sender.place(ORDER) == Placed(CALL)
        assert [request.headers["webhook-timestamp"] for request in transport.requests] == ["1767225600", "1767225601"]
        assert len({request.headers["webhook-signature"] for request in transport.requests}) == 2
        assert {request.headers["webhook-id"] for request in transport.requests} == {CALL}

    async def test_a_connection_is_not_attempted_a_third_time(self, caplog: pytest.LogCaptureFixture) -> None:
        transport = ScriptedTransport(*[httpx.ConnectError("")] * 9)
        async with sender_on(transport) as sender:
            assert_never_sent(await sender.place(ORDER))
        assert len(transport.requests) == 2
        assert [record.getMessage() for record in caplog.records] == ["relay.not_reached"] * 2

    async def test_an_order_that_may_have_been_written_is_not_retried(self) -> None:
        for fault in (httpx.ReadError(""), httpx.WriteError(""), httpx.RemoteProtocolError(""), RuntimeError()):
            transport = ScriptedTransport(fault, httpx.Response(202, json={"status": "accepted"}))
            async with sender_on(transport) as sender:
                assert isinstance(await sender.place(ORDER), Unknown)
            assert len(transport.requests) == 1

    async def test_an_order_that_may_have_been_written_by_the_retry_is_unknown(self) -> None:
        transport = ScriptedTransport(
            httpx.ConnectTimeout(""), httpx.ReadError(""), httpx.Response(202, json={"status": "accepted"})
        )
        async with sender_on(transport) as sender:
            assert isinstance(await sender.place(ORDER), Unknown)
        assert len(transport.requests) == 2

    async def test_no_retry_when_the_remaining_time_is_less_than_a_connect_timeout(self) -> None:
        """A timeout of the second connection would look as if the order might have been written."""
        transport = ScriptedTransport(*[httpx.ConnectError("")] * 9)
        async with sender_on(transport, timeout=CONNECT + 0.05) as sender:
            assert_never_sent(await sender.place(ORDER))
        assert len(transport.requests) == 1


async def reset_at_once(conversation: Conversation) -> None:
    conversation.reset()


async def read_and_reset(conversation: Conversation) -> None:
    await conversation.read_request()
    conversation.reset()


async def read_and_close(conversation: Conversation) -> None:
    await conversation.read_request()


async def read_and_hang(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.wait_until_closed()


async def half_a_body(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"status": "accepted"}')


async def half_a_body_and_reset(conversation: Conversation) -> None:
    await half_a_body(conversation)
    await asyncio.sleep(0.02)
    conversation.reset()


async def no_http(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b"220 mail.example ESMTP\r\n\r\n")


async def an_endless_head(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await conversation.send(b"X-Filler: " + b"x" * 1000 + b"\r\n")


async def a_dripping_body(conversation: Conversation) -> None:
    """Each byte arrives within any read timeout; only a total timeout ends this."""
    await conversation.read_request()
    await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await conversation.send(b" ")
        await asyncio.sleep(0.02)


async def an_endless_body(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b'HTTP/1.1 200 OK\r\n\r\n{"status": "accepted", "padding": "')
    while True:
        await conversation.send(b"x" * 65536)


FAULTS = [
    *(read_and_reset, read_and_close, read_and_hang, half_a_body, half_a_body_and_reset, no_http),
    *(an_endless_head, a_dripping_body, an_endless_body),
]


class TestSentWithoutAResponse:
    """The order may have been written: its code stays valid, it can be looked up and is not sent again."""

    @pytest.mark.parametrize("script", FAULTS, ids=lambda script: script.__name__)
    async def test_the_call_is_unknown_and_the_order_sent_once(
        self, script: Script, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        async with serving(script) as server, sender_to(server.port) as sender:
            outcome = await place(sender)
            assert isinstance(outcome, Unknown)
            assert outcome.call_ref == CALL
            assert len(server.requests) == 1
            await until(lambda: server.open_connections == 0)  # if kept, the next request would receive this response
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        shown = caplog.text + outcome.why
        assert not [secret for secret in (SECRET.removeprefix("whsec_"), CODE, "9001234567") if secret in shown]

    async def test_a_connection_reset_before_the_order_is_read_is_unknown_too(self) -> None:
        async with serving(reset_at_once) as server, sender_to(server.port) as sender:
            assert isinstance(await place(sender), Unknown)
            assert server.connections == 1

    @pytest.mark.parametrize("script", FAULTS, ids=lambda script: script.__name__)
    async def test_a_status_lookup_raises_provider_unavailable(self, script: Script) -> None:
        async with serving(script) as server, sender_to(server.port) as sender:
            with pytest.raises(ProviderUnavailable):
                await sender.fetch_status(CALL)

    async def test_a_call_whose_response_was_lost_is_found_by_a_status_lookup(self) -> None:
        async def lose_the_first_response(conversation: Conversation) -> None:
            await conversation.read_request()
            if server.connections > 1:
                await conversation.answer(b'{"status": "completed"}')

        async with serving(lose_the_first_response) as server, sender_to(server.port) as sender:
            outcome = await place(sender)
            assert isinstance(outcome, Unknown)
            assert await sender.fetch_status(outcome.call_ref or "") == CallState(CallStatus.COMPLETED)
            assert [request.split(b" ")[0] for request in server.requests] == [b"POST", b"GET"]

    async def test_a_second_response_is_not_used_for_the_next_order(self) -> None:
        async def answer_twice_and_then_never(conversation: Conversation) -> None:
            await conversation.read_request()
            if server.connections == 1:
                await conversation.answer(b'{"status": "placed"}')
                await conversation.answer(b'{"status": "placed"}')
                await conversation.read_request()

        async with serving(answer_twice_and_then_never) as server, sender_to(server.port) as sender:
            assert await place(sender) == Placed(CALL)
            assert isinstance(await place(sender), Unknown)
            assert (server.connections, len(server.requests)) == (2, 2)


async def test_a_proxy_in_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(accept_each) as server, serving(accept_each) as proxy, sender_to(server.port) as sender:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await place(sender) == Placed(CALL)
        assert (len(server.requests), proxy.connections) == (1, 0)


async def test_canceling_an_order_closes_its_connection() -> None:
    async with serving(read_and_hang) as server, sender_to(server.port) as sender:
        task = asyncio.create_task(place(sender))
        await until(lambda: len(server.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.open_connections == 0)
