"""Which keys scripts touch: Redis says that a script did not run if a slot moves, so nothing may be half done.

On a cluster, a key that a script does not declare may be on another node while its slot moves. Redis then stops the
script at that key. So it touches all of these before its first write, and they are in the slot of a declared one.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from app.store.scripts import Script, ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.verification.channels import Channel
from app.verification.errors import VerificationLocked
from app.verification.model import CallState, CallStatus, Status
from app.verification.phone import Phone
from app.verification.ports import CallUpdate, CodeCheck
from tests.contract.test_redis_acl import FLOWS, HOUR, KEY, POLICY, RIGHT, WRONG, new_call
from tests.starting import start

pytestmark = pytest.mark.standalone  # MONITOR shows the commands of one server
END = "{end-of-trace}"


@dataclass
class Run:
    """One run of a script: the keys that it declared, and those of its commands, in order."""

    sha: str
    declared: list[str]
    commands: list[tuple[str, str]] = field(default_factory=list)


@asynccontextmanager
async def traced(redis: Redis) -> AsyncIterator[list[Run]]:
    """Record the scripts that run meanwhile."""
    runs: list[Run] = []

    async def record() -> None:
        async with redis.monitor() as monitor:
            listening.set()
            async for entry in monitor.listen():
                name, *words = str(entry["command"]).split(" ")
                if END in words:
                    return
                if entry["client_type"] == "lua" and words:
                    runs[-1].commands.append((name.upper(), words[0]))
                elif name.upper() == "EVALSHA":
                    runs.append(Run(words[0], words[2 : 2 + int(words[1])]))

    listening = asyncio.Event()
    recorder = asyncio.create_task(record())
    await listening.wait()
    yield runs
    await redis.get(END)
    await asyncio.wait_for(recorder, 15)


async def verify_otherwise(redis: Redis) -> None:
    """Resend, start several, lock a test number, dial, and cancel what has a call."""
    runner = ScriptRunner(redis, timeout=5)
    store = RedisVerificationStore(runner, phone_key=KEY, outbox=RedisOutbox(runner, clients={"shop"}))
    first = (await start(store, new_call(20), POLICY)).verification
    await start(store, new_call(20), POLICY)
    await start(store, replace(new_call(20), resend_of=first.id), POLICY)
    for code in (WRONG, RIGHT):
        check = CodeCheck(client="shop", candidates=[code], length=6, address="192.0.2.1", retry_digest="digest")
        await store.check_by_phone(Phone("+79001234520"), "login", check, POLICY)

    test = (await start(store, replace(new_call(21), test=True), POLICY)).verification
    with suppress(VerificationLocked):
        for _ in range(6):
            check = CodeCheck(client="shop", candidates=[WRONG], length=6)
            assert (await store.check_by_id(test.id, check, POLICY)).status in {Status.PENDING, Status.LOCKED}

    dialled = replace(new_call(22), channel=Channel.REVERSE_CALL, code_digest=None, code_length=None)
    reverse = (await start(store, dialled, POLICY)).verification
    update = CallUpdate(state=CallState(CallStatus.INITIATED), ref="ref", dial=Phone("+74951234567"), operator="mts")
    await store.record_call(reverse, 1, update)
    await store.confirm(reverse, 1, ref="ref", caller=reverse.phone, policy=replace(POLICY, earliest_dial=HOUR * 0))
    assert (await store.check_by_id(reverse.id, CodeCheck(client="shop", candidates=[]), POLICY)).status
    await store.cancel("shop", (await start(store, new_call(23), POLICY)).verification.id)


@pytest.mark.parametrize("flow", [*FLOWS, verify_otherwise])
async def test_keys_that_are_not_declared_are_touched_before_the_first_write(
    flow: Callable[[Redis], Any], redis: Redis
) -> None:
    about: dict[str, dict[str, Any]] = await redis.command()
    writing = {name.upper() for name, facts in about.items() if "write" in facts["flags"]}

    async with traced(redis) as runs:
        await flow(redis)

    assert len(runs) > 3
    for run in runs:
        touched, has_written = set(run.declared), False
        for name, key in run.commands:
            if name in {"PUBLISH", "SET"} and key == END:
                continue
            if key.startswith("pv") and "{" in key:
                assert key in touched or not has_written, (source_of(run.sha), name, key, run)
                assert key_slot(key.encode()) in {key_slot(declared.encode()) for declared in run.declared}, run
                touched.add(key)
            has_written = has_written or name in writing


def source_of(sha: str) -> str:
    return next((script.name for script in all_scripts() if script.sha == sha), sha)


def all_scripts() -> list[Script]:
    """Return every script that a store has."""
    return [thing for thing in gc.get_objects() if isinstance(thing, Script)]
