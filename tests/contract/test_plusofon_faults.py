"""The client over real sockets, against servers that fail in every way: is a call told right, and never sent twice?"""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport

from app.providers.plusofon.client import PlusofonClient
from app.verification.errors import ProviderUnavailable
from app.verification.model import CallOutcome, CallStatus, Lang, Placed, Refused, Unknown
from app.verification.phone import Phone
from tests.provider_options import http_options

TOKEN = "not-a-real-token"
PIN = "042137"
PHONE = Phone("+79001234567")

BUDGET = 0.4  # seconds for a request
CONNECT = 0.2  # seconds of it for the connection
SLACK = 0.4  # seconds that a slow machine may take on top


class Conversation:
    """One connection as the server has it."""

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

    async def wait_for_the_client_to_leave(self) -> None:
        while await self._reader.read(4096):
            pass

    def reset(self) -> None:
        """Close with RST in place of FIN, as a crashed peer or a firewall does."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Conversation], Awaitable[None]]


class Server:
    """Plays its script to each connection, counts what it receives, and closes when the script ends."""

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
    transport: AiohttpTransport | None = None,
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
    """Place a call, and hold the client to its budget."""
    started = monotonic()
    outcome = await client.initiate_call(PHONE, PIN, Lang.RU, 2)
    assert monotonic() - started < BUDGET + SLACK
    return outcome


def assert_never_sent(outcome: CallOutcome) -> None:
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderUnavailable)


async def answer_each(conversation: Conversation) -> None:
    while True:
        await conversation.read_request()
        await conversation.place("call-1")


class NoAddress(AbstractResolver):
    """Name servers that know no such name, the first ``failures`` times and after ``delay``, without asking any."""

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


def asking(resolver: NoAddress) -> AiohttpTransport:
    def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver))

    return AiohttpTransport(client=open_session)


def not_reached(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Tell the tries that failed for want of a connection."""
    return [vars(record)["error"] for record in caplog.records if record.message == "plusofon.not_reached"]


