"""Lets time pass in Redis without waiting: every moment that is kept moves into the past."""

import re
from datetime import timedelta

from redis.asyncio import Redis

_MOMENT = re.compile(r"[aero]|x\d+")  # the fields that app/store/lua/common.lua calls times


async def age(redis: Redis, duration: timedelta) -> None:
    """Make everything in Redis ``duration`` older; what has expired by then is gone."""
    ms = duration // timedelta(milliseconds=1)
    for key in await redis.keys():
        for name, value in (await redis.hgetall(key)).items():
            field = name if isinstance(name, str) else name.decode()
            if _MOMENT.fullmatch(field):
                await redis.hset(key, field, int(value) - ms)
        left = await redis.pttl(key)
        assert left > 0, f"{key!r} has no TTL"
        await redis.pexpire(key, left - ms)
