"""Memory and file descriptors of the service during floods of connections without an API key.

Each flood runs for some seconds against a separate process of the service with 512 descriptors, while a well-behaved
client sends ``GET /livez`` on new connections. Nothing passes or fails here;
``tests/integration`` has the tests.
"""

import argparse
import asyncio
import contextlib
import hashlib
import resource
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from benchmarks.load import HOST
from benchmarks.server import Server

DESCRIPTORS = 512  # of the service: few, so that they would soon be used up
PROBE_SECONDS = 1.0
API_KEY_DIGEST = hashlib.sha256(b"a key that nobody has").hexdigest()

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
OPENAPI = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_BODY = b"POST /hooks/plusofon/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
LONG_BODY = b"POST /verify/start HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources of a process: resident memory in MB, and open descriptors."""

    memory: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Read it from /proc."""
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return cls(int(resident.split()[1]) // 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())))


@dataclass(slots=True)
class Course:
    """The results of a flood: usage over time, and the success of the well-behaved client."""

    usages: list[Usage] = field(default_factory=list)
    answered: int = 0
    asked: int = 0


async def send_only(peer: socket.socket, data: bytes) -> None:
    """Send, and never read."""
    await asyncio.get_running_loop().sock_sendall(peer, data)


async def send_and_read(peer: socket.socket, data: bytes) -> None:
    """Send repeatedly, and read the responses slowly."""
    loop = asyncio.get_running_loop()

    async def read() -> None:
        while await loop.sock_recv(peer, 4096):  # noqa: ASYNC110 - the sleep is what makes it slow
            await asyncio.sleep(0.01)

    reading = asyncio.create_task(read())
    try:
        while not reading.done():
            await loop.sock_sendall(peer, data)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def send_now_and_then(peer: socket.socket, data: bytes) -> None:
    """Send every two seconds."""
    while True:
        await asyncio.get_running_loop().sock_sendall(peer, data)
        await asyncio.sleep(2)


async def send_without_end(peer: socket.socket, data: bytes) -> None:
    """Send, and continue with the body as long as it is read."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(peer, data)
    while True:
        await loop.sock_sendall(peer, b"x" * 65536)


async def send_and_disconnect(peer: socket.socket, data: bytes) -> None:
    """Send, and disconnect with a reset."""
    await asyncio.get_running_loop().sock_sendall(peer, data)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """A number of connections that each send something; with ``again``, a closed one is made again."""

    name: str
    connections: int
    data: bytes
    play: Callable[[socket.socket, bytes], Awaitable[None]]
    again: bool = False
    over_tls: bool = False

    async def run(self, port: int) -> None:
        """Run until cancelled; connections stay open until then."""
        with ExitStack() as stack:
            await asyncio.gather(*(self._connect(port, stack) for _ in range(self.connections)))
            await asyncio.Event().wait()

    async def _connect(self, port: int, stack: ExitStack) -> None:
        while True:
            peer = socket.socket()
            if not self.again:
                stack.callback(peer.close)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.setblocking(False)  # noqa: FBT003 - the standard library has it so
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_connect(peer, (HOST, port))
                await self.play(peer, self.data)
            if not self.again:
                return
            peer.close()
            await asyncio.sleep(0.01)


FLOODS = (
    Flood(name="200 x 1,900 requests ahead, not read", connections=200, data=LIVEZ * 1900, play=send_only),
    Flood(name="200 x requests ahead, read slowly", connections=200, data=LIVEZ * 1900, play=send_and_read),
    Flood(name="480 x 40 large answers not taken", connections=480, data=OPENAPI * 40, play=send_only),
    Flood(name="900 connections without a byte", connections=900, data=b"", play=send_only),
    Flood(name="900 that send CRLF every 2 s", connections=900, data=b"\r\n", play=send_now_and_then),
    Flood(name="900 half a body", connections=900, data=HALF_BODY, play=send_only),
    Flood(name="900 idle after an answer", connections=900, data=LIVEZ, play=send_only),
    Flood(name="20 bodies after a refusal", connections=20, data=LONG_BODY, play=send_without_end, again=True),
    Flood(
        name="50 that disconnect with 500 ahead", connections=50, data=LIVEZ * 500, play=send_and_disconnect, again=True
    ),
    Flood(name="900 without a TLS handshake", connections=900, data=b"", play=send_only, over_tls=True),
)


def _probe(port: int, tls: ssl.SSLContext | None) -> bool:
    """Send a request as a client would."""
    with contextlib.suppress(OSError), ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection((HOST, port), timeout=2))
        if tls:
            peer = stack.enter_context(tls.wrap_socket(peer, server_hostname="localhost"))
        peer.sendall(LIVEZ)
        return peer.recv(100).startswith(b"HTTP/1.1 200")
    return False


async def watch(flood: Flood, server: Server, tls: ssl.SSLContext | None, seconds: float) -> Course:
    """Run a flood, and measure ten times a second."""
    course = Course([Usage.of(server.pid)])
    flooding = asyncio.create_task(flood.run(server.port))
    began = probed = time.monotonic()
    while time.monotonic() < began + seconds:
        await asyncio.sleep(0.1)
        course.usages.append(Usage.of(server.pid))
        if time.monotonic() > probed + PROBE_SECONDS:
            course.asked += 1
            course.answered += await asyncio.to_thread(_probe, server.port, tls if flood.over_tls else None)
            probed = time.monotonic()
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    await asyncio.sleep(3)
    course.usages.append(Usage.of(server.pid))
    return course


def row(name: str, course: Course) -> str:
    """Return a table row: start, peak, the end of the flood and after it."""
    *during, after = course.usages
    cells = [f"{name:38}"]
    for figure in ("memory", "descriptors"):
        course_of = [int(getattr(usage, figure)) for usage in during]
        cells += [f"{n:7}" for n in (course_of[0], max(course_of), course_of[-1], getattr(after, figure))]
    return "".join([*cells, f"{course.answered:6} of {course.asked}"])


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """Limit the file descriptors of processes started within the context."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))


def main() -> None:
    """Run all floods, each against a separate service, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=18, help="how long each flood lasts")
    seconds = parser.parse_args().seconds
    if not Path("/proc/self/status").exists():
        sys.exit("What a process holds is read from /proc: this needs Linux.")

    environment = {"MODE": "sandbox", "API_KEYS": f"nobody:{API_KEY_DIGEST}"}
    authority, tls = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(tls)
    print(f"{'':38}{'memory, MB':^28}{'descriptors':^28}{'others':>10}")
    print(f"{'':38}" + f"{'start':>7}{'peak':>7}{'end':>7}{'after':>7}" * 2 + f"{'served':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        certificate = str(Path(folder) / "all.pem")
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
        over_tls = {"TLS_CERT_FILE": certificate, "TLS_KEY_FILE": certificate}
        for flood in FLOODS:
            with ExitStack() as stack:
                with few_descriptors():
                    service = Server(["app", "serve"], environment | (over_tls if flood.over_tls else {}))
                    server = stack.enter_context(service)
                time.sleep(1)
                print(row(flood.name, asyncio.run(watch(flood, server, tls, seconds))), flush=True)


if __name__ == "__main__":
    main()
