"""A cache key decides whose answer a caller gets, so different inputs must never meet in one, and equal ones always."""

from __future__ import annotations

import copy
import enum
import pickle
import re
import struct
import subprocess
import sys
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from observability_integration.caching.keys import (
    GLOBAL,
    WIRE_VERSION,
    GlobalScope,
    KeySpace,
    canonical,
    is_blank,
    scope_in_key,
)
from observability_integration.errors import ConfigurationError

pytestmark = pytest.mark.once

Scope = str | GlobalScope

# Values that look alike to some encoding: as text, as JSON, as a tag of ours, as the other half of a surrogate pair.
_SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -1, 16, 10**400, 10**400 + 1),
    *(0.0, -0.0, 1.0, 16.0, float("nan"), float("inf"), float("-inf"), 5e-324),
    *("", "0", "1", "a", "b", "A", "None", "null", "true", "nan", '"', "\\", "\n", "\x00", "é", "e\u0301"),
    *("\U0001f600", "\ud83d\ude00", "\ud83d", "\ude00", "\\ud83d", "a b", "a_b", "i", "m", "t", "s", "f"),
    *(b"", b"0", b"a", b"\xff", b"null"),
]
_LOOKALIKES: list[Any] = [
    *(10**5000, 10**5000 + 1, -(10**5000)),  # too long for Python to write in base 10
    *({"i": "1"}, {"f": "0x1.0000000000000p+0"}, {"b": "61"}, {"m": []}, {"t": []}, {"s": []}, '{"i":"1"}', '["a"]'),
    *([], (), {}, frozenset(), ["a"], ("a",), {"a"}, {"a": "a"}, [["a"]], [["a", "a"]], {"a": None}, ["a", None]),
    *([1, 2], [[1], 2], [1, [2]], [12], (1, 2), ((1, 2),), {"1": 2}, {1: 2}, {True: 2}, {1.0: 2}, {b"1": 2}),
]

_scalars = st.one_of(
    st.sampled_from(_SCALARS),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
)
_hashable = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
_structures = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_hashable, inner, max_size=4),
        st.frozensets(_hashable, max_size=4),
    ),
    max_leaves=12,
)
_names = st.one_of(
    st.sampled_from(
        ["", "a", "a:", "a:v1", "a:v1:", ":", "*", "a*", "?", "[a]", "\\", "\ud83d", "\\ud83d", "\U0001f600"]
    ),
    st.text(max_size=20),
)
_scopes = st.one_of(st.just(GLOBAL), _names.filter(lambda name: not is_blank(name)))
_keys = _structures.filter(lambda key: key is not None)
_scalar_keys = _scalars.filter(lambda key: key is not None)


def _identical(first: Any, second: Any) -> bool:
    """Equality that a cache may rely on: type by type, bit by bit, whatever the order of mappings and sets."""
    if type(first) is not type(second):
        return False
    if isinstance(first, float):
        both_nan = first != first and second != second
        return both_nan or struct.pack("d", first) == struct.pack("d", second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_identical, first, second))
    if isinstance(first, dict):
        return _identical_members(list(first.items()), list(second.items()))
    if isinstance(first, frozenset | set):
        return _identical_members(list(first), list(second))
    return bool(first == second)


def _identical_members(first: list[Any], second: list[Any]) -> bool:
    left = list(second)
    for member in first:
        for candidate in left:
            if _identical(member, candidate):
                left.remove(candidate)
                break
        else:
            return False
    return not left


def _reversed(value: Any) -> Any:
    """The same structure with every mapping and set built in the opposite order."""
    if isinstance(value, list | tuple):
        return type(value)(map(_reversed, value))
    if isinstance(value, dict):
        return {_reversed(key): _reversed(value[key]) for key in reversed(value)}
    if isinstance(value, frozenset):
        return frozenset(map(_reversed, reversed(list(value))))
    return value


def _holds_nan_as_member(value: Any) -> bool:
    return "nan" in repr(value)


@pytest.mark.promise("C3")
@given(first=_keys, second=_keys)
def test_only_identical_keys_share_a_digest(first: Any, second: Any) -> None:
    """Two prompts that met in one key would get each other's answer."""
    keys = KeySpace("operation", GLOBAL)
    assert _identical(first, second) == (keys.digest(first) == keys.digest(second))


@pytest.mark.promise("C3")
@given(value=_structures, position=st.integers(0, 10), other=_scalars)
def test_a_change_anywhere_changes_the_digest(value: Any, position: int, other: Any) -> None:
    """A field that shapes the answer shapes the key, however deep it lies."""
    structure = [value] * (position + 1)
    changed = [*structure[:position], other]
    assume(not _identical(value, other))
    keys = KeySpace("operation", GLOBAL)
    assert keys.digest(structure) != keys.digest(changed)


@pytest.mark.promise("C3")
def test_values_that_look_alike_are_told_apart() -> None:
    """What JSON, text or a tag of ours would confuse: 1 and True, "a" and b"a", a list and a tuple, surrogates."""
    keys = KeySpace("operation", GLOBAL)
    values = [*_SCALARS, *_LOOKALIKES]
    digests: dict[bytes, Any] = {}
    for value in [value for value in values if value is not None] + [[value] for value in values]:
        clash = digests.setdefault(keys.digest(value), value)
        assert _identical(clash, value), "two values share a key"


