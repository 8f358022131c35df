"""``doctor`` as a process: its output and exit code, with and without faults."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from app.sandbox.embedded import EmbeddedServer
from tests.e2e.test_commands import run
from tests.e2e.test_serving import SECRETS

Done = subprocess.CompletedProcess[str]
REFUSED_TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture(scope="module")
def evicting_redis() -> Iterator[str]:
    """Return the URL of a Redis that evicts keys when its memory is full."""
    with EmbeddedServer() as server:
        with Redis.from_url(server.url) as redis:
            redis.config_set("maxmemory-policy", "allkeys-lru")
        yield server.url


@pytest.fixture(scope="module")
def outputs(redis_url: str, evicting_redis: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Run ``doctor`` in every situation concurrently, each as a separate process."""
    folder = tmp_path_factory.mktemp("doctor")
    sandbox = {"MODE": "sandbox", "REDIS_URL": redis_url}
    situations: dict[str, Callable[[], Done]] = {
        "well": lambda: run("doctor", cwd=folder, **sandbox),
        "Redis down": lambda: run("doctor", cwd=folder, MODE="sandbox", REDIS_URL="redis://:a-password@127.0.0.1:1"),
        "wrong token": lambda: run("doctor", cwd=folder, SANDBOX_ACCESS_TOKEN=REFUSED_TOKEN, **sandbox),
        "low balance": lambda: run("doctor", cwd=folder, SANDBOX_BALANCE_RUB="5", **sandbox),
        "eviction": lambda: run("doctor", cwd=folder, MODE="sandbox", REDIS_URL=evicting_redis),
    }
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(situations, pool.map(lambda start: start(), situations.values()), strict=True))


def lines(done: Done, mark: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith(mark)]


def test_a_healthy_service_passes_every_check(outputs: dict[str, Done]) -> None:
    done = outputs["well"]

    assert (done.returncode, done.stderr, lines(done, "✗")) == (0, "", [])
    fine = "\n".join(lines(done, "✓"))
    for line in ("noeviction", "takes the token (Sandbox)", "10000.00 RUB", "scripts run", "sign and verify"):
        assert line in fine
    # The embedded server has no persistence, which is a warning and not an error.
    assert [line.split()[1:3] for line in lines(done, "!")] == [["redis", "persistence"]]


@pytest.mark.parametrize(
    ("situation", "begin", "advice"),
    [
        ("Redis down", "✗ redis              Redis is not reached", "Check REDIS_URL"),
        ("wrong token", "✗ provider           reached, but it refuses the token", "Check PLUSOFON_ACCESS_TOKEN"),
        ("low balance", "✗ balance            5.00 RUB, below MIN_BALANCE_RUB (10)", "Top the account up"),
        ("eviction", "✗ redis eviction     maxmemory-policy is allkeys-lru", "Set maxmemory-policy noeviction."),
    ],
)
def test_each_fault_is_one_line_with_advice(outputs: dict[str, Done], situation: str, begin: str, advice: str) -> None:
    done = outputs[situation]

    assert (done.returncode, done.stderr) == (1, "")
    (line,) = lines(done, "✗")
    assert line.startswith(begin)
    after = done.stdout.splitlines()
    assert after[after.index(line) + 1].lstrip().startswith(f"→ {advice}")


def test_the_output_contains_no_secret(outputs: dict[str, Done]) -> None:
    text = "".join(done.stdout + done.stderr for done in outputs.values())

    for secret in (REFUSED_TOKEN, "sandbox-access-token", "a-password"):
        assert secret not in text


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "latin-1"])
def test_the_output_is_readable_in_an_encoding_without_the_marks(redis_url: str, tmp_path: Path, encoding: str) -> None:
    done = run("doctor", cwd=tmp_path, MODE="sandbox", REDIS_URL=redis_url, PYTHONIOENCODING=encoding)

    assert (done.returncode, done.stderr) == (0, "")
    assert "? balance" in done.stdout


@pytest.mark.parametrize("name", ["keys", "."])
def test_sslkeylogfile_is_ignored(redis_url: str, tmp_path: Path, name: str) -> None:
    """Otherwise the TLS keys in that file would make codes and tokens readable on the network."""
    production = {**SECRETS, "API_KEYS": f"shop:{'0' * 64}", "REDIS_URL": redis_url}
    done = run(
        "doctor",
        cwd=tmp_path,
        PLUSOFON_BASE_URL="https://127.0.0.1:1",
        SSLKEYLOGFILE=str(tmp_path / name),
        **production,
    )

    assert (done.returncode, done.stderr) == (1, "")
    assert any(tmp_path.iterdir()) is False
