"""A real Redis with a replica and a sentinel for tests, which can have the replica made the master."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.processes import RedisProcess
from tests.redis_caches import ask_server
from tests.redis_cluster import ConfiguredRedis

SERVICE = "tested"

_READY_SECONDS = 15.0
_MASTER_DOWN_MS = 500
_FAILOVER_TIMEOUT_MS = 1000  # twice that is the time from one failover to the next


class SentinelGroup:
    """A master, a replica of it, and one sentinel that watches both; `stop` ends them.

    Args:
        directory: where the servers keep their files.
    """

    def __init__(self, directory: Path) -> None:
        self._started: list[RedisProcess] = []
        try:
            self._servers = [self._server(directory / name) for name in ("first", "second")]
            ask_server(self._servers[1], "REPLICAOF", "127.0.0.1", self._servers[0].port)
            _until(lambda: b"master_link_status:up" in ask_server(self._servers[1], "INFO replication"))
            self._sentinel = self._watch(directory / "sentinel", self._servers[0].port)
            # Only then can it promote one.
            _until(lambda: [] != ask_server(self._sentinel, "SENTINEL", "REPLICAS", SERVICE))
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> tuple[str, int]:
        """Where clients ask the sentinel for the master."""
        return "127.0.0.1", self._sentinel.port

    @property
    def master(self) -> RedisProcess:
        """The server that the sentinel sends clients to."""
        port = self._master_port()
        [master] = [server for server in self._servers if server.port == port]
        return master

    def failover(self) -> None:
        """Make the replica the master, and the master a replica, with its clients cut off; return when both are."""
        before = self._master_port()
        _until(self._takes_the_order)
        _until(lambda: before != self._master_port() and b"role:master" in ask_server(self.master, "INFO replication"))
        [demoted] = [server for server in self._servers if server.port == before]
        # The sentinel does this, too, as soon as it has waited for eight seconds.
        ask_server(demoted, "REPLICAOF", "127.0.0.1", self.master.port)
        ask_server(demoted, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def stop(self) -> None:
        """End every server at once."""
        for server in self._started:
            server.kill()

    def _takes_the_order(self) -> bool:
        import redis

        try:
            ask_server(self._sentinel, "SENTINEL", "FAILOVER", SERVICE)
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGOODSLAVE", "INPROG")):
                raise
            return False  # it has not heard enough of the replica yet
        return True

    def _master_port(self) -> int:
        # The address that can be asked for by itself changes earlier than what clients go by.
        port: int = ask_server(self._sentinel, "SENTINEL MASTER", SERVICE)["port"]
        return port

    def _server(self, directory: Path) -> RedisProcess:
        # By default a replica that asks for a copy waits five seconds for others to ask as well.
        return self._start(directory, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")

    def _watch(self, directory: Path, port: int) -> RedisProcess:
        directory.mkdir()
        configuration = directory / "sentinel.conf"  # which the sentinel writes to as well
        configuration.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} {_MASTER_DOWN_MS}\n"
            f"sentinel failover-timeout {SERVICE} {_FAILOVER_TIMEOUT_MS}\n"
        )
        return self._start(directory, str(configuration), "--sentinel")

    def _start(self, directory: Path, *arguments: str) -> RedisProcess:
        self._started.append(ConfiguredRedis(directory, *arguments))
        return self._started[-1]


def _until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _READY_SECONDS
    while not holds():
        if time.monotonic() > give_up:
            raise RuntimeError("the servers and their sentinel did not get there")
        time.sleep(0.02)
