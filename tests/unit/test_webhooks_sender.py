"""One webhook delivery attempt: which responses are successes, and that no private address is ever connected to."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trustme
from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from app.webhooks.addresses import AddressNotAllowed, is_public, open_public_socket
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import Outcome, WebhookSender
from tests.unit.test_webhooks_endpoint import EVENT

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "77.88.8.8"]
NOT_PUBLIC = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "100.100.100.200", "192.0.0.8", "192.0.0.192", "192.0.2.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("192.88.99.1", "168.63.129.16"),
    *("::", "::1", "::7f00:1", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1", "2001:db8::1", "2002:7f00:1::", "2001:0:7f00:1::", "3fff::1", "5f00::1"),
    *("", "localhost", "1.1.1.1/32", "2130706433", "127.1", "0x7f.0.0.1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_globally_routable_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_private_reserved_and_malformed_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_a_socket_is_opened_only_for_a_public_address() -> None:
    open_public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("1.1.1.1", 443))).close()
    open_public_socket((socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("2606:4700:4700::1111", 443, 0, 0))).close()
    with pytest.raises(AddressNotAllowed):
        open_public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 443)))
    with pytest.raises(AddressNotAllowed):
        open_public_socket((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("1.1.1.1", 443)))


class FakeResolver(AbstractResolver):
    """Resolve every name to the next of ``answers``, and repeat the last one."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in addresses
        ]

    async def close(self) -> None: ...


def answering(status: str, *headers: str, body: bytes = b"") -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body
        )

    return answer


