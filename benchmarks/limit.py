"""The limit: the least that Python, uvicorn and redis-py can do for the floor's job. Started by ``bench.py``.

A bare ASGI application, a body validated from its bytes, the floor's script, and commands that share their writes.
Nothing of the service is in it, and nothing that would make it one.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send

from benchmarks.floor import SCRIPT, Check

_read = TypeAdapter(Check).validate_json


class SharedWrites:
    """Runs one script on one connection; what is asked for while a write is under way shares the next one."""

    def __init__(self, redis: Redis, sha: str) -> None:
        self._redis = redis
        self._sha = sha
        self._waiting: list[tuple[Sequence[str], asyncio.Future[Any]]] = []
        self._is_writing = False

    def run(self, key: str, code: str) -> asyncio.Future[Any]:
        """Run the script; the future is its reply."""
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append((("EVALSHA", self._sha, "1", key, code), reply))
        if not self._is_writing:
            self._is_writing = True
            self._task = asyncio.create_task(self._write())
        return reply

    async def _write(self) -> None:
        connection = await self._redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # the library's own
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await connection.send_packed_command(connection.pack_commands([command for command, _ in batch]))
            for _, reply in batch:
                reply.set_result(await connection.read_response())
        self._is_writing = False
        await self._redis.connection_pool.release(connection)


class Limit:
    """The ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the lifespan, or one check."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        message = await receive()
        check = _read(message["body"])
        verified, checks = await self._writes.run(check.verification_id, check.code)
        body = json.dumps({"verified": bool(verified), "checks": checks}, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
            self._writes = SharedWrites(redis, await redis.script_load(SCRIPT))
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


app = Limit()
