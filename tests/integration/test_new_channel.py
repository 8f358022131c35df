"""A channel is a row of a table: a copy of the application with one more row serves it, from the API to a relay."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from redis.asyncio import Redis

ROOT = Path(__file__).parents[2]
CLIENT = """
import json, sys
from starlette.testclient import TestClient
from app.main import create_app
from app.settings import Settings

app = create_app(Settings.model_validate(json.load(sys.stdin)))
with TestClient(app) as client:
    body = {"phone": "+79001234567", "purpose": "login", "channel": "sms"}
    started = client.post("/verify/start", json=body)
    described = client.get("/openapi.json").json()["components"]["schemas"]["StartVerificationRequest"]
    print(json.dumps([started.status_code, started.json(), described["properties"]["channel"]["description"]]))
"""


class Orders(BaseHTTPRequestHandler):
    received: list[dict[str, object]]

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = b'{"status": "accepted"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def relay() -> Iterator[HTTPServer]:
    Orders.received = []
    with HTTPServer(("127.0.0.1", 0), Orders) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def new_app(tmp_path: Path) -> Path:
    """Return a folder with a copy of the application that has one channel more."""
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "app/verification/channels.py"
    text = table.read_text(encoding="utf-8")
    member, first_row = '    REVERSE_CALL = "reverse_call"\n', "= {\n    Channel.VOICE"
    assert text.count(member) == text.count(first_row) == 1
    row = '= {\n    Channel.SMS: ChannelRules(summary="the code comes as a text message"),\n    Channel.VOICE'
    table.write_text(text.replace(member, f'{member}    SMS = "sms"\n').replace(first_row, row), encoding="utf-8")
    return tmp_path


def start_with_sms(folder: Path, redis_url: str, relay: Mapping[str, object]) -> subprocess.CompletedProcess[str]:
    settings = {
        "mode": "sandbox",
        "redis": {"url": redis_url},
        "secret": {"key": "a-secret-key-that-only-tests-use-0123456789"},
        "channels": ["voice", "sms"],
        "relay": relay,
    }
    return subprocess.run(
        [sys.executable, "-c", CLIENT],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        input=json.dumps(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_channel_that_a_relay_serves_needs_one_row(
    redis: Redis, redis_url: str, relay: HTTPServer, new_app: Path
) -> None:
    url = f"http://127.0.0.1:{relay.server_port}/orders"
    secret = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIG9ubHkgZm9yIHRlc3Rz"

    done = start_with_sms(new_app, redis_url, {"channels": ["sms"], "url": url, "secret": secret})

    assert done.returncode == 0, done.stderr
    status, started, description = json.loads(done.stdout.splitlines()[-1])
    assert (status, started["channel"], started["status"]) == (201, "sms", "pending"), started
    assert [order["channel"] for order in Orders.received] == ["sms"]
    assert "`sms`: the code comes as a text message" in description


def test_a_channel_that_no_provider_serves_is_named_when_the_service_starts(
    redis: Redis, redis_url: str, new_app: Path
) -> None:
    done = start_with_sms(new_app, redis_url, {})

    assert done.returncode == 1
    assert "CHANNELS: no provider serves sms" in done.stderr
