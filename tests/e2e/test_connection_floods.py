"""Floods of connections without an API key exhaust neither file descriptors nor memory, and block no other client."""

import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from benchmarks.floods import Usage
from tests.e2e.test_serving import Serving, serving
from tests.waiting import PATIENCE, wait_until

DESCRIPTORS = 128
ASK = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"POST /verify/start HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """Limit the file descriptors of processes started within the context."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(params=["http", "https"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    arguments: tuple[str, ...] = ()
    tls = None
    if request.param == "https":
        authority, tls = trustme.CA(), ssl.create_default_context()
        authority.configure_trust(tls)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "all.pem")
        arguments = ("--tls-cert", "all.pem", "--tls-key", "all.pem")
    with contextlib.ExitStack() as stack:
        with few_descriptors():
            served = stack.enter_context(serving(tmp_path, *arguments, environment={"MODE": "sandbox"}, tls=tls))
        yield served


def connect(served: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.base_url.rpartition(":")[2])), timeout=PATIENCE)


def test_held_connections_do_not_block_other_clients(service: Serving) -> None:
    before = Usage.of(service.process.pid)
    with contextlib.ExitStack() as stack:
        for number in range(300):
            peer = stack.enter_context(connect(service))
            with contextlib.suppress(OSError):  # it may already be closed in favour of a newer one
                peer.sendall((b"", b"\r\n", b"\x16", HALF, ASK)[number % 5])
            if number % 50 == 0:
                assert service.get("/livez").status_code == 200
        during = Usage.of(service.process.pid)
        assert service.get("/readyz").status_code == 200  # needs Redis, and so possibly a new descriptor

    assert during.descriptors < DESCRIPTORS
    wait_until(lambda: Usage.of(service.process.pid).descriptors <= before.descriptors + 2)
    dropped = [event for event in service.events() if event["event"] == "http.connection_dropped"]
    assert {"limit"} <= {event["reason"] for event in dropped}
    assert len(dropped) < 10
    assert "Traceback" not in service.log.read_text()


def test_pipelined_requests_with_unread_responses_take_no_memory(service: Serving) -> None:
    before = Usage.of(service.process.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            peer = connect(service)
            if service.tls:
                peer = service.tls.wrap_socket(peer, server_hostname="127.0.0.1")
            stack.enter_context(peer)
            peer.setblocking(False)  # noqa: FBT003 - the standard library has it so
            with contextlib.suppress(OSError):  # send until the buffers are full
                for _ in range(40):
                    peer.send(ASK * 500)
        for _ in range(20):
            assert service.get("/livez").status_code == 200
            assert Usage.of(service.process.pid).memory < before.memory + 40
            time.sleep(0.1)
    assert "Traceback" not in service.log.read_text()
