"""Fixtures: the real service behind real proxies with keep-alive connections, Caddy, nginx and HAProxy of Debian."""

import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import BARE, ROOT, free_port
from tests.e2e.test_serving import Serving, serving

API_KEY = "a-made-up-api-key"

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    upstream verify {{ server 127.0.0.1:{service}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://verify;
            proxy_http_version 1.1;
            proxy_request_buffering {buffering};
            {fields}
        }}
    }}
}}
"""
NGINX_FIELDS = 'proxy_set_header Connection "";'
NGINX_UPGRADE_FIELDS = 'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    timeout http-keep-alive 10s
    http-reuse always
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server verify 127.0.0.1:{service} maxconn 2
"""


def tool(name: str) -> str:
    """Return the path of a program; fail if it is missing, because without it the tests prove nothing."""
    path = shutil.which(name, path=f"{BARE['PATH']}:/usr/sbin:/usr/local/sbin")
    assert path, f"{name} is needed; on Debian: apt-get install caddy curl haproxy nginx-light"
    return path


@dataclass(frozen=True, slots=True)
class Proxied:
    """A proxy in front of the service."""

    port: int
    service: Serving


@contextmanager
def running(command: list[str], folder: Path, port: int, environment: Mapping[str, str]) -> Iterator[None]:
    with (folder / "proxy.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env={**BARE, **environment}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                output = (folder / "proxy.log").read_text()
                assert process.poll() is None, output
                assert time.monotonic() < deadline, output
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


def caddy(folder: Path, port: int, service: int) -> list[str]:
    """Use the shipped Caddyfile with two changed addresses: of the site and of the service."""
    shipped = (ROOT / "deploy/caddy/Caddyfile").read_text(encoding="utf-8")
    adapted = shipped.replace("{$SITE}", f"http://127.0.0.1:{port}").replace("verify:8000", f"127.0.0.1:{service}")
    assert all(adapted.count(address) for address in (f":{port}", f":{service}"))
    (folder / "Caddyfile").write_text(adapted, encoding="utf-8")
    return [tool("caddy"), "run", "--config", "Caddyfile"]


def nginx(folder: Path, port: int, service: int, *, fields: str = NGINX_FIELDS, buffering: str = "on") -> list[str]:
    text = NGINX.format(folder=folder, port=port, service=service, fields=fields, buffering=buffering)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    return [tool("nginx"), "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]


def nginx_with_upgrade(folder: Path, port: int, service: int) -> list[str]:
    return nginx(folder, port, service, fields=NGINX_UPGRADE_FIELDS)


def nginx_with_upgrade_unbuffered(folder: Path, port: int, service: int) -> list[str]:
    return nginx(folder, port, service, fields=NGINX_UPGRADE_FIELDS, buffering="off")


def haproxy(folder: Path, port: int, service: int) -> list[str]:
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, service=service), encoding="utf-8")
    return [tool("haproxy"), "-db", "-f", "haproxy.cfg"]


Make = Callable[[Path, int, int], list[str]]
PROXIES: tuple[Make, ...] = (caddy, nginx, nginx_with_upgrade, nginx_with_upgrade_unbuffered, haproxy)


@pytest.fixture(params=PROXIES, ids=[make.__name__ for make in PROXIES])
def proxied(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[Proxied]:
    environment = {
        "MODE": "sandbox",
        "REDIS_URL": redis_url,
        "API_KEYS": f"shop:{hashlib.sha256(API_KEY.encode()).hexdigest()}",
        "PROXY_ADDRESSES": "127.0.0.1",
        "TEST_NUMBERS": "+79001234567=1234",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "json",
    }
    make: Make = request.param
    with serving(tmp_path, environment=environment) as service:
        port = free_port()
        command = make(tmp_path, port, int(service.base_url.rpartition(":")[2]))
        with running(command, tmp_path, port, {"ACME_EMAIL": "nobody@example.com", "XDG_DATA_HOME": str(tmp_path)}):
            yield Proxied(port, service)


def handled(service: Serving) -> list[dict[str, object]]:
    """Return the log lines of the requests that the service handled."""
    lines = service.log.read_text().splitlines()
    return [json.loads(line) for line in lines if '"request.handled"' in line]
