"""The HTTP server of the local providers: accepts requests and passes each to one handler."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Self

from observability_integration.tasks import spawn

from .chat_reply import refusal
from .exchange import Exchange
from .http1 import Connection, InvalidRequestError, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import TracebackType

HOST = "127.0.0.1"
# How long the loop may take to report the connections that `close` has dropped.
_CLOSE_SECONDS = 1.0
# After an accept the loop creates the transport, notifies the protocol and ends its own task.
_ACCEPT_ITERATIONS = 3


class LoopbackProvider:
    """An HTTP server on the loopback interface, in this process and on this event loop.

    The server itself replies to an unknown path or method. It keeps connections alive, and cancels the handler of a
    request whose client disconnects.

    Args:
        handle: replies to one request; a `ConnectionError` ends the connection.
        method_by_path: the one method of each path that is served.
        count: called with the model and the HTTP status of each request, just before the first byte of its reply; the
            status of a request that ends without a reply is 499.
        port: the TCP port to listen on; 0 picks a free one.
        max_body_bytes: maximum size of a body, in bytes; a larger one gets a 413.
        max_connections: further connections are dropped at once; None is no limit.
    """

    def __init__(
        self,
        handle: Callable[[Exchange, Request], Coroutine[Any, Any, None]],
        method_by_path: Mapping[str, str],
        *,
        count: Callable[[str, int], None] = lambda model, status: None,
        port: int = 0,
        max_body_bytes: int = 1_048_576,
        max_connections: int | None = None,
    ) -> None:
        self._handle = handle
        self._method_by_path = method_by_path
        self._count = count
        self._port = port
        self._max_body_bytes = max_body_bytes
        self._max_connections = max_connections
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._request_numbers = itertools.count(1)
        self._in_flight = 0
        self._in_flight_changed = asyncio.Event()

    @property
    def base_url(self) -> str:
        """The URL of the API: ``http://127.0.0.1:PORT/v1``.

        Raises:
            RuntimeError: the provider is not open.
        """
        if self._server is None:
            raise RuntimeError("The provider is not open: use it in 'async with'")
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}/v1"

    @property
    def is_open(self) -> bool:
        """Whether the server listens; False as soon as `close` begins."""
        return self._server is not None

    @property
    def in_flight(self) -> int:
        """The number of requests in flight.

        A request may still count for a moment after the client has read its reply; use `wait_for_in_flight`.
        """
        return self._in_flight

    async def wait_for_in_flight(self, count: int) -> None:
        """Waits until exactly `count` requests are in flight."""
        while self._in_flight != count:
            await self._in_flight_changed.wait()

    async def open(self) -> None:
        """Starts to listen.

        Raises:
            RuntimeError: the provider is open already.
            OSError: the port is in use.
        """
        if self._server is not None:
            raise RuntimeError("The provider is open already")
        self._server = await asyncio.start_server(self._accept, HOST, self._port)

    async def close(self) -> None:
        """Stops listening and drops all connections, idle or not; does nothing if the provider is not open."""
        server, self._server = self._server, None
        if server is None:
            return
        await _stop_accepting(server)
        server.close()
        tasks = dict(self._connections)
        for task, writer in tasks.items():
            # A task that has never run does not close its connection.
            writer.transport.abort()
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._max_connections is not None and len(self._connections) >= self._max_connections:
            writer.transport.abort()
            return
        connection = Connection(reader, writer, self._max_body_bytes)
        task = asyncio.get_running_loop().create_task(self._serve(connection), name="loopback connection")
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _serve(self, connection: Connection) -> None:
        try:
            while await self._serve_next(connection):
                pass
            await connection.linger()
        except ConnectionError:
            pass  # the client has disconnected: there is no reply to send
        finally:
            await connection.close()

    async def _serve_next(self, connection: Connection) -> bool:
        request_id = f"req_loopback_{next(self._request_numbers):06d}"
        try:
            request = await connection.read_request()
        except InvalidRequestError as error:
            exchange = Exchange(connection, None, request_id, self._count)
            await exchange.reply(error.status, refusal(error.message))
            return False
        if request is None:
            return False
        exchange = Exchange(connection, request, request_id, self._count)
        self._add_in_flight(1)
        try:
            await self._handle_while_connected(connection, exchange, request)
        finally:
            exchange.finish()
            self._add_in_flight(-1)
        return exchange.keep_alive

    async def _handle_while_connected(self, connection: Connection, exchange: Exchange, request: Request) -> None:
        # `spawn`, because nothing retrieves the error of a request that is cancelled while it fails.
        work = spawn(self._dispatch(exchange, request), name="loopback request")
        gone = spawn(connection.wait_for_disconnect(), name="loopback disconnect watch")
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait((work, gone))
        if work.cancelled():
            raise ConnectionAbortedError("the client left")
        work.result()

    async def _dispatch(self, exchange: Exchange, request: Request) -> None:
        method = self._method_by_path.get(request.path)
        if method is None:
            served = " and ".join(self._method_by_path)
            await exchange.reply(404, refusal(f"There is nothing at this path, only at {served}."))
        elif request.method != method:
            await exchange.reply(405, refusal(f"Only {method} is allowed here."), ("Allow", method))
        else:
            await self._handle(exchange, request)

    def _add_in_flight(self, step: int) -> None:
        self._in_flight += step
        changed, self._in_flight_changed = self._in_flight_changed, asyncio.Event()
        changed.set()


async def _stop_accepting(server: asyncio.Server) -> None:
    """Stops accepting connections, and waits until the accepted ones have reached the server.

    A server that closes while the loop passes it a connection fails an assertion, and the connection stays open
    (cpython#109564).
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    for _ in range(_ACCEPT_ITERATIONS):
        await asyncio.sleep(0)
