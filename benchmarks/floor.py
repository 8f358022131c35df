"""The floor: what a plain service pays before it does anything of its own. Started by ``check_cost.py``.

FastAPI with a pydantic body and response, and one script in Redis through redis-py as it comes. No authentication, no
request id, no security headers, no log, no time-out of its own, no digest: all above this is the service's doing.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from redis.asyncio import Redis

# Two commands on one hash: the least that can compare a code and count the attempt in one step.
SCRIPT = """
local right = redis.call('HGET', KEYS[1], 'code') == ARGV[1]
return {right and 1 or 0, redis.call('HINCRBY', KEYS[1], 'checks', 1)}
"""


class Check(BaseModel):
    """The code that the person typed."""

    verification_id: str
    code: str


class Checked(BaseModel):
    """Whether it was right, and how many were tried."""

    verified: bool
    checks: int


class Health(BaseModel):
    """What ``/livez`` of the service answers, too."""

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
    """Answer without Redis: what the framework alone costs."""
    return Health(status="ok")
