"""A wrong argument must be refused where it is given, by the name of the knob, and by one rule wherever it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from observability_integration import checks
from observability_integration.errors import ConfigurationError

SECRET = "sk-proj-4f9c2e7a1b8d4c6e9f0a3b5d7c8e1f2a"

Check = Callable[[str, Any], None]
RULES: dict[str, tuple[Check, str, list[Any], list[Any]]] = {
    # name: the check, its rule in words, what passes, what is out of range
    "positive": (checks.check_positive, "> 0", [1, 0.001, 1e300], [0, 0.0, -1, -0.5]),
    "at least 0": (partial(checks.check_at_least, minimum=0), ">= 0", [0, 0.0, 7], [-1, -0.001]),
    "at least 1": (partial(checks.check_at_least, minimum=1), ">= 1", [1, 1.5], [0.9, -2]),
    "from 0 to 9": (partial(checks.check_at_least, minimum=0, maximum=9), ">= 0 and <= 9", [0, 9, 8.5], [9.5, -1]),
    "share": (checks.check_share, ">= 0 and <= 1", [0, 1, 0.5], [-0.1, 1.01]),
    "share above 0": (partial(checks.check_share, above_zero=True), "> 0 and <= 1", [0.1, 1], [0, 2]),
    "share below 1": (partial(checks.check_share, below_one=True), ">= 0 and < 1", [0, 0.9], [1, 1.0, -1]),
    "share from 0.5": (partial(checks.check_share, minimum=0.5), ">= 0.5 and <= 1", [0.5, 1], [0.4, 1.1]),
    "finite": (checks.check_finite, "a finite number", [0, -5, 2.5], []),
    "cost": (checks.check_cost, ">= 0", [0, 0.002, 3], [-0.1]),
    "count": (checks.check_count, "an integer >= 1", [1, 2**70], [0, -1]),
    "count from 0": (partial(checks.check_count, minimum=0), "an integer >= 0", [0, 5], [-1]),
    "count to 3": (partial(checks.check_count, maximum=3), "an integer from 1 to 3", [1, 3], [0, 4]),
    "port": (checks.check_port, "an integer from 0 to 65535", [0, 9464, 65535], [-1, 65536]),
}
NOT_NUMBERS = [
    True,
    False,
    None,
    "1",
    b"1",
    [1.0],
    math.nan,
    math.inf,
    -math.inf,
    Decimal(1),
    Fraction(1),
    1j,
    object(),
]
OPTIONAL = ["positive", "at least 0", "share", "cost", "count"]


class _Retries(IntEnum):
    FEW = 1


class _Mode(StrEnum):
    FAST = "fast"


class _Hostile:
    """Whatever is asked of it fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __float__(self) -> float:
        raise RuntimeError("no float")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no class")


