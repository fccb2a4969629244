"""Runs a contestant under all faults: `python -m benchmarks.failover.worker CONTESTANT SCALE`.

Writes messages on standard output as lines of JSON: ready, or that the library is missing; then the result of each
fault. Starts at the first line on standard input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import urllib.request
from typing import Any, Self, TextIO

from benchmarks.checks import NotDoneError
from observability_integration.testing import FaultyProvider

from .contestants import CONTESTANTS, Answer, Ask, Options, Target
from .faults import (
    CAP_SECONDS,
    COMPLETE,
    ERROR,
    FAULTS,
    OUTAGE_SECONDS,
    OWN_ERROR,
    RETRY_AFTER_SECONDS,
    WRONG,
    Fault,
    FaultResult,
    Reply,
)

APART_SECONDS = 0.25  # not scaled: the processor time of first calls must not fall into the waits of other faults
QUESTION = "What is the answer?"


class ProviderPair:
    """A primary and a fallback provider, and the contestant that calls them.

    Args:
        contestant: is built anew for each fault, so that faults do not influence each other.
        scale: of all times.
    """

    def __init__(self, contestant: str, scale: float) -> None:
        self._build = CONTESTANTS[contestant]
        self._scale = scale
        self._primary = FaultyProvider(time_scale=scale)
        self._fallback = FaultyProvider(time_scale=scale)
        self._whole = ""

    async def __aenter__(self) -> Self:
        await self._primary.open()
        await self._fallback.open()
        self._whole = await asyncio.to_thread(_answer_of, self._fallback.base_url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._primary.close()
        await self._fallback.close()

    def build(self, fault: Fault) -> Ask:
        """Builds the contestant for a fault.

        Raises:
            ImportError: the library is not installed.
        """
        primary, fallback = self._models(fault)
        options = Options(
            Target(self._primary.base_url, primary), Target(self._fallback.base_url, fallback), self._scale
        )
        return self._build(options)

    async def warm_up(self) -> None:
        """Asks once without a fault, so that the library loads before it is timed.

        Raises:
            NotDoneError: the answer is not complete.
        """
        nothing = Fault("warm up", "", "healthy", "", lambda _: True)
        reply = await self._reply(self.build(nothing), *self._models(nothing))
        if reply.outcome != COMPLETE:
            raise NotDoneError(f"without any fault: {reply}")

    async def run_fault(self, fault: Fault, ask: Ask) -> FaultResult:
        """Asks all questions of a fault, and returns the result."""
        loop = asyncio.get_running_loop()
        models = self._models(fault)
        began = loop.time()
        if fault.outage:
            self._primary.down(models[0])
            loop.call_later(OUTAGE_SECONDS * self._scale, self._primary.up, models[0])

        async def one(at: float) -> Reply:
            await asyncio.sleep(began + at * self._scale - loop.time())
            return await self._reply(ask, *models)

        replies = await asyncio.gather(*map(one, fault.asked_at))
        arrivals = [
            [(request.time_seconds - began) / self._scale for request in provider.requests if request.model == model]
            for provider, model in zip((self._primary, self._fallback), models, strict=True)
        ]
        return FaultResult(replies, *arrivals)

    def _models(self, fault: Fault) -> tuple[str, str]:
        seconds = f"{RETRY_AFTER_SECONDS * self._scale:g}"  # the provider does not scale this value
        return f"{fault.primary.format(retry_after=seconds)}:{fault.code}", f"{fault.fallback}:{fault.code}"

    async def _reply(self, ask: Ask, primary: str, fallback: str) -> Reply:
        started = time.perf_counter()
        answer: Answer | None = None
        failed: BaseException | None = None
        try:
            async with asyncio.timeout(CAP_SECONDS * self._scale):
                answer = await ask(QUESTION)
        except BaseException as error:  # also a cancellation that a library causes
            failed = error
        seconds = (time.perf_counter() - started) / self._scale
        if answer is not None:
            outcome = COMPLETE if answer.text == self._whole else WRONG
            model = answer.model if answer.model in (primary, fallback) else None
            return Reply(outcome, seconds, None, model, answer.usage)
        requests = (*self._primary.requests, *self._fallback.requests)
        replied = {request.status for request in requests if request.model in (primary, fallback)} - {None}
        own = getattr(failed, "status_code", None) in replied
        return Reply(OWN_ERROR if own else ERROR, seconds, type(failed).__name__)


def _answer_of(base_url: str) -> str:
    body = json.dumps({"model": "reference", "messages": [{"role": "user", "content": QUESTION}]}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10.0) as reply:
        text: str = json.load(reply)["choices"][0]["message"]["content"]
        return text


async def _work(contestant: str, scale: float, out: TextIO) -> None:
    def say(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    async def run(number: int, fault: Fault, ask: Ask) -> None:
        await asyncio.sleep(number * APART_SECONDS)
        say(code=fault.code, seen=(await providers.run_fault(fault, ask))._asdict())

    async with ProviderPair(contestant, scale) as providers:
        try:
            asks = {fault: providers.build(fault) for fault in FAULTS}
        except ImportError as error:
            if (error.name or "").startswith("observability_integration"):
                raise  # our library is installed but broken
            say(missing=True)
            return
        await providers.warm_up()
        say(ready=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        await asyncio.gather(*(run(number, fault, ask) for number, (fault, ask) in enumerate(asks.items())))


def main(arguments: list[str]) -> None:
    """Runs the faults."""
    logging.disable(logging.CRITICAL)
    contestant, scale = arguments
    out, sys.stdout = sys.stdout, sys.stderr  # peers print on standard output
    asyncio.run(_work(contestant, float(scale), out))


if __name__ == "__main__":
    main(sys.argv[1:])
