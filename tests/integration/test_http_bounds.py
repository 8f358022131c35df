"""Limits on time and memory: an incomplete request holds no connection forever and fills no memory."""

import asyncio
import json
import resource
import socket
import ssl
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from app.server.http_protocol import HttpProtocol
from tests.http_peer import HASTY, Echo, lenient_limits, served, statuses
from tests.waiting import PATIENCE, timing, until

WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def problem_in(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert b"content-type: application/problem+json" in head
    assert head.startswith(f"HTTP/1.1 {problem['status']} ".encode())
    return problem["status"], problem["title"]


async def test_complete_requests_are_served_in_order_on_one_connection() -> None:
    async with served(Echo(), limits=lenient_limits(request_seconds=1), keep_alive=75) as it:
        reader, writer = await it.connect()
        for body in (b"", b"x" * 9000):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert await reader.read(4) == str(len(body)).encode()
            await asyncio.sleep(0.6)
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        pytest.param([b"GET / HTTP/1.1\r\n", *[b"a: b\r\n" * 200] * 4], id="many fields"),
        pytest.param([b"GET / HTTP/1.1\r\nCookie: ", *[b"x" * 1200] * 4], id="a long field"),
        pytest.param([b"GET /", *[b"x" * 1200] * 4], id="a long address"),
    ],
)
async def test_a_request_head_over_the_limit_is_refused(head: list[bytes]) -> None:
    async with served(Echo(), limits=lenient_limits(head_bytes=HASTY.head_bytes)) as it:
        assert problem_in(await it.ask(*head)) == (431, "Request Header Fields Too Large")
        assert not it.state.connections


_CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n"


@pytest.mark.parametrize(
    "trailers",
    [
        pytest.param([b"0\r\n", *[b"a: b\r\n" * 200] * 4], id="many"),
        pytest.param([b"0\r\nA: ", *[b"x" * 1200] * 4], id="a long field"),
    ],
)
async def test_trailers_over_the_limit_are_refused(trailers: list[bytes]) -> None:
    async with served(Echo(), limits=lenient_limits(head_bytes=HASTY.head_bytes)) as it:
        reader, writer = await it.connect()
        writer.write(_CHUNKED)
        await asyncio.sleep(0.05)  # otherwise they arrive with the body, in one read
        for part in trailers:
            writer.write(part)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        assert problem_in(answer) == (431, "Request Header Fields Too Large")
        writer.close()


async def test_a_body_in_many_small_chunks_is_accepted() -> None:
    async with served(Echo(), limits=lenient_limits(head_bytes=HASTY.head_bytes)) as it:
        reader, writer = await it.connect()
        writer.write(_CHUNKED)
        for _ in range(20):
            writer.write(b"1\r\nx\r\n" * 200)  # in total more than the limit of a head
            await writer.drain()
            await asyncio.sleep(0.002)
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert await reader.read(4) == b"4004"
        writer.close()


async def test_pipelined_requests_are_not_read_before_earlier_ones_are_answered() -> None:
    async with served(Echo(), limits=lenient_limits()) as it:
        reader, writer = await it.connect()
        most = 0
        for _ in range(200):
            writer.write(WHOLE * 100)
            await reader.readuntil(b"\r\n\r\n")
            (connection,) = it.connections.all
            assert isinstance(connection, HttpProtocol)
            most = max(most, len(connection._data))
        assert 0 < most <= 32 * 1024
        writer.transport.abort()


@pytest.mark.parametrize("later", [b"", b"\r\n"])
async def test_an_idle_connection_is_closed_even_if_empty_lines_arrive(later: bytes) -> None:
    async with served(Echo()) as it:
        reader, writer = await it.connect()
        writer.write(WHOLE)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.write(later)
        async with asyncio.timeout(PATIENCE):
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
async def test_an_incomplete_request_times_out_with_408(part: bytes) -> None:
    async with served(Echo()) as it:
        answer = await it.ask(part)
        assert problem_in(answer) == (408, "Request Timeout")
        assert not it.state.connections