class _HostileType(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("no attributes")


class _OfHostileType(metaclass=_HostileType):
    pass


class _HostileNumber(float):
    def __gt__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __lt__ = __ge__ = __le__ = __float__ = __gt__  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def message(check: Callable[..., None], *args: Any, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize("rule", RULES)
def test_a_number_in_range_passes(rule: str) -> None:
    """The bounds are as the message says: a cost of 0 is free, not wrong."""
    check, _, good, _ = RULES[rule]
    for value in good:
        check("knob", value)


@pytest.mark.parametrize("rule", RULES)
def test_a_number_out_of_range_is_told_with_the_rule(rule: str) -> None:
    """Nothing else is wrong with it, so nothing else is said."""
    check, words, _, bad = RULES[rule]
    for value in bad:
        assert f"knob must be {words}, got {value!r}" == message(check, "knob", value)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_no_number_is_told_what_to_give(rule: str, value: Any) -> None:
    """NaN would mean "no limit", and True one second; the message begins as it does for a number, and goes on."""
    check, words, _, _ = RULES[rule]
    told = message(check, "knob", value)
    assert told.startswith(f"knob must be {words}, got ")
    assert told.endswith(")")
    assert "give " in told


def test_a_count_fits_a_float() -> None:
    """Metrics show it as one."""
    assert message(checks.check_count, "knob", 10**400).endswith("000... (give an int that fits a float)")


def test_a_count_is_no_float() -> None:
    """A limit of 2.5 calls means nothing, and a computed 3.0 may have been 2.9999."""
    assert "knob must be an integer >= 1, got 3.0 (a float; give an int)" == message(checks.check_count, "knob", 3.0)


@pytest.mark.parametrize("rule", RULES)
def test_subclasses_of_numbers_are_numbers(rule: str) -> None:
    """A member of an IntEnum is an int, and numpy's float64 a float: users compute with them."""
    check, words, _, _ = RULES[rule]
    if "below" not in rule:
        check("knob", _Retries.FEW)
    numpy = pytest.importorskip("numpy")
    if "integer" not in words:
        check("knob", numpy.float64(0.5) if "share" in rule else numpy.float64(1.5))


def test_other_numbers_of_numpy_are_told_what_to_give() -> None:
    """They are no numbers to Redis or JSON, where the call would fail later."""
    numpy = pytest.importorskip("numpy")
    assert message(checks.check_count, "knob", numpy.int64(3)).endswith("(an int64; give an int)")
    told = message(checks.check_positive, "wait_seconds", numpy.float32(3))
    assert told.endswith("(a float32; give seconds as an int or a float)")


@pytest.mark.parametrize("rule", OPTIONAL)
def test_none_passes_where_it_is_an_answer(rule: str) -> None:
    """And a wrong value is told of that choice."""
    check = RULES[rule][0]
    check("knob", None, optional=True)  # type: ignore[call-arg]
    assert message(check, "knob", "1", optional=True).endswith(", or None)")


@pytest.mark.parametrize(
    ("knob", "value", "hint"),
    [
        ("timeout_seconds", "30", "(a str; give seconds as a number)"),
        ("deadline seconds", True, "(a bool; give seconds as a number)"),
        ("min_ttl_ms", b"30", "(give milliseconds as a number)"),
        ("budget_usd", None, "(give USD as a number)"),
        ("factor", timedelta(seconds=1), "(give a number)"),
        ("timeout_seconds", Decimal(30), "(a Decimal; give seconds as an int or a float)"),
        ("timeout_seconds", math.inf, "(give seconds as a finite number)"),
        ("factor", math.nan, "(give a finite number)"),
        ("factor", 10**400, "(give a finite number)"),
    ],
)
def test_the_hint(knob: str, value: Any, hint: str) -> None:
    """Names the type, where it is not shown already, and what to give in the unit of the knob."""
    assert message(checks.check_positive, knob, value).endswith(hint)


def test_a_cost_is_in_usd() -> None:
    """Its older name does not say so."""
    assert "cost_per_call must be >= 0, got '1' (a str; give USD as a number)" == message(
        checks.check_cost, "cost_per_call", "1"
    )


def test_the_older_wording_is_the_beginning() -> None:
    """Callers of the older interface look for it."""
    assert "timeout_seconds must be > 0, got 0" == message(checks.check_positive, "timeout_seconds", 0)
    assert "timeout_seconds must be > 0, got '30' (a str; give seconds as a number)" == message(
        checks.check_positive, "timeout_seconds", "30"
    )


def test_an_order() -> None:
    """Two bounds in the wrong order are told by both names; without one of them there is no order."""
    for smaller, greater in ((1, 2), (2, 2), (None, 1), (3, None), (None, None)):
        checks.check_order("least", smaller, "most", greater)
    assert "least must not be greater than most, got 3 and 2.5" == message(checks.check_order, "least", 3, "most", 2.5)


def test_a_choice() -> None:
    """All that could have been meant is listed."""
    checks.check_choice("mode", "fast", ("fast", "slow"))
    checks.check_choice("mode", _Mode.FAST, ("fast", "slow"))
    assert "mode must be 'a', 'b' or 'c', got 'd'" == message(checks.check_choice, "mode", "d", ("a", "b", "c"))
    assert "mode must be 'a', got None" == message(checks.check_choice, "mode", None, ["a"])


def test_a_function() -> None:
    """Anything that can be called is one."""
    checks.check_callable("classifier", print)
    checks.check_callable("classifier", partial(print))
    checks.check_callable("classifier", None, optional=True)
    assert "classifier must be a function, got None" == message(checks.check_callable, "classifier", None)
    assert "classifier must be a function, got 'x'" == message(checks.check_callable, "classifier", "x", optional=True)


ALL: list[Check] = [
    *(check for check, _, _, _ in RULES.values()),
    partial(checks.check_choice, allowed=("a", "b")),
    checks.check_callable,
]


UNSHOWABLE: list[Any] = [
    SECRET,
    SECRET.encode(),
    {"Authorization": SECRET},
    [SECRET],
    f"{SECRET} " * 30_000,
    "\U0010ffff" * 20,
    type("K" * 1000, (), {})(),
    -(10**4000),
    -(10**5000),  # has no repr
]


@pytest.mark.parametrize("check", ALL)
def test_no_message_is_long_or_holds_a_secret(check: Check) -> None:
    """Arguments get mixed up, and errors go to logs that more people read than may read a key."""
    for value in UNSHOWABLE:
        told = message(check, "knob", value)
        assert "sk-" not in told
        assert len(told) < 250


def test_a_value_as_it_is_shown() -> None:
    """What helps to find the slip: numbers and short text as they are, else what it was and how much of it."""
    assert ["None", "1.5", "'30'"] == [checks.shown(value) for value in (None, 1.5, "30")]
    assert "a str of 100 characters" == checks.shown("x" * 100)
    assert ["a list", "an object"] == [checks.shown(value) for value in ([1], object())]
    assert f"{'1' * 40}..." == checks.shown(int("1" * 200))


@pytest.mark.parametrize("check", ALL)
def test_a_value_that_raises_is_refused_like_any_other(check: Check) -> None:
    """A mock, an array or a proxy may raise at anything that is asked of it, also when the message is written."""
    for value in (_Hostile(), object.__new__(_OfHostileType), _HostileNumber(-0.5)):
        if check is not checks.check_finite or type(value) is not _HostileNumber:
            assert message(check, "knob", value).startswith("knob must be ")


anything = st.one_of(
    st.from_type(object),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.lists(st.integers(), max_size=3),
    st.builds(_Hostile),
    st.builds(lambda: object.__new__(_OfHostileType)),
    st.builds(_HostileNumber, st.floats()),
    st.sampled_from([_Retries.FEW, 10**400, -(10**400), int]),
)
NUMERIC: dict[str, Callable[[Any], bool]] = {
    "positive": lambda number: number > 0,
    "at least 1": lambda number: number >= 1,
    "share": lambda number: 0 <= number <= 1,
    "share above 0": lambda number: 0 < number <= 1,
    "finite": lambda number: -math.inf < number < math.inf,
    "count": lambda number: number >= 1,
    "port": lambda number: 0 <= number <= 65535,
}


@pytest.mark.parametrize("rule", NUMERIC)
@example(10**400)
@example(-(10**5000))
@example(True)
@given(value=anything)
def test_anything_passes_as_a_number_in_range_or_is_refused_by_name(rule: str, value: Any) -> None:
    """No value may come through that the code behind would choke on, and none may raise anything else."""
    check, words, _, _ = RULES[rule]
    try:
        check("a_knob", value)
    except ConfigurationError as error:
        told = str(error)
        assert told.startswith(f"a_knob must be {words}, got ")
        assert len(told) < 250
    else:
        assert issubclass(type(value), int if "integer" in words else int | float)
        assert type(value) is not bool
        number = int.__int__(value) if issubclass(type(value), int) else float.__float__(value)
        assert NUMERIC[rule](number)
        assert math.isfinite(float(number))
