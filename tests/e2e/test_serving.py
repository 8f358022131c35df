"""``serve`` as in production: several workers on one port, built-in HTTPS, graceful shutdown."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import trustme
from redis import Redis

from app.tokens import generate_keys
from tests.e2e.conftest import BARE, ROOT, START_WITHIN, command, free_port, open_api, wait_for
from tests.waiting import PATIENCE, wait_until

API_KEY = "a-made-up-api-key"
SECRETS = {
    "PLUSOFON_USER_ID": "made-up-user-id",
    "PLUSOFON_ACCESS_TOKEN": "made-up-access-token",
    "SECRET_KEY": "a-made-up-secret-key-0123456789-0123456789",
    "TOKEN_KEYS": generate_keys(),
}


@contextlib.contextmanager
def serving(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
    port: int | None = None,
) -> Iterator["Serving"]:
    port, log = port or free_port(), folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command("serve", "--port", str(port), *arguments),
            cwd=folder,
            env={**BARE, **environment},
            stdout=output,
            stderr=output,
        )
    served = Serving(
        process,
        f"{'https' if tls else 'http'}://{'[::1]' if environment.get('HOST') == '::1' else '127.0.0.1'}:{port}",
        log,
        tls,
    )
    try:
        served.wait_until_ready()
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


class Serving:
    """A running ``plusofon-verify serve`` and its log."""

    def __init__(self, process: subprocess.Popen[bytes], base_url: str, log: Path, tls: ssl.SSLContext | None) -> None:
        self.process = process
        self.base_url = base_url
        self.log = log
        self.tls = tls
        self.api = open_api(base_url, tls)

    def get(self, path: str) -> httpx.Response:
        return self.api.get(path)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if self.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def wait_until_refused(self) -> None:
        """Wait until new connections are refused: nothing listens any more."""
        port, deadline = int(self.base_url.rpartition(":")[2]), time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def workers(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", self.log.read_text())]

    def wait_for_workers(self, count: int) -> list[int]:
        deadline = time.monotonic() + START_WITHIN
        while len(self.workers()) < count:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return self.workers()


@pytest.fixture
def silent_provider() -> Iterator[str]:
    """Return the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


def wait_for_a_phone(redis_url: str) -> None:
    """Wait until a start has stored its code and waits for the provider."""
    with Redis.from_url(redis_url) as redis:
        wait_until(lambda: redis.keys("pv3{???}:p:*"))


def is_healthy(served: Serving, **environment: str) -> bool:
    """Run the health check of the Docker image."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    check = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert check
    _, *arguments = json.loads(check[1])
    port = served.base_url.rpartition(":")[2]
    asked = subprocess.run(
        [sys.executable, *arguments], env={"PORT": port, **environment}, capture_output=True, check=False
    )
    return asked.returncode == 0


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_workers_share_a_port_and_finish_requests_in_progress_on_shutdown(
    redis_url: str, silent_provider: str, tmp_path: Path
) -> None:
    environment = {
        **SECRETS,
        "API_KEYS": f"shop:{hashlib.sha256(API_KEY.encode()).hexdigest()}",
        "REDIS_URL": redis_url,
        "METRICS_OPEN": "true",
        "PLUSOFON_BASE_URL": silent_provider,
        "PLUSOFON_CONNECT_TIMEOUT_SECONDS": "2",
        "PLUSOFON_TIMEOUT_SECONDS": "2.5",
    }
    with serving(tmp_path, "--workers", "2", environment=environment) as served, ThreadPoolExecutor(1) as pool:
        workers = served.wait_for_workers(2)
        for _ in range(20):
            assert served.get("/problems/unauthorized").status_code == 200
        # Whichever worker answered; the other one shares its numbers once a second.
        counted = re.compile(r'requests_total\{[^}]*route="/problems/\{slug\}"[^}]*\} 20\.0')
        wait_for(lambda: counted.search(served.get("/metrics").text), served.log)

        starting = pool.submit(
            httpx.post,
            f"{served.base_url}/verify/start",
            json={"phone": "+79001234567"},
            headers={"Authorization": f"Bearer {API_KEY}"},
        )
        wait_for_a_phone(redis_url)
        assert not starting.done()
        served.process.send_signal(signal.SIGTERM)
        served.wait_until_refused()
        assert not starting.done()

        assert starting.result().json()["type"] == "/problems/provider-unavailable"
        assert served.process.wait(PATIENCE) == 0
        assert not [pid for pid in workers if is_alive(pid)]

    (starts,) = [event for event in served.events() if event["event"] == "service.starting"]
    assert (starts["mode"], starts["workers"]) == ("production", 2)
    assert "Traceback" not in (text := served.log.read_text())
    for secret in SECRETS.values():
        assert secret not in text


def test_serve_has_built_in_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "all.pem")

    with serving(
        tmp_path, "--tls-cert", "all.pem", "--tls-key", "all.pem", environment={"MODE": "sandbox"}, tls=tls
    ) as served:
        assert served.get("/livez").status_code == 200
        assert is_healthy(served, TLS_CERT_FILE="all.pem")
        assert not is_healthy(served)
        with httpx.Client(
            base_url=served.base_url, verify=tls
        ) as idle:  # a connection pool, which does not read between requests
            assert idle.get("/livez").status_code == 200
            signalled = time.monotonic()
            served.process.terminate()
            served.process.wait(PATIENCE)
            assert time.monotonic() - signalled < 10

    (starts,) = [event for event in served.events() if event["event"] == "service.starting"]
    assert str(starts["address"]).startswith("https://")


def test_each_worker_tunes_the_garbage_collector(tmp_path: Path) -> None:
    program = """
