"""Runs a thousand requests through cache, router and timeout, then prints a scrape and a trace.

Run with ``python -m observability_integration.demo``; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.errors import ObservabilityError

if TYPE_CHECKING:
    from rich.console import Console

    from .pipeline import Pipeline
    from .provider import LocalProvider
    from .report import CrossCheck
    from .run import RunResult
    from .scrape import Samples

LOCAL_MODELS = {"fast": "local-small", "premium": "local-large", "slow": "local-slow", "flaky": "local-flaky"}
COST_PER_ROUTE = {"fast": 0.0001, "premium": 0.0015}  # USD a call, simulated, for the savings metrics
COST_PER_CALL = 0.00025  # USD, simulated: mean cost of an upstream call in this workload
SPEED = 20.0  # the local provider and the arrivals run this many times as fast as real time
TIMEOUT_SECONDS = 30.0
REQUESTS_PER_SECOND = 3.0  # before the speed-up


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="observability_integration.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, help="how many (default: 1200; with --base-url: 20)")
    parser.add_argument(
        "--seed", type=int, default=7, help="the same seed gives the same workload (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=9464, help="where to serve metrics, 0 for any (default: %(default)s)"
    )
    parser.add_argument("--otlp-endpoint", help="also send traces there, e.g. http://localhost:4318 for Jaeger")
    parser.add_argument("--serve", action="store_true", help="go on, at a gentle pace, until interrupted")
    real = parser.add_argument_group("a real provider instead of the local one (its bill is yours)")
    real.add_argument("--base-url", help="OpenAI-compatible API, e.g. https://api.openai.com/v1")
    real.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: $OPENAI_API_KEY")
    real.add_argument("--fast-model", default="gpt-4o-mini", help="default: %(default)s")
    real.add_argument("--premium-model", default="gpt-4o", help="default: %(default)s")
    return parser


def _initialize(console: Console, port: int, otlp_endpoint: str | None) -> str | None:
    for candidate in (port, 0):
        initialize_observability("demo", prometheus_port=candidate, otlp_endpoint=otlp_endpoint)
        status = observability_status()
        if status.prometheus_url is not None:
            console.print(f"Metrics are served at {status.prometheus_url}")
            return status.prometheus_url
        console.print(f"{'; '.join(status.problems) or status.reason}", style="yellow")
        shutdown_observability()
    return None


async def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from .model_profiles import DEFAULT_PROFILES
    from .pipeline import Pipeline
    from .provider import LocalProvider
    from .report import print_scrape, print_table, print_trace
    from .run import cost
    from .scrape import scrape

    console = Console()
    url = _initialize(console, options.port, options.otlp_endpoint)
    if url is None:
        return 1
    from observability_integration.telemetry.tracing.trace_memory import remember_traces

    memory = remember_traces()
    async with AsyncExitStack() as stack:
        provider = None
        if options.base_url is None:
            provider = await stack.enter_async_context(LocalProvider(time_scale=1 / SPEED, seed=options.seed))
        pipeline = Pipeline(
            base_url=options.base_url or provider.base_url,  # type: ignore[union-attr]
            api_key=options.api_key or "local",
            models=LOCAL_MODELS if provider else {"fast": options.fast_model, "premium": options.premium_model},
            cost_per_route=COST_PER_ROUTE if provider else {},
            cost_per_call=COST_PER_CALL if provider else 0.0,
            timeout_seconds=TIMEOUT_SECONDS / SPEED if provider else TIMEOUT_SECONDS,
        )
        stack.push_async_callback(pipeline.aclose)
        console.print(pipeline.cache.describe(), highlight=False)
        result = await _drive(console, pipeline, options, local=provider is not None)
        samples = await scrape(url)
        simulated_cost = None
        if provider is not None:
            profiles = {profile.name: profile for profile in DEFAULT_PROFILES}
            simulated_cost = cost(result, pipeline.upstream, profiles, LOCAL_MODELS["premium"])
        print_table(console, result, samples, simulated_cost, SPEED if provider else 1)
        agree = print_scrape(console, url, samples, _cross_checks(samples, result, pipeline, provider))
        for trace in reversed(memory.traces() if memory else []):
            if [span.name.split()[0] for span in trace] == ["cache", "router", "timeout", "chat"]:
                print_trace(console, trace)
                break
        if options.serve:
            await _serve(console, pipeline, url, options)
        return 0 if agree else 1


def _cross_checks(
    samples: Samples, result: RunResult, pipeline: Pipeline, provider: LocalProvider | None
) -> list[CrossCheck]:
    from .report import CrossCheck

    hits, misses = samples.total("cache_hits_total"), samples.total("cache_misses_total")
    upstream = sum(used.calls for used in pipeline.upstream.values())
    # A caller that joined a failed flight counts as a miss, but made no call of its own.
    failed_calls = samples.total("timeout_failures_total") + samples.total("timeout_errors_total")
    joined_failures = result.outcomes["timed out"] + result.outcomes["failed"] - failed_calls
    checks = [
        CrossCheck("lookups = requests", hits + misses, len(result.latencies_seconds)),
        CrossCheck("router decisions = calls to the client", samples.total("router_decisions_total"), upstream),
        CrossCheck("misses, less shared failures = calls to the client", misses - joined_failures, upstream),
        CrossCheck(
            "successes = answered by a call",
            samples.total("timeout_successes_total"),
            result.outcomes["answered"] - hits,
        ),
    ]
    if provider is not None:
        received = sum(provider.requests.values()) + provider.in_flight
        checks.append(CrossCheck("calls = requests the provider received", upstream, received))
    return checks


async def _drive(console: Console, pipeline: Pipeline, options: argparse.Namespace, *, local: bool) -> RunResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .run import drive
    from .workload import plan

    requests = options.requests or (1200 if local else 20)
    rate = REQUESTS_PER_SECOND * (SPEED if local else 1)
    arrivals = plan(requests, requests_per_second=rate, seed=options.seed, with_faults=local)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        bar = progress.add_task("requests", total=len(arrivals))
        return await drive(pipeline, arrivals, check_answers=local, on_done=lambda: progress.advance(bar))


async def _serve(console: Console, pipeline: Pipeline, url: str, options: argparse.Namespace) -> None:
    from .run import drive
    from .workload import plan

    console.print(f"\nServing {url} until interrupted (Ctrl-C)", style="bold")
    seed = options.seed
    while True:
        seed += 1
        local = options.base_url is None
        arrivals = plan(60, requests_per_second=2.0 if local else 0.1, seed=seed, with_faults=local)
        await drive(pipeline, arrivals, check_answers=False, on_done=lambda: None)


def main() -> int:
    """Runs the demonstration; returns 0 if every figure of the scrape agrees with an independent count."""
    options = _arguments().parse_args()
    if options.base_url is not None and not options.api_key:
        _arguments().error("--base-url needs --api-key or $OPENAI_API_KEY")
    if options.requests is not None and options.requests < 1:
        _arguments().error("--requests must be at least 1")
    logging.basicConfig(level=logging.ERROR)
    try:
        return asyncio.run(_run(options))
    except KeyboardInterrupt:
        return 0
    except ObservabilityError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("openai", "rich"):
            raise
        print(
            f"The demo needs {error.name}. Install with: pip install 'observability-integration[demo]'", file=sys.stderr
        )
        return 2
    finally:
        shutdown_observability()


if __name__ == "__main__":
    sys.exit(main())
