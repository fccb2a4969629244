"""Who may call now, who waits and who is refused, so that no minute sees more requests or tokens than allowed.

A call reserves one request and the tokens that it is expected to use, and settles what it did use. Each event loop has
a line of waiting calls, first come first served; the lines of one process draw on one `Ledger`, and those of several
processes on a shared one. A line is touched in its own loop alone, and the numbers are the ledger's, so any number of
loops and threads may use one limiter.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from observability_integration.tasks import announce, spawn, wait_done

from .buckets import TOLERANCE_SECONDS, Ledger, Verdict
from .guard import GuardedLedger
from .headers import Told
from .learning import learn
from .shared import Answer
from .shared import LedgerUpdate as News
from .shared import Limits as Terms
from .wait_queue import Line, Refused, Reservation, Waiter

WithoutBackend = Literal["local", "refuse"]

_ASK_AGAIN_SECONDS = 1.0  # others may have given back meanwhile
_ASKED_SECONDS = 0.25  # so long may it take until a shared ledger has answered those who cannot wait
_COME_BACK_SECONDS = 1.0  # what is said to those who are refused while a shared ledger is away


class RateLimit:
    """Requests and tokens per minute.

    ===================================  ===============================================================================
    there is enough, and nobody waits    it goes at once
    others wait, or there is too little  it waits behind them, at most for so long as it is given
    it would have to wait longer         refused, as soon as that is known: as a rule at once
    it needs more tokens than a minute   refused at once: it can never go
    cancelled while waiting              it has taken nothing, and keeps nobody waiting
    it used less than it reserved        what is left over is put back, and may let others go earlier
    it used more                         the rest is charged, also as a debt
    ===================================  ===============================================================================

    Args:
        requests_per_minute: > 0, or None for no limit.
        tokens_per_minute: > 0, or None for no limit.
        burst_seconds: of how many seconds the allowance may be saved up, >= 0.
        learn: let a provider that states its limits lower these, or set the ones that are not given.
        shared: a ledger that several processes share.
        without_backend: while that one is away, ``local`` limits this process by itself, ``refuse`` refuses all calls.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        burst_seconds: float = 60.0,
        learn: bool = True,
        shared: GuardedLedger | None = None,
        without_backend: WithoutBackend = "local",
    ) -> None:
        self._given = (requests_per_minute, tokens_per_minute)
        self._ledger = Ledger(requests_per_minute, tokens_per_minute, burst_seconds)
        self._learns = learn
        self._shared = shared
        self._refuses = without_backend == "refuse"
        self._lock = threading.Lock()  # for changes to the following; it is replaced, so reading needs no lock
        self._lines: dict[asyncio.AbstractEventLoop, Line] = {}
        self._latest: Line | None = None
        self._news: deque[News] = deque()
        self._telling: asyncio.Task[None] | None = None
        self._away = False

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Requests and tokens per minute, as they are in force; None for no limit."""
        requests, tokens = self._ledger.requests, self._ledger.tokens
        return None if requests is None else requests.per_minute, None if tokens is None else tokens.per_minute

    @property
    def capacities(self) -> tuple[float | None, float | None]:
        """How many requests and tokens may be saved up; None for no limit."""
        requests, tokens = self._ledger.requests, self._ledger.tokens
        return None if requests is None else requests.capacity, None if tokens is None else tokens.capacity

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit of tokens."""
        return self._ledger.tokens is not None

    def left(self) -> tuple[float | None, float | None]:
        """What is left of requests and tokens, 0 or more; None without a limit. Needs a running event loop."""
        return self._ledger.left(asyncio.get_running_loop().time())

    @property
    def waiting(self) -> int:
        """How many calls wait now."""
        return sum(line.size for line in list(self._lines.values()))

    def try_reserve(self, tokens: float) -> Reservation | None:
        """Leave to call now, if nobody waits and there is enough; never asks a shared ledger.

        Needs a running event loop.
        """
        now = asyncio.get_running_loop().time()
        if self._shared is not None:
            return None
        ledger = self._ledger
        bucket = ledger.tokens
        if bucket is not None and tokens > bucket.most:
            return None
        taken = ledger.take_one(tokens, now)  # None while somebody waits, whose claim it knows
        return None if taken is None else Reservation(tokens, now, 0.0, False, taken)

    async def reserve(self, tokens: float, patience_seconds: float) -> Reservation:
        """Leave to call, to be settled or cancelled in the end; waits for it if need be.

        Args:
            tokens: what the call is expected to use, >= 0.
            patience_seconds: for how long to wait at the most, >= 0. A shared ledger is asked also by who cannot wait.

        Raises:
            Refused: there is none in time, or can never be.
        """
        ready = self.try_reserve(tokens)
        if ready is not None:
            return ready
        bucket = self._ledger.tokens
        if bucket is not None and tokens > bucket.most:
            raise Refused("tokens", None, 0.0)
        loop = asyncio.get_running_loop()
        line, now = self._line_of(loop), loop.time()
        if self._shared is None:
            verdict = self._ledger.estimate(line.size, line.tokens, tokens, now)
            if verdict.wait_seconds > patience_seconds + TOLERANCE_SECONDS:
                raise Refused(verdict.limit, verdict.wait_seconds, 0.0)
        waiter = Waiter(tokens, now, now + patience_seconds, loop.create_future())
        line.join(waiter)
        self._pump(line)
        try:
            least = 0.0 if self._shared is None else _ASKED_SECONDS
            await wait_done(waiter.turn, max(patience_seconds, least), waiter.turn)
            if not waiter.gone and line.asking is not None:  # the answer may have come, and only waits to be read
                await wait_done(line.asking, None)
        except BaseException:  # cancelled, or thrown away: in a garbage collection perhaps
            self._leave(line, waiter)
            raise
        if waiter.reservation is not None:
            return waiter.reservation
        if waiter.refusal is None:
            self._leave(line, waiter)
            verdict = self._ledger.estimate(0, 0.0, tokens, loop.time())
            waiter.refusal = Refused(verdict.limit, verdict.wait_seconds, loop.time() - now)
        raise waiter.refusal

    def settle(self, reservation: Reservation, tokens: float | None) -> None:
        """Ends a reservation with what was used; None leaves it at what was reserved. Any thread; once."""
        if reservation.held:
            reservation.held = False
            if tokens is not None and tokens != reservation.tokens and self._ledger.tokens is not None:
                self._give_back(reservation, 0.0, reservation.tokens - tokens)

    def cancel(self, reservation: Reservation) -> None:
        """Ends a reservation for which no call was made: all is put back. Any thread; once."""
        if reservation.held:
            reservation.held = False
            self._give_back(reservation, 1.0, reservation.tokens)

    def learn(self, told: Told, reservation: Reservation | None = None) -> None:
        """Takes in what the provider says about its limits. Needs a running event loop.

        Args:
            told: what it says.
            reservation: of the call that it said it to; None for what was said just now.
        """
        if not self._learns:
            return
        now = asyncio.get_running_loop().time()
        lesson = learn(told, self._ledger, self._given, reservation, now)
        if lesson.closed_seconds > 0:
            for line in list(self._lines.values()):
                _soon(line.loop, self._turn_away, line)
        if self._shared is not None and lesson != News():
            self._tell(lesson)

    async def aclose(self) -> None:
        """Closes the connections to a shared ledger that were opened for the running loop, after what is under way."""
        if self._shared is None:
            return
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # what is to be told has been noted, and is about to be sent
        line = self._lines.get(loop)
        for task in (self._telling, None if line is None else line.asking):
            if task is not None and task.get_loop() is loop:
                await wait_done(task, None)
        await self._shared.aclose()

    def _give_back(self, reservation: Reservation, requests: float, tokens: float) -> None:
        # From any thread, and in a garbage collection: nothing here waits for a lock.
        if reservation.shared and self._shared is not None and self._shared.in_use:
            self._tell(News(requests, tokens))
            return
        self._ledger.give_back(requests, tokens)
        for line in list(self._lines.values()):
            if line.waiters:
                _soon(line.loop, self._pump, line)

    def _leave(self, line: Line, waiter: Waiter) -> None:
        line.leave(waiter)
        if waiter.reservation is not None:
            self.cancel(waiter.reservation)
        _soon(line.loop, self._pump, line)

    def _line_of(self, loop: asyncio.AbstractEventLoop) -> Line:
        line = self._lines.get(loop)
        if line is None:
            with self._lock:
                kept = {used: other for used, other in self._lines.items() if not used.is_closed()}
                line = kept[loop] = Line(loop)
                self._lines = kept
        self._latest = line
        return line

    # What follows runs in the line's own loop.

    def _pump(self, line: Line) -> None:
        """Lets go who may, and sees to it that the next one is looked at in time."""
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        if line.asking is not None:
            return
        batch = line.first()
        if self._shared is not None and not self._shared.look():
            self._away = True
        if self._shared is None:
            self._take_here(line, batch)
        elif self._shared.in_use:
            if batch or line.claims:
                line.asking = spawn(self._ask(self._shared, line, batch), name="rate limit")
        elif self._refuses:
            for waiter in list(line.waiters):
                self._refuse(line, waiter, Verdict(0, _COME_BACK_SECONDS, "requests"))
        else:
            self._take_here(line, batch)
            if line.claims:
                self._turn_away(line)

    def _take_here(self, line: Line, batch: list[Waiter]) -> None:
        if not batch and not line.claims:
            return
        while True:
            calls = ((waiter.tokens, waiter.since) for waiter in batch)
            verdict = self._ledger.take(line, calls, line.loop.time())
            if not self._grant(line, batch, verdict, shared=False) or not batch:
                return
            batch = line.first()

    async def _ask(self, shared: GuardedLedger, line: Line, batch: list[Waiter]) -> None:
        now = line.loop.time()
        try:
            answer = await self._exchange(shared, line.name, [(each.tokens, now - each.since) for each in batch])
        finally:
            line.asking = None
        if answer is None:
            self._pump(line)  # it is out of use by now
        elif self._grant(line, batch, answer.verdict, shared=True):
            if line.first():
                self._pump(line)
        else:
            self._turn_away(line, answer.verdict)

    def _grant(self, line: Line, batch: list[Waiter], verdict: Verdict, *, shared: bool) -> bool:
        """Tells who may go; False if one of the batch has to wait, who is looked at again in time."""
        now = line.loop.time()
        for waiter in batch[: verdict.granted]:
            if shared:
                self._ledger.note_taken(waiter.tokens)
            waited = now - waiter.since if waiter.waits else 0.0
            reservation = Reservation(waiter.tokens, now, waited, shared, self._ledger.taken)
            if waiter.gone:  # while the ledger was asked
                self.cancel(reservation)
            else:
                line.leave(waiter)
                waiter.reservation = reservation
                announce(waiter.turn)
        line.claims = verdict.granted < len(batch)
        if line.claims:
            line.hold()
            line.timer = line.loop.call_later(min(verdict.wait_seconds, _ASK_AGAIN_SECONDS), self._pump, line)
        return not line.claims

    def _turn_away(self, line: Line, first: Verdict | None = None) -> None:
        """Refuses those for whom it is clear by now that there will be no room in time."""
        now, ahead, tokens = line.loop.time(), 0, 0.0
        for waiter in list(line.waiters):
            if waiter.gone:
                continue
            verdict = self._ledger.estimate(ahead, tokens, waiter.tokens, now)
            if first is not None and first.wait_seconds > verdict.wait_seconds:
                verdict = first
            if now + verdict.wait_seconds > waiter.until + TOLERANCE_SECONDS:
                self._refuse(line, waiter, verdict)
            else:
                ahead += 1
                tokens += waiter.tokens
        if not ahead:
            _soon(line.loop, self._pump, line)  # nothing is to be held for them any more

    def _refuse(self, line: Line, waiter: Waiter, verdict: Verdict) -> None:
        if not waiter.gone:
            line.leave(waiter)
            waiter.refusal = Refused(verdict.limit, verdict.wait_seconds, line.loop.time() - waiter.since)
            announce(waiter.turn)

    # What follows is about a ledger that is shared.

    def _tell(self, news: News) -> None:
        """Sees to it that the news arrive soon; nobody waits for that."""
        self._news.append(news)
        line = self._latest
        if line is not None:
            _soon(line.loop, self._tell_soon)

    def _tell_soon(self) -> None:
        telling = self._telling
        if self._news and (telling is None or telling.done() or telling.get_loop().is_closed()):
            self._telling = spawn(self._tell_all(), name="rate limit news")

    async def _tell_all(self) -> None:
        while self._news and self._shared is not None:
            await self._exchange(self._shared, "news", [])
        for line in list(self._lines.values()):
            if line.waiters:
                _soon(line.loop, self._pump, line)

    async def _exchange(self, shared: GuardedLedger, line: str, calls: list[tuple[float, float]]) -> Answer | None:
        news = News()
        while self._news:
            news = news.and_then(self._news.popleft())
        if self._away:  # it may have forgotten everything meanwhile, and knows nothing of what was used here
            news = news.and_then(News(0.0, 0.0, *self.left()))
        requests, tokens = self._ledger.requests, self._ledger.tokens
        terms = Terms(
            *((0.0, 0.0) if requests is None else (requests.rate, requests.capacity)),
            *((0.0, 0.0) if tokens is None else (tokens.rate, tokens.capacity)),
        )
        answer = await shared.take(line, terms, news, calls)
        if answer is None:
            self._ledger.give_back(news.requests, news.tokens)
        else:
            self._away = False
            # So the ledger here goes on from there when the shared one goes out of use.
            now = asyncio.get_running_loop().time()
            self._ledger.adopt(answer.requests, answer.tokens, answer.closed_seconds, now)
        return answer


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    """Calls back in the next turn of a loop; in none, if it is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)
