"""A cluster of three primaries with a replica each, that tests fail, partition and reshard."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self

from tests.redis_nodes import OPTIONS, USER, Node, bring_back, cut_off, free_ports, until

SLOTS = 16_384
PRIMARIES = 3
_KEYS_AT_ONCE = 20  # keys of a slot that move in one command


class Cluster:
    """The processes; a context manager. ``options`` are those of each node, beside what tests need.

    A node that is silent for ``node_timeout`` (ms) is failed over. A busy machine takes a node for dead that is not.
    """

    def __init__(self, folder: Path, *options: str, node_timeout: int = 1000) -> None:
        ports = free_ports(4 * PRIMARIES)
        cluster = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout)),
            *("--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no"),
            *("--cluster-replica-validity-factor", "0", "--enable-debug-command", "yes"),
        )
        self._bus_ports = dict(zip(ports[::2], ports[1::2], strict=True))
        self.nodes = [
            Node(folder / f"node-{port}", port, (*OPTIONS, *cluster, "--cluster-port", str(bus), *options), user=USER)
            for port, bus in self._bus_ports.items()
        ]
        self._ids: dict[str, Node] = {}

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if hasattr(node, "process"):
                node.kill()

    def _form(self) -> None:
        for epoch, node in enumerate(self.nodes, 1):
            node.start()
            node.send("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            self._ids[node.send("CLUSTER", "MYID")] = node
        primaries, replicas = self.nodes[:PRIMARIES], self.nodes[PRIMARIES:]
        for number, primary in enumerate(primaries):
            first, end = (SLOTS * at // PRIMARIES for at in (number, number + 1))
            primary.send("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            primaries[0].send("CLUSTER", "MEET", "127.0.0.1", node.port, self._bus_ports[node.port])
        until(lambda: all(len(self._table(node)) == len(self.nodes) for node in self.nodes))
        for primary, replica in zip(primaries, replicas, strict=True):
            until(partial(self._replicate, replica, primary))  # at first it may not know that the other is a primary
        self.wait_until_whole()

    def _replicate(self, replica: Node, primary: Node) -> bool:
        return bool(replica.send("CLUSTER", "REPLICATE", self.id_of(primary)) == "OK")

    @property
    def url(self) -> str:
        return f"redis+cluster://{USER}@{','.join(node.address for node in self.nodes)}"

    def id_of(self, node: Node) -> str:
        """Return the name of a node in the cluster."""
        return next(name for name, known in self._ids.items() if known is node)

    @property
    def running(self) -> list[Node]:
        """The nodes that are neither killed nor paused."""
        return [node for node in self.nodes if node.is_running]

    @property
    def primaries(self) -> list[Node]:
        """The nodes that have slots, as the majority of the running nodes sees it."""
        return [node for node in self.nodes if self._slots_seen(node)]

    def primary_of(self, slot: int) -> Node:
        """Return the node that serves a slot."""
        return next(node for node in self.primaries if slot in self._slots_seen(node))

    def replica_of(self, primary: Node) -> Node:
        """Return the replica of a primary."""
        name = self.id_of(primary)
        return next(
            self._ids[row[0]]
            for row in self._table(next(node for node in self.running if node is not primary))
            if row[3] == name and "fail" not in row[2].split(",")
        )

    def slots_of(self, primary: Node) -> list[int]:
        """Return the slots of a primary."""
        return sorted(self._slots_seen(primary))

    def fail_over(self, primary: Node) -> Node:
        """Make the replica of a running primary the primary, without losing a write; return it."""
        replica = self.replica_of(primary)
        replica.send("CLUSTER", "FAILOVER")
        self.wait_for_failover(primary)
        return replica

    def isolate(self, primary: Node) -> Node:
        """Cut a primary off from all other nodes, but not from the service, and promote its replica; return that.

        The others have elected the replica then, and the primary has not heard of it: as after a partition, until it
        misses the majority for its ``node_timeout``. ``bring_back`` heals it.
        """
        replica = self.replica_of(primary)
        primary.send("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -2)  # all
        cut_off(primary)
        # Others still hear of the primary, so no election would begin.
        replica.send("CLUSTER", "FAILOVER", "TAKEOVER")
        return replica

    def bring_back(self, node: Node) -> None:
        """Undo a pause, ``cut_off`` and ``isolate``."""
        bring_back(node)
        node.send("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -1)  # none

    def wait_for_failover(self, earlier: Node) -> None:
        """Wait until all others see no slot at a former primary."""
        name = self.id_of(earlier)
        until(
            lambda: all(
                not _slots(row)
                for node in self.running
                if node is not earlier
                for row in self._table(node)
                if row[0] == name
            )
        )

    def move_slot(self, slot: int, target: Node) -> int:
        """Move a slot with its keys to a primary; return how many keys moved."""
        return self.move_slots([slot], self.primary_of(slot), target)

    def move_slots(self, slots: Iterable[int], source: Node, target: Node) -> int:
        """Move slots with their keys, as ``redis-cli --cluster reshard`` does; return how many keys moved."""
        user, password = USER.split(":")
        moved, others = 0, [node for node in self.primaries if node not in (source, target)]
        for slot in slots:
            _set_slot(target, slot, "IMPORTING", self.id_of(source))
            _set_slot(source, slot, "MIGRATING", self.id_of(target))
            while keys := source.send("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE):
                source.send("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH2", user, password, "KEYS", *keys)
                moved += len(keys)
            for node in (target, source, *others):  # the target first, so that the slot never has no owner
                _set_slot(node, slot, "NODE", self.id_of(target))
        return moved

    def mend(self) -> None:
        """Restart what was killed, undo pauses and partitions, and wait until all are together again.

        A node knows its cluster, and becomes a replica if it was failed over.
        """
        for node in self.nodes:
            if node.process.poll() is None:
                self.bring_back(node)
            else:
                node.start()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until all nodes agree on all slots, and each primary has a replica in sync."""

        def is_whole() -> bool:
            for node in self.nodes:
                table = self._table(node)
                if any({"fail", "fail?", "handshake", "noaddr"} & set(row[2].split(",")) for row in table):
                    return False
                if "cluster_state:ok" not in node.send("CLUSTER", "INFO"):
                    return False
                if any(len(nodes) < 2 for _, _, *nodes in node.send("CLUSTER", "SLOTS")):
                    return False  # it lists a replica once it has heard that that has data
                if (
                    sum(len(_slots(row)) for row in table) != SLOTS
                    or sum(bool(_slots(row)) for row in table) > PRIMARIES
                ):
                    return False
            roles = [node.send("ROLE") for node in self.nodes]
            return (
                sum(role[0] == "master" and len(role[2]) == 1 for role in roles) == PRIMARIES
                and sum(role[0] == "slave" and role[3] == "connected" for role in roles) == PRIMARIES
                and len({frozenset(map(_view, self._table(node))) for node in self.nodes}) == 1
            )

        until(is_whole)

    def _table(self, node: Node) -> list[list[str]]:
        """Return what a node knows of each node: id, address, flags, its primary, …, and its slots."""
        return [line.split() for line in str(node.send("CLUSTER", "NODES")).splitlines()]

    def _slots_seen(self, node: Node) -> set[int]:
        """Return the slots of a node, as the most running nodes see it."""
        name = self.id_of(node)
        views = Counter(
            frozenset(_slots(row)) for other in self.running for row in self._table(other) if row[0] == name
        )
        return set(views.most_common(1)[0][0])


def _set_slot(node: Node, slot: int, how: str, other: str) -> None:
    """Set the state of a slot at a node; it is refused while the node's replica is slow."""
    until(lambda: node.send("CLUSTER", "SETSLOT", slot, how, other) == "OK")


def _slots(row: list[str]) -> set[int]:
    """Return the slots in a row of ``CLUSTER NODES``, without those that are moving."""
    found: set[int] = set()
    for text in row[8:]:
        if not text.startswith("["):
            first, _, last = text.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _view(row: list[str]) -> tuple[Any, ...]:
    """Return what all nodes should say alike of one."""
    return row[0], row[3], frozenset(_slots(row))