@given(_keys)
def test_the_order_of_mappings_and_sets_does_not_matter(value: Any) -> None:
    """The same request, built in another order, is the same request."""
    assume(not _holds_nan_as_member(value))  # two NaN are two keys of a mapping, which nothing can put in order
    keys = KeySpace("operation", GLOBAL)
    assert keys.digest(value) == keys.digest(_reversed(value))


def test_equal_values_of_other_types_share_a_key() -> None:
    """A read-only mapping, a set and an enum that is a text are the values they stand for."""

    class Model(enum.StrEnum):
        SMALL = "small"

    class Level(enum.IntEnum):
        LOW = 1

    keys = KeySpace("operation", GLOBAL)
    assert keys.digest({"model": "small"}) == keys.digest(MappingProxyType({"model": Model.SMALL}))
    assert keys.digest(frozenset({"a", "b"})) == keys.digest({"b", "a"})
    assert keys.digest([1]) == keys.digest([Level.LOW])
    assert keys.digest("small") == keys.digest(Model.SMALL)


@pytest.mark.promise("C3")
@given(operation=_names, scope=_scopes, other_operation=_names, other_scope=_scopes, key=_keys)
def test_operations_and_scopes_never_share(
    operation: str, scope: Scope, other_operation: str, other_scope: Scope, key: Any
) -> None:
    """One tenant's answers must not be another's, whatever the tenants and operations are called."""
    first, second = KeySpace(operation, scope), KeySpace(other_operation, other_scope)
    same = (operation, scope) == (other_operation, other_scope)
    assert same == (first.place(first.digest(key)).key == second.place(second.digest(key)).key)
    assert same == (first.digest(key) == second.digest(key))


@given(operation=_names, other=_names)
def test_no_key_of_another_operation_begins_with_the_prefix(operation: str, other: str) -> None:
    """`clear` deletes by prefix: "chat" must not take "chat:v1" with it."""
    assume(operation != other)
    prefix = KeySpace(operation, GLOBAL).prefix
    keys = KeySpace(other, "tenant")
    assert not keys.place(keys.digest("key")).key.startswith(prefix)


def test_the_prefix_of_the_older_layout_is_kept() -> None:
    """People look for entries under cache:{operation}: in redis-cli; all scopes of an operation are cleared at once."""
    keys, of_tenant = KeySpace("answers", GLOBAL), KeySpace("answers", "tenant")
    assert keys.place(keys.digest("key")).key.startswith("cache:answers:")
    assert keys.prefix == of_tenant.prefix


@pytest.mark.promise("C3")
@given(prompt=st.text("ghijklmnopqrstuvwxyz", min_size=4), scope=st.text("ghijklmnopqrstuvwxyz", min_size=4))
def test_no_text_can_be_read_from_a_key(prompt: str, scope: str) -> None:
    """Keys are seen by whoever may list Redis; prompts and tenants are not theirs to read."""
    keys = KeySpace("operation", scope)
    hashed = keys.place(keys.digest(prompt)).key.removeprefix("cache:operation:v3:")
    assert set(hashed) <= set("0123456789abcdef:{}")
    assert set(keys.tag(prompt)) <= set("0123456789abcdef")


_SETS = """
from observability_integration.caching.keys import KeySpace
keys = KeySpace("operation", "tenant")
print(keys.place(keys.digest({"model": "small", "stop": {"one", "two", "three"}, "n": 1, "t": 0.5, "raw": b"x"})).key)
print(keys.tag("a tag"))
"""


