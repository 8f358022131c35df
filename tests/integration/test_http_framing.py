"""The end of a request is never ambiguous: an ambiguous request is refused, and its rest is not read as a request."""

import asyncio
import itertools
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from app.server.http_parser import HttpError, parse_head
from tests.http_peer import Echo, lenient_limits, served, statuses
from tests.waiting import PATIENCE

INNER = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST /outer HTTP/" + version, b"Host: x", *fields, b"", body])


def with_length(*fields: bytes, body: bytes = INNER) -> bytes:
    return post(*fields, b"Content-Length: %d" % len(body), body=body)


def chunked(*fields: bytes, body: bytes) -> bytes:
    return post(*fields, b"Transfer-Encoding: chunked", body=body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def targets(echo: Echo) -> list[str]:
    return [scope["path"] for scope in echo.asked]


H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
SERVED = {
    "an upgrade": with_length(b"Connection: Upgrade", b"Upgrade: foo"),
    "an upgrade, in other case": with_length(b"cOnNeCtIoN: keep-alive, uPgRaDe", b"UPGRADE: wEbSoCkEt"),
    "an upgrade of several": with_length(
        b"Connection: Upgrade", b"Upgrade: foo/1, h2c, websocket", b"Upgrade: TLS/1.0"
    ),
    "an upgrade without a connection option": with_length(b"Upgrade: websocket"),
    "an option without an upgrade": with_length(b"Connection: Upgrade"),
    "a websocket": with_length(
        b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAA"
    ),
    "h2c": with_length(*H2C),
    "h2c with chunks": chunked(*H2C, body=chunk(INNER) + b"0\r\n\r\n"),
    "chunks": chunked(body=chunk(INNER[:5]) + chunk(INNER[5:]) + b"0\r\n\r\n"),
    "chunks with extensions": chunked(body=b'%x ;a;b=c; d="e f"\r\n' % len(INNER) + INNER + b"\r\n000;x\r\n\r\n"),
    "a body of a GET": with_length().replace(b"POST", b"GET"),
    "an unknown field twice": with_length(b"A: b", b"A: c"),
    "empty values and odd bytes": with_length(b"A:", b"B:  \t ", b"C: \xd0\x9f\xff;,\"'"),
}
REFUSED = {
    "a tunnel": (501, b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\nContent-Length: 33\r\n\r\n"),
    "a tunnel with a path": (501, b"CONNECT /outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an unknown method": (501, b"SMUGGLE /outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a method in lower case": (501, b"get /outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, post(version=b"1.2")),
    "HTTP/11.1": (400, post(version=b"11.1")),
    "HTTP/0.9": (400, b"GET /outer\r\n\r\n"),
    "a length and chunks": (400, chunked(b"Content-Length: 3", body=b"0\r\n\r\n")),
    "chunks and a length": (400, post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n")),
    "two lengths": (400, post(b"Content-Length: 0", b"Content-Length: 33")),
    "a length twice": (400, post(b"Content-Length: 33", b"Content-Length: 33")),
    "a list of lengths": (400, post(b"Content-Length: 33, 33")),
    "an empty length": (400, post(b"Content-Length:")),
    "a signed length": (400, post(b"Content-Length: +33")),
    "a negative length": (400, post(b"Content-Length: -1")),
    "a length in hex": (400, post(b"Content-Length: 0x21")),
    "a length with an underscore": (400, post(b"Content-Length: 3_3")),
    "a length in other digits": (400, post("Content-Length: ٣٣".encode())),
    "a length beyond all bounds": (400, post(b"Content-Length: 9" + b"0" * 40)),
    "a length with a space in it": (400, post(b"Content-Length: 3 3")),
    "a coding before chunks": (400, post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "identity": (400, post(b"Transfer-Encoding: identity")),
    "a coding like chunks": (400, post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "chunks with a parameter": (400, post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n")),
    "chunks in quotes": (400, post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n")),
    "chunks twice": (400, post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")),
    "two codings": (400, post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n")),
    "an empty coding": (400, post(b"Transfer-Encoding:", body=b"0\r\n\r\n")),
    "an empty coding beside a length": (400, with_length(b"Transfer-Encoding:")),
    "a coding behind a vertical tab": (400, post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
    "chunks of HTTP/1.0": (400, post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"1.0")),
    "a folded field": (400, post(b"A: b", b" c: d")),
    "a folded coding": (400, post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n")),
    "a fold at the start": (400, b"GET /outer HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n"),
    "bare LF everywhere": (400, b"GET /outer HTTP/1.1\nHost: x\n\n"),
    "bare LF after the request line": (400, b"GET /outer HTTP/1.1\nHost: x\r\n\r\n"),
    "bare LF after a field": (400, post(b"A: b\nTransfer-Encoding: chunked")),
    "bare LF at the end": (400, b"GET /outer HTTP/1.1\r\nHost: x\r\n\n"),
    "bare CR": (400, post(b"A: b\rTransfer-Encoding: chunked")),
    "CR CR LF": (400, post(b"A: b\r")),
    "a space before the colon": (400, post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n")),
    "a tab before the colon": (400, post(b"Content-Length\t: 33")),
    "a field without a name": (400, post(b": b")),
    "a field without a colon": (400, post(b"Content-Length 33")),
    "a field name with a bracket": (400, post(b"Content(Length): 33")),
    "NUL in a value": (400, post(b"A: b\x00c")),
    "NUL in a name": (400, post(b"A\x00: b")),
    "a control character": (400, post(b"A: b\x1bc")),
    "DEL": (400, post(b"A: b\x7fc")),
    "a name in UTF-8": (400, post("Ключ: b".encode())),
    "a chunk size of no digits": (400, chunked(body=b"zz\r\n")),
    "an empty chunk size": (400, chunked(body=b"\r\n\r\n")),
    "a chunk size with 0x": (400, chunked(body=b"0x5\r\nhello\r\n0\r\n\r\n")),
    "a signed chunk size": (400, chunked(body=b"+5\r\nhello\r\n0\r\n\r\n")),
    "a negative chunk size": (400, chunked(body=b"-1\r\nhello\r\n0\r\n\r\n")),
    "a chunk size after a space": (400, chunked(body=b" 5\r\nhello\r\n0\r\n\r\n")),
    "a chunk size of 2^64 and more": (400, chunked(body=b"10000000000000005\r\nhello\r\n0\r\n\r\n")),
    "an extension with LF": (400, chunked(body=b"5;a\nb\r\nhello\r\n0\r\n\r\n")),
    "an extension with CR": (400, chunked(body=b"5;a\rb\r\nhello\r\n0\r\n\r\n")),
    "an extension without an end": (400, chunked(body=b"5;" + b"a" * 2000)),
    "an extension that is long": (400, chunked(body=b"5;" + b"a" * 2000 + b"\r\nhello\r\n0\r\n\r\n")),
    "a size ended by LF": (400, chunked(body=b"5\nhello\n0\n\n")),
    "a chunk ended by LF": (400, chunked(body=b"5\r\nhello\n0\r\n\r\n")),
    "a chunk longer than its size": (400, chunked(body=b"5\r\nhelloXX0\r\n\r\n")),
    "a trailer with a space before the colon": (400, chunked(body=b"0\r\nA : b\r\n\r\n")),
    "a folded trailer": (400, chunked(body=b"0\r\nA: b\r\n c\r\n\r\n")),
    "a trailer without a colon": (400, chunked(body=b"0\r\nGET /inner HTTP/1.1\r\n\r\n")),
    "a trailer with NUL": (400, chunked(body=b"0\r\nA: \x00\r\n\r\n")),
    "no host": (400, b"GET /outer HTTP/1.1\r\nA: b\r\n\r\n"),
    "two hosts": (400, b"GET /outer HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
    "the same host twice": (400, b"GET /outer HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n"),
    "two hosts of HTTP/1.0": (400, b"GET /outer HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n"),
    **{
        f"the host {host!r}": (400, b"GET /outer HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        for host in (
            b"",
            b"a b",
            b"a, b",
            b"u@x",
            b"x/",
            b"x:y",
            b"x:999999",
            b"[::1",
            b"::1",
            b"http://x",
            b"x\xff",
            b"x#",
        )
    },
    "another host in the target": (400, b"GET http://y/outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a user in the target": (400, b"GET http://u@x/outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "another scheme": (400, b"GET ftp://x/outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target without a path": (400, b"GET outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an asterisk": (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a query alone": (400, b"GET ?a HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a fragment": (400, b"GET /outer#a HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target with a space": (400, b"GET /outer HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target with a tab": (400, b"GET /ou\tter HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target in UTF-8": (400, "GET /наружу HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
    "two spaces": (400, b"GET  /outer HTTP/1.1\r\nHost: x\r\n\r\n"),
    "two empty lines before": (400, b"\r\n\r\n" + post()),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "SSH": (400, b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
}


@pytest.mark.parametrize("request_", SERVED.values(), ids=SERVED.keys())
@pytest.mark.parametrize("packets", ["one", "head and body", "of seven bytes"])
async def test_a_body_is_read_as_a_body_and_the_following_request_as_the_next(request_: bytes, packets: str) -> None:
    echo = Echo()
    stream = request_ + NEXT
    head = stream.index(b"\r\n\r\n") + 4
    parts = {
        "one": [stream],
        "head and body": [stream[:head], stream[head:]],
        "of seven bytes": [stream[at : at + 7] for at in range(0, len(stream), 7)],
    }[packets]
    async with served(echo, limits=lenient_limits()) as it:
        assert statuses(await it.ask(*parts)) == [200, 200]
    assert targets(echo) == ["/outer", "/next"]
    assert echo.bodies == [INNER, b""]


@pytest.mark.parametrize(("status", "request_"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("is_split", [False, True])
async def test_an_ambiguous_request_is_refused_and_nothing_after_it_is_read_as_a_request(
    status: int, request_: bytes, *, is_split: bool
) -> None:
    echo = Echo()
    parts = [request_, NEXT] if is_split else [request_ + NEXT]
    async with served(echo, limits=lenient_limits()) as it:
        answer = await it.ask(*parts)
    assert statuses(answer) == [status]
    assert b"connection: close" in answer.lower()
    assert echo.bodies == []
    assert targets(echo) in ([], ["/outer"])  # the latter if the body is invalid and arrives later


@pytest.mark.parametrize(
    ("trailer", "value"),
    [
        (b"Authorization", b"Bearer a-made-up-key"),
        (b"X-Forwarded-For", b"192.0.2.1"),
        (b"Content-Type", b"text/plain"),
        (b"Content-Length", b"5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Host", b"y"),
        (b"Idempotency-Key", b"k"),
        (b"X-Request-ID", b"r"),
    ],
)
async def test_a_trailer_is_not_treated_as_a_header(trailer: bytes, value: bytes) -> None:
    echo = Echo()
    body = chunk(b"hello") + b"0\r\n" + trailer + b": " + value + b"\r\nA: b\r\n\r\n"
    async with served(echo, limits=lenient_limits()) as it:
        assert statuses(await it.ask(chunked(body=body) + NEXT)) == [200, 200]
    assert echo.bodies == [b"hello", b""]
    assert [name for name, _ in echo.asked[0]["headers"]] == [b"host", b"transfer-encoding"]
    assert (trailer.lower(), value) not in echo.asked[1]["headers"]


@given(
    names=st.lists(st.sampled_from([*SERVED, *REFUSED]), min_size=1, max_size=3),
    cuts=st.sets(st.integers(1, 400), max_size=6),
)
@settings(max_examples=60)
def test_the_split_into_packets_does_not_change_the_responses(names: list[str], cuts: set[int]) -> None:
    stream = b"".join(SERVED.get(name) or REFUSED[name][1] for name in names) + NEXT
    ends = [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    parts = [stream[start:end] for start, end in itertools.pairwise([0, *ends])]

    async def play(*packets: bytes) -> tuple[list[int], list[bytes]]:
        echo = Echo()
        async with served(echo, limits=lenient_limits()) as it:
            return statuses(await it.ask(*packets)), echo.bodies

    async def both() -> None:
        assert await play(*parts) == await play(stream)

    asyncio.run(both())


@pytest.mark.parametrize("filler", [b" ", b"\t", b" \t", b"x "])
@pytest.mark.parametrize("end", [b"\x00", b"\x7f", b"\r", b"\n"])
def test_a_long_white_space_field_with_an_invalid_end_is_refused_in_linear_time(filler: bytes, end: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nA:" + filler * (30_000 // len(filler)) + end + b"\r\n"
    began = time.process_time()
    with pytest.raises(HttpError):
        parse_head(head, max_trailer_bytes=0)
    assert time.process_time() - began < 2  # in square time: more, on any machine


@pytest.mark.parametrize("sent", [0, 1, 2, 3, 4], ids=lambda sent: f"{sent} bytes of the body")
@pytest.mark.parametrize("name", ["chunks", "an option without an upgrade"])
async def test_the_body_of_a_request_that_was_sent_ahead_may_come_later(name: str, sent: int) -> None:
    later = SERVED[name].index(b"\r\n\r\n") + 4 + sent
    async with served(echo := Echo(), limits=lenient_limits()) as it:
        together = with_length(body=b"first") + SERVED[name][:later]
        assert statuses(await it.ask(together, SERVED[name][later:] + NEXT)) == [200, 200, 200]
    assert echo.bodies == [b"first", INNER, b""]


async def test_pipelined_requests_are_answered_in_order() -> None:
    echo = Echo()
    async with served(echo, limits=lenient_limits()) as it:
        stream = b"".join(with_length(body=b"x" * size) for size in range(20))
        answer = await it.ask(stream + b"garbage\r\n\r\n" + INNER)
    assert statuses(answer) == [200] * 20 + [400]
    lengths = [part.partition(b"\r\n\r\n")[2][:2].strip() for part in answer.split(b"HTTP/1.1 ")[1:-1]]
    assert [int(length) for length in lengths] == list(range(20))


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_half_closed_its_connection_gets_its_responses(
    tmp_path: Path, count: int, *, over_tls: bool
) -> None:
    async with served(Echo(), limits=lenient_limits(), certificate=tmp_path if over_tls else None) as it:

        def ask() -> bytes:
            with ExitStack() as stack:
                plain = stack.enter_context(socket.create_connection(("127.0.0.1", it.port), timeout=PATIENCE))
                below = stack.enter_context(plain.dup())
                peer = plain
                if it.trust:
                    peer = stack.enter_context(it.trust.wrap_socket(plain, server_hostname="localhost"))
                peer.sendall(INNER * count)
                below.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: peer.recv(4096), b""))

        assert statuses(await asyncio.to_thread(ask)) == [200] * count


async def test_a_client_that_sent_close_notify_gets_its_response(tmp_path: Path) -> None:
    async with served(Echo(), limits=lenient_limits(), certificate=tmp_path) as it:
        assert it.trust
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = it.trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await it.connect(plain=True)

        async def exchange() -> bool:
            writer.write(outgoing.read())
            async with asyncio.timeout(PATIENCE):
                incoming.write(got := await reader.read(65536))
            return bool(got)

        while True:
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            assert await exchange()
        tls.write(INNER)
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()  # closes only the sending side
        while await exchange():
            pass
        assert statuses(tls.read(65536)) == [200]


async def test_expect_100_continue_gets_one_interim_response() -> None:
    echo = Echo()
    async with served(echo, limits=lenient_limits()) as it:
        reader, writer = await it.connect()
        writer.write(with_length(b"Expect: 100-Continue", body=b"hello")[:-5])
        async with asyncio.timeout(PATIENCE):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hello")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert echo.bodies == [b"hello"]


async def test_an_absolute_form_target_is_served() -> None:
    echo = Echo()
    async with served(echo, limits=lenient_limits()) as it:
        stream = b"GET http://x:80/a%20b?c=d HTTP/1.1\r\nHost: x:80\r\nConnection: close\r\n\r\n"
        assert statuses(await it.ask(stream)) == [200]
    (scope,) = echo.asked
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=d")


async def test_http_1_0_needs_no_host_header_and_its_connection_is_closed() -> None:
    async with served(Echo(), limits=lenient_limits()) as it:
        assert statuses(await it.ask(b"GET /outer HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + INNER)) == [200]


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for event in (b"data: 1\n\n", b"", b"data: 2\n\n"):
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize(
    ("version", "body"),
    [
        (b"1.0", b"data: 1\n\ndata: 2\n\n"),
        (b"1.1", b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"),
    ],
)
async def test_a_streamed_response_is_chunked_only_for_http_1_1(version: bytes, body: bytes) -> None:
    async with served(stream, limits=lenient_limits()) as it:
        answer = await it.ask(b"GET /a HTTP/" + version + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, got = answer.partition(b"\r\n\r\n")
    assert got == body
    assert (b"transfer-encoding" in head) is (version == b"1.1")
