"""The comparison of eviction policies: what it compares with is what it is called, and what is missing is said."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import data, eviction
from benchmarks.policies import LRU, OURS, SIEVE, TINY_LFU, Lru, Sieve, contestants, ideal_hits

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

_keys = st.lists(st.sampled_from([b"%d" % number for number in range(7)]), max_size=60)
_capacities = st.integers(1, 5)


class _PlainSieve:
    """SIEVE as its authors describe it, over a list whose first key is the newest."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: list[bytes] = []
        self.visited: dict[bytes, bool] = {}
        self.hand: bytes | None = None

    def look_up(self, key: bytes) -> bool:
        if key in self.visited:
            self.visited[key] = True
            return True
        if len(self.queue) == self.capacity:
            at = len(self.queue) - 1 if self.hand is None else self.queue.index(self.hand)
            while self.visited[self.queue[at]]:
                self.visited[self.queue[at]] = False
                at = at - 1 if at else len(self.queue) - 1
            self.hand = self.queue[at - 1] if at else None
            del self.visited[self.queue.pop(at)]
        self.queue.insert(0, key)
        self.visited[key] = False
        return False


def _hits(cache: Lru | Sieve, keys: list[bytes]) -> list[bool]:
    found: list[bool] = []
    for key in keys:
        found.append(cache.get(key) is not None)
        if not found[-1]:
            cache.set(key, eviction._entry())
    return found


@given(keys=_keys, capacity=_capacities)
def test_sieve_is_sieve(keys: list[bytes], capacity: int) -> None:
    """A faulty rival would make ours look good."""
    plain = _PlainSieve(capacity)
    assert [plain.look_up(key) for key in keys] == _hits(Sieve(capacity), keys)


@given(keys=_keys, capacity=_capacities)
def test_lru_is_lru(keys: list[bytes], capacity: int) -> None:
    """The standard library has one to compare with, and it counts."""
    library = lru_cache(maxsize=capacity)(lambda key: key)
    for key in keys:
        library(key)
    assert library.cache_info().hits == sum(_hits(Lru(capacity), keys))


@given(keys=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=9), capacity=st.integers(1, 3))
def test_nothing_is_better_than_the_best_possible(keys: list[bytes], capacity: int) -> None:
    """The bound is found by trying everything, so that it is neither too high nor too low."""

    @cache
    def most(at: int, kept: frozenset[bytes]) -> int:
        if at == len(keys):
            return 0
        after = kept | {keys[at]}
        choices = [after] if len(after) <= capacity else [after - {gone} for gone in after]
        return (keys[at] in kept) + max(most(at + 1, choice) for choice in choices)

    assert most(0, frozenset()) == ideal_hits(keys, capacity)


def test_setting_again_keeps_one_entry() -> None:
    """A refresh is no second entry, in any of them."""
    for name, make in contestants():
        cache = make(3)
        entries = [eviction._entry() for _ in range(2)]
        for entry in entries:
            cache.set(b"key", entry)
        cache.settle()
        assert entries[1] is cache.get(b"key"), name
        assert 1 == cache.size(), name
        cache.close()


def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without the trace and without a rival the rest is measured, and nobody takes it for the whole."""
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    monkeypatch.setattr("benchmarks.policies.find_spec", lambda name: None)
    for name, small in (
        ("CAPACITIES", (2, 5)),
        ("_ZIPF_KEYS", 10),
        ("_ZIPF_LOOKUPS", 50),
        ("_TIMED_ENTRIES", 5),
        ("_ROUNDS", 1),
    ):
        monkeypatch.setattr(eviction, name, small)
    assert 1 == eviction.main([])
    printed = capsys.readouterr().out
    assert f"- {TINY_LFU} is not installed.\n" in printed
    assert f"- {eviction.TRACE} was not found (set {data.VARIABLE}).\n" in printed
    for name in (OURS, LRU, SIEVE, "best possible"):
        assert 3 == printed.count(f"| {name} | ") - (name != "best possible")
    assert "Chat" not in printed


def test_the_trace_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A block's id stands for everything up to it, so prompts that begin alike share the keys of their beginning."""
    import gzip

    with gzip.open(tmp_path / eviction.TRACE, "wt") as file:
        file.write('{"hash_ids": [1, 2]}\n{"hash_ids": [1, 2]}\n{"hash_ids": [1, 3]}\n')
    monkeypatch.setattr(eviction, "PREFIX_BLOCKS", 1)
    ceilings = {workload.name: workload.ceiling for workload in eviction._chat(tmp_path / eviction.TRACE)}
    assert pytest.approx([1 / 3, 2 / 3, 1 / 2]) == list(ceilings.values())


def test_data_are_looked_for_beside_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the first neighbour that has the file; and who says where they are is told when they are not there."""
    monkeypatch.delenv(data.VARIABLE, raising=False)
    for neighbour, name in (("a", "other"), ("b", "wanted"), ("c", "wanted")):
        folder = tmp_path / neighbour / "data"
        folder.mkdir(parents=True)
        Path(folder, name).touch()
    project = tmp_path / "project"
    assert tmp_path / "b" / "data" / "wanted" == data.find("wanted", project)
    assert data.find("unheard of", project) is None
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "c" / "data"))
    assert tmp_path / "c" / "data" / "wanted" == data.find("wanted", project)
    assert data.find("other", project) is None
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "d"))
    with pytest.raises(NotADirectoryError, match=f"{data.VARIABLE} names .*d, which is no folder"):
        data.find("wanted", project)