async def test_sending_one_byte_at_a_time_does_not_extend_the_timeout() -> None:
    async with served(Echo()) as it:
        reader, writer = await it.connect()
        for byte in b"GET / HTTP/1.1\r\nHost: somewhere\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(HASTY.request_seconds / 20)
            if reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]
                break
        else:
            raise AssertionError
        writer.close()


async def test_an_incomplete_second_request_times_out_after_the_first_was_answered() -> None:
    async with served(Echo()) as it:
        answer = await it.ask(WHOLE, b"GET / HTT")
        first, _, second = answer.partition(b"HTTP/1.1 408")
        assert first.startswith(b"HTTP/1.1 200 OK")
        assert second


async def test_bytes_that_are_not_http_get_a_400() -> None:
    async with served(Echo()) as it:
        assert problem_in(await it.ask(b"\x16\x03\x01 hello\r\n\r\n")) == (400, "Bad Request")


async def test_a_peer_that_does_not_answer_close_notify_does_not_keep_a_tls_connection(tmp_path: Path) -> None:
    async with served(Echo(), limits=lenient_limits(linger_seconds=0.1), certificate=tmp_path) as it:
        reader, writer = await it.connect()
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined] # as an idle connection in a pool is not read

        for connection in list(it.state.connections):
            connection.shutdown()
        async with timing() as seconds:
            await until(lambda: not it.state.connections)
            assert seconds() < 5  # the event loop would wait for half a minute
        writer.transport.abort()


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("asked_before", [False, True])
async def test_a_request_that_arrives_during_shutdown_is_answered_as_the_last_one(
    tmp_path: Path, *, asked_before: bool, over_tls: bool
) -> None:
    async with served(Echo(), limits=lenient_limits(), certificate=tmp_path if over_tls else None) as it:
        reader, writer = await it.connect()
        if asked_before:
            writer.write(WHOLE)
            assert await reader.readuntil(b"\r\n\r\n0")

        for connection in list(it.state.connections):
            connection.shutdown()
        writer.write(WHOLE)

        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        assert statuses(answer) == [200]
        assert b"connection: close\r\n" in answer
        await it.until_none_is_open()


async def test_an_idle_connection_is_closed_soon_after_shutdown_begins() -> None:
    async with served(Echo(), limits=lenient_limits(linger_seconds=0.2), keep_alive=75) as it:
        reader, writer = await it.connect()
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\n0")
        for connection in list(it.state.connections):
            connection.shutdown()
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""


