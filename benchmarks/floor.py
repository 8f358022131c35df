"""The floor: the cost of a plain service without any features. Started by ``bench.py``.

FastAPI with a pydantic body and response, and one script in Redis through unmodified redis-py. No authentication, no
request id, no security headers, no log, no timeout, no digest: everything above this is the cost of the service.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from redis.asyncio import Redis

# Two commands on one hash: the minimum to compare a code and count the check in one step.
SCRIPT = """
local right = redis.call('HGET', KEYS[1], 'code') == ARGV[1]
return {right and 1 or 0, redis.call('HINCRBY', KEYS[1], 'checks', 1)}
"""


class Check(BaseModel):
    """The code that the user typed."""

    verification_id: str
    code: str


class Checked(BaseModel):
    """Whether the code was right, and the number of checks."""

    verified: bool
    checks: int


class Health(BaseModel):
    """The same response as that of ``/livez`` of the service."""

    status: str


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        yield {"redis": redis, "sha": await redis.script_load(SCRIPT)}


app = FastAPI(lifespan=_lifespan)


@app.post("/check")
async def check(body: Check, request: Request) -> Checked:
    """Compare and count with one ``EVALSHA``."""
    verified, checks = await request.state.redis.evalsha(request.state.sha, 1, body.verification_id, body.code)
    return Checked(verified=bool(verified), checks=checks)


@app.get("/bare")
async def bare() -> Health:
    """Respond without Redis: the cost of the framework alone."""
    return Health(status="ok")
