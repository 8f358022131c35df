"""Read and change the keys of limits (``app/store/lua/limits/window.lua``) on a Redis, by scripts of their own."""

import json
from collections.abc import Mapping
from typing import Any, cast

from redis.asyncio import Redis

_SPLIT = """
local text = redis.call('GET', KEYS[1])
local total, count = struct.unpack('>I4I1', text)
local entries, calls = text:sub(6, 5 + 9 * count), text:sub(6 + 9 * count)
local sums = #calls > 14 and calls:sub(1, 14) or ''
calls = calls:sub(#sums + 1)
local function each(format, length, packed, change)
  local parts = {}
  for first = 1, #packed, length do
    parts[#parts + 1] = change(struct.unpack(format, packed, first))
  end
  return parts
end
"""

_READ = f"""
if redis.call('EXISTS', KEYS[1]) == 0 then return '{{"total": 0, "events": {{}}, "calls": {{}}}}' end
{_SPLIT}
local events = each('>I5I4', 9, entries, function(moment, number)
  return {{moment + 1577836800000, number}}
end)
local buckets = each('>I6I4I4', 14, calls, function(began, placed, successes) return {{began, placed, successes}} end)
return cjson.encode({{total = total, events = events, calls = buckets}})
"""

_AGE = f"""
if redis.call('EXISTS', KEYS[1]) == 0 then return end
{_SPLIT}
local by = tonumber(ARGV[1])
entries = each('>I5I4', 9, entries, function(moment, number) return struct.pack('>I5I4', moment - by, number) end)
calls = each('>I6I4I4', 14, calls, function(began, placed, successes)
  return struct.pack('>I6I4I4', began - by, placed, successes)
end)
sums = each('>I4I4I6', 14, sums, function(placed, successes, hold_until)
  return struct.pack('>I4I4I6', placed, successes, math.max(0, hold_until - by))
end)
text = text:sub(1, 5) .. table.concat(entries) .. table.concat(sums) .. table.concat(calls)
redis.call('SET', KEYS[1], text, 'KEEPTTL')
"""

_FILL = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], struct.pack('>I4I1I5I4', ARGV[1], 1, now - 1577836800000, ARGV[1]), 'PX', ARGV[2])
"""

_BLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], cjson.encode({now, now + ARGV[1], 1, 20, 0}), 'PX', ARGV[1])
"""


def is_limit(key: str) -> bool:
    """Return whether a key has this layout."""
    is_of_limiter = "{limits}:" in key or "{l:" in key
    return key.endswith(":polls") if "{queue}" in key else is_of_limiter and not key.endswith(":b")


async def read_limit(redis: Redis, key: str) -> Mapping[str, Any]:
    """Return ``total``, ``events`` (moment, token or number) and ``calls`` (began, calls, successes)."""
    return cast("Mapping[str, Any]", json.loads(await redis.eval(_READ, 1, key)))


async def age_limit(redis: Redis, key: str, ms: int) -> None:
    """Move every moment of a limit into the past."""
    await redis.eval(_AGE, 1, key, str(ms))


async def fill_limit(redis: Redis, key: str, events: int, period_ms: int) -> None:
    """Replace what a limit has counted by so many events now."""
    await redis.eval(_FILL, 1, key, str(events), str(period_ms))


async def block_subject(redis: Redis, key: str, for_ms: int) -> None:
    """Have the fraud guard block a subject; ``key`` is that of the block."""
    await redis.eval(_BLOCK, 1, key, str(for_ms))
