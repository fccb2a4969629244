"""One process of one contestant: `python -m benchmarks.cache.stampede_worker OPTIONS`, the options as a JSON object.

Says on its standard output, line by line as JSON: that it is ready; of each call, who makes it; of each caller, after
how many seconds it had which answer or error. It begins when a line comes on its standard input, and ends with that.
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
    # A service that has been running for a while has its connections.
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
    except BaseException as error:  # also a cancellation: who else gets it is the question
        said["error"] = type(error).__name__
    else:
        said["answered"] = answer == f"answer to {question}"
    seconds = time.perf_counter() - started
    say(seconds=seconds, added=seconds - work.last_seconds, **said)


def main(arguments: list[str]) -> None:
    """Run."""
    logging.disable(logging.CRITICAL)
    asyncio.run(_work(Options(**json.loads(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
