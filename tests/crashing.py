"""Start verifications in processes that are killed: once at each point where a start awaits something.

Run with the URLs of Redis and of a provider. For each point a child process starts one verification and gets
SIGKILL there, before or after the awaited operation; a line on stdout has its phone, the point and its exit code.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Generator
from datetime import UTC, datetime
from typing import Any

from app.providers.plusofon.channels import VoiceChannel
from app.providers.plusofon.client import PlusofonClient
from app.store.connection import connect_any
from app.store.fraud_guard import RedisFraudGuard
from app.store.limits import RedisRateLimiter
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.verification.channels import Channel
from app.verification.code import CodeDigester
from app.verification.policy import Policies
from app.verification.ports import Ports
from app.verification.service import VerificationService
from app.verification.start import StartRequest
from app.verification.store_requests import DeferredWrites
from app.verification.test_numbers import TestNumbers
from tests.fakes import FakeQueue, FakeTokens
from tests.policies import make_guard_rules, make_policy
from tests.provider_options import http_options

KEY = b"a key of the crashing tests only"
USER_ID, TOKEN = "crash-user", "crash-token"


def make_service(runner: ScriptRunner, client: PlusofonClient) -> VerificationService:
    guard = RedisFraudGuard(runner, make_guard_rules(), key=KEY)
    limits = RedisRateLimiter(runner, key=KEY, guard=guard)
    return VerificationService(
        Ports(
            store=RedisVerificationStore(runner, phone_key=KEY, limits=limits),
            limits=limits,
            guard=guard,
            senders={Channel.VOICE: VoiceChannel(client)},
            schedule=FakeQueue(),
            digester=CodeDigester([KEY]),
            policies=Policies(make_policy()),
            tokens=FakeTokens(),
            test_numbers=TestNumbers({}, lambda: datetime.now(UTC).date()),
            publish=lambda _: None,
            deferred=DeferredWrites(),
            store_timeout=10,
        )
    )


class Killed:
    """Await a coroutine, and kill the process at its ``at``-th suspension, or when it resumes from that if ``late``."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], at: int, *, late: bool) -> None:
        self._coroutine, self._at, self._late = coroutine, at, late

    def __await__(self) -> Generator[Any, Any, object]:
        waits = 0
        while True:
            try:
                waited_for = self._coroutine.send(None)
            except StopIteration as end:
                return end.value
            waits += 1
            if waits == self._at and not self._late:
                os.kill(os.getpid(), signal.SIGKILL)
            yield waited_for
            if waits == self._at:
                os.kill(os.getpid(), signal.SIGKILL)


async def start(redis_url: str, provider_url: str, phone: str, at: int, *, late: bool) -> None:
    redis = connect_any(redis_url, timeout=5)
    async with PlusofonClient(base_url=provider_url, user_id=USER_ID, access_token=TOKEN, **http_options()) as client:
        service = make_service(ScriptRunner(redis, timeout=5), client)
        await Killed(service.start(StartRequest(client="shop", phone=phone, purpose="login")), at, late=late)
    await redis.aclose()


def main() -> None:
    redis_url, provider_url = sys.argv[1:]
    for number in range(200):
        at, late = number // 2 + 1, bool(number % 2)
        phone = f"+7900{number:03}4567"
        child = os.fork()
        if not child:
            asyncio.run(start(redis_url, provider_url, phone, at, late=late))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(phone, at, "late" if late else "early", os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - read by the test
        if status == 0:
            return


if __name__ == "__main__":
    main()
