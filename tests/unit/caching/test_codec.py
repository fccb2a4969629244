"""A hit must be like the call it stands for: a value comes back as it was, or is not written at all."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import gc
import pickle
import threading
import tracemalloc
import uuid
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.codec import Codec, StoredValue, Uncopyable, Unreadable
from observability_integration.errors import ConfigurationError

pytestmark = pytest.mark.once

_LIMIT = 1024 * 1024
_CET = datetime.timezone(datetime.timedelta(hours=1))


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()


@dataclasses.dataclass
class Answer:
    text: str
    tokens: tuple[int, int]
    colour: Colour = Colour.RED
    made: datetime.datetime | None = None


class Verdict(msgspec.Struct):
    text: str
    scores: set[int]


class Loose(msgspec.Struct):
    score: float = 0.0
    extra: Any = None
    level: Level | None = None
    made: datetime.datetime | None = None
    opens: datetime.time | None = None
    seen: frozenset[Any] = frozenset()


class Stubborn:
    """Equal to everything, and unlike anything."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparing")

    def __hash__(self) -> int:
        return 1


def _is_same(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return _is_same(list(first.items()), list(second.items()))
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_is_same, first, second))
    return repr(first) == repr(second)


_SHORTEST, _LONGEST = -(2**63), 2**64 - 1
_leaf = (
    st.none()
    | st.booleans()
    | st.integers(_SHORTEST, _LONGEST)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20)
    | st.text(max_size=20)
)
_plain = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_leaf, inner, max_size=4),
    max_leaves=10,
)
_anything = st.recursive(
    _plain
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=3)
    | st.decimals()
    | st.uuids()
    | st.datetimes(timezones=st.none() | st.timezones() | st.just(datetime.UTC))
    | st.times()
    | st.sampled_from([Colour.RED, Level.LOW, Point(1, 2), Text("a"), object(), Stubborn(), 1j]),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3)
        | st.frozensets(st.integers(), max_size=3)
        | st.dictionaries(st.integers() | st.floats() | st.text() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.promise("C7")
@given(_anything)
def test_a_value_comes_back_as_it_was_or_is_refused(value: Any) -> None:
    """A tuple that came back as a list, or an enum as its text, would break the caller on the second call only."""
    codec = Codec()
    encoded = codec.encode(value)
    if encoded is not None:
        assert _is_same(value, codec.decode(encoded))


@given(_plain)
def test_whatever_msgpack_can_hold_is_written(value: Any) -> None:
    """A codec that refused everything would pass the test above and share nothing between processes."""
    assert Codec().encode(value) is not None


@pytest.mark.parametrize(
    "value",
    [
        *(b"\x00\xff", {"audio": b"\x00"}, {1: "a"}, {b"a": 1, 1.5: 2, None: 3, True: 4}, {(1, ("a",)): 2}),
        *(float("inf"), -0.0, _SHORTEST, _LONGEST, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "\U0001f600"),
    ],
    ids=str,
)
def test_what_json_has_no_form_for_is_written(value: Any) -> None:
    """Audio and images are answers too, and a table by number is a common result."""
    codec = Codec()
    encoded = codec.encode(value)
    assert encoded is not None
    assert _is_same(value, codec.decode(encoded))


@pytest.mark.promise("C7")
@pytest.mark.parametrize(
    "value",
    [
        *((1, 2), [(1, 2)], {1, 2}, frozenset({1}), {frozenset({1}): 1}, bytearray(b"a"), [bytearray(b"a")]),
        *(float("nan"), [float("nan")], {float("nan"): 1}, Colour.RED, [Colour.RED], {Colour.RED: 1}),
        *({"a": Level.LOW}, Level.LOW, {(Level.LOW, 1): 1}, {Level.LOW: 1}, _LONGEST + 1, [_SHORTEST - 1]),
        *(Text("a"), [Text("a")], Point(1, 2), decimal.Decimal("1.5"), uuid.UUID(int=1), datetime.date(2026, 1, 1)),
        *(collections.OrderedDict(a=1), [collections.defaultdict(list)], collections.deque([1]), range(3), 1j),
        *(datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 1, tzinfo=_CET), datetime.time(1)),
        *(Answer("a", (1, 2)), Verdict("a", {1}), object(), Stubborn(), [Stubborn()], Exception("a")),
        *("\ud800", {"\ud800": 1}, msgspec.msgpack.Ext(5, b"a"), msgspec.Raw(b"\x01"), memoryview(b"a")),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_what_msgpack_would_change_is_refused(value: Any) -> None:
    """Each of these is written as something else, or not at all, or comes back looking different."""
    assert Codec().encode(value) is None


def test_a_value_nested_beyond_recursion_is_refused() -> None:
    """A value must not fail the call it came from."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert Codec().encode(value) is None


@pytest.mark.parametrize(
    ("value_type", "value"),
    [
        (Answer, Answer("a", (1, 2), made=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))),
        (Verdict, Verdict("a", {1, 2})),
        (tuple[int, str], (1, "a")),
        (dict[int, str], {1: "a"}),
        (bytes, b"\x00\xff"),
        (Colour, Colour.RED),
        (Loose, Loose(0.5, {"a": [1, True]}, Level.LOW, datetime.datetime(2026, 1, 1), datetime.time(1, tzinfo=_CET))),
        (Loose, Loose(seen=frozenset({1, 1.5, "a"}))),
        (datetime.timedelta, datetime.timedelta(days=1, microseconds=1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_value_type_rebuilds_what_msgpack_alone_cannot(value_type: Any, value: Any) -> None:
    """With its type known, a dataclass, a struct or a tuple is shared between processes like a dict."""
    codec = Codec(value_type)
    encoded = codec.encode(value)
    assert encoded is not None
    assert _is_same(value, codec.decode(encoded))


@pytest.mark.promise("C7")
@pytest.mark.parametrize(
    "value",
    [
        Loose(score=1),
        Loose(extra=(1, 2)),
        Loose(extra=[Colour.RED]),
        Loose(seen=frozenset({Level.LOW})),
        Loose(made=datetime.datetime(2026, 1, 1, tzinfo=_CET)),
        Answer("a", (1, 2), made=datetime.datetime(2026, 1, 1, tzinfo=_CET)),
        Answer("a", (1, 2), colour="red"),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_fields_that_would_come_back_as_another_type_are_refused(value: Any) -> None:
    """Models compare equal when their fields do, and 1 equals 1.0, and noon in Paris equals eleven in London."""
    assert Codec(type(value)).encode(value) is None


def test_a_value_of_another_type_than_announced_is_refused() -> None:
    """What comes out of the store is promised to be of the type; what is not must not go in."""
    codec = Codec(Verdict)
    assert codec.encode({"text": "a", "scores": [1]}) is None
    assert codec.encode(Answer("a", (1, 2))) is None
    assert codec.encode(None) is None
    assert Codec(float).encode(1) is None
    assert Codec(dict[str, float]).encode({"a": 1}) is None


def test_entries_of_another_type_are_unreadable() -> None:
    """After a deployment changed the model, an old entry is a miss, not a half-built object."""
    encoded = Codec().encode({"text": "a"})
    assert encoded is not None
    with pytest.raises(Unreadable):
        Codec(Verdict).decode(encoded)


def test_a_type_that_nothing_can_rebuild_is_refused_at_once() -> None:
    """Otherwise no value would ever be shared, and nobody would be told."""
    with pytest.raises(ConfigurationError, match="value_type"):
        Codec(Verdict | Answer)  # type: ignore[arg-type]


def test_pydantic_models_come_back_as_they_were() -> None:
    """Answers of the provider SDKs are pydantic models, with aliases, enums, extra fields and dates."""
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        finish_reason: str = pydantic.Field(alias="finishReason")

    class Reply(pydantic.BaseModel):
        id: uuid.UUID
        made: datetime.datetime
        colour: Colour
        parts: tuple[Inner, ...]
        usage: dict[int, float] | None = None

        @pydantic.computed_field
        def summary(self) -> str:
            return str(self.id)

    reply = Reply(
        id=uuid.UUID(int=7),
        made=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        colour=Colour.RED,
        parts=(Inner(finishReason="stop", extra=[1]),),
        usage={1: 0.5},
    )
    codec = Codec(Reply)
    encoded = codec.encode(reply)
    assert encoded is not None
    back = codec.decode(encoded)
    assert reply == back
    assert reply is not back
    assert isinstance(back, Reply)
    with pytest.raises(Unreadable):
        codec.decode(b'{"id": 1}')
    with pytest.raises(Unreadable):
        codec.decode(encoded[:-1])
    assert codec.encode({"id": str(reply.id)}) is None


def test_a_pydantic_secret_is_not_written() -> None:
    """Pydantic masks secrets when it writes them: what comes back is not the value, so nothing is kept in Redis."""
    pydantic = pytest.importorskip("pydantic")

    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr

    assert Codec(Login).encode(Login(password="hunter2")) is None


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xc1", b"\x01\x01", b"\xa5text", b"\x80\x04K\x01.", b"garbage", b"\x81\x80\x01", b"\xa1\xff"),
        *(b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"),
        *(b"\xc9\xff\xff\xff\xff\x05", b"\xd4\x05a", b"\xd7\xff" + b"\xff" * 8, b"\x91" * 100_000, b"\x81" * 100_000),
        *(b"\xdd\x00\x0f\x42\x40" * 200 + bytes(1_000_000), b"\xdc\xff\xff" * 900 + bytes(65_536)),
    ],
    ids=lambda data: f"{data[:6].hex()}-{len(data)}",
)
def test_malformed_values_are_unreadable_and_cost_little(data: bytes) -> None:
    """Whoever can write to the store may announce gigabytes, or nest without end: it costs an entry, not a process.

    The peak is for what is announced a thousand times over: memory may be taken only for what is there.
    """
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable) as caught:
            Codec().decode(data)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert "value" == caught.value.reason


@given(st.binary())
@pytest.mark.parametrize("value_type", [None, Verdict, Answer, dict[int, str]])
def test_garbage_never_raises_anything_else(value_type: Any, data: bytes) -> None:
    """`Unreadable` is what the cache expects; anything else would reach the caller."""
    with contextlib.suppress(Unreadable):
        Codec(value_type).decode(data)


class Trap:
    """Tells whether anybody built one."""

    built = 0

    def __init__(self) -> None:
        Trap.built += 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Trap, ()


def test_reading_runs_no_code_that_was_stored() -> None:
    """A pickle is a program: whoever could write to the store would own every process that reads from it."""
    data = pickle.dumps(Trap())
    Trap.built = 0
    for value_type in (None, Verdict, Trap):
        with pytest.raises(Unreadable):
            Codec(value_type).decode(data)
    assert 0 == Trap.built
    pickle.loads(data)
    assert 1 == Trap.built  # the trap works


def _keep(value: Any) -> StoredValue:
    codec = Codec()
    return codec.keep(value, codec.encode(value), _LIMIT)


@pytest.mark.parametrize("value", ["text", b"bytes", 1, 1.5, True, None])
def test_immutable_values_are_kept_as_they_are(value: Any) -> None:
    """No work on a hit for the commonest values."""
    assert value is Codec().restore(_keep(value))
    assert not Codec.needs_encoding(value)


@pytest.mark.promise("C7")
def test_a_text_with_more_to_it_is_not_shared() -> None:
    """A subclass of text may have attributes, and what one caller does to them is not the next one's business."""

    class Text(str):
        note = ""

    text = Text("answer")
    kept = _keep(text)
    text.note = "changed"
    back = Codec().restore(kept)
    assert ("answer", "", Text) == (back, back.note, type(back))
    assert Colour.RED is Codec().restore(_keep(Colour.RED))


@pytest.mark.promise("C7")
@pytest.mark.parametrize(
    "value",
    [
        {"a": [1]},
        [[1]],
        ([1],),
        {1: [1]},
        {(1, 2)},
        Answer("a", (1, 2)),
        collections.OrderedDict(a=[1]),
        bytearray(b"a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_structures_are_handed_out_anew(value: Any) -> None:
    """A caller that changes what it got must not change what the others get, nor what is kept."""
    codec = Codec()
    assert Codec.needs_encoding(value)
    kept = _keep(value)
    first, second = codec.restore(kept), codec.restore(kept)
    assert value == first == second
    assert type(value) is type(first)
    assert len({id(value), id(first), id(second)}) == 3


@pytest.mark.promise("C7")
def test_later_changes_to_the_value_are_not_kept() -> None:
    """The first caller owns the value it computed, and may go on to change it, deep inside as well."""
    for value in ({"a": [1]}, {1: [1]}, {Colour.RED: [1]}):
        kept = _keep(value)
        next(iter(value.values())).append(2)
        assert [1] == next(iter(Codec().restore(kept).values()))


@pytest.mark.parametrize("make", [lambda: (x for x in "ab"), threading.Lock, lambda: [threading.Lock()]])
def test_what_can_be_had_only_once_is_not_kept(make: Any) -> None:
    """A stream or a connection handed to a second caller would be found exhausted or closed."""
    with pytest.raises(Uncopyable):
        Codec().keep(make(), None, _LIMIT)


class _Moody:
    """Copies once, and refuses ever after."""

    copies = 0

    def __deepcopy__(self, memo: Any) -> _Moody:
        if _Moody.copies:
            raise RuntimeError("not again")
        _Moody.copies += 1
        return self


def test_a_type_that_stops_cooperating_is_unreadable() -> None:
    """What a user's type raises on a hit must not reach the caller: the entry is as good as lost."""
    kept = Codec().keep(_Moody(), None, _LIMIT)
    with pytest.raises(Unreadable):
        Codec().restore(kept)


def test_sizes_are_about_what_the_values_take() -> None:
    """The bound in bytes is only as good as the sizes."""
    text = "x" * 100_000
    assert 100_000 <= _keep(text).size <= 101_000
    assert 100_000 <= _keep({"a": text}).size <= 101_000  # encoded
    assert 100_000 <= _keep({Colour.RED: {"deep": [text]}}).size <= 102_000  # as a copy, measured to its depths
    assert 100_000 <= _keep(Answer(text, (1, 2))).size <= 102_000
    assert 100_000 <= _keep((text, text)).size <= 102_000  # one text, held twice
    assert 100_000 <= Codec().keep("\x00" * 20_000, b"x" * 120_000, _LIMIT).size  # what goes to the store counts too


def test_measuring_stops_at_the_limit() -> None:
    """A value may hold half the process; it is enough to know that it is too large."""
    values = tuple(float(number) for number in range(100_000))
    gc_calls = 0
    original = gc.get_referents

    def counting(*objects: Any) -> list[Any]:
        nonlocal gc_calls
        gc_calls += 1
        return original(*objects)

    gc.get_referents = counting  # type: ignore[assignment]
    try:
        assert 1000 < Codec().keep({1: values}, None, 1000).size
    finally:
        gc.get_referents = original  # type: ignore[assignment]
    assert gc_calls < 100
