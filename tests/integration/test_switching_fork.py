"""Forked children, as pre-forking servers make them: they neither hang nor hold what is the parent's."""

from __future__ import annotations

import os

import pytest

from tests.otlp_receiver import OtlpReceiver
from tests.scripts import run_script

pytestmark = [
    pytest.mark.needs_otel,
    pytest.mark.promise("S8"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system"),
]

# Each child writes what it saw to a pipe and ends without clean-up; one that hangs writes where, and ends too.
_PARENT = """
import asyncio, faulthandler, os, socket, sys, threading, urllib.request, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.primitives import TimeoutPrimitive

async def answer(question):
    return question

flow = TimeoutPrimitive(answer, 5.0, operation_name="forked")

def run():
    asyncio.run(flow.execute("hi"))

def successes():
    text = urllib.request.urlopen(observability_status().prometheus_url, timeout=5).read().decode()
    series = 'timeout_successes_total{operation="forked"}'
    return [line.split()[-1] for line in text.splitlines() if line.startswith(series)]

def in_child(work):
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(15, exit=True, file=writing)
        try:
            result = repr(work())
        except BaseException as error:
            result = f"raised {error!r}"
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        result = told.read()
    os.waitpid(child, 0)
    return result
"""


def test_a_child_lets_go_of_the_port_and_the_parent_serves_on() -> None:
    """A worker that inherits the listening socket would swallow every other scrape, with nobody there to answer."""
    out = run_script(
        _PARENT
        + """
initialize_observability(prometheus_port=0)
run(), run()
port = observability_status().prometheus_port

def child():
    run()
    status = observability_status()
    held = [
        end for end in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{end}") and os.readlink(f"/proc/self/fd/{end}").startswith("socket:")
    ]
    return status.enabled, status.reason, len(held)

print(in_child(child))
print(successes(), observability_status().prometheus_port == port)
shutdown_observability()
with socket.create_server(("127.0.0.1", port)):
    print("free")
"""
    )
    reason = "forked: the parent serves Prometheus; call initialize_observability() here"
    assert [f"(False, '{reason}', 0)", "['2.0'] True", "free"] == out.splitlines()


def test_a_child_can_initialise_for_itself_and_counts_from_zero() -> None:
    """Each worker tells of its own calls: the parent's, told again by every child, would be counted many times."""
    out = run_script(
        _PARENT
        + """
initialize_observability(prometheus_port=0)
run(), run()

def child():
    assert initialize_observability(prometheus_port=0)
    run()
    seen = successes()
    mine = observability_status().prometheus_port
    shutdown_observability()
    return seen, mine

seen, mine = eval(in_child(child))
print(seen, mine != observability_status().prometheus_port, successes())
shutdown_observability()
"""
    )
    assert "['1.0'] True ['2.0']" == out.strip()


def test_a_fork_while_other_threads_measure_does_not_hang_the_child() -> None:
    """The lock that a thread holds at that moment would never be released in the child, where that thread is not."""
    out = run_script(
        _PARENT
        + """
initialize_observability(prometheus_port=0)
run(), successes()  # imports what it needs: a fork in the middle of an import is Python's own trap
stop = threading.Event()

def busy():
    while not stop.is_set():
        flow._record._successes.add()
        flow._record._execution.record(0.1)
        successes()

threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()

def child():
    assert initialize_observability(prometheus_port=0)
    run()
    return successes()

print(*{in_child(child) for _ in range(15)}, sep=chr(10))
stop.set()
for thread in threads:
    thread.join()
shutdown_observability()
"""
    )
    assert "['1.0']" == out.strip()


def test_spans_of_a_child_are_still_sent_and_a_child_may_start_anew() -> None:
    """What can go on goes on; a worker that initialises itself gets its own port although spans already flow."""
    with OtlpReceiver() as receiver:
        out = run_script(
            _PARENT
            + """
initialize_observability("parent", prometheus_port=0, otlp_endpoint=sys.argv[1])
run()

def child():
    status = observability_status()
    before = status.enabled, status.traces, status.metrics, status.prometheus_url
    run()
    assert initialize_observability("child", prometheus_port=0, otlp_endpoint=sys.argv[1])
    run()
    seen = successes()
    shutdown_observability()
    return before, seen

print(in_child(child))
shutdown_observability()
""",
            receiver.endpoint,
        )
        spans = receiver.spans(3)
    assert "((True, ('otlp',), (), None), ['1.0'])" == out.strip()
    assert ["child", "parent", "parent"] == sorted(span.resource["service.name"] for span in spans)
    instances = [span.resource["service.instance.id"] for span in spans]
    assert 2 == len(set(instances)), "the child must not pass for the parent"
