"""Let time pass in Redis without waiting: move every stored timestamp into the past."""

import re
from datetime import timedelta
from typing import Any

import msgpack
from redis.asyncio import Redis

from tests.limit_keys import age_limit, is_limit

# Moments and logs of them: fields of app/store/layout.py, of claims and of the balance.
_MOMENTS = re.compile(r"[arolb]|o\d+|read_at|leased_until|claimed_until")
_NO_TTL = -1
_MOMENT = re.compile(r"\d{13}")
_SET = "if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end"  # it may expire
_RECORD = re.compile(r"[^{]*\{[0-9a-f]{3}\}:(p:)?[\w-]+")  # of a verification or a phone; not the journal, a stream


async def age(redis: Redis, duration: timedelta) -> None:
    """Make everything in Redis ``duration`` older, and delete what has expired."""
    ms = duration // timedelta(milliseconds=1)
    for key in map(_text, await redis.keys()):
        match await redis.type(key):
            case b"hash":
                await _age_hash(redis, key, ms)
            case b"string" if is_limit(key):
                await age_limit(redis, key, ms)
            case b"string" if key.endswith(":b"):  # a block of the fraud guard
                block = _text(await redis.get(key) or "")
                await redis.set(key, _MOMENT.sub(lambda found: str(int(found[0]) - ms), block), keepttl=True, xx=True)
            case b"string" if _RECORD.fullmatch(key) and (record := await redis.get(key)):
                await redis.set(key, msgpack.packb(_aged(msgpack.unpackb(record), ms)), keepttl=True, xx=True)
            case b"zset":
                members: list[bytes] = await redis.zrange(key, 0, -1)  # type: ignore[assignment] # without scores
                for member in members:
                    # XX, as above: a key that the service has just deleted must not come back, without a TTL.
                    await redis.zadd(key, {member: -ms}, xx=True, incr=True)
        left = await redis.pttl(key)
        assert left != _NO_TTL, f"{key!r} has no TTL"
        await redis.pexpire(key, left - ms)  # a key deleted in the meantime stays deleted


async def _age_hash(redis: Redis, key: str, ms: int) -> None:
    fields: dict[str, Any] = {_text(name): _text(value) for name, value in (await redis.hgetall(key)).items()}
    for name, value in _aged(fields, ms).items():
        if value != fields[name]:
            await redis.eval(_SET, 1, key, name, value)


def _aged(fields: dict[str, Any], ms: int) -> dict[str, Any]:
    """Return fields, moments among them moved into the past."""
    return {name: _moved(value, ms) if _MOMENTS.fullmatch(name) else value for name, value in fields.items()}


def _moved(value: Any, ms: int) -> Any:  # noqa: ANN401 - a text, a number, or a list of such
    if isinstance(value, list):
        return [_moved(item, ms) for item in value]
    return type(value)(_MOMENT.sub(lambda found: str(int(found[0]) - ms), str(value)))


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
