"""The commands as a user runs them: as separate processes, on real ports."""

import hashlib
import json
import re
import signal
import socket
import subprocess
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
from redis.asyncio import Redis

from app.settings import load_settings
from app.verification.errors import RateLimited
from app.verification.keys import derive_key
from app.verification.phone import Phone
from tests.ageing import age
from tests.e2e.conftest import BARE, Demo, command, running
from tests.e2e.test_serving import SECRETS
from tests.limiters import count_call, make_limiter
from tests.policies import make_policy

PHONE = "+79001234567"
COMPLETE = {**SECRETS, "API_KEYS": f"shop:{'0' * 64}"}  # all required settings except REDIS_URL


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**BARE, "XDG_RUNTIME_DIR": str(cwd), **environment},  # where the sandboxes of a test are looked for
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_demo_verifies_a_phone_and_its_log_contains_no_secrets(demo: Demo) -> None:
    started = demo.post("/verify/start", phone=PHONE).json()
    code = demo.hear(PHONE)
    demo.post("/verify/check", verification_id=started["verification_id"], code=code[:-1])
    demo.post("/verify/start", phone="+79000000003")
    demo.post("/verify/start", phone="87011234567")
    demo.api.post("/verify/check", content=f'{{"phone": "{PHONE}", "code": "{code}"')
    demo.api.get("/provider/account", headers={"Authorization": "Bearer not-a-real-key"})
    checked = demo.post("/verify/check", phone="8 (900) 123-45-67", code=code)
    assert checked.json()["verified"] is True

    assert demo.end(signal.SIGTERM) == 0
    log = demo.log.read_text()
    assert "SANDBOX" in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    handled = [line for line in lines if line["event"] == "request.handled"]
    assert {"/verify/start", "/verify/check"} <= {line["route"] for line in handled}
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    for secret in (
        code,
        checked.json()["token"],
        "9001234567",
        "9000000003",
        "7011234567",
        "sandbox-access-token",
        "not-a-real-key",
    ):
        assert secret not in text


def test_two_demos_at_once_share_no_data(demo: Demo, tmp_path: Path) -> None:
    with running(tmp_path) as other:
        started = demo.post("/verify/start", phone=PHONE).json()
        assert other.api.get(f"/verify/{started['verification_id']}").status_code == 404
        assert other.post("/verify/start", phone=PHONE).status_code == 201


