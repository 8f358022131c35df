"""Scripts run over TLS as they do on a socket, also behind a Sentinel that speaks TLS too."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from app.store.connection import connect
from app.store.scripts import PROBE, ScriptRunner
from tests.contract.test_redis_acl import running_redis

PASSWORD = "made-up-for-the-tests"


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    return tmp_path / "ca.pem"


@pytest.fixture
def tls(tmp_path: Path, ca_file: Path) -> Sequence[str]:
    """Return the options of a server with a certificate of its own authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(ca_file)
    certificate.cert_chain_pems[0].write_to_path(cert_file)
    certificate.private_key_pem.write_to_path(key_file)
    files = ("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file), "--tls-ca-cert-file", str(ca_file))
    return (*files, "--tls-auth-clients", "no")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_scripts_run_over_tls_and_the_connection_is_kept(
    tmp_path: Path, ca_file: Path, tls: Sequence[str]
) -> None:
    port = free_port()
    with running_redis(tmp_path, "--save", "", "--requirepass", PASSWORD, "--tls-port", str(port), *tls):
        client = connect(f"rediss://:{PASSWORD}@127.0.0.1:{port}/1?ssl_ca_certs={ca_file}", timeout=5)
        runner = ScriptRunner(client, timeout=5)
        before = (await client.info("stats"))["total_connections_received"]
        for _ in range(3):
            assert await asyncio.gather(*(runner.run(PROBE, ["{probe}"], [1000]) for _ in range(10))) == [1] * 10
        connected = (await client.info("stats"))["total_connections_received"]
        await client.aclose()

    assert connected - before == 1  # for scripts; that for INFO was there


async def test_scripts_run_over_tls_behind_a_sentinel(tmp_path: Path, ca_file: Path, tls: Sequence[str]) -> None:
    port, sentinel_port, folder = free_port(), free_port(), tmp_path / "sentinel"
    folder.mkdir()
    (folder / "sentinel.conf").write_text(f"sentinel monitor main 127.0.0.1 {port} 1\n")
    sentinel = (str(folder / "sentinel.conf"), "--sentinel", "--tls-port", str(sentinel_port), *tls)
    with (
        running_redis(tmp_path, "--save", "", "--requirepass", PASSWORD, "--tls-port", str(port), *tls),
        running_redis(folder, *sentinel),
    ):
        url = f"rediss+sentinel://:{PASSWORD}@127.0.0.1:{sentinel_port}/main/1?ssl_ca_certs={ca_file}"
        client = connect(url, timeout=5)
        assert await ScriptRunner(client, timeout=5).run(PROBE, ["{probe}"], [1000]) == 1
        await client.aclose()