import gc
from app.server.worker import make_app
make_app()
print(gc.get_threshold()[0], gc.get_freeze_count())
"""
    environment = {**BARE, "MODE": "sandbox"}

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    threshold, frozen = map(int, done.stdout.split())
    assert threshold == 50_000
    assert frozen > 10_000


FOREIGN = {
    "WEB_CONCURRENCY": "many",
    "FORWARDED_ALLOW_IPS": "*",
    "PROMETHEUS_MULTIPROC_DIR": "/nonexistent/metrics",
    "prometheus_multiproc_dir": "/nonexistent/metrics",
    "OTEL_SDK_DISABLED": "perhaps",
    "OTEL_PROPAGATORS": "nobody's",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "long",
    "UVICORN_WORKERS": "7",
    "TOKEN": "abc",
    "LOG": "x",
    "CLIENTS_PORT": "tcp://10.0.0.1:80",
}


def test_environment_variables_of_other_programs_are_ignored(tmp_path: Path) -> None:
    with serving(tmp_path, environment={"MODE": "sandbox", **FOREIGN}) as served:
        assert "plusofon_verify_build_info" in served.get("/metrics").text

    assert "Traceback" not in served.log.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_an_invalid_opentelemetry_variable_is_one_line(
    redis_url: str, tmp_path: Path, workers: str, name: str, value: str
) -> None:
    # The SDK is real. The exporter, which the tests do not install, is a stub.
    exporter = tmp_path / "opentelemetry/exporter/otlp/proto/http/trace_exporter.py"
    exporter.parent.mkdir(parents=True)
    exporter.write_text("def OTLPSpanExporter(endpoint): return None\n")
    environment = {**BARE, **SECRETS, "API_KEYS": f"shop:{'0' * 64}", "REDIS_URL": redis_url}
    environment["PYTHONPATH"] = f"{BARE['PYTHONPATH']}:{tmp_path}"
    done = subprocess.run(
        command("serve", "--port", str(free_port()), "--workers", workers),
        cwd=tmp_path,
        env={**environment, "TRACING_ENDPOINT": "http://127.0.0.1:9/v1/traces", name: value},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"TRACING_ENDPOINT cannot be used: OpenTelemetry refuses one of {name}."


def test_workers_that_cannot_start_end_the_service_with_an_error(redis_url: str, tmp_path: Path) -> None:
    """A supervisor such as systemd restarts a failed service, but not after exit code 0."""
    (tmp_path / "broken.py").write_text(
        "from fastapi import FastAPI\ndef make_app():\n    return FastAPI(lifespan=lambda app: 1 / 0)\n"
    )
    program = "import app.cli.serving as serving; serving._WORKER = 'broken:make_app'; import app.cli; app.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "--port", str(free_port()), "--workers", "2"],
        cwd=tmp_path,
        env={**BARE, **SECRETS, "API_KEYS": f"shop:{'0' * 64}", "REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=START_WITHIN,
        check=False,
    )

    assert (done.returncode, "failed to start" in done.stderr) == (3, True)


@pytest.mark.parametrize("folder", ["/proc/nonexistent", "/dev/null"])
def test_an_unusable_folder_for_metrics_is_one_line(redis_url: str, tmp_path: Path, folder: str) -> None:
    environment = {**BARE, **SECRETS, "API_KEYS": f"shop:{'0' * 64}", "REDIS_URL": redis_url}
    done = subprocess.run(
        command("serve", "--port", str(free_port()), "--workers", "2"),
        cwd=tmp_path,
        env={**environment, "PROMETHEUS_MULTIPROC_DIR": folder},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("PROMETHEUS_MULTIPROC_DIR must name a folder")


@pytest.mark.parametrize(
    "host", ["a" * 70, "a..b", "x86_64-conda-linux-gnu", "192.0.2.1", "2001:db8::1", "http://127.0.0.1", "::1]"]
)
def test_a_host_that_is_not_an_address_of_this_machine_is_one_line(tmp_path: Path, host: str) -> None:
    done = subprocess.run(
        command("demo", "--port", str(free_port())),
        cwd=tmp_path,
        env={**BARE, "HOST": host},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stderr) == (2, "HOST must be an address of this machine.\n")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::1", {"[::1]"}),
        ("[::1]", {"[::1]"}),
        ("::", {"[::1]", "127.0.0.1"}),
        ("127.0.0.1", {"127.0.0.1"}),
        ("0.0.0.0", {"127.0.0.1"}),
    ],
)
def test_one_and_several_workers_listen_on_the_same_addresses(
    redis_url: str, tmp_path: Path, workers: str, host: str, reached: set[str]
) -> None:
    port = free_port()
    environment = {**BARE, **SECRETS, "API_KEYS": f"shop:{'0' * 64}", "REDIS_URL": redis_url}
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen(
            command("serve", "--host", host, "--port", str(port), "--workers", workers),
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=output,
        )
    served = Serving(process, f"http://{min(reached)}:{port}", tmp_path / "log", None)
    try:
        served.wait_until_ready()
        found = set()
        for address in ("127.0.0.1", "[::1]"):
            with contextlib.suppress(httpx.ConnectError):
                if httpx.get(f"http://{address}:{port}/livez").status_code == 200:
                    found.add(address)
    finally:
        process.terminate()
        process.wait(PATIENCE)

    assert found == reached
    (starts,) = [event for event in served.events() if event["event"] == "service.starting"]
    bare = host.strip("[]")
    assert starts["address"] == (f"http://[{bare}]:{port}" if ":" in bare else f"http://{bare}:{port}")


@pytest.mark.parametrize("host", ["::1", "::", "[::]", "0.0.0.0", "localhost"])
def test_a_reverse_call_verifies_with_any_listen_address(tmp_path: Path, host: str) -> None:
    environment = {"MODE": "sandbox", "SANDBOX_PACE_SECONDS": "0.05", "PLUSOFON_HOOK_DELAY_SECONDS": "0"}
    phone = "+79001234567"
    with serving(tmp_path, environment={**environment, "HOST": host}) as served:
        started = httpx.post(f"{served.base_url}/verify/start", json={"phone": phone, "channel": "reverse_call"}).json()
        httpx.post(
            f"{served.base_url}/sandbox/phones/{phone}/dial", json={"number": started["dial"]}
        ).raise_for_status()
        deadline = time.monotonic() + PATIENCE
        asked = {"verification_id": started["verification_id"]}
        while not httpx.post(f"{served.base_url}/verify/check", json=asked).json()["verified"]:
            assert time.monotonic() < deadline, served.log.read_text()
            time.sleep(0.1)