class TestNeverSent:
    """The request was not written, so the call did not happen and the attempt can be given back."""

    async def test_a_refused_connection(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets this port meanwhile
            async with make_client(f"http://127.0.0.1:{unused.getsockname()[1]}") as client:
                assert_never_sent(await call(client))

    async def test_a_connection_that_is_never_accepted(self) -> None:
        """A full backlog swallows connection requests as a firewall does."""
        with contextlib.ExitStack() as sockets:
            listener = sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(4):
                filler = sockets.enter_context(socket.socket())
                filler.settimeout(0)
                filler.connect_ex(listener.getsockname())
            async with make_client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
                assert_never_sent(await call(client))

    async def test_a_name_without_an_address(self) -> None:
        async with make_client("http://plusofon.test", transport=asking(NoAddress())) as client:
            assert_never_sent(await call(client))

    async def test_a_server_that_speaks_no_tls(self) -> None:
        received = []

        async def answer_in_plain_text(conversation: Conversation) -> None:
            received.append(await conversation.read_some())
            await conversation.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with serving(answer_in_plain_text) as server, make_client(f"https://127.0.0.1:{server.port}") as client:
            assert_never_sent(await call(client))
        assert received
        assert PIN.encode() not in received[0]

    async def test_a_tls_handshake_that_is_cut(self) -> None:
        async def cut(conversation: Conversation) -> None:
            await conversation.read_some()
            conversation.reset()

        async with serving(cut) as server, make_client(f"https://127.0.0.1:{server.port}") as client:
            assert_never_sent(await call(client))

    async def test_a_tls_handshake_that_never_ends(self) -> None:
        async def swallow(conversation: Conversation) -> None:
            await conversation.wait_for_the_client_to_leave()

        async with serving(swallow) as server, make_client(f"https://127.0.0.1:{server.port}") as client:
            assert_never_sent(await call(client))

    async def test_a_certificate_that_nobody_vouches_for(self) -> None:
        async with (
            serving(answer_each, tls=unheard_of()) as server,
            make_client(f"https://127.0.0.1:{server.port}") as client,
        ):
            assert_never_sent(await call(client))
            assert server.requests == []

    async def test_no_free_place_in_the_pool(self) -> None:
        async def answer_slowly(conversation: Conversation) -> None:
            await conversation.read_request()
            await asyncio.sleep(CONNECT * 1.5)
            await conversation.place("call-1")

        async with serving(answer_slowly) as server, make_client(server.url, max_connections=1) as client:
            first = asyncio.create_task(call(client))
            await asyncio.sleep(CONNECT / 4)
            assert_never_sent(await call(client))
            assert await first == Placed("call-1")
            assert len(server.requests) == 1


class TestOneRetry:
    """A connection that was never made is tried for once more, if the budget still has room for a whole one."""

    async def test_a_name_that_is_found_the_second_time(self) -> None:
        resolver = NoAddress(failures=1)
        async with (
            serving(answer_each) as server,
            make_client(f"http://plusofon.test:{server.port}", transport=asking(resolver)) as client,
        ):
            assert await call(client) == Placed("call-1")
            assert (resolver.asked, len(server.requests)) == (2, 1)

    async def test_no_connection_is_tried_for_a_third_time(self) -> None:
        resolver = NoAddress()
        async with make_client("http://plusofon.test", transport=asking(resolver), budget=5) as client:
            assert_never_sent(await call(client))
        assert resolver.asked == 2

    async def test_a_question_has_its_retry_too(self) -> None:
        resolver = NoAddress()
        async with make_client("http://plusofon.test", transport=asking(resolver), budget=2) as client:
            with pytest.raises(ProviderUnavailable):
                await client.get_balance()
        assert resolver.asked == 2

    async def test_a_port_that_begins_to_listen(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            async with make_client(f"http://127.0.0.1:{listener.getsockname()[1]}", budget=2) as client:
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

        async with serving(cut) as server, make_client(f"https://127.0.0.1:{server.port}", budget=2) as client:
            assert_never_sent(await call(client))
            assert server.connections == 2

    async def test_a_connection_that_takes_too_long(self) -> None:
        async def swallow(conversation: Conversation) -> None:
            await conversation.wait_for_the_client_to_leave()

        async with (
            serving(swallow) as server,
            make_client(f"https://127.0.0.1:{server.port}", connect=0.1, budget=0.6) as client,
        ):
            started = monotonic()
            assert_never_sent(await client.initiate_call(PHONE, PIN, Lang.RU, 2))
            assert monotonic() - started < 0.6
            assert server.connections == 2

    async def test_none_where_the_budget_has_no_room_for_a_whole_connection(self) -> None:
        """The first try takes 0.15 s, and what is left is less than a pause and the 0.2 s for a connection."""
        resolver = NoAddress(delay=0.15)
        async with make_client("http://plusofon.test", transport=asking(resolver)) as client:
            assert_never_sent(await call(client))
        assert resolver.asked == 1

    async def test_none_for_want_of_a_place(self, caplog: pytest.LogCaptureFixture) -> None:
        async with (
            serving(read_and_keep_silent) as server,
            make_client(server.url, max_connections=1, connect=0.1, budget=1) as client,
        ):
            first = asyncio.create_task(call(client))
            await until(lambda: len(server.requests) == 1)
            assert_never_sent(await call(client))
            assert not_reached(caplog) == ["PoolTimeout"]
            first.cancel()

    async def test_none_for_a_request_that_the_provider_has_no_time_for(self) -> None:
        async def tell_to_wait(conversation: Conversation) -> None:
            await conversation.read_request()
            await conversation.answer(b"", status=b"429 Too Many Requests", extra=b"Retry-After: 1\r\n")

        async with serving(tell_to_wait) as server, make_client(server.url, budget=5) as client:
            assert_never_sent(await call(client))
            assert server.connections == 1

    @pytest.mark.parametrize("script", ["reset_at_once", "read_and_reset", "half_a_head", "half_a_body"])
    async def test_none_for_a_request_that_may_have_been_written_however_much_time_is_left(self, script: str) -> None:
        async with serving(globals()[script]) as server, make_client(server.url, budget=5) as client:
            assert isinstance(await call(client), Unknown)
            assert server.connections == 1

    async def test_a_place_is_free_again_after_whatever_became_of_the_request(self) -> None:
        resolver = NoAddress(failures=2)
        async with (
            serving(answer_each) as server,
            make_client(
                f"http://plusofon.test:{server.port}", transport=asking(resolver), max_connections=1, budget=2
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


async def read_and_keep_silent(conversation: Conversation) -> None:
    await conversation.read_request()
    await conversation.wait_for_the_client_to_leave()


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
    """Each byte comes well within any time-out per read; only a budget for the whole ends this."""
    await conversation.read_request()
    await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await conversation.send(b" ")
        await asyncio.sleep(0.02)


async def a_reason_in_another_encoding(conversation: Conversation) -> None:
    """httpx-aiohttp 0.2 cannot encode such a phrase and fails, after the call was placed."""
    await conversation.read_request()
    await conversation.answer(
        b'{"success": true, "data": {"call_id": "call-1"}}', status=b"200 \xd5\xee\xf0\xee\xf8\xee"
    )


class TestSentWithoutAnAnswer:
    """The request was written, or may have been: the call may ring, so its code must live, and it is not sent again."""

    @pytest.mark.parametrize(
        "script",
        [
            *(read_and_reset, read_and_close, read_and_keep_silent),
            *(half_a_head, half_a_body, half_a_body_and_reset, half_a_chunk, no_http),
            *(an_endless_head, a_dripping_head, a_dripping_body, a_reason_in_another_encoding),
        ],
        ids=lambda script: script.__name__,
    )
    async def test_a_call_is_unknown_and_asked_for_once(self, script: Script, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        async with serving(script) as server, make_client(server.url) as client:
            outcome = await call(client)
            assert isinstance(outcome, Unknown)
            assert len(server.requests) == 1
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        told = caplog.text + outcome.why
        assert not [secret for secret in (TOKEN, PIN, "9001234567") if secret in told]

    async def test_a_connection_that_is_reset_before_the_request_is_read_is_no_proof_either(self) -> None:
        """The client cannot see how far the other side had read when it went."""
        async with serving(reset_at_once) as server, make_client(server.url) as client:
            assert isinstance(await call(client), Unknown)
            assert server.connections == 1

    @pytest.mark.parametrize("script", [read_and_keep_silent, a_dripping_body], ids=lambda script: script.__name__)
    async def test_a_connection_that_took_too_long_is_closed(self, script: Script) -> None:
        """Kept open, it would give the next request the answer to this one."""
        async with serving(script) as server, make_client(server.url) as client:
            await call(client)
            await until(lambda: server.open_connections == 0)

    async def test_an_endless_body_is_read_no_further_than_needed(self) -> None:
        sent = 0

        async def flood(conversation: Conversation) -> None:
            nonlocal sent
            await conversation.read_request()
            await conversation.send(b'HTTP/1.1 200 OK\r\n\r\n{"success": true, "data": {"call_id": "')
            while True:
                await conversation.send(b"x" * 65536)
                sent += 65536

        async with serving(flood) as server, make_client(server.url) as client:
            started = monotonic()
            assert isinstance(await call(client), Unknown)
            assert monotonic() - started < BUDGET  # it did not have to wait for the time-out
            await until(lambda: server.open_connections == 0)
        assert sent < 16 * 1024 * 1024  # what fits into the buffers of two sockets


class TestConnections:
    async def test_each_request_has_a_connection_of_its_own_and_says_so(self) -> None:
        async with serving(answer_each) as server, make_client(server.url) as client:
            for _ in range(3):
                assert await call(client) == Placed("call-1")
            assert (server.connections, len(server.requests)) == (3, 3)
            assert all(b"\r\nconnection: close\r\n" in request.lower() for request in server.requests)

    async def test_a_connection_that_the_server_would_keep_is_closed(self) -> None:
        async with serving(answer_each) as server, make_client(server.url) as client:
            await call(client)
            await until(lambda: server.open_connections == 0)

    @pytest.mark.parametrize("pause", [0, 0.02])
    async def test_a_second_answer_is_not_taken_for_the_next_request_s(self, pause: float) -> None:
        """It would give a person the code, or a call the fate, of another."""

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

    async def test_a_connection_that_the_server_closed_is_not_used(self) -> None:
        async def answer_once(conversation: Conversation) -> None:
            await conversation.read_request()
            await conversation.place("call-1")

        async with serving(answer_once) as server, make_client(server.url) as client:
            assert await call(client) == Placed("call-1")
            await until(lambda: server.open_connections == 0)
            await asyncio.sleep(0.02)  # for the client to see it
            assert await call(client) == Placed("call-1")
            assert (server.connections, len(server.requests)) == (2, 2)


class TestAnswersThatAreOdd:
    async def test_a_redirect_is_not_followed(self) -> None:
        async def redirect(conversation: Conversation) -> None:
            while True:
                await conversation.read_request()
                await conversation.answer(b"", status=b"307 Temporary Redirect", extra=b"Location: /elsewhere\r\n")

        async with serving(redirect) as server, make_client(server.url) as client:
            assert isinstance(await call(client), Unknown)
            assert len(server.requests) == 1

    async def test_a_cookie_is_not_sent_back(self) -> None:
        """Neither library keeps one. Asked by name, for aiohttp takes no cookies from a bare address."""

        async def set_cookie(conversation: Conversation) -> None:
            while True:
                await conversation.read_request()
                await conversation.answer(b"{}", extra=b"Set-Cookie: session=abc; Path=/\r\n")

        async with serving(set_cookie) as server, make_client(f"http://localhost:{server.port}") as client:
            await call(client)
            await call(client)
            assert len(server.requests) == 2
            assert b"cookie" not in server.requests[1].lower()

    async def test_a_state_is_read_in_chunks_too(self) -> None:
        async def answer_in_chunks(conversation: Conversation) -> None:
            await conversation.read_request()
            await conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for part in (b'{"success": true, ', b'"data": {"status": ', b'"ringing"}}', b""):
                await conversation.send(b"%x\r\n%b\r\n" % (len(part), part))

        async with serving(answer_in_chunks) as server, make_client(server.url) as client:
            assert (await client.check_call_status("call-1")).status is CallStatus.RINGING

    @pytest.mark.parametrize(
        "script",
        [read_and_reset, read_and_keep_silent, half_a_body, a_dripping_body],
        ids=lambda script: script.__name__,
    )
    async def test_a_question_that_gets_no_answer_finds_the_provider_unavailable(self, script: Script) -> None:
        async with serving(script) as server, make_client(server.url) as client:
            for ask in (client.get_account, client.get_balance, lambda: client.check_call_status("call-1")):
                with pytest.raises(ProviderUnavailable):
                    await ask()

    async def test_a_proxy_in_the_environment_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with serving(answer_each) as server, serving(answer_each) as proxy, make_client(server.url) as client:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            assert await call(client) == Placed("call-1")
            assert (len(server.requests), proxy.connections) == (1, 0)


class TestCancellation:
    async def test_a_cancelled_call_closes_its_connection(self) -> None:
        async with serving(read_and_keep_silent) as server, make_client(server.url) as client:
            task = asyncio.create_task(call(client))
            await until(lambda: len(server.requests) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: server.open_connections == 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - what is waited for is in the sockets, which set no event
            await asyncio.sleep(0.005)


def unheard_of() -> ssl.SSLContext:
    """Make a certificate of an authority that nobody trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context