def test_processes_agree_and_the_format_is_pinned() -> None:
    """Replicas share entries only if they make the same key; a change of the format must change WIRE_VERSION too."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _SETS],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert {
        "cache:operation:v3:{d6b47ea1d568}:a532e70193d78b39607831ae59f7aff3778e9c4c089d5470c97f6f5affb96b8b",
        "8496e68c55d7d61dbdb7",
    } == {line for output in outputs for line in output.splitlines()}
    assert 1 == len(outputs)


def _containing_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        [object()],
        {"a": object()},
        {object(): "a"},
        bytearray(b"a"),
        1j,
        _containing_itself(),
        _nested(100_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    """The text of an object holds an address: a key made of it is never found again, or worse, found by another."""
    with pytest.raises(TypeError, match="a cache key"):
        canonical(value)


def test_a_refusal_does_not_quote_the_value() -> None:
    """The value is a prompt, and errors are logged."""

    class Secret:
        def __repr__(self) -> str:
            return "the prompt"

    with pytest.raises(TypeError) as caught:
        canonical([Secret()])
    assert "the prompt" not in str(caught.value)


@pytest.mark.promise("C3")
@given(
    first=st.tuples(_names, _scopes, _names),
    second=st.tuples(_names, _scopes, _names),
    key=_scalar_keys,
    other_key=_scalar_keys,
)
def test_spaces_share_only_if_all_of_their_names_are_equal(
    first: tuple[str, Scope, str], second: tuple[str, Scope, str], key: Any, other_key: Any
) -> None:
    """Operation, scope and namespace: two tenants, or two applications on one Redis, never meet."""
    one, other = KeySpace(*first), KeySpace(*second)
    if first == second:
        assert one.place(one.digest(key)) == other.place(other.digest(key))
    else:
        assert one.digest(key) != other.digest(other_key)
        assert one.place(one.digest(key)).key != other.place(other.digest(other_key)).key


@given(scope=_scopes, other=_scopes, key=_structures, other_key=_structures)
def test_a_scope_within_the_key_does_not_share_either(scope: Scope, other: Scope, key: Any, other_key: Any) -> None:
    """As a function for the scope has it: the pair of scope and key is the key."""
    assume(scope != other)
    keys = KeySpace("operation", GLOBAL)
    assert keys.digest((scope_in_key(scope), key)) != keys.digest((scope_in_key(other), other_key))


_HASH_TAG = re.compile(r"\{([^}]*)\}")  # as a Redis Cluster finds it: from the first brace to the next closing one


@pytest.mark.promise("C3")
@given(
    operation=st.one_of(_names, st.text("{}ab:", max_size=8), st.sampled_from(["{", "}", "a{b}c", "{}", "}{", "é{"])),
    scopes=st.tuples(_scopes, _scopes),
    key=_scalar_keys,
)
def test_all_keys_of_an_operation_are_in_one_slot(operation: str, scopes: tuple[Any, Any], key: Any) -> None:
    """A script reaches keys of one slot only; a brace in the operation's name must not choose another."""
    one, other = (KeySpace(operation, scope) for scope in scopes)
    assert one.prefix == other.prefix
    found = _HASH_TAG.search(one.place(one.digest(key)).key)
    assert found is not None
    assert one.prefix.endswith(f"{{{found[1]}}}:")
    assert re.fullmatch("[0-9a-f]{12}", found[1])
    assert 1 == one.prefix.count("{") == one.prefix.count("}")
    one.prefix.encode("utf-8")  # whatever the name, it can be sent


@given(tag=st.text(), other=st.text(), operation=_names, other_operation=_names)
def test_tags_are_hashed_and_belong_to_an_operation(tag: str, other: str, operation: str, other_operation: str) -> None:
    """They stand in Redis and in messages; they reach all scopes of an operation, and no other operation."""
    first, second = KeySpace(operation, GLOBAL), KeySpace(other_operation, "tenant")
    assert ((tag, operation) == (other, other_operation)) == (first.tag(tag) == second.tag(other))
    assert first.tag(tag) != KeySpace(operation, GLOBAL, "namespace").tag(tag)
    assert first.tag(tag) not in (first.digest(tag).hex(), first.prefix)


@pytest.mark.parametrize("tag", [5, b"tag", None, ["tag"]])
def test_a_tag_that_is_no_text_is_refused(tag: Any) -> None:
    """It would name something else than whoever invalidates it thinks."""
    with pytest.raises(TypeError, match="a tag must be text"):
        KeySpace("operation", GLOBAL).tag(tag)


@pytest.mark.parametrize("namespace", [5, None, b"app"])
def test_a_namespace_that_is_no_text_is_refused(namespace: Any) -> None:
    """As for scopes."""
    with pytest.raises(ConfigurationError, match="namespace"):
        KeySpace("operation", GLOBAL, namespace)


@pytest.mark.promise("C13")
@pytest.mark.parametrize("scope", [None, "", " ", "\n\t", "\u00a0", 5, b"a", False, ["a"], object()], ids=repr)
def test_a_scope_that_names_no_owner_is_refused(scope: Any) -> None:
    """A forgotten one would share the answers of all callers; the error says what to write."""
    with pytest.raises(ConfigurationError, match=r"scope must be text or GLOBAL, got .*tenant's id, or scope=GLOBAL"):
        KeySpace("operation", scope)


def test_a_key_of_none_is_refused() -> None:
    """A key that is missing would be one key for all."""
    with pytest.raises(TypeError, match="must not be None"):
        KeySpace("operation", GLOBAL).digest(None)


def test_the_global_scope_is_one_object_wherever_it_goes() -> None:
    """It is compared by identity, and options are copied and sent to other processes."""
    for came in (pickle.loads(pickle.dumps(GLOBAL)), copy.copy(GLOBAL), copy.deepcopy([GLOBAL])[0]):
        assert came is GLOBAL
    assert ("GLOBAL", "GLOBAL") == (repr(GLOBAL), str(GLOBAL))
    assert GLOBAL is GlobalScope.GLOBAL
    assert KeySpace("operation", GLOBAL).digest("key") != KeySpace("operation", "GLOBAL").digest("key")


def test_the_keys_of_the_global_scope_are_pinned() -> None:
    """The entries that stand in Redis stay valid, with a fixed scope and with a function for it."""
    assert scope_in_key(GLOBAL) is None
    identity = blake2b(canonical([WIRE_VERSION, "operation", None, ""]), digest_size=32).digest()
    assert blake2b(b"s" + identity + b"key", digest_size=32).digest() == KeySpace("operation", GLOBAL).digest("key")
