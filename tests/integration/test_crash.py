"""A process that is killed while it starts a verification leaves a code that verifies, or no call at all."""

import asyncio
import signal
import sys
from pathlib import Path

from redis.asyncio import Redis

from app.providers.plusofon.client import PlusofonClient
from app.sandbox.network import VirtualNetwork
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.server import SandboxServer
from app.store.scripts import ScriptRunner
from app.verification.check import CheckRequest
from app.verification.model import Status
from tests.crashing import TOKEN, USER_ID, make_service
from tests.provider_options import http_options

ROOT = Path(__file__).parents[2]


async def crash_at_every_point(redis_url: str, provider_url: str) -> list[list[str]]:
    """Return for each process: phone, point of the crash, before or after it, and exit code."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crashing", redis_url, provider_url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return [line.split() for line in output.decode().splitlines()]


async def test_a_crash_at_any_point_leaves_a_code_that_verifies_or_no_call(redis: Redis, redis_url: str) -> None:
    network = VirtualNetwork(pace=0)
    async with SandboxServer(create_sandbox_app(network, user_id=USER_ID, access_token=TOKEN)) as server:
        crashes = await crash_at_every_point(redis_url, server.url)
        async with PlusofonClient(base_url=server.url, user_id=USER_ID, access_token=TOKEN, **http_options()) as client:
            service = make_service(ScriptRunner(redis, timeout=5), client)
            heard = 0
            for phone, *_ in crashes:
                calls = network.calls_of(phone)
                assert len(calls) <= 1, phone
                for call in calls:
                    result = await service.check.by_phone(
                        CheckRequest(client="shop", code=call.heard or ""), phone, "login"
                    )
                    assert result.status is Status.VERIFIED, phone
                    heard += 1

    *killed, (_, _, _, last) = crashes
    assert last == "0"
    assert {exit_code for *_, exit_code in killed} == {str(-signal.SIGKILL)}
    # Some were killed before the call was placed and some after it; otherwise the test would prove nothing.
    assert len(killed) >= 6
    assert 2 <= heard < len(crashes) - 2
    assert all([await redis.pttl(key) > 0 for key in await redis.keys()])
