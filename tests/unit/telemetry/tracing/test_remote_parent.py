"""The parent in another process, as W3C trace context writes it."""

from __future__ import annotations

import pytest

from observability_integration.telemetry.tracing.remote_parent import RemoteParent, read

pytestmark = pytest.mark.once

_TRACE, _SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_SOUND = f"00-{_TRACE}-{_SPAN}-01"


def test_a_parent_is_passed_on_unchanged() -> None:
    """Who only passes a trace on has no right to change it."""
    parent, sound = read([_SOUND], ["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", " tenant@vendor=x "])
    assert sound
    assert parent is not None
    state = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,tenant@vendor=x"
    assert {"traceparent": _SOUND, "tracestate": state} == parent.headers()
    unknown = f"00-{_TRACE}-{_SPAN}-ff"
    other, _ = read([unknown], [])
    assert other is not None
    assert ({"traceparent": unknown}, 3) == (other.headers(), other.known_flags)


def test_a_version_to_come_is_read_as_this_one() -> None:
    """The standard asks for it; what it may mean by its other flags and fields is not passed on under our version."""
    for later in (f"01-{_TRACE}-{_SPAN}-09", f"cc-{_TRACE}-{_SPAN}-09-what-comes.later"):
        parent, sound = read([later], [])
        assert sound
        assert RemoteParent(int(_TRACE, 16), int(_SPAN, 16), 1) == parent


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"ff-{_TRACE}-{_SPAN}-01",
        f"00-{'0' * 32}-{_SPAN}-01",
        f"00-{_TRACE}-{'0' * 16}-01",
        f"00-{_TRACE}-{_SPAN}-01-more",
        f"00-{_TRACE.upper()}-{_SPAN}-01",
        f"00-{_TRACE}-{_SPAN}-1",
        f"00-{_TRACE}-{_SPAN}-01\n",
        f"00-{_TRACE}-{_SPAN[:-1]}١-01",
        f"01-{_TRACE}-{_SPAN}-01more",
        f"01-{_TRACE}-{_SPAN}-01-{'x' * 1000}",
    ],
)
def test_a_malformed_parent_is_none(header: str) -> None:
    """A new trace is better than one that nobody else can find."""
    assert (None, False) == read([header], ["a=1"])


def test_two_parents_are_none_and_no_parent_is_no_fault() -> None:
    """A span has one parent; a request that nobody traces is the usual case."""
    assert (None, False) == read([_SOUND, _SOUND], [])
    assert (None, True) == read([], ["a=1"])


@pytest.mark.parametrize(
    "state",
    ["a", "a=", "A=1", "1a=1", "a=1,a=2", "a=\x07", "a=ü", "a=" + "x" * 257, ",".join(f"k{n}=1" for n in range(33))],
)
def test_a_malformed_state_does_not_cost_the_parent(state: str) -> None:
    """The standard says so; the whole state goes, because half of it may mislead the system that wrote it."""
    parent, sound = read([_SOUND], [state])
    assert not sound
    assert {"traceparent": _SOUND} == (parent.headers() if parent else None)


def test_a_state_at_its_limits_is_kept() -> None:
    """Empty members are allowed, 256 characters are, and 32 members; the sum of all is bounded too."""
    for state in ("b=1,,", f"c={'x' * 256}", ",".join(f"k{n}=1" for n in range(32))):
        parent, sound = read([_SOUND], [state])
        assert sound
        assert {"tracestate": state.rstrip(",")}.items() <= (parent.headers() if parent else {}).items()
    assert not read([_SOUND], ["a=1" + "," * 8192])[1]
