"""Sends commands to the nodes of a Redis Cluster, each to the primary of its slot."""

import asyncio
import random
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from app.store.cluster import SLOTS, Cluster
from app.store.connection import Command, Connection, Errors, pack
from app.store.failures import FailureLog, code_if_not_run
from app.store.node_runner import ONLY_NODE, PROBE_KEY, NodeRunner, OpenConnection, RoundTrip

_MOST_REDIRECTIONS = 3  # of a command: while a slot moves, to the new node, back, and there again
_TRY_AGAIN_AFTER = (0.02, 0.06)  # seconds: some keys of a script have moved, the others are about to
_UNKNOWN_HOST = {":", "?"}  # at the beginning of an address: a node that does not know its own
_UNSERVED = ResponseError("CLUSTERDOWN no node is known to serve the slot")
_ASKING = pack("ASKING")


class ClusterRunner:
    """Sends each command to the primary of its slot, where it shares a write with others: see ``NodeRunner``.

    What a node did not run is sent again within the first time-out: to the node that the reply names, or, if it names
    none, after asking for the topology. A lost connection makes the topology doubtful too, but repeats nothing.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        timeout: float,
        log_failures: FailureLog,
        round_trip: RoundTrip | None,
        open_connection: OpenConnection = Connection,
    ) -> None:
        self._cluster = cluster
        self._timeout = timeout
        self._log_failures = log_failures
        self._open = partial(
            _ClusterNode,
            self,
            timeout=timeout,
            log_failures=log_failures,
            round_trip=round_trip,
            open_connection=open_connection,
        )
        self._probe_keys: dict[str, str] = {}
        self._nodes: WeakKeyDictionary[Redis, _ClusterNode] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def slot_of(self, key: str) -> int:
        """Return the slot of a key."""
        slot: int = key_slot(key.encode())
        return slot

    def probe_keys(self) -> Mapping[str, str]:
        """Return a key to probe each primary, by its address."""
        owners, replicas = self._cluster.topology.owners, self._cluster.topology.replicas
        for address in replicas:
            key = self._probe_keys.get(address, PROBE_KEY)
            if owners[self.slot_of(key)] != address:
                keys = (f"{{probe{number}}}" for number in range(SLOTS))  # hardly a slot is without one of them
                key = next((key for key in keys if owners[self.slot_of(key)] == address), PROBE_KEY)
            self._probe_keys[address] = key
        return {address: self._probe_keys[address] for address in replicas} or {ONLY_NODE: PROBE_KEY}

    async def aclose(self) -> None:
        """Stop connecting and sending again; a command that waits for it gets no reply."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(node.aclose() for node in self._nodes.values()), return_exceptions=True)

    def submit(self, command: Command) -> None:
        """Send a command to the primary of its keys, which must all be in one slot."""
        slot = self.slot_of(command.keys[0])
        assert all(self.slot_of(key) == slot for key in command.keys), command.keys  # noqa: S101 - it would be refused
        if address := self._cluster.topology.owners[slot]:
            self._node(address).submit(command)
        elif command.deadline:  # the topology was just asked for
            self._fail(command, _UNSERVED)
        else:
            self.send_again(command, _UNSERVED, deadline=asyncio.get_running_loop().time() + self._timeout)

    def _node(self, address: str) -> "_ClusterNode":
        client = self._cluster.client(address)
        if client not in self._nodes:
            self._nodes[client] = self._open(client)
        return self._nodes[client]

    def send_again(self, command: Command, error: Exception, *, deadline: float) -> None:
        """Send what a node did not run where it may run, in the background; it fails at its first ``deadline``."""
        loop = asyncio.get_running_loop()
        if not command.deadline:
            command.deadline = deadline
            loop.call_at(deadline, self._fail, command, TimeoutError())
        task = loop.create_task(self._send_again(command, error))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_again(self, command: Command, error: Exception) -> None:
        code, _, *words = code_if_not_run(error), *str(error).split()
        address = words[1] if code in {"MOVED", "ASK"} and words[1][0] not in _UNKNOWN_HOST else None
        has_to_wait = code == "TRYAGAIN" or (code == "ASK" and not command.declares_all_keys)
        command.redirections += not has_to_wait
        pause = random.uniform(*_TRY_AGAIN_AFTER) if has_to_wait else 0  # noqa: S311 - not a secret
        is_late = asyncio.get_running_loop().time() + pause > command.deadline
        try:
            if is_late or command.redirections > _MOST_REDIRECTIONS:
                self._fail(command, error)
            elif has_to_wait:
                await asyncio.sleep(pause)
                self.submit(command)
            elif address is None:
                await self._cluster.refresh()
                self.submit(command)
            elif code == "MOVED":
                self._cluster.refresh_soon()
                self._node(address).submit(command)
            else:
                # The script is loaded in any case, because ASKING is good for the next command alone.
                for data in (command.load, _ASKING):
                    self._node(address).submit(Command(data))
                self._node(address).submit(command)
        except Exception as failure:  # noqa: BLE001 - whatever it is, no caller may wait for ever
            self._fail(command, failure)

    def _fail(self, command: Command, error: Exception) -> None:
        if not command.reply.done():
            self._log_failures([error])
            command.answer(error)

    def connection_lost(self) -> None:
        """Ask for the topology: the node may not be the primary any more."""
        self._cluster.refresh_soon()


class _ClusterNode(NodeRunner):
    """Sends commands to one node; what that does not run goes back to the ``runner``."""

    def __init__(self, runner: ClusterRunner, client: Redis, **options: Any) -> None:  # noqa: ANN401 - of NodeRunner
        super().__init__(client, **options)
        self._runner = runner

    async def _send_again(self, refused: Mapping[Command, Exception]) -> Errors:
        unknown = {it: error for it, error in refused.items() if code_if_not_run(error) == "NOSCRIPT"}
        errors = await super()._send_again(unknown) if unknown else []
        for command in refused.keys() - unknown.keys():
            self._runner.send_again(command, refused[command], deadline=self._deadline)
        return errors

    def _finish(self, errors: Errors) -> None:
        if not all(isinstance(error, ResponseError) for _, error in errors):
            self._runner.connection_lost()
        super()._finish(errors)
