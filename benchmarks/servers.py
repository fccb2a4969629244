"""Starts a Redis server for one benchmark: on a free port of 127.0.0.1, without persistence."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any, Self

# Searched for on the PATH; tests may put the path of another one here.
BINARY = "redis-server"
_STARTUP_SECONDS = 10.0
# Sent by `commands` itself.
_OWN_COMMANDS = {"cmdstat_info", "cmdstat_config|resetstat"}


def redis_is_here() -> bool:
    """Whether both the server program and the client package are installed."""
    try:
        import redis  # noqa: F401
    except ImportError:
        return False
    return shutil.which(BINARY) is not None


class RedisServer:
    """A redis-server process that runs inside the block."""

    def __enter__(self) -> Self:
        from redis import Redis

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._directory = tempfile.TemporaryDirectory()
        try:
            self._process = subprocess.Popen(
                [*command, "--dir", self._directory.name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except OSError:
            self._directory.cleanup()
            raise
        self._client: Any = Redis(port=self.port, protocol=2)
        give_up = time.monotonic() + _STARTUP_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.__exit__(None, None, None)
                raise RuntimeError(f"redis-server did not come up on port {self.port}")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64) == b"+PONG\r\n"
        except OSError:
            return False

    def pause(self) -> None:
        """Stops the process with SIGSTOP: connections stay open, but no command is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def commands(self) -> dict[str, int]:
        """Returns and resets the count of each executed command, commands inside scripts included."""
        stats: dict[str, dict[str, int]] = self._client.info("commandstats")
        self._client.config_resetstat()
        counts = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
        return {name: count for name, count in counts.items() if f"cmdstat_{name}" not in _OWN_COMMANDS}
