"""A stand-in for Plusofon that costs next to nothing: it accepts every call, after a delay, and remembers the code.

It runs beside the load client, so that its processor time is never part of the service's.
"""

import asyncio
import json
import re
import ssl
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.load import HOST

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)


class ProviderStub:
    """Plusofon's API on loopback, as an async context manager; in the clear, or with TLS where it has a ``folder``.

    Args:
        folder: where the certificate is written that a client has to trust, as ``ca_file``.

    """

    def __init__(self, folder: Path | None = None) -> None:
        self.codes: dict[str, str] = {}
        self.delay = 0.0  # seconds until a call is answered, at least
        self.delays: list[float] = []  # seconds that it took, by a timer that is late by a millisecond or two
        self.port = 0
        self.connections = 0
        self._folder = folder
        self._call_ids = count(1)
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"{'https' if self._folder else 'http'}://{HOST}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate to trust."""
        assert self._folder  # noqa: S101 - only asked where there is TLS
        return self._folder / "ca.pem"

    async def __aenter__(self) -> Self:
        tls = _make_tls(self._folder) if self._folder else None
        loop = asyncio.get_running_loop()
        server = await self._stack.enter_async_context(
            await loop.create_server(lambda: _StubProtocol(self), HOST, 0, ssl=tls, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def answer(self, path: bytes, body: bytes) -> bytes:
        """Return the answer to a request, as JSON."""
        if path.endswith(b"/call"):
            asked = json.loads(body)
            self.codes[asked["phone"][1:]] = asked["pin"]
            return b'{"success":true,"data":{"call_id":"%d"}}' % next(self._call_ids)
        if path.endswith(b"/status"):
            return b'{"success":true,"data":{"status":"completed"}}'
        if path.endswith(b"/balance"):
            return b'{"success":true,"data":{"balance":"10000.00"}}'
        return b'{"success":true,"data":[]}'


class _StubProtocol(asyncio.Protocol):
    """Reads one request after the other; a head and a body by its Content-Length, and nothing else of HTTP."""

    def __init__(self, stub: ProviderStub) -> None:
        self._stub = stub
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of TCP; uvloop's is no subclass
        self._stub.connections += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        head += b"\r\n"
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if len(rest) < length:
            return
        self._received = rest[length:]
        path = head.split(b" ", 2)[1]
        body = self._stub.answer(path, rest[:length])
        delay = self._stub.delay if path.endswith(b"/call") else 0
        if delay:
            is_last = bool(_CLOSE.search(head))
            asyncio.get_running_loop().call_later(delay, self._answer_late, body, is_last, time.perf_counter())
        else:
            self._answer(body, is_last=bool(_CLOSE.search(head)))

    def _answer_late(self, body: bytes, is_last: bool, asked: float) -> None:  # noqa: FBT001 - call_later takes no keywords
        self._stub.delays.append(time.perf_counter() - asked)
        self._answer(body, is_last=is_last)

    def _answer(self, body: bytes, *, is_last: bool) -> None:
        assert self._transport is not None  # noqa: S101 - a request came over it
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        if is_last:
            self._transport.close()


def _make_tls(folder: Path) -> ssl.SSLContext:
    """Make a certificate for loopback, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context
