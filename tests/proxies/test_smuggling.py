"""Request smuggling: behind a proxy with keep-alive connections no bytes of one client get into another's request."""

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from tests.proxies.conftest import API_KEY, Proxied, handled, tool

ROUNDS = 2  # of each attack
FIRST_PART = 9000  # bytes: more than a proxy buffers, so that the service gets the head before the rest is sent
# A parser that loses its position skips empty lines until the next request. A proxy sends only a long body
# in several parts: Caddy sends up to 16 KiB at once, nginx less.
PADDINGS = (b"", b"\r\n" * 6000, b"\r\n" * 100_000)
PHONE = "+79001234567"


def post(*fields: bytes) -> bytes:
    return b"\r\n".join([b"POST /verify/start HTTP/1.1", b"Host: 127.0.0.1", *fields, b"", b""])


def of_length(*fields: bytes) -> Callable[[bytes], list[bytes]]:
    return lambda inner: [post(*fields, b"Content-Length: %d" % len(inner)), inner]


def of_chunks(*fields: bytes) -> Callable[[bytes], list[bytes]]:
    def parts(inner: bytes) -> list[bytes]:
        return [post(*fields), b"%x\r\n" % len(inner) + inner + b"\r\n", b"0\r\n\r\n"]

    return parts


CHUNKED = b"Transfer-Encoding: chunked"
UPGRADE = b"Connection: Upgrade"
H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
ATTACKS: dict[str, Callable[[bytes], list[bytes]]] = {
    "upgrade": of_length(UPGRADE, b"Upgrade: foo"),
    "upgrade in chunks": of_chunks(UPGRADE, b"Upgrade: foo", CHUNKED),
    "websocket": of_length(UPGRADE, b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAA"),
    "h2c": of_length(*H2C),
    "h2c in chunks": of_chunks(*H2C, CHUNKED),
    "several upgrades": of_length(UPGRADE, b"Upgrade: h2c, websocket, foo/2"),
    "no connection option": of_length(b"Upgrade: websocket"),
    "a GET with a body": lambda inner: [
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: a\r\nContent-Length: %d\r\n\r\n"
        % len(inner),
        inner,
    ],
    "CONNECT": lambda inner: [
        b"CONNECT x:1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(inner),
        inner,
    ],
    "a length and chunks": lambda inner: [post(b"Content-Length: 4", CHUNKED) + b"0\r\n\r\n", inner],
    "chunks and a length": lambda inner: [post(CHUNKED, b"Content-Length: 5") + b"0\r\n\r\n", inner],
    "two lengths": lambda inner: [post(b"Content-Length: 0", b"Content-Length: %d" % len(inner)), inner],
    "an odd coding": lambda inner: [post(b"Transfer-Encoding: xchunked", b"Content-Length: 5") + b"0\r\n\r\n", inner],
    "a coding with a tab": lambda inner: [post(b"Transfer-Encoding:\tchunked\x0b") + b"0\r\n\r\n", inner],
    "gzip, chunked": lambda inner: [post(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", inner],
    "a folded coding": lambda inner: [post(b"Transfer-Encoding:", b" chunked") + b"0\r\n\r\n", inner],
    "LF": lambda inner: [post(b"A: b\nTransfer-Encoding: chunked") + b"0\r\n\r\n", inner],
    "an extension with LF": lambda inner: [post(CHUNKED) + b"5;\nxx\r\nhello\r\n0\r\n\r\n", inner],
    "a huge chunk": lambda inner: [post(CHUNKED) + b"ffffffffffffffff0\r\n", inner],
    "a trailer": lambda inner: [post(CHUNKED) + b"0\r\nAuthorization: Bearer x\r\nContent-Length: 9\r\n\r\n", inner],
    "half a body": lambda inner: [post(b"Content-Length: 9999"), inner],
    "100-continue": of_length(b"Expect: 100-continue", UPGRADE, b"Upgrade: foo"),
}


def attack(port: int, parts: list[bytes]) -> bytes:
    """Send an attack in parts, and return what is received within 0.1 s."""
    stream, answer = b"".join(parts), b""
    if len(stream) > FIRST_PART:
        parts = [stream[:FIRST_PART], stream[FIRST_PART:]]
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.1) as peer:
        for part in parts:
            peer.sendall(part)
            time.sleep(0.02)  # Go's HTTP client keeps a connection if the body is sent within 50 ms after the response
        while got := peer.recv(65536):
            answer += got
    return answer


class Victim:
    """A client that sends requests repeatedly, each with its own request id, and checks the responses."""

    def __init__(self, port: int) -> None:
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {API_KEY}"}, timeout=10
        )
        started = self.http.post("/verify/start", json={"phone": PHONE})
        assert started.status_code == 201, started.text
        self.verification_id: str = started.json()["verification_id"]
        self.sent: list[str] = []
        self.wrong: list[str] = []

    def ask(self) -> None:
        """Read the verification, or check a code with an unknown id; each has one right response."""
        number = len(self.sent)
        self.sent.append(request_id := f"victim-{number}")
        headers = {"X-Request-ID": request_id}
        if number % 2:
            answer = self.http.get(f"/verify/{self.verification_id}", headers=headers)
            is_right = answer.status_code == 200 and answer.json()["verification_id"] == self.verification_id
        else:
            body = {"verification_id": f"vrf_{'0' * 23}", "code": "1234"}
            answer = self.http.post("/verify/check", headers=headers, json=body)
            is_right = answer.status_code == 404 and answer.json()["instance"] == request_id
        if not is_right or answer.headers["X-Request-ID"] != request_id:
            self.wrong.append(f"{request_id}: {answer.status_code} {answer.headers} {answer.text}")


@contextmanager
def asking(victim: Victim) -> Iterator[None]:
    """Have the victim send requests without a pause within the context."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            victim.ask()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_requests_and_responses_of_two_clients_are_never_mixed(proxied: Proxied) -> None:
    victim = Victim(proxied.port)
    cancel = f"/verify/{victim.verification_id}/cancel".encode()
    inners = (
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: attacker\r\n\r\n",
        # Without an end: the next request, with its API key, would become its rest.
        b"POST " + cancel + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: attacker\r\nX: ",
    )
    stolen: list[tuple[str, bytes]] = []

    def attack_and_inspect(name: str, inner: bytes) -> None:
        answer = attack(proxied.port, ATTACKS[name](inner))
        if b"victim-" in answer or victim.verification_id.encode() in answer or len(re.findall(rb"livez", answer)):
            stolen.append((name, answer))

    attacks = [(name, padding + inner) for name in ATTACKS for padding in PADDINGS for inner in inners]
    for one in attacks * ROUNDS:
        attack_and_inspect(*one)
        victim.ask()
    with asking(victim):
        for one in attacks:
            attack_and_inspect(*one)

    assert [line for line in handled(proxied.service) if line["status"] == 401]  # the attacks reached the service
    assert victim.wrong == []
    assert stolen == []
    read = victim.http.get(f"/verify/{victim.verification_id}")
    victim.http.close()
    assert read.json()["status"] == "pending"  # not canceled by the attack
    seen = [line["request_id"] for line in handled(proxied.service) if line["client"] == "shop"]
    assert [name for name in seen if str(name).startswith("victim-")] == victim.sent  # each once, in order
    assert not [line for line in handled(proxied.service) if line["route"] == "/verify/{verification_id}/cancel"]
    assert "Traceback" not in proxied.service.log.read_text()


@pytest.mark.parametrize("directly", [False, True])
def test_curl_with_an_http_2_upgrade_offer_can_send_a_body(proxied: Proxied, *, directly: bool) -> None:
    base_url = proxied.service.base_url if directly else f"http://127.0.0.1:{proxied.port}"
    curl = [tool("curl"), "--silent", "--http2", "--header", f"Authorization: Bearer {API_KEY}"]
    body = json.dumps({"phone": PHONE})

    done = subprocess.run(
        [*curl, "--json", body, f"{base_url}/verify/start"], capture_output=True, check=True, timeout=20
    )

    assert json.loads(done.stdout)["status"] == "pending", done.stdout