async def test_fraud_guard_blocks_can_be_listed_and_lifted(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    secret, policy = "a secret key that a test and its commands share", make_policy()
    limiter = make_limiter(redis, key=derive_key(secret.encode(), "phone"))
    for number in range(20):
        await count_call(limiter, Phone(f"+79001234{number:03}"), "shop", policy)
    await age(redis, timedelta(minutes=6))
    with pytest.raises(RateLimited):
        await count_call(limiter, Phone("+79001234999"), "shop", policy)
    environment = {"MODE": "sandbox", "REDIS_URL": redis_url, "SECRET_KEY": secret}

    table = run("guard", "list", cwd=tmp_path, **environment)
    found = json.loads(run("guard", "list", "--json", cwd=tmp_path, **environment).stdout)
    other = run("guard", "lift", "8 (916) 123-4", cwd=tmp_path, **environment)
    lifted = run("guard", "lift", "9001234", cwd=tmp_path, **environment)

    assert table.returncode == 0
    assert "+79001234" in table.stdout
    assert "The client shop is not blocked" in table.stdout
    assert ([block["range"] for block in found["blocks"]], len(found["suspects"])) == (["+79001234"], 1)
    assert (other.returncode, other.stdout, other.stderr) == (1, "", "The range +79161234 is not blocked.\n")
    assert (lifted.returncode, lifted.stdout) == (0, "The range +79001234 is called again.\n")
    assert "none" in run("guard", "list", cwd=tmp_path, **environment).stdout
    await count_call(limiter, Phone("+79001234999"), "shop", policy)


@pytest.mark.parametrize(
    ("environment", "code", "sentence"),
    [
        ({}, 2, "REDIS_URL is missing"),
        ({"REDIS_URL": "redis://127.0.0.1:1"}, 1, "Redis is not reached. Check REDIS_URL"),
    ],
    ids=["no REDIS_URL", "unreachable Redis"],
)
def test_guard_commands_explain_a_missing_redis(
    tmp_path: Path, environment: dict[str, str], code: int, sentence: str
) -> None:
    done = run("guard", "list", cwd=tmp_path, MODE="sandbox", **environment)

    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(sentence)


def test_serve_without_settings_lists_the_missing_ones(tmp_path: Path) -> None:
    done = run("serve", cwd=tmp_path)

    assert done.returncode == 2
    assert "PLUSOFON_ACCESS_TOKEN is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 6


def test_serve_explains_an_invalid_setting(tmp_path: Path) -> None:
    done = run("serve", cwd=tmp_path, MODE="sandbox", REDIS_URL="http://nowhere")

    schemes = (
        "redis://, rediss:// or unix://, redis+sentinel:// or rediss+sentinel://, redis+cluster:// or rediss+cluster://"
    )
    expected = f"REDIS_URL must begin with {schemes}.\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_keygen_prints_valid_settings_and_the_matching_api_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("keygen", "--client", "shop", cwd=tmp_path)
    lines = done.stdout.splitlines()
    made = dict(line.split("=", 1) for line in lines if re.match("[A-Z_]+=", line))
    for name, value in made.items():
        monkeypatch.setenv(name, value)

    settings = load_settings(mode="sandbox")

    (key,) = settings.api.keys
    assert (key.client, key.digest) == ("shop", hashlib.sha256(lines[-1].encode()).digest())
    assert settings.secret_keys == [made["SECRET_KEY"].encode()]
    assert settings.token_keys == made["TOKEN_KEYS"]
    assert run("keygen", cwd=tmp_path).stdout != done.stdout


def test_keygen_rejects_an_invalid_client_name(tmp_path: Path) -> None:
    done = run("keygen", "--client", "My Shop!", cwd=tmp_path)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_openapi_prints_the_schema(tmp_path: Path) -> None:
    schema = json.loads(run("openapi", cwd=tmp_path).stdout)

    assert schema["openapi"].startswith("3.1")
    assert {"/verify/start", "/verify/check"} <= set(schema["paths"])
    assert not [path for path in schema["paths"] if path.startswith("/sandbox")]


def test_help_lists_the_commands(tmp_path: Path) -> None:
    shown = run("--help", cwd=tmp_path).stdout

    commands = ["serve", "demo", "doctor", "call", "stats", "forget", "keygen", "openapi", "verifications", "guard"]
    assert [name for name in commands if f"\n  {name} " not in shown] == []
    assert "Exit codes: 0 " in shown


def test_version_prints_the_version_of_the_package(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, f"{version('plusofon-verify')}\n")


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_an_address_in_use_is_reported_first(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(command, "--port", str(port), cwd=tmp_path, MODE="sandbox")

    message = f"127.0.0.1:{port} is in use; choose another with --port (make run PORT=8001).\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_an_address_of_another_machine_is_an_invalid_setting(tmp_path: Path) -> None:
    done = run("demo", cwd=tmp_path, HOST="192.0.2.1")

    assert (done.returncode, done.stdout, done.stderr) == (2, "", "HOST must be an address of this machine.\n")


@pytest.mark.parametrize("environment", [{}, {"MODE": "sandbox"}], ids=["no settings", "sandbox mode"])
def test_without_redis_url_and_a_running_sandbox_a_command_says_what_to_do(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = run("stats", cwd=tmp_path, **environment)

    assert done.returncode == 2
    assert "No sandbox of yours runs on this machine (`make run` starts one)." in done.stderr
    assert "set MODE=sandbox, and the same REDIS_URL and SECRET_KEY for both." in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve",),
        ("serve", "--workers", "2"),
        ("doctor",),
        ("doctor", "--json"),
        ("call", PHONE, "--yes"),
        ("stats",),
        ("forget", PHONE, "--yes"),
        ("guard", "list"),
        ("events", "failed"),
        ("verifications", "show", "vrf_00000000000000000000000"),
    ],
    ids=" ".join,
)
def test_no_command_starts_if_a_secret_file_cannot_be_read(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / ".env").write_text("REDIS_URL_FILE=/nonexistent/redis\n", encoding="utf-8")

    done = run(*arguments, cwd=tmp_path, **COMPLETE)

    assert done.returncode == 2
    assert "REDIS_URL_FILE cannot be read: No such file or directory." in done.stdout + done.stderr
    assert "missing" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
