"""Requests through a proxy and with a custom CA over real sockets: what arrives, and how failures are reported."""

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from app.container import open_container
from app.outbound import trust
from app.providers.http import NeverSent, Reason, make_transport
from app.providers.plusofon.client import PlusofonClient
from app.providers.relay import wire
from app.providers.relay.client import RelaySender
from app.settings import load_settings
from app.settings.sections import OutboundSettings
from app.tokens import generate_keys
from app.verification.channels import Channel
from app.verification.errors import ProviderUnavailable
from app.verification.model import CallOutcome, Lang, Placed, Unknown
from app.verification.ports import CallId
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import Outcome, WebhookSender
from tests.contract.test_plusofon_faults import (
    PHONE,
    PIN,
    TOKEN,
    Conversation,
    answer_each,
    assert_never_sent,
    make_client,
    serving,
)
from tests.provider_options import http_options
from tests.unit.test_webhooks_endpoint import EVENT

HOST = "restapi.plusofon.test"  # a name that only the proxy can resolve
SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()

Tunnel = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """A forward proxy that tunnels every CONNECT to one local port, or runs ``tunnel`` instead."""

    def __init__(self, port: int, tunnel: Tunnel | None = None) -> None:
        self._port = port
        self._tunnel = tunnel or self._connect
        self._tunnels: set[asyncio.Task[None]] = set()
        self.heads: list[str] = []
        self.url = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tunnels.add(asyncio.create_task(self._serve(reader, writer)))

    async def stop(self) -> None:
        for task in self._tunnels:
            task.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            try:
                await self._tunnel(reader, writer)
            finally:
                writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_copy(reader, ours), _copy(theirs, writer))
        finally:
            ours.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def proxying(port: int, tunnel: Tunnel | None = None, credentials: str = "") -> AsyncIterator[Proxy]:
    proxy = Proxy(port, tunnel)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.url = f"http://{credentials}127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.stop()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST, "127.0.0.1").configure_cert(context)
    return context


def client(url: str, proxy: str | None = None, ca_file: Path | None = None) -> PlusofonClient:
    return make_client(url, transport=make_transport(proxy=proxy, ca_file=ca_file), connect=1.5, budget=20)


async def place(plusofon: PlusofonClient) -> CallOutcome:
    return await plusofon.initiate_call(PHONE, PIN, Lang.RU, 2)


async def connection_failure(plusofon: PlusofonClient) -> NeverSent:
    with pytest.raises(ProviderUnavailable) as caught:
        await plusofon.get_account()
    assert isinstance(caught.value.__cause__, NeverSent)
    return caught.value.__cause__


async def test_a_call_goes_through_a_proxy_that_resolves_the_host(tls: ssl.SSLContext, ca_file: Path) -> None:
    async with (
        serving(answer_each, tls=tls) as server,
        proxying(server.port, credentials="user:p%40ss@") as proxy,
        client(f"https://{HOST}", proxy.url, ca_file) as plusofon,
    ):
        assert await place(plusofon) == Placed("call-1")

    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n")
    assert f"Basic {base64.b64encode(b'user:p@ss').decode()}" in head
    assert TOKEN not in head
    assert PIN not in head
    (request,) = server.requests
    assert request.startswith(b"POST /api/v1/flash-call/call HTTP/1.1\r\n")
    assert b"Proxy-Authorization" not in request


async def test_a_tunnel_is_kept_for_the_next_request(tls: ssl.SSLContext, ca_file: Path) -> None:
    async with (
        serving(answer_each, tls=tls) as server,
        proxying(server.port) as proxy,
        client(f"https://{HOST}", proxy.url, ca_file) as plusofon,
    ):
        for _ in range(3):
            assert await place(plusofon) == Placed("call-1")
    assert (len(proxy.heads), len(server.requests)) == (1, 3)


async def test_a_proxy_is_not_used_for_plain_http(ca_file: Path) -> None:
    """It would see the request."""
    async with (
        serving(answer_each) as server,
        proxying(server.port) as proxy,
        client(server.url, proxy.url, ca_file) as plusofon,
    ):
        assert_never_sent(await place(plusofon))
    assert not proxy.heads
    assert not server.requests


