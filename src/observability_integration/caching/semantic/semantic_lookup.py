"""SemanticLookup: finds an entry whose answer fits a prompt in other words."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from hashlib import blake2b
from typing import Any, Literal, TypedDict, TypeVar, get_args

from observability_integration.checks import check_callable, check_choice, check_count, check_positive, check_share
from observability_integration.context import remaining
from observability_integration.errors import ConfigurationError
from observability_integration.tasks import cancel_until_done, keep_alive, wait_done
from observability_integration.telemetry.guard import note_fault

from .embedding import BoundedEmbedder, EmbedderBusy
from .evidence import Evidence
from .gates import DEFAULT_GATES
from .gates.english import Prompt
from .gates.gate import Gate, Trace, pack, unpack
from .memory_index import MemoryIndex
from .protocol import Embedder, Match, SemanticIndex

T = TypeVar("T")
Mode = Literal["off", "shadow", "serve"]
SameAnswer = Callable[[Any, Any], bool | Awaitable[bool]]

_MAX_SECRET_BYTES = 64  # of a BLAKE2b key


class SemanticStats(TypedDict):
    """The result of `SemanticLookup.stats`.

    Attributes:
        lookups: prompts looked up.
        matches: entries that passed the threshold and the gates, served or not.
        served: matches returned for serving.
        refused: by gate, the near entries that it refused and the prompts that it could not judge.
        lost: lookups and additions to the index that failed, by reason: ``late``, ``failed``, ``busy``, ``too_long``.
        observations: matches whose answer was compared with a fresh one.
        false: observations whose answers differed.
        false_rate_upper_bound: see `Evidence`.
        serving: whether matches are served now.
    """

    lookups: int
    matches: int
    served: int
    refused: dict[str, int]
    lost: dict[str, int]
    observations: int
    false: int
    false_rate_upper_bound: float
    serving: bool


def same_text(kept: Any, fresh: Any) -> bool:
    """Whether two answers are equal; white space in texts does not count."""
    if isinstance(kept, str) and isinstance(fresh, str):
        return kept.split() == fresh.split()
    return bool(kept == fresh)


class SemanticLookup:
    """Looks for an entry with the same meaning, after the exact lookup found none. Off by default.

    The answer of another prompt is served only if the vectors are near *and* every gate agrees: numbers, negations,
    names, opposites, the kind of answer and the roles must be the same, since vectors hardly show them. The gates know
    English only, and refuse prompts of other languages and scripts.

    Begin in ``shadow`` mode: no match is served; its answer is compared with that of the call. ``serve`` mode does the
    same until the evidence suffices, and for every `audit_every`-th match after that. If the bound of the false rate
    rises above `max_false_rate`, serving stops until the bound is below again. The evidence is kept in this process:
    pass it on at the next start (see `Evidence`).

    No method raises an error of the embedder, the index or `same_answer`. `find` and all changes of the index take at
    most `budget_seconds`.

    Args:
        embed: turns a text into a vector; synchronous or not.
        index: holds the vectors; by default a `MemoryIndex`.
        threshold: cosine from which vectors are near, above 0 and at most 1.
        mode: ``off``, ``shadow`` or ``serve``.
        gates: further conditions of a match.
        run_in_thread: runs a synchronous embedder in a thread; False blocks the event loop.
        budget_seconds: how long one lookup may take, the embedder included, before the call goes on without it.
        max_text_characters: longer prompts are not looked up. Embedders cut their input, small ones at 256 tokens
            (about 1,000 characters), so prompts that start alike would have the same vector.
        max_false_rate: acceptable share of false matches, above 0 and below 1.
        min_observations: matches that must be compared before the first is served.
        require_evidence: False serves without evidence.
        audit_every: number of matches that are served between two that are compared; 0 compares none.
        same_answer: returns whether a kept answer and a fresh one have the same meaning; synchronous or not. Equality
            by default, which counts every answer in other words as a false match.
        evidence: evidence of earlier processes.
        secret: key of the hashes in the index, of 1 to 64 bytes. Random by default, which suits an index in this
            process; processes that share an index must share the key.

    Attributes:
        evidence: the evidence so far.

    Raises:
        ConfigurationError: a value is out of range.
        MissingDependencyError: there is no `index`, and numpy 2 or newer is not installed.
    """

    def __init__(
        self,
        embed: Embedder,
        index: SemanticIndex | None = None,
        *,
        threshold: float = 0.95,
        mode: Mode = "off",
        gates: Sequence[Gate] = DEFAULT_GATES,
        run_in_thread: bool = True,
        budget_seconds: float = 0.05,
        max_text_characters: int = 1_000,
        max_false_rate: float = 0.01,
        min_observations: int = 100,
        require_evidence: bool = True,
        audit_every: int = 20,
        same_answer: SameAnswer = same_text,
        evidence: Evidence | None = None,
        secret: bytes | None = None,
    ) -> None:
        check_callable("embed", embed)
        check_choice("mode", mode, get_args(Mode))
        check_share("threshold", threshold, above_zero=True)
        check_positive("budget_seconds", budget_seconds)
        check_share("max_false_rate", max_false_rate, above_zero=True, below_one=True)
        check_count("max_text_characters", max_text_characters)
        check_count("min_observations", min_observations, 0)
        check_count("audit_every", audit_every, 0)
        if secret is not None and not 0 < len(secret) <= _MAX_SECRET_BYTES:
            raise ConfigurationError(f"secret must have 1 to {_MAX_SECRET_BYTES} bytes")
        self.mode: Mode = mode
        self.threshold = threshold
        self.max_false_rate = max_false_rate
        self.evidence = Evidence() if evidence is None else evidence
        self._gates = tuple(gates)
        self._budget_seconds = budget_seconds
        self._max_text_characters = max_text_characters
        self._min_observations = min_observations
        self._require_evidence = require_evidence
        self._audit_every = audit_every
        self._same_answer = same_answer
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._embedder = BoundedEmbedder(embed, run_in_thread=run_in_thread, secret=self._secret)
        self._index: SemanticIndex | None = index
        if index is None and mode != "off":
            self._index = MemoryIndex()
        self._lookups = self._matches = self._served = 0
        self._refused: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()

    @property
    def serving(self) -> bool:
        """Whether matches are served now."""
        return self.mode == "serve" and (
            not self._require_evidence
            or (
                self.evidence.observations >= self._min_observations
                and self.evidence.upper_bound <= self.max_false_rate
            )
        )

    async def find(self, scope: str, text: str) -> Match | None:
        """The nearest entry that may answer this prompt, or None.

        Args:
            scope: everything besides the text that the answer depends on, such as operation, tenant, model, parameters
                and earlier messages; entries of other scopes are never found.
            text: the prompt.
        """
        index = self._index
        if self.mode == "off" or index is None:
            return None
        self._lookups += 1
        found = await self._within_budget(lambda: self._find(index, scope, text))
        if found is None:
            return None
        self._matches += 1
        audited = self._audit_every > 0 and not self._matches % (self._audit_every + 1)
        serve = self.serving and not audited
        self._served += serve
        return found._replace(serve=serve)

    async def learn(self, scope: str, text: str, name: str) -> None:
        """Adds an entry to the index.

        Args:
            scope: as for `find`.
            text: the prompt.
            name: hex digest of the entry's exact key.
        """
        index = self._index
        if self.mode != "off" and index is not None:
            await self._within_budget(lambda: self._learn(index, scope, text, name))

    async def forget(self, name: str) -> None:
        """Removes an entry from the index, because it was invalidated or no longer exists."""
        index = self._index
        if index is not None:
            await self._within_budget(lambda: index.remove(name))

    async def clear(self) -> None:
        """Removes all entries from the index."""
        index = self._index
        self._embedder.forget()
        if index is not None:
            await self._within_budget(lambda: index.clear())

    async def observe(self, match: Match, kept: Any, fresh: Any) -> None:
        """Compares the answer of a match that was not served with the answer of the call.

        Takes as long as `same_answer`: the caller should get its answer first.
        """
        try:
            verdict = self._same_answer(kept, fresh)
            same = await verdict if inspect.isawaitable(verdict) else verdict
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            self._count_failure(error)
        else:
            self.evidence.add(false=not same)

    def stats(self) -> SemanticStats:
        """Counts since construction; the evidence includes that of earlier processes."""
        return {
            "lookups": self._lookups,
            "matches": self._matches,
            "served": self._served,
            "refused": dict(self._refused),
            "lost": dict(self._lost),
            "observations": self.evidence.observations,
            "false": self.evidence.false,
            "false_rate_upper_bound": self.evidence.upper_bound,
            "serving": self.serving,
        }

    async def _find(self, index: SemanticIndex, scope: str, text: str) -> Match | None:
        traces = self._traces(text)
        if traces is None:
            return None
        vector = await self._embedder.vector(text)
        # Only the nearest: if it is refused, the next one differs in more and is less likely to be right.
        candidate = await index.nearest(self._index_scope(scope), vector)
        if candidate is None or not candidate.similarity >= self.threshold:  # also for NaN
            return None
        refused_by = self._refusing_gate(traces, candidate.traces)
        if refused_by is not None:
            self._refused[refused_by] += 1
            return None
        return Match(candidate.name, min(candidate.similarity, 1.0), serve=False)

    async def _learn(self, index: SemanticIndex, scope: str, text: str, name: str) -> None:
        traces = self._traces(text)
        if traces is not None:
            await index.add(self._index_scope(scope), name, await self._embedder.vector(text), tuple(map(pack, traces)))

    def _index_scope(self, scope: str) -> str:
        # Includes the gates: traces of other gates cannot be compared with those of these.
        parts = [scope, *(gate.name for gate in self._gates)]
        framed = "".join(f"{len(part)}:{part}" for part in parts)
        return blake2b(framed.encode(errors="surrogatepass"), digest_size=32, key=self._secret).hexdigest()

    def _traces(self, text: str) -> tuple[Trace, ...] | None:
        if len(text) > self._max_text_characters:
            self._lost["too_long"] += 1
            return None
        prompt = Prompt(text)
        traces: list[Trace] = []
        for gate in self._gates:
            trace = gate.trace(prompt, self._secret)
            if trace is None:
                self._refused[gate.name] += 1
                return None
            traces.append(trace)
        return tuple(traces)

    def _refusing_gate(self, ours: tuple[Trace, ...], theirs: tuple[bytes, ...]) -> str | None:
        for gate, our, their in zip(self._gates, ours, theirs, strict=True):
            if not gate.agree(our, unpack(their)):
                return gate.name
        return None

    async def _within_budget(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        left = remaining()
        budget = self._budget_seconds if left is None else min(self._budget_seconds, left)
        task = keep_alive(asyncio.get_running_loop().create_task(start(), name="observability-semantic"))
        try:
            in_time = await wait_done(task, budget)
        except asyncio.CancelledError:
            cancel_until_done(task)
            raise
        if not in_time:
            cancel_until_done(task)
            self._lost["late"] += 1
            return None
        try:
            return task.result()
        except EmbedderBusy:
            self._lost["busy"] += 1
        except asyncio.CancelledError as error:  # of the embedder or the index, and not of the caller
            self._count_failure(error)
        except Exception as error:  # noqa: BLE001 - the user's embedder or index must not fail the user's call
            self._count_failure(error)
        return None

    def _count_failure(self, error: BaseException) -> None:
        self._lost["failed"] += 1
        note_fault("cache.semantic", error)
