"""Read and change the keys of limits (``app/store/lua/limits/window.lua``) on a Redis, by scripts of their own."""

import json
from collections.abc import Mapping
from typing import Any, cast

from redis.asyncio import Redis

_UNPACK = """
local total, entries, conversions, block = unpack(cmsgpack.unpack(redis.call('GET', KEYS[1])))
local by = tonumber(ARGV[1])
"""

_READ = f"""
{_UNPACK}
local events, calls = {{}}, {{}}
for first = 1, #entries, 12 do
  events[#events + 1] = {{struct.unpack('>I6I6', entries, first)}}
end
if conversions then
  for first = 1, #conversions[4], 14 do
    calls[#calls + 1] = {{struct.unpack('>I6I4I4', conversions[4], first)}}
    table.remove(calls[#calls]) -- the position
  end
  calls[#calls + 1] = {{unpack(conversions, 1, 3)}}
end
for _, event in ipairs(events) do
  table.remove(event) -- the position
end
return cjson.encode({{total = total, events = events, calls = calls, block = block or nil}})
"""

_AGE = f"""
{_UNPACK}
local aged = {{}}
for first = 1, #entries, 12 do
  local moment, number = struct.unpack('>I6I6', entries, first)
  aged[#aged + 1] = struct.pack('>I6I6', moment - by, number)
end
if conversions then
  local earlier = {{}}
  for first = 1, #conversions[4], 14 do
    local began, calls, successes = struct.unpack('>I6I4I4', conversions[4], first)
    earlier[#earlier + 1] = struct.pack('>I6I4I4', began - by, calls, successes)
  end
  conversions[1], conversions[4], conversions[7] = conversions[1] - by, table.concat(earlier), conversions[7] - by
end
if block then
  block[1], block[2] = block[1] - by, block[2] - by
end
local text = cmsgpack.pack({{total, table.concat(aged), conversions or block and false, block}})
redis.call('SET', KEYS[1], text, 'KEEPTTL')
"""

_FILL = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], cmsgpack.pack({tonumber(ARGV[1]), struct.pack('>I6I6', now, ARGV[1])}), 'PX', ARGV[2])
"""

_BLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], cmsgpack.pack({0, '', false, {now, now + ARGV[1], 1, 20, 0}}), 'PX', ARGV[1])
"""


def is_limit(key: str) -> bool:
    """Return whether a key has this layout."""
    return "{l:" in key or key.endswith(":polls")


async def read_limit(redis: Redis, key: str) -> Mapping[str, Any]:
    """Return ``total``, ``events`` (moment, token or number), ``calls`` (began, calls, successes) and ``block``."""
    return cast("Mapping[str, Any]", json.loads(await redis.eval(_READ, 1, key)))


async def age_limit(redis: Redis, key: str, ms: int) -> None:
    """Move every moment of a limit into the past."""
    await redis.eval(_AGE, 1, key, str(ms))


async def fill_limit(redis: Redis, key: str, events: int, period_ms: int) -> None:
    """Replace what a limit has counted by so many events now."""
    await redis.eval(_FILL, 1, key, str(events), str(period_ms))


async def block_subject(redis: Redis, key: str, for_ms: int) -> None:
    """Replace what a limit holds by a block of the fraud guard."""
    await redis.eval(_BLOCK, 1, key, str(for_ms))
