"""A provider of language models that runs in this process, on the loopback interface, and speaks the OpenAI API.

It answers from the corpus, at the speed and with the faults that its model table states (`model_profiles`), so that
clients, timeouts, retries and fail-over can be tried over a real socket without a network or a bill.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Self

from observability_integration.errors import ConfigurationError
from observability_integration.tasks import spawn

from .chat_reply import error_document
from .exchange import Exchange
from .http1 import Connection, Limits, Request, RequestFault
from .model_profiles import DEFAULT_PROFILES, ModelProfile
from .openai_api import OpenAIApi

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

HOST = "127.0.0.1"
# A connection is dropped, not shut down politely, when the provider closes: this is how long the loop may take to tell.
_CLOSE_SECONDS = 1.0
# From the accept on: the transport is made, the protocol is told, the loop's own task ends.
_HAND_OVER_TURNS = 3


class LocalProvider:
    """An HTTP server on the loopback interface that speaks the OpenAI chat completions API.

    Usage::

        async with LocalProvider(time_scale=0.05, seed=7) as provider:
            client = AsyncOpenAI(base_url=provider.base_url, api_key="any", max_retries=0)

    Nothing it receives is logged, kept or sent on. Any bearer token is accepted; its presence is required.

    Args:
        time_scale: all latencies of the model table are multiplied by this; 0.0 answers at once.
        seed: where the jitter of the latencies starts; the same seed and order of requests give the same latencies.
        port: the TCP port to listen on; 0 picks a free one.
        profiles: the models on offer.
        limits: what one client may take.

    Raises:
        ConfigurationError: if `time_scale` is negative or not finite, or two profiles share a name.
    """

    def __init__(
        self,
        *,
        time_scale: float = 1.0,
        seed: int = 0,
        port: int = 0,
        profiles: Sequence[ModelProfile] = DEFAULT_PROFILES,
        limits: Limits | None = None,
    ) -> None:
        if not (math.isfinite(time_scale) and time_scale >= 0):
            raise ConfigurationError(f"time_scale must be a number of at least 0, got {time_scale}")
        if len({profile.name for profile in profiles}) != len(profiles):
            raise ConfigurationError("profiles must not name a model twice")
        self._port = port
        self._limits = limits or Limits()
        self._api = OpenAIApi(profiles, time_scale=time_scale, seed=seed)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._requests: Counter[tuple[str, int]] = Counter()
        self._request_numbers = itertools.count(1)
        self._in_flight = 0
        self._in_flight_changed = asyncio.Event()

    @property
    def base_url(self) -> str:
        """Where clients find the API: ``http://127.0.0.1:PORT/v1``.

        Raises:
            RuntimeError: if the provider is not open.
        """
        if self._server is None:
            raise RuntimeError("The provider is not open: use it in 'async with'")
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}/v1"

    @property
    def requests(self) -> Counter[tuple[str, int]]:
        """How many requests were answered so far, by model and HTTP status; a copy.

        A request is counted just before the first byte of its reply. One that ends without a reply, because the
        client left or the provider closed, has status 499. The model is ``unknown`` for a name that is not on offer
        and ``none`` where the request did not get as far as naming one.
        """
        return self._requests.copy()

    @property
    def in_flight(self) -> int:
        """How many requests are being worked on at this moment.

        A client may have read its reply a moment before the request ceases to count; `wait_for_in_flight` bridges it.
        """
        return self._in_flight

    async def wait_for_in_flight(self, count: int) -> None:
        """Waits until exactly `count` requests are being worked on."""
        while self._in_flight != count:
            await self._in_flight_changed.wait()

    async def open(self) -> None:
        """Starts to listen.

        Raises:
            RuntimeError: if the provider is open already.
            OSError: if the port is taken.
        """
        if self._server is not None:
            raise RuntimeError("The provider is open already")
        self._server = await asyncio.start_server(self._accept, HOST, self._port)

    async def close(self) -> None:
        """Stops listening and drops all connections, busy or not; harmless on a provider that is not open."""
        server, self._server = self._server, None
        if server is None:
            return
        await _stop_accepting(server)
        server.close()
        tasks = dict(self._connections)
        for task, writer in tasks.items():
            # The task may never have run, and then it is not there to close its connection.
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
        connection = Connection(reader, writer, self._limits)
        task = asyncio.get_running_loop().create_task(self._serve(connection), name="local provider connection")
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _serve(self, connection: Connection) -> None:
        try:
            while await self._serve_next(connection):
                pass
            await connection.linger()
        except ConnectionError:
            pass  # the client is gone, and nobody is left to tell
        finally:
            connection.abort()
            await connection.wait_closed()

    async def _serve_next(self, connection: Connection) -> bool:
        request_id = f"req_local_{next(self._request_numbers):06d}"
        try:
            request = await connection.read_request()
        except RequestFault as fault:
            exchange = Exchange(connection, None, request_id, self._count)
            await exchange.reply(fault.status, error_document(fault.message, "invalid_request_error"))
            return False
        if request is None:
            return False
        exchange = Exchange(connection, request, request_id, self._count)
        self._move_in_flight(1)
        try:
            await self._handle_while_connected(connection, exchange, request)
        finally:
            exchange.finish()
            self._move_in_flight(-1)
        return exchange.keep_alive

    async def _handle_while_connected(self, connection: Connection, exchange: Exchange, request: Request) -> None:
        # Owned, because a request that is cancelled while it fails has nobody left to retrieve its error.
        work = spawn(self._api.handle(exchange, request), name="local provider request")
        gone = spawn(connection.wait_for_disconnect(), name="local provider disconnect watch")
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait((work, gone))
        if work.cancelled():
            raise ConnectionAbortedError("the client left")
        work.result()

    def _count(self, model: str, status: int) -> None:
        self._requests[model, status] += 1

    def _move_in_flight(self, step: int) -> None:
        self._in_flight += step
        changed, self._in_flight_changed = self._in_flight_changed, asyncio.Event()
        changed.set()


async def _stop_accepting(server: asyncio.Server) -> None:
    """Stops taking connections from the listening socket, and lets those that were taken arrive.

    A server that is closed while the loop is handing over a connection fails an assertion there, and that connection
    stays open (cpython#109564).
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    for _ in range(_HAND_OVER_TURNS):
        await asyncio.sleep(0)