@pytest.mark.parametrize("written", ["%D0%BF%23%C3%A9:%D1%8F%3A%40", "п%23é:я%3A%40"])
async def test_a_non_ascii_password_is_sent_to_the_proxy_in_utf_8(
    tls: ssl.SSLContext, ca_file: Path, written: str
) -> None:
    async with serving(answer_each, tls=tls) as server, proxying(server.port, credentials=f"{written}@") as proxy:
        proxy_url = OutboundSettings(proxy=SecretStr(proxy.url)).proxy_url or ""
        async with client(f"https://{HOST}", proxy_url, ca_file) as plusofon:
            assert await place(plusofon) == Placed("call-1")

    assert f"Basic {base64.b64encode('п#é:я:@'.encode()).decode()}" in proxy.heads[0]


async def test_a_relay_is_reached_through_the_proxy(tls: ssl.SSLContext, ca_file: Path) -> None:
    async with (
        serving(answer_each, tls=tls) as server,
        proxying(server.port) as proxy,
        RelaySender(
            Channel.VOICE,
            url=f"https://{HOST}/calls",
            secret=SECRET,
            **http_options(transport=make_transport(proxy=proxy.url, ca_file=ca_file)),
        ) as relay,
    ):
        with pytest.raises(ProviderUnavailable):  # the server does not answer like a relay
            await relay.fetch_status(wire.name_call(CallId("vrf_0a11b22c33d44e55f667788", 1), Channel.VOICE))
    assert len(proxy.heads) == len(server.requests) == 1


async def test_a_custom_ca_is_trusted_only_if_configured(tls: ssl.SSLContext, ca_file: Path) -> None:
    async with serving(answer_each, tls=tls) as server:
        async with client(f"https://127.0.0.1:{server.port}", ca_file=ca_file) as plusofon:
            assert await place(plusofon) == Placed("call-1")
        async with client(f"https://127.0.0.1:{server.port}") as plusofon:
            assert_never_sent(await place(plusofon))
            error = await connection_failure(plusofon)
        assert len(server.requests) == 1
    assert (error.reason, error.detail) == (Reason.CERTIFICATE, "unable to get local issuer certificate")


def test_the_default_cas_stay_trusted_with_a_custom_ca(ca_file: Path) -> None:
    usual = ssl.create_default_context()
    usual.verify_flags |= ssl.VERIFY_X509_STRICT  # as from Python 3.13 on
    assert trust(usual, None).verify_flags & ssl.VERIFY_X509_STRICT
    known = len(usual.get_ca_certs())
    assert len(trust(usual, ca_file).get_ca_certs()) == known + 1
    assert not usual.verify_flags & ssl.VERIFY_X509_STRICT
    assert usual.verify_mode is ssl.CERT_REQUIRED
    assert usual.check_hostname


def answering(answer: bytes) -> Tunnel:
    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return tunnel


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await reader.read(1)
    writer.write(b"this is not TLS")
    await reader.read()


async def cut_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await reader.read(1)


@pytest.mark.parametrize(
    ("tunnel", "reasons", "detail"),
    [
        (answering(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), {Reason.PROXY_REFUSED}, "status 407"),
        (answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"), {Reason.PROXY_REFUSED}, "status 403"),
        (answering(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), {Reason.PROXY_REFUSED}, "status 502"),
        (answering(b""), {Reason.PROXY_UNREACHABLE}, ""),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), {Reason.PROXY_UNREACHABLE}, ""),
        (answering(b"HTTP/1.1 "), {Reason.PROXY_UNREACHABLE}, ""),
        (hang, {Reason.TIMEOUT}, ""),
        (no_tls, {Reason.TLS}, ""),
        (cut_tls, {Reason.PROXY_UNREACHABLE, Reason.TLS}, ""),
    ],
    ids=["407", "403", "502", "closes", "is not HTTP", "truncated", "hangs", "no TLS behind it", "TLS is cut"],
)
async def test_a_call_is_refused_when_the_proxy_makes_no_tunnel(
    tunnel: Tunnel, reasons: set[Reason], detail: str
) -> None:
    """Nothing was written to the provider, so the call is certainly refused and never unclear."""
    async with proxying(1, tunnel) as proxy, client(f"https://{HOST}", proxy.url) as plusofon:
        assert_never_sent(await place(plusofon))
        error = await connection_failure(plusofon)
    assert error.reason in reasons
    assert detail in error.detail
    assert all(PIN not in head and TOKEN not in head for head in proxy.heads)


