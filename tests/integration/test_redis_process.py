"""The private redis-server that other tests pause, kill and restart does what they rely on."""

from __future__ import annotations

import socket

import pytest

from tests.processes import RedisProcess

pytestmark = pytest.mark.needs_redis_server


def _ask(server: RedisProcess, command: bytes, timeout_seconds: float = 5.0) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_seconds) as connection:
        connection.sendall(command + b"\r\n")
        return connection.recv(64)


def test_pause_keeps_connections_open_and_silent(redis_process: RedisProcess) -> None:
    """A paused server is the hardest fault for a client, and must not be mistaken for a refused connection."""
    redis_process.pause()
    with pytest.raises(TimeoutError):
        _ask(redis_process, b"PING", timeout_seconds=0.1)
    redis_process.resume()
    assert b"+PONG\r\n" == _ask(redis_process, b"PING")


def test_restart_keeps_the_port_and_loses_the_data(redis_process: RedisProcess) -> None:
    """A client must find the new server where the old one was, and find it empty."""
    port, pid = redis_process.port, redis_process.pid
    assert b"+OK\r\n" == _ask(redis_process, b"SET a b")
    redis_process.kill()
    with pytest.raises(ConnectionRefusedError):
        _ask(redis_process, b"PING")
    redis_process.restart()
    assert port == redis_process.port
    assert pid != redis_process.pid
    assert b"$-1\r\n" == _ask(redis_process, b"GET a")


def test_flush_empties_the_server(redis_server: RedisProcess) -> None:
    """Tests that share the server can start from nothing."""
    _ask(redis_server, b"SET flushed yes")
    redis_server.flush()
    assert b"$-1\r\n" == _ask(redis_server, b"GET flushed")
