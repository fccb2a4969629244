"""Two agents in processes of their own, over a socket: the time that is left, and the trace, cross with the call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.scripts import run_script

pytestmark = [pytest.mark.once, pytest.mark.promise("W1", "W2")]

# Hides what is to be absent before anything else is imported.
_TRACED = """
import tests.absent
from importlib.util import find_spec
from observability_integration import initialize_observability

if find_spec("opentelemetry") is not None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    assert initialize_observability("agent", enable_prometheus=False)
"""

_ANSWERING = (
    _TRACED
    + """
import asyncio, json
from observability_integration.context import current_deadline, remaining
from observability_integration.primitives import PrimitiveTimeoutError, TimeoutPrimitive
from observability_integration.propagation import fan_in, outgoing_headers
from observability_integration.web import DeadlineMiddleware

async def think(_):
    await asyncio.sleep(30.0)

thinking = TimeoutPrimitive(think, 30.0, 0.1)

async def agent(scope, receive, send):
    seen = {"left": remaining(), "source": current_deadline().operation}
    began = asyncio.get_running_loop().time()
    with fan_in("answer"):
        seen["sends"] = outgoing_headers()
    try:
        await thinking.execute("x")
    except PrimitiveTimeoutError as error:
        seen |= {"kind": error.kind, "stopped": asyncio.get_running_loop().time() - began}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})

async def serve(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).split(b"\\r\\n")[1:-2]
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in head)]
    async def send(message):
        if message["type"] == "http.response.start":
            writer.write(b"HTTP/1.1 %d -\\r\\nConnection: close\\r\\n\\r\\n" % message["status"])
        else:
            writer.write(message["body"])
    await DeadlineMiddleware(agent, max_seconds=60.0)({"type": "http", "headers": headers}, None, send)
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
)

_ASKING = (
    _TRACED
    + """
import asyncio, json, sys
from observability_integration import WorkflowContext
from observability_integration.context import Deadline
from observability_integration.primitives import TimeoutPrimitive
from observability_integration.propagation import continue_from, outgoing_headers

sent = []

async def ask(seconds):
    # What the other agent may take; this one waits on, for what it has to say about it.
    context = WorkflowContext(baggage={"tenant": "t 1"}, deadline=Deadline.after(seconds))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    sent.append(outgoing_headers(context))
    head = "".join(f"{name}: {value}\\r\\n" for name, value in sent[-1].items())
    writer.write(f"GET / HTTP/1.1\\r\\n{head}\\r\\n".encode())
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\\r\\n\\r\\n")[2])

async def main():
    asking = TimeoutPrimitive(ask, 20.0)
    with continue_from({"traceparent": sys.argv[2]}):
        answers = [await asking.execute(0.4), await asking.execute(0.0)]
    print(json.dumps({"sent": sent, "answers": answers}))

asyncio.run(main())
"""
)

_TRACE, _ROOT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(
    params=[
        pytest.param("", marks=pytest.mark.needs_otel, id="opentelemetry"),
        pytest.param("opentelemetry", id="plain"),
    ]
)
def absent(request: pytest.FixtureRequest) -> str:
    """What neither process can import."""
    absent: str = request.param
    return absent


@pytest.fixture
def answering(absent: str) -> Iterator[str]:
    """The port of the agent that is asked."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _ANSWERING],
        env={**os.environ, "OBS_TEST_ABSENT": absent},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_an_agent_stops_when_the_one_that_asked_stops_waiting(answering: str, absent: str) -> None:
    """It sees less time than was given, ends its work by it, and goes on in the trace of the one that asked."""
    parent = f"00-{_TRACE}-{_ROOT}-01"
    told: dict[str, Any] = json.loads(run_script(_ASKING, answering, parent, OBS_TEST_ABSENT=absent))
    first, second = told["sent"]
    seen, late = told["answers"]
    assert 0 < seen["left"] <= int(first["X-Request-Deadline-Ms"]) / 1000 <= 0.4
    assert ("request header", "deadline") == (seen["source"], seen["kind"])
    assert seen["stopped"] < 10.0
    assert ("tenant=t%201", "tenant=t%201") == (first["baggage"], seen["sends"]["baggage"])
    _, trace_id, span_id, _ = first["traceparent"].split("-")
    _, trace_id_there, span_id_there, _ = seen["sends"]["traceparent"].split("-")
    assert (_TRACE, _TRACE) == (trace_id, trace_id_there)
    if absent:
        assert (_ROOT, _ROOT) == (span_id, span_id_there)
    else:
        assert 3 == len({_ROOT, span_id, span_id_there})
    assert ("0", "deadline_exceeded") == (second["X-Request-Deadline-Ms"], late["error"])
