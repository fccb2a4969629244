"""A request's key must tell apart whatever may be answered differently, and must not tell apart what may not."""

from __future__ import annotations

import copy
import enum
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytestmark = pytest.mark.once

pydantic = pytest.importorskip("pydantic")  # comes with the SDKs

from observability_integration.caching.keys import KeySpace, canonical
from observability_integration.caching.request_key import (
    IGNORED_CHAT_FIELDS,
    IGNORED_FIELDS,
    IGNORED_HEADERS,
    request_key,
)
from observability_integration.errors import ConfigurationError

_KEYS = KeySpace("chat", "tenant")


def _digest(request: Any, **options: Any) -> bytes:
    return _KEYS.digest(request_key(request, **options))


def _chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}], **fields}


def _response(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": "What is the capital of France?", **fields}


_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.2},
        {"max_tokens": 5},
        {"seed": 7},
        {"tools": [_TOOL]},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"stop": ["\n"]},
        {"system": "Answer in French."},
        {"instructions": "Answer in French."},
        {"stream": True},
        {"stream_options": {"include_usage": True}},
        {"n": 2},
        {"logit_bias": {"1": 5}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"previous_response_id": "resp_1"},
        {"inference_geo": "eu"},
        {"extra_body": {"top_k": 3}},
        {"extra_query": {"api-version": "2"}},
        {"extra_headers": {"anthropic-beta": "context-1m"}},
        {"a_field_of_the_future": 1},
        {"temperature": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("request_of", [_chat, _response])
def test_whatever_may_change_the_answer_counts(request_of: Any, fields: dict[str, Any]) -> None:
    """A field that is forgotten, or not yet known, hands out the answer to another question."""
    assert _digest(request_of()) != _digest(request_of(**fields))


@pytest.mark.parametrize("name", IGNORED_FIELDS)
@pytest.mark.parametrize("request_of", [_chat, _response])
def test_what_cannot_change_the_answer_does_not_count(request_of: Any, name: str) -> None:
    """A user's id in every request would otherwise keep all from sharing anything."""
    assert _digest(request_of()) == _digest(request_of(**{name: "some value"}))


def test_the_table_of_what_does_not_count_is_closed() -> None:
    """One more entry by mistake would serve wrong answers, so each is written down a second time."""
    assert {
        "cache_control",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "timeout",
        "user",
    } == set(IGNORED_FIELDS)
    assert {"store"} == set(IGNORED_CHAT_FIELDS)
    assert {
        "baggage",
        "idempotency-key",
        "traceparent",
        "tracestate",
        "x-client-request-id",
        "x-request-id",
    } == set(IGNORED_HEADERS)
    assert all([*IGNORED_FIELDS.values(), *IGNORED_CHAT_FIELDS.values(), *IGNORED_HEADERS.values()])


def test_a_stored_response_can_be_referred_to_and_a_chat_cannot() -> None:
    """Who asks for a stored response goes on from its id, which one that was not stored does not have."""
    assert _digest(_chat()) == _digest(_chat(store=True))
    assert _digest(_response(store=True)) != _digest(_response(store=False))


def test_only_the_requests_of_models_have_fields_that_do_not_count() -> None:
    """In a request of the user's own, who asks or what it is about may be the question itself."""
    for request in ({"text": "Hi"}, {"messages": ["Hi"]}, {"input": "Hi"}, {"model": "m"}):
        for name in (*IGNORED_FIELDS, *IGNORED_CHAT_FIELDS):
            assert _digest(request) != _digest({**request, name: "some value"})
    headers = {"extra_headers": {"traceparent": "00-1"}}
    assert _digest({"text": "Hi", "extra_headers": {}}) != _digest({"text": "Hi", **headers})


def test_only_fields_at_the_top_do_not_count() -> None:
    """The same names further in, in the schema of a tool for instance, are part of the question."""
    first, second = ({"parameters": {"properties": {"user": {"type": kind}}}} for kind in ("string", "integer"))
    assert _digest(_chat(tools=[first])) != _digest(_chat(tools=[second]))


def test_headers_that_differ_with_every_call_do_not_count() -> None:
    """A wrapper that sends the trace along would never have a hit; who is asking, though, may get another answer."""
    trace = {"TraceParent": "00-1", "X-Request-ID": "1", "Idempotency-Key": "a"}
    assert _digest(_chat(extra_headers={"A": "1"})) == _digest(_chat(extra_headers={"A": "1", **trace}))
    assert _digest(_chat(extra_headers={"authorization": "a"})) != _digest(_chat(extra_headers={"authorization": "b"}))
    assert _digest(_chat(extra_headers=None)) == _digest(_chat(extra_headers=None))


def test_further_fields_can_be_left_out() -> None:
    """Only the user knows what the fields of their own are for."""
    assert _digest(_chat()) == _digest(_chat(trace_id="1", n=2), exclude=("trace_id", "n"))
    assert _digest({"text": "Hi"}) == _digest({"text": "Hi", "trace_id": "1"}, exclude={"trace_id", "absent"})
    with pytest.raises(ConfigurationError, match="exclude"):
        request_key(_chat(), exclude="n")


def test_a_request_is_not_changed() -> None:
    """It is sent after its key was made."""
    request = _chat(user="u", extra_headers={"traceparent": "00-1"}, tools=(_TOOL,))
    before = copy.deepcopy(request)
    request_key(request, exclude=["tools"])
    assert before == request


def test_what_is_sent_alike_has_one_key() -> None:
    """Mappings of any type, tuples for lists, fields in any order."""
    request = _chat(stop=["a", "b"], seed=1)
    same = MappingProxyType({"seed": 1, "stop": ("a", "b"), "messages": request["messages"], "model": "m"})
    assert _digest(request) == _digest(same)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_what_an_sdk_does_not_send_does_not_count(name: str) -> None:
    """Wrappers hand on the values by which an SDK knows that nothing was given."""
    sdk = pytest.importorskip(name)
    for absent in (sdk.NOT_GIVEN, sdk.omit):
        assert _digest(_chat()) == _digest(_chat(temperature=absent))


def test_a_text_is_a_request_too() -> None:
    """The first step of a chain often takes no more than that."""
    assert _digest("Hi") == _KEYS.digest("Hi")
    assert _digest(["Hi"]) == _digest(("Hi",)) != _digest("Hi")


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_objects_of_an_sdk_count_like_what_it_sends(sdk: str) -> None:
    """An answer goes back into the next request as it came; read back from a file it is a dict, and the same."""
    turn: Any
    if sdk == "openai":
        types = pytest.importorskip("openai.types.chat")
        turn = types.ChatCompletionMessage(role="assistant", content="Paris")
        plain: dict[str, Any] = {"content": "Paris", "role": "assistant"}
    else:
        types = pytest.importorskip("anthropic.types")
        turn = types.TextBlock(type="text", text="Paris", citations=None)
        plain = {"type": "text", "text": "Paris", "citations": None}
    assert _digest(_chat(messages=[turn])) == _digest(_chat(messages=[plain]))
    later = type(turn).model_construct(**plain, reasoning="Because.")
    assert _digest(_chat(messages=[later])) == _digest(_chat(messages=[{**plain, "reasoning": "Because."}]))


class _Model(pydantic.BaseModel):
    text: str
    temperature: float = 0.7


class _OtherModel(pydantic.BaseModel):
    text: str
    temperature: float = 0.7


class _Open(pydantic.BaseModel, extra="allow"):
    text: str


@dataclass
class _Data:
    text: str
    temperature: float = 0.7
    tags: list[str] = field(default_factory=list, compare=False)


class _Struct(msgspec.Struct):
    text: str
    temperature: float = 0.7


class _Tuple(NamedTuple):
    text: str
    temperature: float = 0.7


class _Color(enum.Enum):
    RED = 1
    BLUE = 2


class _Word(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize("kind", [_Model, _Open, _Data, _Struct, _Tuple])
def test_models_count_with_all_their_fields(kind: Any) -> None:
    """Also those with defaults: a default that changes with the next version of a program changes the answers."""
    wrapped = [{"messages": [kind(text="Hi", temperature=each)]} for each in (0.7, 0.8)]
    assert _digest(kind(text="Hi")) == _digest(kind(text="Hi"))
    assert _digest(kind(text="Hi")) != _digest(kind(text="Ho"))
    assert _digest(kind(text="Hi", temperature=0.7)) != _digest(kind(text="Hi", temperature=0.8))
    assert _digest(wrapped[0]) != _digest(wrapped[1])
    if kind is not _Open:
        assert _digest(kind(text="Hi")) == _digest(kind(text="Hi", temperature=0.7))
    assert _digest(kind(text="Hi"), exclude=["text"]) == _digest(kind(text="Ho"), exclude=["text"])


def test_models_of_two_classes_are_two_requests() -> None:
    """To summarize a text is not to translate it, even if both requests are called the same inside."""
    kinds: list[Any] = [_Model, _OtherModel, _Open, _Data, _Struct, _Tuple, dict]
    keys = {_digest(kind(text="Hi", temperature=0.7)) for kind in kinds}
    assert len(kinds) == len(keys)


def test_a_model_of_a_request_may_leave_out_what_does_not_count() -> None:
    """The table holds for requests that are objects, too."""

    @dataclass
    class Request:
        messages: list[Any]
        user: str
        model: str = "m"

    assert _digest(Request(["Hi"], "a")) == _digest(Request(["Hi"], "b")) != _digest(Request(["Ho"], "a"))


def test_a_model_that_lacks_a_field_has_a_key() -> None:
    """What was built without validation, as the SDKs do with answers, need not be whole."""
    assert _digest(_Model.model_construct(temperature=0.7)) != _digest(_Model(text="Hi"))


def test_what_a_model_hides_on_writing_is_not_taken_for_equal() -> None:
    """A secret is written as asterisks; two prompts that are secrets must not share an answer."""

    class Hiding(pydantic.BaseModel):
        prompt: pydantic.SecretStr

    with pytest.raises(TypeError, match=r"^request\.prompt has no canonical form.* not SecretStr$"):
        request_key(Hiding(prompt=pydantic.SecretStr("one")))


def test_a_class_as_response_format_counts_with_its_schema() -> None:
    """The SDKs send the schema; a class of the same name with another field is another question."""
    first = pydantic.create_model("Answer", city=(str, ...))
    same = pydantic.create_model("Answer", city=(str, ...))
    second = pydantic.create_model("Answer", city=(str, ...), country=(str, ...))
    named = pydantic.create_model("Reply", city=(str, ...))
    keys = [_digest(_chat(response_format=kind)) for kind in (first, same, second, named)]
    assert keys[0] == keys[1]
    assert 3 == len(set(keys))

    class Strange(pydantic.BaseModel, arbitrary_types_allowed=True):
        inner: SimpleNamespace

    with pytest.raises(TypeError, match=r"^request\.response_format is a class without a schema$") as caught:
        request_key(_chat(response_format=Strange))
    assert caught.value.__suppress_context__


def test_values_that_a_model_may_hold_have_a_form() -> None:
    """Each is itself and nothing else: a date is not its text, an enum not its value unless it is sent as that."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    values: list[Any] = [
        *(moment, str(moment), moment.replace(tzinfo=None), moment.date(), str(moment.date()), date(2026, 1, 2)),
        *(timedelta(1), timedelta(2), Decimal(1), Decimal("1.0"), 1, 1.0, True, "1", b"1"),
        *(UUID(int=1), UUID(int=2), str(UUID(int=1)), _Color.RED, _Color.BLUE),
        *({1, 2}, frozenset({1}), [1, 2], [], {}, None, ["enum", "x"], {"object": "x"}),
        *(("schema", "x", {}), ["schema", "x"], float("nan"), float("inf"), ""),
    ]
    assert len(values) == len({_digest({"x": value}) for value in values})
    assert _digest({"x": _Word.RED}) == _digest({"x": "red"})
    assert _digest({"x": {1, 2}}) == _digest({"x": frozenset({2, 1})})


class _Odd:
    def __repr__(self) -> str:
        return "secret text"


def _chunks() -> Iterator[str]:
    yield "secret text"


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (_chat(messages=[{"role": "user", "content": [{"image": _Odd()}]}]), "request.messages[0].content[0].image"),
        (_chat(messages=_chunks()), "request.messages"),
        (_chat(seed={"secret text": _Odd()}), "request.seed[…]"),
        (_chat(seed={"secret_text" * 6: _Odd()}), "request.seed[…]"),
        (_chat(seed={b"secret text": _Odd()}), "request.seed[…]"),
        (_chat(seed={("secret", "text"): 1}), "request.seed"),
        (_chat(seed={("secret", "text")}), "request.seed"),
        (_chat(seed=_Odd), "request.seed"),
        (_chat(seed=lambda: "secret text"), "request.seed"),
        (_Data(text="secret text", tags=_Odd()), "request.tags"),  # type: ignore[arg-type]
        (_Odd(), "request"),
    ],
)
def test_what_has_no_form_is_refused_by_the_name_of_its_field(request_: Any, path: str) -> None:
    """The one who wrote the request must find it; the one who reads the logs must not read the prompt."""
    with pytest.raises(TypeError, match=f"^{re.escape(path)} (has|is) ") as caught:
        request_key(request_)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_has_no_end_is_refused() -> None:
    """A structure that contains itself must not take the process down."""
    endless: dict[str, Any] = {}
    endless["messages"] = [endless]
    with pytest.raises(TypeError, match="contain itself") as caught:
        request_key(endless)
    assert caught.value.__suppress_context__


_texts = st.text(max_size=8)
_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), _texts, st.binary(max_size=4))
_names = st.one_of(st.sampled_from(["role", "content", "type", "user", "metadata", "timeout", "store"]), _texts)
_structures = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(_names, inner, max_size=3),
        st.builds(_Data, text=_texts, temperature=st.floats(allow_nan=False), tags=st.lists(_texts, max_size=2)),
    ),
    max_leaves=8,
)
_messages = st.lists(st.fixed_dictionaries({"role": _texts, "content": _structures}), max_size=3)
_fields = st.dictionaries(_names, _structures, max_size=4)
_requests = st.one_of(
    st.builds(lambda fields, messages: {**fields, "model": "m", "messages": messages}, _fields, _messages),
    st.builds(lambda fields, text: {**fields, "model": "m", "input": text}, _fields, _structures),
    _fields,
)


def _exact(value: Any) -> Any:
    # Equal only if equal type by type, as JSON and the classes would have it.
    if isinstance(value, Mapping):
        return ("mapping", frozenset((_exact(name), _exact(item)) for name, item in value.items()))
    if isinstance(value, _Data):
        return ("data", _exact(vars(value)))
    if isinstance(value, list):
        return ("list", tuple(map(_exact, value)))
    return (type(value).__name__, value.hex() if isinstance(value, float) else value)


def _counting(request: dict[str, Any]) -> dict[str, Any]:
    if "model" not in request or not ({"messages", "input"} & set(request)):
        return request
    gone = {*IGNORED_FIELDS, *(IGNORED_CHAT_FIELDS if "messages" in request else ())}
    return {name: value for name, value in request.items() if name not in gone}


def _shuffled(value: Any, source: random.Random) -> Any:
    if isinstance(value, dict):
        pairs = [(name, _shuffled(item, source)) for name, item in value.items()]
        return dict(source.sample(pairs, len(pairs)))
    return [_shuffled(item, source) for item in value] if isinstance(value, list) else value


@given(request=_requests, source=st.randoms(use_true_random=False))
def test_no_order_of_fields_makes_another_request(request: dict[str, Any], source: random.Random) -> None:
    """At no depth: two services rarely write their fields in the same order."""
    assert _digest(request) == _digest(_shuffled(request, source))


@given(first=_requests, second=_requests)
@example(first={"x": True}, second={"x": 1})
@example(first={"x": 0.0}, second={"x": -0.0})
@example(first={"x": ["a", "b"]}, second={"x": ["ab"]})
@example(first={"x": _Data("a", 1.0)}, second={"x": {"text": "a", "temperature": 1.0, "tags": []}})
def test_two_requests_share_a_key_only_if_they_are_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    """The encoding under the hash is compared, so that no hash can hide what it confuses."""
    equal = _exact(_counting(first)) == _exact(_counting(second))
    assert equal == (canonical(request_key(first)) == canonical(request_key(second)))


@given(request=_requests, data=st.data())
def test_one_change_anywhere_makes_another_request(request: dict[str, Any], data: st.DataObject) -> None:
    """Requests made one from another are the ones that differ least, and that chance would hardly ever make."""
    changed = copy.deepcopy(request)
    name = data.draw(st.sampled_from(sorted(changed)) if changed else st.just("x"))
    changed[name] = data.draw(_structures)
    changed[data.draw(_names)] = data.draw(_structures)
    equal = _exact(_counting(request)) == _exact(_counting(changed))
    assert equal == (_digest(request) == _digest(changed))


@given(request=_requests, prompt=st.text(alphabet="~^°§", min_size=5, max_size=20))
def test_no_error_tells_what_was_asked(request: dict[str, Any], prompt: str) -> None:
    """Wherever in a request the prompt stands, beside what has no form."""
    with pytest.raises(TypeError) as caught:
        request_key({**request, "messages": [{"content": prompt, prompt: {prompt: prompt, "odd": [prompt, _Odd()]}}]})
    assert prompt not in str(caught.value)
    assert ".messages[0][…].odd[1] " in str(caught.value)
