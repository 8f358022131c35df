"""The Plusofon client over real sockets against failing servers: correct outcomes, and no request sent twice."""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from app.providers.connections import KeptConnections
from app.providers.plusofon.client import PlusofonClient
from app.verification.errors import ProviderUnavailable
from app.verification.model import CallOutcome, CallStatus, Lang, Placed, Refused, Unknown
from app.verification.phone import Phone
from tests.provider_options import http_options
from tests.waiting import PATIENCE, timing, until

TOKEN = "not-a-real-token"
PIN = "042137"
PHONE = Phone("+79001234567")

BUDGET = 4.0  # seconds for a request
CONNECT = 1.5  # seconds of it for the connection
SLACK = 2.0  # additional seconds for a busy machine


class Conversation:
    """The server's side of one connection."""

    def __init__(self, server: "Server", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def read_request(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        request = head + await self._reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
        self._server.requests.append(request)
        return request

    async def read_some(self, most: int = 65536) -> bytes:
        return await self._reader.read(most)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, body: bytes, *, status: bytes = b"200 OK", extra: bytes = b"") -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
        await self.send(head % (status, len(body), extra) + body)

    async def place(self, call_id: str) -> None:
        await self.answer(b'{"success": true, "data": {"call_id": "%b"}}' % call_id.encode())

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
    """Run the script for each connection, record requests, and close when the script ends."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._conversations: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(script)
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await server.stop()


def make_client(
    base_url: str,
    *,
    max_connections: int = 10,
    transport: httpx.AsyncBaseTransport | None = None,
    connect: float = CONNECT,
    budget: float = BUDGET,
) -> PlusofonClient:
    return PlusofonClient(
        base_url=base_url,
        user_id="made-up-user",
        access_token=TOKEN,
        **http_options(connect_timeout=connect, timeout=budget, max_connections=max_connections, transport=transport),
    )


async def call(client: PlusofonClient) -> CallOutcome:
    """Place a call, and assert that it stays within its timeout."""
    async with timing() as seconds:
        outcome = await client.initiate_call(PHONE, PIN, Lang.RU, 2)
        assert seconds() < BUDGET + SLACK
    return outcome


def assert_never_sent(outcome: CallOutcome) -> None:
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderUnavailable)


async def answer_each(conversation: Conversation) -> None:
    while True:
        await conversation.read_request()
        await conversation.place("call-1")


class NoAddress(AbstractResolver):
    """A resolver that fails the first ``failures`` times, after ``delay`` seconds, without asking a name server."""

    def __init__(self, failures: float = float("inf"), *, delay: float = 0) -> None:
        self._failures = failures
        self._delay = delay
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        await asyncio.sleep(self._delay)
        if self.asked <= self._failures:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        pass


def asking(resolver: NoAddress) -> httpx.AsyncBaseTransport:
    return KeptConnections(tls=ssl.create_default_context(), resolver=resolver)


def not_reached(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged errors of attempts that failed to connect."""
    return [vars(record)["error"] for record in caplog.records if record.message == "plusofon.not_reached"]


class TestNeverSent:
    """The request was not written, so no call was placed and it can be refunded."""

    async def test_a_refused_connection(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound but not listening, so that no other process gets this port
            async with make_client(f"http://127.0.0.1:{unused.getsockname()[1]}", budget=20) as client:
                assert_never_sent(await call(client))

    async def test_a_connection_that_is_never_accepted(self) -> None:
        """A full backlog drops connection requests as a firewall does."""
        with contextlib.ExitStack() as sockets:
            listener = sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(4):
                filler = sockets.enter_context(socket.socket())
                filler.settimeout(0)
                filler.connect_ex(listener.getsockname())
            async with make_client(f"http://127.0.0.1:{listener.getsockname()[1]}", budget=20) as client:
                assert_never_sent(await call(client))

    async def test_a_name_without_an_address(self) -> None:
        async with make_client("http://plusofon.test", transport=asking(NoAddress()), budget=20) as client:
            assert_never_sent(await call(client))

    async def test_a_server_that_speaks_no_tls(self) -> None:
        received = []

        async def answer_in_plain_text(conversation: Conversation) -> None:
            received.append(await conversation.read_some())
            await conversation.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with (
            serving(answer_in_plain_text) as server,
            make_client(f"https://127.0.0.1:{server.port}", budget=20) as client,
        ):
            assert_never_sent(await call(client))
        assert received
        assert PIN.encode() not in received[0]

    async def test_a_tls_handshake_that_is_cut(self) -> None:
        async def cut(conversation: Conversation) -> None:
            await conversation.read_some()
            conversation.reset()

        async with serving(cut) as server, make_client(f"https://127.0.0.1:{server.port}", budget=20) as client:
            assert_never_sent(await call(client))

    async def test_a_tls_handshake_that_never_ends(self) -> None:
        async def swallow(conversation: Conversation) -> None:
            await conversation.wait_until_closed()

        async with serving(swallow) as server, make_client(f"https://127.0.0.1:{server.port}", budget=20) as client:
            assert_never_sent(await call(client))

    async def test_an_untrusted_certificate(self) -> None:
        async with (
            serving(answer_each, tls=untrusted_tls()) as server,
            make_client(f"https://127.0.0.1:{server.port}", connect=5, budget=20) as client,
        ):
            assert_never_sent(await call(client))
            assert server.requests == []

    async def test_no_free_connection_in_the_pool(self) -> None:
        may_answer = asyncio.Event()

        async def answer_late(conversation: Conversation) -> None:
            await conversation.read_request()
            await may_answer.wait()
            await conversation.place("call-1")

        async with (
            serving(answer_late) as server,
            make_client(server.url, max_connections=1, budget=PATIENCE) as client,
        ):
            first = asyncio.create_task(client.initiate_call(PHONE, PIN, Lang.RU, 2))
            await until(lambda: len(server.requests) == 1)
            assert_never_sent(await call(client))
            may_answer.set()
            assert await first == Placed("call-1")
            assert len(server.requests) == 1


class TestOneRetry:
    """A failed connection is retried once if the remaining time allows a whole connect timeout."""

    async def test_a_name_that_resolves_at_the_second_attempt(self) -> None:
        resolver = NoAddress(failures=1)
        async with (
            serving(answer_each) as server,
            make_client(f"http://plusofon.test:{server.port}", transport=asking(resolver), budget=20) as client,
        ):
            assert await call(client) == Placed("call-1")
            assert (resolver.asked, len(server.requests)) == (2, 1)

    async def test_a_connection_is_not_attempted_a_third_time(self) -> None:
        resolver = NoAddress()
        async with make_client("http://plusofon.test", transport=asking(resolver), budget=20) as client:
            assert_never_sent(await call(client))
        assert resolver.asked == 2

    async def test_a_query_is_retried_as_well(self) -> None:
        resolver = NoAddress()
        async with make_client("http://plusofon.test", transport=asking(resolver), budget=20) as client:
            with pytest.raises(ProviderUnavailable):
                await client.get_balance()
        assert resolver.asked == 2

    async def test_a_port_that_starts_to_listen_before_the_retry(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            async with make_client(f"http://127.0.0.1:{listener.getsockname()[1]}", budget=20) as client:
                calling = asyncio.create_task(call(client))
                await until(lambda: not_reached(caplog) != [])
                server = Server(answer_each)
                async with await asyncio.start_server(server.accept, sock=listener):
                    assert await calling == Placed("call-1")
                    await server.stop()
        assert len(server.requests) == 1

    async def test_a_tls_handshake_that_is_cut(self) -> None:
        async def cut(conversation: Conversation) -> None:
            await conversation.read_some()
            conversation.reset()

        async with serving(cut) as server, make_client(f"https://127.0.0.1:{server.port}", budget=20) as client:
            assert_never_sent(await call(client))
            assert server.connections == 2

    async def test_a_connection_that_takes_too_long(self) -> None:
        async def swallow(conversation: Conversation) -> None:
            await conversation.wait_until_closed()

        async with (
            serving(swallow) as server,
            make_client(f"https://127.0.0.1:{server.port}", connect=1, budget=6) as client,
        ):
            async with timing() as seconds:
                assert_never_sent(await client.initiate_call(PHONE, PIN, Lang.RU, 2))
                assert seconds() < 6
            assert server.connections == 2

    async def test_no_retry_when_the_remaining_time_is_less_than_a_connect_timeout(self) -> None:
        """The first attempt takes 0.15 s, so less than a pause and the 0.2 s connect timeout is left."""
        resolver = NoAddress(delay=0.15)
        transport = asking(resolver)
        async with make_client("http://plusofon.test", transport=transport, connect=0.2, budget=0.4) as client:
            assert_never_sent(await call(client))
        assert resolver.asked == 1

    async def test_no_retry_when_the_pool_is_full(self, caplog: pytest.LogCaptureFixture) -> None:
        async with (
            serving(read_and_hang) as server,
            make_client(server.url, max_connections=1, connect=0.1, budget=1) as client,
        ):
            first = asyncio.create_task(call(client))
            await until(lambda: len(server.requests) == 1)
            assert_never_sent(await call(client))
            assert not_reached(caplog) == ["PoolTimeout"]
            first.cancel()

    async def test_no_retry_after_status_429(self) -> None:
        async def answer_429(conversation: Conversation) -> None:
            await conversation.read_request()
            await conversation.answer(b"", status=b"429 Too Many Requests", extra=b"Retry-After: 1\r\n")

        async with serving(answer_429) as server, make_client(server.url, budget=20) as client:
            assert_never_sent(await call(client))
            assert server.connections == 1

    @pytest.mark.parametrize("script", ["reset_at_once", "read_and_reset", "half_a_head", "half_a_body"])
    async def test_no_retry_of_a_request_that_may_have_been_written(self, script: str) -> None:
        async with serving(globals()[script]) as server, make_client(server.url, budget=20) as client:
            assert isinstance(await call(client), Unknown)
            assert server.connections == 1

    async def test_failed_and_canceled_requests_release_their_connection(self) -> None:
        resolver = NoAddress(failures=2)
        async with (
            serving(answer_each) as server,
            make_client(
                f"http://plusofon.test:{server.port}", transport=asking(resolver), max_connections=1, budget=20
            ) as client,
        ):
            assert_never_sent(await call(client))
            cancelled = [asyncio.create_task(call(client)) for _ in range(3)]
            await asyncio.sleep(0)
            for task in cancelled:
                task.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            assert await call(client) == Placed("call-1")


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


async def half_a_head(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Type: appli")


async def half_a_body(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(
        b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"success": true, "data": {"call_id": "call-1"}}'
    )


async def half_a_body_and_reset(conversation: Conversation) -> None:
    await half_a_body(conversation)
    await asyncio.sleep(0.02)
    conversation.reset()


async def half_a_chunk(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"suc\r\n40\r\ncess": ')


async def no_http(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b"220 mail.example ESMTP\r\n\r\n")


async def an_endless_head(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await conversation.send(b"X-Filler: " + b"x" * 1000 + b"\r\n")


async def a_dripping_head(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await conversation.send(b"x")
        await asyncio.sleep(0.02)


async def a_dripping_body(conversation: Conversation) -> None:
    """Each byte arrives within any read timeout; only a total timeout ends this."""
    await conversation.read_request()
    await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await conversation.send(b" ")
        await asyncio.sleep(0.02)


class TestSentWithoutAResponse:
    """The request may have been written: the call may ring, so its code stays valid and it is not sent again."""

    @pytest.mark.parametrize(
        "script",
        [
            *(read_and_reset, read_and_close, read_and_hang),
            *(half_a_head, half_a_body, half_a_body_and_reset, half_a_chunk, no_http),
            *(an_endless_head, a_dripping_head, a_dripping_body),
        ],
        ids=lambda script: script.__name__,
    )
    async def test_the_call_is_unknown_and_the_request_sent_once(
        self, script: Script, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        async with serving(script) as server, make_client(server.url) as client:
            outcome = await call(client)
            assert isinstance(outcome, Unknown)
            assert len(server.requests) == 1
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        shown = caplog.text + outcome.why
        assert not [secret for secret in (TOKEN, PIN, "9001234567") if secret in shown]

    async def test_a_connection_reset_before_the_request_is_read_is_unknown_too(self) -> None:
        """The client cannot know how much the server had read before the reset."""
        async with serving(reset_at_once) as server, make_client(server.url) as client:
            assert isinstance(await call(client), Unknown)
            assert server.connections == 1

    @pytest.mark.parametrize("script", [read_and_hang, a_dripping_body], ids=lambda script: script.__name__)
    async def test_a_connection_that_timed_out_is_closed(self, script: Script) -> None:
        """If kept open, the next request would receive the response to this one."""
        async with serving(script) as server, make_client(server.url) as client:
            await call(client)
            await until(lambda: server.open_connections == 0)

    async def test_an_endless_body_is_not_read_to_its_end(self) -> None:
        sent = 0

        async def flood(conversation: Conversation) -> None:
            nonlocal sent
            await conversation.read_request()
            await conversation.send(b'HTTP/1.1 200 OK\r\n\r\n{"success": true, "data": {"call_id": "')
            while True:
                await conversation.send(b"x" * 65536)
                sent += 65536

        async with serving(flood) as server, make_client(server.url) as client:
            async with timing() as seconds:
                assert isinstance(await call(client), Unknown)
                assert seconds() < BUDGET  # it ended before the timeout
            await until(lambda: server.open_connections == 0)
        assert sent < 16 * 1024 * 1024  # what fits into the buffers of two sockets


class TestConnections:
    @pytest.mark.parametrize("pause", [0, 0.02])
    async def test_a_second_response_is_not_used_for_the_next_request(self, pause: float) -> None:
        """A later request would otherwise receive the code or the status of another call."""

        async def answer_twice(conversation: Conversation) -> None:
            call_id = f"call-{server.connections}"
            while True:
                await conversation.read_request()
                await conversation.place(call_id)
                await asyncio.sleep(pause)
                await conversation.place(f"second-answer-of-{call_id}")

        async with serving(answer_twice) as server, make_client(server.url) as client:
            for number in (1, 2, 3):
                assert await call(client) == Placed(f"call-{number}")
                await asyncio.sleep(0.05)

    async def test_a_connection_closed_by_the_server_is_not_reused(self) -> None:
        async def answer_once(conversation: Conversation) -> None:
            await conversation.read_request()
            await conversation.place("call-1")

        async with serving(answer_once) as server, make_client(server.url) as client:
            assert await call(client) == Placed("call-1")
            await until(lambda: server.open_connections == 0)
            await asyncio.sleep(0.02)  # for the client to see it
            assert await call(client) == Placed("call-1")
            assert (server.connections, len(server.requests)) == (2, 2)


class TestUnusualResponses:
    async def test_a_redirect_is_not_followed(self) -> None:
        async def redirect(conversation: Conversation) -> None:
            while True:
                await conversation.read_request()
                await conversation.answer(b"", status=b"307 Temporary Redirect", extra=b"Location: /elsewhere\r\n")

        async with serving(redirect) as server, make_client(server.url) as client:
            assert isinstance(await call(client), Unknown)
            assert len(server.requests) == 1

    async def test_a_cookie_is_not_sent_back(self) -> None:
        """Neither library keeps cookies. The host is a name, because aiohttp ignores cookies of IP addresses."""

        async def set_cookie(conversation: Conversation) -> None:
            while True:
                await conversation.read_request()
                await conversation.answer(b"{}", extra=b"Set-Cookie: session=abc; Path=/\r\n")

        async with serving(set_cookie) as server, make_client(f"http://localhost:{server.port}") as client:
            await call(client)
            await call(client)
            assert len(server.requests) == 2
            assert b"cookie" not in server.requests[1].lower()

    async def test_a_reason_phrase_in_another_encoding_is_ignored(self) -> None:
        async def answer_in_another_encoding(conversation: Conversation) -> None:
            await conversation.read_request()
            await conversation.answer(b'{"success": true, "data": {"call_id": "call-1"}}', status=b"200 \xd5\xee\xf0")

        async with serving(answer_in_another_encoding) as server, make_client(server.url) as client:
            assert await call(client) == Placed("call-1")

    async def test_a_chunked_response_is_read(self) -> None:
        async def answer_in_chunks(conversation: Conversation) -> None:
            await conversation.read_request()
            await conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for part in (b'{"success": true, ', b'"data": {"status": ', b'"ringing"}}', b""):
                await conversation.send(b"%x\r\n%b\r\n" % (len(part), part))

        async with serving(answer_in_chunks) as server, make_client(server.url) as client:
            assert (await client.check_call_status("call-1")).status is CallStatus.RINGING

    @pytest.mark.parametrize(
        "script",
        [read_and_reset, read_and_hang, half_a_body, a_dripping_body],
        ids=lambda script: script.__name__,
    )
    async def test_a_query_without_a_response_raises_provider_unavailable(self, script: Script) -> None:
        async with serving(script) as server, make_client(server.url, connect=0.2, budget=0.4) as client:
            for ask in (client.get_account, client.get_balance, lambda: client.check_call_status("call-1")):
                with pytest.raises(ProviderUnavailable):
                    await ask()

    async def test_a_proxy_in_the_environment_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with serving(answer_each) as server, serving(answer_each) as proxy, make_client(server.url) as client:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            assert await call(client) == Placed("call-1")
            assert (len(server.requests), proxy.connections) == (1, 0)


class TestCancellation:
    async def test_canceling_a_call_closes_its_connection(self) -> None:
        async with serving(read_and_hang) as server, make_client(server.url) as client:
            task = asyncio.create_task(call(client))
            await until(lambda: len(server.requests) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: server.open_connections == 0)


def untrusted_tls() -> ssl.SSLContext:
    """Return a TLS context with a certificate of an untrusted CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context
