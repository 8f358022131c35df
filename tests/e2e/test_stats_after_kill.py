"""A process that is killed loses the counts of its last second, and no others."""

import json
import signal
import subprocess
from pathlib import Path

from tests.e2e.conftest import BARE, Demo, command, running
from tests.waiting import wait_until

SECRET = "a-made-up-secret-key-0123456789-0123456789"


def test_what_was_counted_before_outlives_a_kill(tmp_path: Path, redis_url: str) -> None:
    environment = {"REDIS_URL": redis_url, "SECRET_KEY": SECRET}
    with running(tmp_path, **environment) as demo:
        before = placed(demo)
        for phone in ("+79161234561", "+79161234562", "+79161234563"):
            assert demo.post("/verify/start", phone=phone).status_code == 201
        wait_until(lambda: placed(demo) >= before + 3)
        assert demo.end(signal.SIGKILL) == -signal.SIGKILL

    done = subprocess.run(
        command("stats", "--json"),
        cwd=tmp_path,
        env={**BARE, "MODE": "sandbox", **environment},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout)["total"]["placed"] == before + 3


def placed(demo: Demo) -> int:
    return int(demo.api.get("/admin/stats").json()["total"]["placed"])