async def test_an_unreachable_proxy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with client(f"https://{HOST}", proxy) as plusofon:
            assert_never_sent(await place(plusofon))
            assert (await connection_failure(plusofon)).reason is Reason.PROXY_UNREACHABLE


async def test_a_request_cut_off_inside_the_tunnel_is_unclear(tls: ssl.SSLContext, ca_file: Path) -> None:
    async def read_and_cut(conversation: Conversation) -> None:
        await conversation.read_request()
        conversation.reset()

    async with (
        serving(read_and_cut, tls=tls) as server,
        proxying(server.port) as proxy,
        client(f"https://{HOST}", proxy.url, ca_file) as plusofon,
    ):
        assert isinstance(await place(plusofon), Unknown)
        assert len(server.requests) == 1


async def deliver(url: str, **how: object) -> tuple[Outcome, str]:
    async with WebhookSender(timeout=20, **how) as sender:  # type: ignore[arg-type] # arguments of the sender
        attempt = await sender.send(WebhookEndpoint(url, (b"s" * 24,)), EVENT)
    return attempt.outcome, attempt.error


async def accept_events(conversation: Conversation) -> None:
    while True:
        await conversation.read_request()
        await conversation.answer(b"")


async def test_a_webhook_goes_through_the_proxy_byte_for_byte(tls: ssl.SSLContext, ca_file: Path) -> None:
    trusted = trust(ssl.create_default_context(), ca_file)
    async with serving(accept_events, tls=tls) as server, proxying(server.port) as proxy:
        url = f"https://{HOST}/a%2fb?"
        assert await deliver(url, proxy=proxy.url, ssl_context=trusted) == (Outcome.DELIVERED, "")
        # A loopback address is forbidden without the proxy; with it, the proxy decides.
        assert (await deliver(f"https://127.0.0.1:{server.port}/", ssl_context=trusted))[0] is Outcome.FORBIDDEN
    assert proxy.heads[0].startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n")
    assert server.requests[0].startswith(b"POST /a%2fb? HTTP/1.1\r\n")


async def test_a_webhook_to_localhost_bypasses_the_proxy_in_the_sandbox() -> None:
    async with serving(accept_events) as server, proxying(1, answering(b"HTTP/1.1 403 No\r\n\r\n")) as proxy:
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{server.port}/"
            assert await deliver(url, proxy=proxy.url, allow_private=True) == (Outcome.DELIVERED, "")
    assert proxy.heads == []


@pytest.mark.parametrize("private", [False, True])
async def test_a_webhook_refused_by_the_proxy_is_reported(*, private: bool) -> None:
    async with proxying(1, answering(b"HTTP/1.1 407 Who are you\r\n\r\n")) as proxy:
        outcome, error = await deliver(f"https://{HOST}/", proxy=proxy.url, allow_private=private)
    assert (outcome, error) == (Outcome.UNREACHABLE, "no connection: the proxy refused with status 407")
    outcome, error = await deliver(f"https://{HOST}/", proxy="http://127.0.0.1:1")
    assert (outcome, error) == (Outcome.UNREACHABLE, "no connection by the proxy: Connection refused")


async def test_proxy_and_ca_of_the_settings_are_used(tls: ssl.SSLContext, ca_file: Path) -> None:
    async def accounts(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.answer(b'{"success": true, "data": [{"id": 7, "name": "Shop"}]}')

    async with serving(accounts, tls=tls) as server, proxying(server.port) as proxy:
        settings = load_settings(
            mode="production",
            plusofon={"user_id": "7", "access_token": TOKEN, "base_url": f"https://{HOST}"},
            secret={"key": "k" * 32},
            api={"keys": [f"shop:{'0' * 64}"]},
            token={"keys": generate_keys()},
            redis={"url": "redis://127.0.0.1:1"},
            outbound={"proxy": proxy.url, "ca_file": ca_file},
        )
        async with open_container(settings) as container:
            assert [account.name for account in await container.providers.accounts.get_account()] == ["Shop"]
    assert len(proxy.heads) == 1
