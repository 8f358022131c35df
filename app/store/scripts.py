"""Runs Lua scripts in Redis: on one server, or on the node of a cluster that has their keys."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any

from redis.exceptions import RedisError

from app.store.cluster import Cluster
from app.store.cluster_runner import ClusterRunner
from app.store.connection import AnyRedis, Command, nodes_of, pack
from app.store.failures import FailureLog, reason_of
from app.store.layout import LETTERS, PREFIX, with_version
from app.store.node_runner import ONLY_NODE, NodeRunner, RoundTrip
from app.store.replication import ReplicatedConnection
from app.verification.errors import StoreUnavailable

Argument = str | bytes | int
Waited = Callable[[str, float], None]
"""Called with the name of a script and how long its caller waited, in seconds, in the caller's own task."""

_SCANNED_AT_ONCE = 1000  # keys: bounds how long a SCAN blocks Redis
_PROBED_EVERY = 1.0  # seconds
_SHARED = (
    *("common", "webhooks/outbox", "attempts/journal", "verification/record", "verification/log"),
    *("limits/window", "fraud_guard/conversions", "limits/decision"),
)
_FIELD_NAME = re.compile(rf"\b({'|'.join(LETTERS)})\b")


class Script:
    """A Lua script, ``app/store/lua/<feature>/<name>.lua``, behind the file that it stands ``after``, if any.

    Of the shared files it gets the definitions that it uses, since Lua makes each of them anew with every run. Names of
    fields are replaced by their letters: Lua 5.1 has no constants, and as locals they make a check 5 % slower.

    Redis refuses a script with a ``#!lua`` line, before it runs any of it, on a replica, and when it may not write or
    has no memory left. Without that line a script that only reads would answer from a replica's old data. A file that
    only reads, frees memory or moves what is stored begins with ``#!lua flags=allow-oom``: it runs on a full Redis too.

    Money or a proof depends on what an ``is_durable`` script writes, so its reply may wait for replicas.
    """

    def __init__(self, feature: str, name: str, *, after: str | None = None, is_durable: bool = False) -> None:
        self.is_durable = is_durable
        self.name = f"{feature}.{name}"
        own = _read(f"{feature}/{name}")
        flags, own = own.split("\n", 1) if own.startswith("#!") else ("#!lua", own)
        body = _without_comments(_read(f"{feature}/{after}") + own if after else own)
        used = _words(body)
        for definition in reversed(_shared_definitions()):  # each uses only those before it
            if definition[1] in used:
                body = definition[0] + body
                used |= _words(definition[0])
        self.source = _FIELD_NAME.sub(lambda found: f"'{LETTERS[found[0]]}'", f"{flags}\n{body}")
        # The name that Redis itself gives a script; no security rests on it.
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.load = pack("SCRIPT", "LOAD", self.source)
        self.declares_all_keys = "key_beside" not in self.source


def _read(file: str) -> str:
    return (resources.files("app.store") / "lua" / f"{file}.lua").read_text(encoding="utf-8")


def _without_comments(lua: str) -> str:
    return re.sub(r"^ *--.*\n", "", lua, flags=re.MULTILINE)


def _words(lua: str) -> set[str]:
    return {*re.findall(r"\w+", lua)}


@cache
def _shared_definitions() -> Sequence[re.Match[str]]:
    """Return the top-level definitions of the shared files: their text, and as group 1 their names."""
    shared = _without_comments("".join(map(_read, _SHARED)))
    return [*re.finditer(r"^local (?:function )?(\w+).*?(?=^local |\Z)", shared, re.MULTILINE | re.DOTALL)]


PROBE = Script("probe", "probe")
_PROBE_KEPT_MS = 10_000


