"""The baggage header as the standard writes it, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.propagation import continue_from, incoming, outgoing_headers
from observability_integration.propagation.baggage import (
    MAX_BYTES,
    MAX_MEMBERS,
    Member,
    format_header,
    members_from_values,
    parse_header,
)

pytestmark = [pytest.mark.once, pytest.mark.promise("W2", "W3")]

_KEYS = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12)
_VALUES = st.text(st.characters(codec="utf-8"), max_size=40)


@given(st.dictionaries(_KEYS, _VALUES, max_size=20))
def test_what_is_written_is_read_again(values: dict[str, str]) -> None:
    """Any key of the standard and any text at all: quotes, commas, line ends, spaces at the ends, other scripts."""
    text, whole = format_header(members_from_values(values, {}).items())
    members, sound = parse_header([text])
    assert whole
    assert sound
    assert values == {key: member.value for key, member in members.items()}
    assert text.isascii()
    assert not set(text) & set(' "\\\r\n\t')


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    """The header comes from outside: nothing in it may raise, and what was understood must be writable again."""
    members, _ = parse_header([text])
    written, whole = format_header(members.items())
    assert whole
    assert members == parse_header([written])[0]


@pytest.mark.parametrize(
    ("header", "expected", "sound"),
    [
        (
            "userId=alice,serverNode=DF%2028,isProduction=false",
            "userId=alice|serverNode=DF 28|isProduction=false",
            True,
        ),
        ("a = 1 ,\tb=2\t, c =3", "a=1|b=2|c=3", True),
        ("a=1;p1;p2=x , b=2 ; hint = 3", "a=1;p1;p2=x|b=2;hint = 3", True),
        ("a=x=y==", "a=x=y==", True),
        ("a=a+b", "a=a+b", True),
        ("a=", "a=", True),
        ("a=1,a=2", "a=2", True),
        ("", "", True),
        (",, ,a=1,", "a=1", True),
        ("a=%ff%41%zz", "a=\ufffdA%zz", True),
        ("a%20b=1", "a%20b=1", True),
        ("a=1;bad property;", "a=1", False),
        ("no equals,a=1", "a=1", False),
        ("=1,a=1", "a=1", False),
        ('a="1",b=2', "b=2", False),
        ("ключ=1,b=ü,c=3", "c=3", False),
        ("a b=1,c=2", "c=2", False),
        ("a=1 2,c=2", "c=2", False),
        ("a=1\r\nSet-Cookie: x,c=2", "c=2", False),
    ],
)
def test_members_of_a_header(header: str, expected: str, sound: bool) -> None:
    """A member that is not as the standard has it is left out; its neighbours are not."""
    members, whole = parse_header([header])
    assert expected == "|".join(f"{key}={member.value}{member.properties}" for key, member in members.items())
    assert sound == whole


def test_several_headers_are_one_list() -> None:
    """A proxy may split the header, or join what came apart."""
    assert {"a": Member("1"), "b": Member("2")} == parse_header(["a=1", "b=2"])[0]


def test_a_header_beyond_the_limits_loses_whole_members() -> None:
    """Half a member would be another value: an id that is cut is the id of somebody else."""
    many = ",".join(f"k{number}=v" for number in range(MAX_MEMBERS + 1))
    members, whole = parse_header([many])
    assert not whole
    assert [f"k{number}" for number in range(MAX_MEMBERS)] == list(members)
    assert "v" == parse_header([f"{many},k0=w"])[0]["k1"].value
    long = ["a=" + "x" * 4000, "b=" + "y" * 4000, "c=" + "z" * 4000]
    assert ["a", "b"] == list(parse_header(long)[0])
    exact = "a=" + "x" * (MAX_BYTES - 6)
    assert ["a", "b"] == list(parse_header([f"{exact},b=1"])[0])
    assert ["a"] == list(parse_header([f"{exact},b=12"])[0])


def test_what_has_no_room_is_not_written() -> None:
    """Exactly 64 members and 8,192 bytes go out; one that is too long leaves its room to smaller ones."""
    text, whole = format_header((f"k{number}", Member("v")) for number in range(MAX_MEMBERS + 1))
    assert not whole
    assert MAX_MEMBERS == text.count("=")
    text, whole = format_header([("a", Member("x" * (MAX_BYTES - 6))), ("b", Member("1"))])
    assert (MAX_BYTES, True) == (len(text), whole)
    text, whole = format_header([("a", Member("x" * (MAX_BYTES - 6))), ("b", Member("12")), ("c", Member("1"))])
    assert (MAX_BYTES, False) == (len(text), whole)
    assert text.endswith(",c=1")


def test_keys_that_are_no_tokens_and_values_that_are_no_text_stay_here() -> None:
    """They would be read as something else, or not at all."""
    values = {"": "1", "a b": "1", "ключ": "1", "a,b": "1", "ok": "1", "n": 7, "t": True, "none": None, "o": object()}
    text, whole = format_header(members_from_values(values, {}).items())
    assert ("ok=1,n=7,t=True", False) == (text, whole)
    assert ("a=%3F", True) == format_header(members_from_values({"a": "\ud800"}, {}).items())
    assert ("", False) == format_header([(1, Member("1"))])


@pytest.mark.needs_otel
def test_opentelemetry_reads_what_we_write() -> None:
    """Other services read the header with its propagator, which takes a plus for a space."""
    from opentelemetry import baggage
    from opentelemetry.baggage import propagation

    values = {"a": 'x + y = ü, ;"%', "b": "", "c": " z "}
    text, _ = format_header(members_from_values(values, {}).items())
    context = propagation.W3CBaggagePropagator().extract({"baggage": text})
    assert {"a": 'x + y = ü, ;"%', "b": "", "c": "z"} == dict(baggage.get_all(context))


def test_properties_are_passed_on_until_the_value_changes(way: str) -> None:
    """They were said of that value by somebody further out, and mean nothing to us."""
    with continue_from({"baggage": "a=1;hint=x, b=2;p"}) as arrived:
        assert {"a": "1", "b": "2"} == arrived.baggage
        context = arrived.context()
        context.baggage["b"] = "3"
        assert {"baggage": "a=1;hint=x,b=3"} == outgoing_headers(context)
    assert incoming({"baggage": "a=1"}).baggage == incoming([(b"Baggage", b"a=1")]).baggage
