"""The demonstration, run as a user runs it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.once

pytest.importorskip("opentelemetry")
pytest.importorskip("openai")


def _demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "observability_integration.demo", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


@pytest.mark.needs_otel
@pytest.mark.promise("M1", "X1")
def test_the_run_ends_with_figures_that_agree_and_a_trace():
    """The demonstration proves itself: each figure of the scrape is also counted by somebody else."""
    run = _demo("--requests", "240", "--port", "0", "--seed", "3")

    assert "" == run.stderr
    assert 0 == run.returncode, run.stdout
    assert 5 == len(re.findall(r"^  agree  ", run.stdout, re.MULTILINE))
    assert "DIFFER" not in run.stdout
    for row in ("requests", "hit rate", "route shares", "timeouts", "p50", "p95", "p99", "cost with", "cost without"):
        assert row in run.stdout
    assert "simulated" in run.stdout
    tree = re.search(r"^cache answers.*\n└── router.*\n    └── timeout.*\n        └── chat", run.stdout, re.MULTILINE)
    assert tree is not None, run.stdout
    assert "wrong answers" not in run.stdout


@pytest.mark.needs_otel
@pytest.mark.promise("S1")
def test_a_taken_port_is_said_and_another_is_used():
    """Somebody who already runs a service on 9464 still gets the demonstration, and is told where the metrics are."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = _demo("--requests", "12", "--port", str(port))

    assert 0 == run.returncode, run.stdout + run.stderr
    assert f"cannot serve Prometheus on localhost:{port}" in run.stdout
    assert "Metrics are served at http://localhost:" in run.stdout


@pytest.mark.needs_otel
def test_a_missing_key_for_a_real_provider_is_a_clear_error():
    """A real provider is never called without a key, and the message names the option."""
    run = _demo("--base-url", "http://127.0.0.1:9/v1", OPENAI_API_KEY="")

    assert 2 == run.returncode
    assert "--api-key" in run.stderr
    assert 2 == _demo("--requests", "0").returncode


@pytest.mark.needs_otel
async def test_it_can_be_sent_to_another_openai_compatible_provider():
    """`--base-url` sends the questions there, with the key, and claims no prices that it does not know."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial

    from observability_integration.demo.model_profiles import DEFAULT_PROFILES
    from observability_integration.demo.provider import LocalProvider

    names = [profile.name for profile in DEFAULT_PROFILES[:2]]
    async with LocalProvider(time_scale=0.0) as provider:
        arguments = ("--base-url", provider.base_url, "--api-key", "k", "--requests", "4", "--port", "0")
        models = ("--fast-model", names[0], "--premium-model", names[1])
        with ThreadPoolExecutor(1) as thread:
            run = await asyncio.get_running_loop().run_in_executor(thread, partial(_demo, *arguments, *models))
        received = sum(provider.requests.values())

    assert 0 == run.returncode, run.stdout + run.stderr
    assert 0 < received <= 4
    assert "unknown" in run.stdout


@pytest.mark.needs_otel
def test_serve_keeps_it_up_until_interrupted():
    """`--serve` leaves the endpoint open for a real Prometheus, and Ctrl-C ends it cleanly."""
    import signal
    import urllib.request

    process = subprocess.Popen(
        [sys.executable, "-m", "observability_integration.demo", "--requests", "6", "--port", "0", "--serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has its background jobs ignore Ctrl-C, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            found = re.search(r"Metrics are served at (\S+)", line)
            url = found[1] if found else url
            if line.startswith("Serving"):
                break
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert b"cache_hits_total" in answer.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert "" == errors
        assert 0 == process.returncode
    finally:
        process.kill()
        process.communicate()
