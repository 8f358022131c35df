"""Nobody keeps a connection, or fills the memory, by a request that never becomes whole."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trustme
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.cli.protocol import BoundedHttp

SOON = 5.0
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Hasty(BoundedHttp):
    """The same, with less patience."""

    head_bytes = 4096
    request_seconds = 0.3
    goodbye_seconds = 0.1


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with how long the body was, once it is whole."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    body = str(length).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Served:
    """An application behind the protocol."""

    def __init__(self, state: ServerState, connect: Callable[[], Awaitable[Peer]]) -> None:
        self.state = state
        self.connect = connect

    async def ask(self, *parts: bytes) -> bytes:
        """Send these, and read until the server closes the connection."""
        reader, writer = await self.connect()
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(SOON):
            answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def served(tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None) -> AsyncIterator[Served]:
    config = uvicorn.Config(echo, ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=1)
    config.load()
    state = ServerState()
    ours, theirs = tls or (None, None)
    server = await asyncio.get_running_loop().create_server(
        lambda: Hasty(config=config, server_state=state, app_state={}), "127.0.0.1", 0, ssl=ours
    )
    port = server.sockets[0].getsockname()[1]
    named = {"ssl": theirs, "server_hostname": "localhost"} if theirs else {}
    yield Served(state, partial(asyncio.open_connection, "127.0.0.1", port, **named))  # type: ignore[arg-type]
    server.close()
    for connection in list(state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)


def problem_in(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    told = json.loads(body)
    assert b"content-type: application/problem+json" in head
    assert head.startswith(f"HTTP/1.1 {told['status']} ".encode())
    return told["status"], told["title"]


async def test_whole_requests_are_served_one_after_the_other_on_one_connection() -> None:
    async with served() as it:
        reader, writer = await it.connect()
        for body in (b"", b"x" * 9000):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert await reader.read(4) == str(len(body)).encode()
            await asyncio.sleep(Hasty.request_seconds / 2)
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        pytest.param([b"GET / HTTP/1.1\r\n", *[b"a: b\r\n" * 200] * 4], id="many fields"),
        pytest.param([b"GET / HTTP/1.1\r\nCookie: ", *[b"x" * 1200] * 4], id="a long field"),
        pytest.param([b"GET /", *[b"x" * 1200] * 4], id="a long address"),
    ],
)
async def test_a_head_that_grows_is_refused(head: list[bytes]) -> None:
    async with served() as it:
        assert problem_in(await it.ask(*head)) == (431, "Request Header Fields Too Large")
        assert not it.state.connections


_CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n"


@pytest.mark.parametrize(
    "trailers",
    [
        pytest.param([b"0\r\n", *[b"a: b\r\n" * 200] * 4], id="many"),
        pytest.param([b"0\r\nA: ", *[b"x" * 1200] * 4], id="a long one"),
    ],
)
async def test_trailers_that_grow_are_refused(trailers: list[bytes]) -> None:
    async with served() as it:
        reader, writer = await it.connect()
        writer.write(_CHUNKED)
        await asyncio.sleep(0.05)  # else they come with the body, in one read
        for part in trailers:
            writer.write(part)
        async with asyncio.timeout(SOON):
            answer = await reader.read()
        assert problem_in(answer) == (431, "Request Header Fields Too Large")
        writer.close()


async def test_a_body_in_many_small_chunks_is_read() -> None:
    async with served() as it:
        reader, writer = await it.connect()
        writer.write(_CHUNKED)
        for _ in range(20):
            writer.write(b"1\r\nx\r\n" * 200)  # in all more than a head may have
            await writer.drain()
            await asyncio.sleep(0.002)
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert await reader.read(4) == b"4004"
        writer.close()


async def test_requests_that_wait_for_an_answer_are_read_no_further() -> None:
    async with served() as it:
        reader, writer = await it.connect()
        most = 0
        for _ in range(200):
            writer.write(WHOLE * 100)
            await reader.readuntil(b"\r\n\r\n")
            (connection,) = it.state.connections
            most = max(most, len(getattr(connection, "pipeline")))  # noqa: B009 - of this kind of connection alone
        assert 0 < most < 15_000
        writer.transport.abort()


@pytest.mark.parametrize("later", [b"", b"\r\n"])
async def test_an_idle_connection_is_closed_also_where_what_comes_is_no_request(later: bytes) -> None:
    async with served() as it:
        reader, writer = await it.connect()
        writer.write(WHOLE)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.write(later)
        async with asyncio.timeout(SOON):
            assert await reader.read() == b"0"
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert not it.state.connections


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET / HTT", id="half a line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nA: ", id="half a head"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", id="half a body"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", id="a chunk"),
    ],
)
async def test_a_request_that_never_becomes_whole_is_refused(part: bytes) -> None:
    async with served() as it:
        answer = await it.ask(part)
        assert problem_in(answer) == (408, "Request Timeout")
        assert not it.state.connections


async def test_one_byte_at_a_time_gains_no_time() -> None:
    async with served() as it:
        reader, writer = await it.connect()
        for byte in b"GET / HTTP/1.1\r\nHost: somewhere\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(Hasty.request_seconds / 20)
            if reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]
                break
        else:
            raise AssertionError
        writer.close()


async def test_a_second_request_that_never_becomes_whole_is_refused_after_the_first_was_answered() -> None:
    async with served() as it:
        answer = await it.ask(WHOLE, b"GET / HTT")
        first, _, second = answer.partition(b"HTTP/1.1 408")
        assert first.startswith(b"HTTP/1.1 200 OK")
        assert second


async def test_what_is_no_http_is_told_so() -> None:
    async with served() as it:
        assert problem_in(await it.ask(b"\x16\x03\x01 hello\r\n\r\n")) == (400, "Bad Request")


async def test_a_peer_that_never_says_goodbye_does_not_keep_a_tls_connection() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    async with served((ours, theirs)) as it:
        reader, writer = await it.connect()
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined] # as an idle connection in a pool is not read

        for connection in list(it.state.connections):
            connection.shutdown()
        await asyncio.sleep(5 * Hasty.goodbye_seconds)

        assert not it.state.connections
        writer.transport.abort()
