"""Scripts run over TLS as they do on a socket."""

import asyncio
import socket
from pathlib import Path

import trustme

from app.store.connection import connect
from app.store.scripts import PROBE, ScriptRunner
from tests.contract.test_redis_acl import running_redis

PASSWORD = "made-up-for-the-tests"


async def test_scripts_run_over_tls_and_the_connection_is_kept(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca_file, cert_file, key_file = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca_file)
    certificate.cert_chain_pems[0].write_to_path(cert_file)
    certificate.private_key_pem.write_to_path(key_file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    files = ("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file), "--tls-ca-cert-file", str(ca_file))
    with running_redis(
        tmp_path, "--save", "", "--requirepass", PASSWORD, "--tls-port", str(port), "--tls-auth-clients", "no", *files
    ):
        client = connect(f"rediss://:{PASSWORD}@127.0.0.1:{port}/1?ssl_ca_certs={ca_file}", timeout=5)
        runner = ScriptRunner(client, timeout=5)
        for _ in range(3):
            assert await asyncio.gather(*(runner.run(PROBE, ["pv:{probe}"], [1000]) for _ in range(10))) == [1] * 10
        connected = (await client.info("stats"))["total_connections_received"]
        await client.aclose()

    assert connected == 2  # one for scripts, one for INFO