def narrow(port: int) -> socket.socket:
    """Connect with a small receive window, so that unread data soon stays with the server."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", port))
    peer.setblocking(False)  # noqa: FBT003 - the standard library has it so
    return peer


@pytest.mark.parametrize("over_tls", [False, True])
async def test_a_peer_that_does_not_read_its_responses_is_dropped(tmp_path: Path, *, over_tls: bool) -> None:
    echo = Echo(answer_bytes=8_000_000)
    async with served(echo, limits=lenient_limits(write_seconds=0.2), certificate=tmp_path if over_tls else None) as it:
        reader, writer = await it.connect()
        writer.write(WHOLE * 40)
        await reader.read(10)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await it.until_none_is_open()
        assert len(echo.asked) <= 2  # the others wait until these responses are read
        writer.transport.abort()


async def test_a_peer_that_reads_its_response_too_slowly_is_dropped() -> None:
    async with served(
        Echo(answer_bytes=3_000_000), limits=lenient_limits(write_seconds=0.3, min_write_bytes=50_000)
    ) as it:
        loop = asyncio.get_running_loop()
        with narrow(it.port) as peer:
            await loop.sock_sendall(peer, WHOLE)
            async with asyncio.timeout(PATIENCE):
                while it.connections.all or not it.state.total_requests:
                    await loop.sock_recv(peer, 1)
                    await asyncio.sleep(0.05)
                    if not it.connections.all:
                        return


async def test_a_slow_reader_above_the_minimum_rate_gets_its_whole_response() -> None:
    async with served(Echo(answer_bytes=600_000), limits=lenient_limits(write_seconds=1, min_write_bytes=5_000)) as it:
        loop, read = asyncio.get_running_loop(), 0
        with narrow(it.port) as peer:
            await loop.sock_sendall(peer, WHOLE)
            async with asyncio.timeout(PATIENCE):
                while read < 600_000:
                    got = len(await loop.sock_recv(peer, 16_384))
                    assert got
                    read += got
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("hello", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"])
async def test_a_connection_without_a_tls_handshake_is_dropped(tmp_path: Path, hello: bytes) -> None:
    async with served(Echo(), certificate=tmp_path) as it:
        reader, writer = await it.connect(plain=True)
        writer.write(hello)
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                await reader.read()
        await it.until_none_is_open()
        writer.close()


async def test_plain_http_on_the_tls_port_is_dropped_and_tls_still_works(tmp_path: Path) -> None:
    async with served(Echo(), limits=lenient_limits(), certificate=tmp_path) as it:
        reader, writer = await it.connect(plain=True)
        writer.write(WHOLE)
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                assert b"HTTP" not in await reader.read()
        writer.close()
        assert statuses(await it.ask(WHOLE[:-2] + b"Connection: close\r\n\r\n")) == [200]


async def test_invalid_tls_data_during_a_request_is_logged_as_an_event_and_not_as_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="app.server")
    gate = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await Echo()(scope, receive, send)

    async with served(slow, limits=lenient_limits(), certificate=tmp_path) as it:
        with socket.create_connection(("127.0.0.1", it.port), timeout=PATIENCE) as plain, plain.dup() as below:
            assert it.trust
            with await asyncio.to_thread(it.trust.wrap_socket, plain, server_hostname="localhost") as peer:
                await asyncio.to_thread(peer.sendall, WHOLE)
                await asyncio.sleep(0.05)
                below.sendall(b"no TLS at all, or none that goes on from here")
                gate.set()
                await it.until_none_is_open()
    assert [(record.msg, vars(record)["reason"]) for record in caplog.records if record.name.startswith("app.")] == [
        ("http.connection_dropped", "tls")
    ]


async def shake_hands(
    tls: ssl.SSLObject,
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    while True:
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            break
        writer.write(outgoing.read())
        incoming.write(await reader.read(65536))
    writer.write(outgoing.read())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_data_after_tls_close_notify_takes_no_memory(tmp_path: Path) -> None:
    async with served(Echo(answer_bytes=8_000_000), limits=lenient_limits(), certificate=tmp_path) as it:
        assert it.trust
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = it.trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await it.connect(plain=True)
        await shake_hands(tls, incoming, outgoing, reader, writer)
        tls.write(WHOLE)
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()
        writer.transport.pause_reading()  # type: ignore[attr-defined] # the response is not read, so that sending it lasts
        writer.write(outgoing.read())
        before = resident_bytes()
        async with asyncio.timeout(PATIENCE):
            for _ in range(100):
                writer.write(b"\x17\x03\x03\x40\x00" + b"x" * 1_000_000)
                await writer.drain()
        (connection,) = it.connections.all
        assert resident_bytes() - before < 50_000_000
        connection.drop("test")


async def test_empty_lines_do_not_keep_a_connection_open() -> None:
    async with served(Echo(), limits=lenient_limits(request_seconds=0.3)) as it:
        reader, writer = await it.connect()
        async with timing() as seconds:
            with suppress(ConnectionError):
                while not reader.at_eof() and seconds() < 1:
                    writer.write(b"\r\n")
                    await asyncio.sleep(0.05)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1000), 0.01)
            assert seconds() < 1
        writer.close()


@pytest.mark.parametrize("over_tls", [False, True])
async def test_over_the_limit_of_idle_connections_the_longest_idle_one_is_closed(
    tmp_path: Path, *, over_tls: bool
) -> None:
    limits = lenient_limits(max_waiting=3)
    async with served(Echo(), limits=limits, keep_alive=75, certificate=tmp_path if over_tls else None) as it:
        peers = [await it.connect() for _ in range(3)]
        for reader, writer in [peers[0], peers[2], peers[1]]:  # so the first idles longest, and then the third
            await ask_again(reader, writer)
        peers += [await it.connect() for _ in range(2)]
        for gone in (peers[0], peers[2]):
            async with asyncio.timeout(PATIENCE):
                with suppress(ConnectionError):
                    assert await gone[0].read() == b""
        for kept in (peers[1], *peers[3:]):
            await ask_again(*kept)


async def ask_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(WHOLE)
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert await reader.read(1) == b"0"


async def test_new_connections_do_not_close_one_with_a_request_in_progress() -> None:
    async with served(Echo(), limits=lenient_limits(max_waiting=2, request_seconds=60)) as it:
        reader, writer = await it.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"body")  # the request is complete: now the server must respond
        for _ in range(6):
            await it.connect()
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert len(it.connections.all) <= 3


async def test_near_the_connection_limit_each_connection_is_closed_after_its_response() -> None:
    gate = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await Echo()(scope, receive, send)

    async with served(slow, limits=lenient_limits()) as it:
        it.connections._max = 4
        for count, is_kept in ((2, True), (3, False)):
            gate.clear()
            peers = [await it.connect() for _ in range(count)]
            for _, writer in peers:
                writer.write(WHOLE)
            await asyncio.sleep(0.05)
            gate.set()
            heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in peers]
            assert (b"connection: close" not in heads[0]) is is_kept
            for _, writer in peers:
                writer.transport.abort()
            await it.until_none_is_open()


async def refuse(scope: object, receive: object, send: object) -> None:
    """Answer 401 without reading the body."""
    assert callable(send)
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b"no"})


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("framing", [b"Content-Length: 99999999999", b"Transfer-Encoding: chunked"])
async def test_the_rest_of_a_body_is_not_read_after_a_refusal(
    tmp_path: Path, framing: bytes, *, over_tls: bool
) -> None:
    async with served(refuse, limits=lenient_limits(), certificate=tmp_path if over_tls else None) as it:
        reader, writer = await it.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        sent = 0
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while sent < 100_000_000:
                    writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                    await writer.drain()
                    sent += 65536
        assert sent < 20_000_000  # the buffers of the kernels and of TLS
        await it.until_none_is_open()
        with suppress(ConnectionError):
            answer = await reader.read()
            assert statuses(answer) == [401]
            assert b"connection: close" in answer
        writer.transport.abort()


async def test_a_refused_request_with_a_complete_body_keeps_the_connection_open() -> None:
    async with served(refuse, limits=lenient_limits()) as it:
        reader, writer = await it.connect()
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 401")
            assert b"close" not in head
            await reader.readexactly(2)
        writer.close()


async def test_a_disconnect_with_pipelined_requests_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Echo(answer_bytes=100_000), limits=lenient_limits()) as it:
        for _ in range(20):
            _, writer = await it.connect()
            writer.write(WHOLE * 500)
            await writer.drain()
            writer.transport.abort()
        await it.until_none_is_open()
    assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []


async def test_a_disconnect_during_a_request_body_logs_no_application_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="app.server")
    half = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
    async with served(Echo(), limits=lenient_limits(), certificate=tmp_path) as it:
        assert it.trust
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = it.trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await it.connect(plain=True)
        await shake_hands(tls, incoming, outgoing, reader, writer)
        tls.write(half)
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()
        writer.write(outgoing.read())  # in one packet with close_notify
        async with asyncio.timeout(PATIENCE):
            await reader.read()
        await it.until_none_is_open()
    assert not [record for record in caplog.records if record.name.startswith("app.")]


@pytest.mark.parametrize(("status", "logged"), [(500, ["http.application_failed"]), (503, [])])
async def test_a_request_that_fails_or_is_cut_off_at_shutdown_gets_a_problem(
    status: int, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            raise RuntimeError
        (task,) = it.state.tasks
        task.cancel()
        await asyncio.Event().wait()

    async with served(fail, limits=lenient_limits()) as it:
        answer = await it.ask(WHOLE)
    assert problem_in(answer) == (status, HTTPStatus(status).phrase)
    assert [record.msg for record in caplog.records if record.levelname == "ERROR"] == logged


async def test_repeated_rejected_requests_are_logged_as_one_event_with_a_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="app.server")
    async with served(Echo()) as it:
        for _ in range(30):
            assert statuses(await it.ask(b"no HTTP\r\n\r\n")) == [400]
    events = [record for record in caplog.records if record.msg == "http.request_rejected"]
    assert [(vars(event)["reason"], vars(event)["count"]) for event in events] == [("400", 1)]