class ScriptRunner:
    """Runs scripts, each in one round trip and within ``timeout`` seconds.

    ``NodeRunner`` says how commands share a write and which are sent again, ``ClusterRunner`` what differs on a
    cluster, where all keys of a script must be in one slot (``has_slots``). The runner adds what all names of keys
    begin with.

    With ``wait_replicas`` a durable script raises StoreUnavailable if so many replicas do not have in half of the
    time-out what it wrote; it did run.
    """

    def __init__(
        self,
        redis: AnyRedis,
        *,
        timeout: float,
        prefix: str = PREFIX,
        wait_replicas: int = 0,
        round_trip: RoundTrip | None = None,
        waited: Waited | None = None,
    ) -> None:
        self._redis = redis
        self._waited = waited
        self.timeout = timeout
        self.prefix = prefix
        self._key_prefix = with_version(prefix)
        self.has_slots = isinstance(redis, Cluster)
        kind: Callable[..., ClusterRunner | NodeRunner] = ClusterRunner if self.has_slots else NodeRunner
        open_runner = partial(kind, redis, timeout=timeout, log_failures=FailureLog(), round_trip=round_trip)
        self._runner = self._durable_runner = open_runner()
        if wait_replicas:
            replicated = partial(ReplicatedConnection, replicas=wait_replicas, timeout=timeout / 2)
            self._durable_runner = open_runner(open_connection=replicated)
        self._probed: list[str] = []
        self._probe: asyncio.Future[list[Any]] | None = None
        self._probe_again_at = 0.0

    async def aclose(self) -> None:
        """End what runs in the background, so that no connection is made any more."""
        await asyncio.gather(self._runner.aclose(), self._durable_runner.aclose())

    def slot_of(self, key: str) -> int:
        """Return the slot of a key; the keys of a script must be in one. On one server all are in slot 0."""
        return self._runner.slot_of(key)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
        """Run a script and return its reply.

        Raises:
            StoreUnavailable: Redis was not reached, did not answer in time, or refused; the script may have run.

        """
        began = time.perf_counter()
        try:
            return await _result(self._submit(script, keys, arguments))
        finally:
            if self._waited:
                self._waited(script.name, time.perf_counter() - began)

    async def ping(self) -> None:
        """Return if a node takes and returns what is written: one that does not, of several, is failed over.

        Raises StoreUnavailable.
        """
        replies = [*(await self._probe_nodes()).values()]
        if all(isinstance(reply, Exception) for reply in replies):
            raise StoreUnavailable(reason_of(replies[0])) from replies[0]

    async def gauges(self) -> Mapping[str, float | Mapping[str, float]]:
        """Return whether Redis takes and returns what is written, for the metrics; on a cluster each primary."""
        is_up = {node: float(not isinstance(reply, Exception)) for node, reply in (await self._probe_nodes()).items()}
        return {"store_up": is_up.get(ONLY_NODE, is_up)}

    async def _probe_nodes(self) -> Mapping[str, Any]:
        """Write and read a key on each node that takes writes; return the replies and errors by its address.

        That is done at most once a second; callers in between get the same answer.
        """
        now = time.monotonic()
        if self._probe is None or (self._probe.done() and now >= self._probe_again_at):
            self._probe_again_at = now + _PROBED_EVERY
            keys = self._runner.probe_keys()
            self._probed = [*keys]
            self._probe = asyncio.gather(*(self._submit(PROBE, [key], [_PROBE_KEPT_MS]) for key in keys.values()))
        nodes, replies = self._probed, await asyncio.shield(self._probe)
        return dict(zip(nodes, replies, strict=True))

    def _submit(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> asyncio.Future[Any]:
        names = [self._key_prefix + key for key in keys]
        data = pack("EVALSHA", script.sha, len(keys), *names, *arguments)
        command = Command(data, script.load, keys, declares_all_keys=script.declares_all_keys)
        (self._durable_runner if script.is_durable else self._runner).submit(command)
        return command.reply

    async def scan(self, pattern: str) -> AsyncIterator[str]:
        """Yield the names of all keys that match; some twice, if a cluster moves them. Raises StoreUnavailable."""
        try:
            for node in await nodes_of(self._redis):
                async for key in node.scan_iter(match=self._key_prefix + pattern, count=_SCANNED_AT_ONCE):
                    yield key.decode().removeprefix(self._key_prefix)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(reason_of(error)) from error


async def _result(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    result = await reply
    if isinstance(result, Exception):
        raise StoreUnavailable(reason_of(result)) from result
    return result