class Receiver:
    """A server on the loopback interface that counts connections and runs ``answer`` for each."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client closed the connection, as some of these tests want
        finally:
            writer.close()


@asynccontextmanager
async def listening(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(answer)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver


def endpoint(url: str) -> WebhookEndpoint:
    return WebhookEndpoint(url, (b"s" * 24,))


async def attempt(url: str, *, allow_private: bool = True, seconds: float = 20) -> tuple[Outcome, str]:
    async with WebhookSender(allow_private=allow_private, timeout=seconds) as sender:
        made = await sender.send(endpoint(url), EVENT)
    return made.outcome, made.error


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "202 Accepted", "204 No Content", "299 Odd"])
async def test_any_2xx_response_is_a_success(status: str) -> None:
    async with listening(answering(status)) as receiver:
        assert await attempt(f"http://127.0.0.1:{receiver.port}/hook") == (Outcome.DELIVERED, "")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("400 Bad Request", Outcome.REJECTED),
        ("404 Not Found", Outcome.REJECTED),
        ("429 Too Many Requests", Outcome.REJECTED),
        ("500 Oops", Outcome.REJECTED),
        ("503 Later", Outcome.REJECTED),
        ("410 Gone", Outcome.GONE),
    ],
)
async def test_any_other_status_is_a_failure_reported_with_its_status(status: str, outcome: Outcome) -> None:
    async with listening(answering(status, body=b"a secret of the receiver")) as receiver:
        found, error = await attempt(f"http://127.0.0.1:{receiver.port}/hook")
    assert found is outcome
    assert error.startswith(f"status {status[:3]}")
    assert "secret" not in error


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_not_followed(status: str) -> None:
    async with (
        listening(answering("200 OK")) as inner,
        listening(answering(status, f"Location: http://127.0.0.1:{inner.port}/metadata")) as receiver,
    ):
        outcome, error = await attempt(f"http://127.0.0.1:{receiver.port}/hook")
        assert (outcome, error) == (Outcome.REJECTED, f"status {status[:3]}: redirects are not followed")
        assert inner.connections == 0


async def test_a_redirect_to_cloud_metadata_is_a_failure() -> None:
    async with listening(answering("302 Found", "Location: http://169.254.169.254/latest/")) as receiver:
        outcome, _ = await attempt(f"http://127.0.0.1:{receiver.port}/hook")
    assert outcome is Outcome.REJECTED


async def stall(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a header line every 10 ms, so that the connection is never idle."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(10_000):
        writer.write(b"X-%d: 1\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [stall, drip])
async def test_an_attempt_has_a_total_timeout(answer: Answer) -> None:
    async with listening(answer) as receiver:
        outcome, error = await attempt(f"http://127.0.0.1:{receiver.port}/hook", seconds=0.1)
    assert (outcome, error) == (Outcome.TIMEOUT, "no answer within 0.1 s")


async def test_an_endless_response_body_is_not_read_to_its_end() -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with listening(pour) as receiver:
        outcome, _ = await attempt(f"http://127.0.0.1:{receiver.port}/hook")
    assert outcome is Outcome.DELIVERED
    assert sent < 10_000_000  # what the buffers of two sockets hold


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


async def speak_ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"SSH-2.0-OpenSSH_9.6 a secret of the receiver\r\n")


async def send_huge_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n")


@pytest.mark.parametrize("answer", [reset, speak_ssh, send_huge_header])
async def test_a_response_that_is_not_http_is_a_failure_and_is_not_quoted(answer: Answer) -> None:
    async with listening(answer) as receiver:
        outcome, error = await attempt(f"http://127.0.0.1:{receiver.port}/hook")
    assert outcome is Outcome.UNREACHABLE
    assert error.startswith("no answer: ")
    assert "secret" not in error


async def test_a_refused_connection_is_a_failure() -> None:
    async with listening(reset) as receiver:
        port = receiver.port
    assert await attempt(f"http://127.0.0.1:{port}/hook") == (Outcome.UNREACHABLE, "no connection: Connection refused")


async def test_an_untrusted_certificate_is_a_failure() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with listening(answering("200 OK"), tls) as receiver:
        outcome, error = await attempt(f"https://127.0.0.1:{receiver.port}/hook")
    assert outcome is Outcome.UNREACHABLE
    assert error.startswith("no connection: ")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_no_connection_is_made_to_a_private_host(host: str) -> None:
    async with listening(answering("200 OK")) as receiver:
        outcome, error = await attempt(f"http://{host}:{receiver.port}/hook", allow_private=False)
        assert receiver.connections == 0
    assert (outcome, error) == (Outcome.FORBIDDEN, "the host leads to an address that is not public")


@pytest.mark.parametrize("host", ["2130706433", "0x7f.0.0.1", "127.1", "0177.0.0.1", "①②⑦.0.0.1"])
async def test_no_connection_is_made_to_a_private_host_in_another_spelling(host: str) -> None:
    async with listening(answering("200 OK")) as receiver:
        outcome, _ = await attempt(f"http://{host}:{receiver.port}/hook", allow_private=False)
        assert receiver.connections == 0
    assert outcome in {Outcome.FORBIDDEN, Outcome.UNREACHABLE}


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["::1", "127.0.0.1"], ["127.0.0.1"] * 3])
async def test_no_connection_is_made_when_a_public_name_resolves_to_a_private_address(addresses: list[str]) -> None:
    async with listening(answering("200 OK")) as receiver:
        async with WebhookSender(resolver=FakeResolver(addresses), timeout=20) as sender:
            made = await sender.send(endpoint(f"http://shop.example:{receiver.port}/hook"), EVENT)
        assert receiver.connections == 0
    assert made.outcome is Outcome.FORBIDDEN


# The guard that blocks connections to other machines in tests warns about the address that was tried.
reaches_out = pytest.warns(UserWarning, match=r'host "1\.1\.1\.1"')


@pytest.mark.parametrize("addresses", [["127.0.0.1", "1.1.1.1"], ["1.1.1.1", "127.0.0.1"]])
async def test_of_several_addresses_the_private_one_is_not_connected_to(addresses: list[str]) -> None:
    async with listening(answering("200 OK")) as receiver:
        async with WebhookSender(resolver=FakeResolver(addresses), timeout=20) as sender:
            with reaches_out:
                made = await sender.send(endpoint(f"http://shop.example:{receiver.port}/hook"), EVENT)
        assert receiver.connections == 0
    assert made.outcome in {Outcome.UNREACHABLE, Outcome.FORBIDDEN}


async def test_a_name_that_resolves_differently_later_is_checked_again() -> None:
    """DNS rebinding: a public address first, which passes an early check, then a private one."""
    resolver = FakeResolver(["1.1.1.1"], ["127.0.0.1"])
    async with listening(answering("200 OK")) as receiver:
        url = f"http://shop.example:{receiver.port}/hook"
        async with WebhookSender(resolver=resolver, timeout=20) as sender:
            with reaches_out:
                await sender.send(endpoint(url), EVENT)
            assert isinstance(sender._session.connector, TCPConnector)
            sender._session.connector.clear_dns_cache()  # in place of waiting for its end
            made = await sender.send(endpoint(url), EVENT)
        assert receiver.connections == 0
    assert resolver.asked == 2
    assert made.outcome is Outcome.FORBIDDEN


async def test_proxy_and_netrc_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen = b""

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\n\r\n")

    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login made-up password made-up\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with listening(note) as receiver, listening(answering("200 OK")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await attempt(f"http://127.0.0.1:{receiver.port}/hook"))[0] is Outcome.DELIVERED
        assert proxy.connections == 0
    assert b"authorization" not in seen.lower()
    assert b"Content-Type: application/json" in seen


async def test_one_connection_is_reused_for_several_events() -> None:
    async def serve_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with listening(serve_all) as receiver:
        async with WebhookSender(allow_private=True) as sender:
            for _ in range(3):
                await sender.send(endpoint(f"http://127.0.0.1:{receiver.port}/hook"), EVENT)
        assert receiver.connections == 1
