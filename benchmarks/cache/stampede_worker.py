"""Runs the callers of one process: `python -m benchmarks.cache.stampede_worker OPTIONS`, the options as a JSON object.

Writes messages on standard output as lines of JSON: ready; each call, with its thread; each caller, with its seconds
and its answer or error. Starts at the first line on standard input, and ends at the second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any

from .stampede_contestants import CONTESTANTS, Ask, Options, Work, say

_CANCELLED_AFTER = 0.3  # of the work
_SETTLING_SECONDS = 0.1


async def _work(options: Options) -> None:
    work = Work(options)
    try:
        ask = CONTESTANTS[options.contestant](options, work)
    except ImportError:
        say(missing=True)
        return
    # A running service has open connections.
    await ask(f" warm up {os.getpid()}")
    await asyncio.sleep(_SETTLING_SECONDS)
    say(ready=os.getpid())
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    if options.in_turn:
        for number in range(options.callers):
            await _call(ask, f"question {number}", work)
    else:
        callers = [loop.create_task(_call(ask, "question", work)) for _ in range(options.callers)]
        for caller in callers[: options.cancelled]:
            loop.call_later(_CANCELLED_AFTER * options.work_seconds, caller.cancel)
        await asyncio.gather(*callers, return_exceptions=True)
    await loop.run_in_executor(None, sys.stdin.readline)


async def _call(ask: Ask, question: str, work: Work) -> None:
    work.last_seconds = 0.0
    started = time.perf_counter()
    said: dict[str, Any] = {}
    try:
        answer = await ask(question)
    except BaseException as error:  # also the cancellation of another caller's call
        said["error"] = type(error).__name__
    else:
        said["answered"] = answer == f"answer to {question}"
    seconds = time.perf_counter() - started
    say(seconds=seconds, added=seconds - work.last_seconds, **said)


def main(arguments: list[str]) -> None:
    """Runs the callers."""
    logging.disable(logging.CRITICAL)
    asyncio.run(_work(Options(**json.loads(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
