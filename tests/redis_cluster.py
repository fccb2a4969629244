"""A real Redis Cluster for tests: three masters on 127.0.0.1, whose slots can be moved while clients use them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import RedisProcess, free_port
from tests.redis_caches import ask_server

SLOTS = 16384

_MASTERS = 3
_READY_SECONDS = 15.0
_NODE_TIMEOUT_MS = 2000
_MIGRATE_TIMEOUT_MS = 5000
_KEYS_AT_ONCE = 100


class ConfiguredRedis(RedisProcess):
    """A redis-server with arguments of the test's; the first one may be a configuration file."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._arguments = arguments
        directory.mkdir(exist_ok=True)
        super().__init__(directory)

    def start(self) -> None:
        """Start the server on its port and return when it answers."""
        self._process = subprocess.Popen(
            [
                *(self._binary, *self._arguments),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"redis-server did not come up on port {self.port}")
            time.sleep(0.01)


class _Node(ConfiguredRedis):
    """One master of the cluster."""

    def __init__(self, directory: Path) -> None:
        # By default the bus has the port's number + 10,000, which may be none.
        self.bus_port = free_port()
        super().__init__(
            directory,
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)),
            *("--cluster-node-timeout", str(_NODE_TIMEOUT_MS), "--save", "", "--appendonly", "no"),
        )
        self.id: str = self.ask("CLUSTER", "MYID").decode()

    def ask(self, *command: Any) -> Any:
        """What the node answers."""
        return ask_server(self, *command)


class RedisCluster:
    """Three masters that share the slots; `stop` ends them.

    Args:
        directory: where the nodes keep what they know of one another.
    """

    def __init__(self, directory: Path) -> None:
        self.nodes: list[_Node] = []
        try:
            for number in range(_MASTERS):
                self.nodes.append(_Node(directory / f"node{number}"))
            self._join()
        except BaseException:
            self.stop()
            raise

    @property
    def port(self) -> int:
        """Where clients may begin."""
        return self.nodes[0].port

    def stop(self) -> None:
        """End every node at once."""
        for node in self.nodes:
            node.kill()

    def flush(self) -> None:
        """Empty every node."""
        for node in self.nodes:
            node.flush()

    def all_keys(self) -> list[str]:
        """Every key of the cluster."""
        return sorted(key.decode() for node in self.nodes for key in node.ask("KEYS", "*"))

    def slot_of(self, key: str) -> int:
        """The slot of a key, or of everything with its hash tag."""
        slot: int = self.nodes[0].ask("CLUSTER", "KEYSLOT", key)
        return slot

    def owner_of(self, slot: int) -> _Node:
        """The node that has the slot now, as the nodes themselves see it."""
        [owner] = [node for node in self.nodes if _has_slot(node, slot)]
        return owner

    @contextmanager
    def moving_slot(self, key: str) -> Iterator[None]:
        """Moves the slot of a key to the next node: inside, its keys are on their way, and clients are told ASK.

        Half of the keys have left and half of them have not; afterwards all have, and clients are told MOVED.
        """
        slot = self.slot_of(key)
        source = self.owner_of(slot)
        target = self.nodes[(self.nodes.index(source) + 1) % _MASTERS]
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        self._migrate(source, target, slot, (source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) + 1) // 2)
        try:
            yield
        finally:
            # A key may come to the source for as long as it has others of the slot.
            while self._migrate(source, target, slot, _KEYS_AT_ONCE):
                pass
            for node in (target, source, *(other for other in self.nodes if other not in (target, source))):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move_slot(self, key: str) -> None:
        """Moves the slot of a key to the next node, with all that is in it."""
        with self.moving_slot(key):
            pass

    def _join(self) -> None:
        share = -(-SLOTS // _MASTERS)
        for number, node in enumerate(self.nodes):
            first, last = number * share, min((number + 1) * share, SLOTS) - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            # Else the nodes find out that they all have the same, one after another.
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:  # each meets each: gossip would take seconds
                    node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        give_up = time.monotonic() + _READY_SECONDS
        while not all(map(_is_ready, self.nodes)):
            if time.monotonic() > give_up:
                raise RuntimeError("the nodes of the cluster did not find one another")
            time.sleep(0.02)

    def _migrate(self, source: _Node, target: _Node, slot: int, count: int) -> bool:
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, _MIGRATE_TIMEOUT_MS, "REPLACE", "KEYS", *keys)
        return bool(keys)


def _is_ready(node: _Node) -> bool:
    facts = dict(line.split(":") for line in node.ask("CLUSTER", "INFO").decode().split())
    return (facts["cluster_state"], facts["cluster_known_nodes"]) == ("ok", str(_MASTERS))


def _has_slot(node: _Node, slot: int) -> bool:
    [line] = [line for line in node.ask("CLUSTER", "NODES").decode().splitlines() if "myself" in line]
    # The eighth field and those after it are slots; in brackets, what is on its way.
    ranges = [part.partition("-") for part in line.split()[8:] if not part.startswith("[")]
    return any(int(first) <= slot <= int(last or first) for first, _, last in ranges)
