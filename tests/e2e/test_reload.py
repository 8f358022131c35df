"""SIGHUP: workers are replaced if the settings are valid, and keep running if they are not."""

import os
import signal
import subprocess
from pathlib import Path

from app.tokens import generate_keys
from tests.e2e.conftest import BARE, command, free_port, running, wait_for
from tests.e2e.test_serving import SECRETS, serving
from tests.waiting import PATIENCE


def test_workers_keep_running_if_the_new_settings_are_invalid_and_the_log_says_why(
    redis_url: str, tmp_path: Path
) -> None:
    environment = {**SECRETS, "API_KEYS": f"shop:{'0' * 64}", "REDIS_URL": redis_url}
    (tmp_path / ".env").write_text("LIMIT_CALLS_PER_DY=5\n", encoding="utf-8")
    with serving(tmp_path, "--workers", "2", environment=environment) as served:
        served.wait_for_workers(2)
        (unknown,) = [event for event in served.events() if event["event"] == "service.settings_unknown"]
        assert unknown["names"] == ["LIMIT_CALLS_PER_DY"]

        (tmp_path / ".env").write_text("CODE_LENGTH=9\nCALL_LIMIT=many\n", encoding="utf-8")
        served.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "aborting the restart" in served.log.read_text(), served.log)
        (wrong,) = [event for event in served.events() if event["event"] == "service.settings_wrong"]
        assert wrong["sentences"] == ["CODE_LENGTH must be at most 6.", "CALL_LIMIT must be a whole number."]
        assert served.get("/livez").status_code == 200

        (tmp_path / ".env").write_text("CODE_LENGTH=5\n", encoding="utf-8")
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_workers(4)
        assert served.get("/livez").status_code == 200


def test_secret_files_are_reread_and_an_empty_one_keeps_the_workers_running(redis_url: str, tmp_path: Path) -> None:
    """Both workers use the same key: none generates its own."""
    environment = {"REDIS_URL": redis_url}
    for name, value in {**SECRETS, "API_KEYS": f"shop:{'0' * 64}", "METRICS_KEYS": f"me:{'1' * 64}"}.items():
        (tmp_path / name).write_text(f"{value}\n", encoding="utf-8")
        environment[f"{name}_FILE"] = str(tmp_path / name)
    with serving(tmp_path, "--workers", "2", environment=environment) as served:
        served.wait_for_workers(2)
        key_ids = {served.get("/.well-known/jwks.json").text for _ in range(20)}
        assert len(key_ids) == 1

        (tmp_path / "TOKEN_KEYS").write_text(generate_keys(), encoding="utf-8")
        served.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(served.workers()) == 4, served.log)
        wait_for(lambda: {served.get("/.well-known/jwks.json").text for _ in range(20)}.isdisjoint(key_ids), served.log)

        (tmp_path / "SECRET_KEY").write_text("\n", encoding="utf-8")
        served.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "aborting the restart" in served.log.read_text(), served.log)
        (wrong,) = [event for event in served.events() if event["event"] == "service.settings_wrong"]
        assert wrong["sentences"] == ["SECRET_KEY_FILE names an empty file."]
        assert served.get("/livez").status_code == 200


def test_a_single_worker_ignores_sighup_and_logs_it(tmp_path: Path) -> None:
    with running(tmp_path) as demo:
        demo.send_signal(signal.SIGHUP)
        wait_for(lambda: "service.reload_ignored" in demo.log.read_text(), demo.log)

        assert demo.post("/verify/start", phone="+79001234567").status_code == 201
        assert demo.end(signal.SIGTERM) == 0


def test_closing_the_terminal_ends_the_demo(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    process = subprocess.Popen(command("demo", "--port", str(free_port())), cwd=tmp_path, env=BARE, stderr=terminal)
    os.close(terminal)
    shown = ""
    while "Uvicorn running" not in shown:
        shown += os.read(ours, 4096).decode()  # fails if the process has ended

    process.send_signal(signal.SIGHUP)  # as the kernel does then

    assert process.wait(PATIENCE) == -signal.SIGHUP
    os.close(ours)
